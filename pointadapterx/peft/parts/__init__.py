"""Modules that several methods share: bottlenecks, mixtures, routing."""
