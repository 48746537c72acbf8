"""The exceptions a user can meet. Every message names what is wrong, where, and the way out."""

from __future__ import annotations


class PointAdapterXError(Exception):
    """Base class: the command line prints it as one ``error:`` line, without a traceback."""


class ConfigError(PointAdapterXError, ValueError):
    """A configuration file or override is wrong; the message lists every problem found."""


class DataError(PointAdapterXError, ValueError):
    """A data set is missing, damaged or inconsistent; the message names file and index."""


class CheckpointError(PointAdapterXError, ValueError):
    """A checkpoint is missing, damaged, incomplete, or belongs to another backbone."""


class TrainingError(PointAdapterXError, RuntimeError):
    """Training cannot go on, for example after a non-finite loss."""
