"""The version of the package, for itself and for its installation."""

__version__ = "0.1.0"
