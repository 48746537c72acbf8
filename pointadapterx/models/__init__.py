"""Backbones, their parts, and the adapted model."""

from pointadapterx.models import point_mae, vit
from pointadapterx.models.backbone import BACKBONES, Backbone

__all__ = ["BACKBONES", "Backbone", "point_mae", "vit"]
