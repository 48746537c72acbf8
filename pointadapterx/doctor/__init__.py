"""Examines every cloud of a data set, and reports problems before anything is trained on it."""

from pointadapterx.doctor.checks import Finding, diagnose
from pointadapterx.doctor.examined import Entry, Examined
from pointadapterx.doctor.reading import Options, entries_of, read_entries

__all__ = ["Entry", "Examined", "Finding", "Options", "diagnose", "entries_of", "read_entries"]
