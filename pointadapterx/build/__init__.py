"""The whole wiring in two files: config -> model, config -> data."""

from pointadapterx.build.data import (
    Splits,
    build_probe_data,
    build_splits,
    build_test_split,
    cut_splits,
)
from pointadapterx.build.models import (
    adapt_backbone,
    build_backbone,
    build_method,
    build_model,
    build_restored,
    build_trained,
    model_config,
    require_shapes,
    restore_model,
    seeded,
)

__all__ = [
    "Splits",
    "adapt_backbone",
    "build_backbone",
    "build_method",
    "build_model",
    "build_probe_data",
    "build_restored",
    "build_splits",
    "build_test_split",
    "build_trained",
    "cut_splits",
    "model_config",
    "require_shapes",
    "restore_model",
    "seeded",
]
