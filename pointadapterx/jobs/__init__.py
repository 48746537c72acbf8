"""Whole jobs: adaptation, pre-training, probe, search. Each leaves a folder that tells its own story."""
