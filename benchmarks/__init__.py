"""Measurements that the documentation's figures come from: ``python -m benchmarks train``."""
