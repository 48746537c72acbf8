"""Whole jobs, each of which leaves a folder or a table that says what was done."""

from pointadapterx.jobs.linear_probe import probe
from pointadapterx.jobs.noah_search import search
from pointadapterx.jobs.tables import count
from pointadapterx.jobs.testing import test
from pointadapterx.jobs.training import resume, train

__all__ = ["count", "probe", "resume", "search", "test", "train"]
