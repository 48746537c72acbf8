"""Measurements that the documentation's figures come from: ``python -m benchmarks train``."""

from pointadapterx.process_tuning import limit_spinning

limit_spinning()  # as the commands do, before torch is imported
