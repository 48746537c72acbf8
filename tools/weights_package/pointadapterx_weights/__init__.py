"""Weights that PointAdapterX finds by name; there is no code here."""
