"""What a machine must have: where POINTADAPTERX_REQUIRE names it, a test that would skip for lack of it fails instead.

Everywhere else such tests are skipped and say why. ``.ci/run`` requires everything unless the variable is set, so that
no check goes missing there without anyone noticing.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

VARIABLE = "POINTADAPTERX_REQUIRE"
KNOWN = {
    "browser": "Chromium, to open reports in",
    "vulkan": "a Vulkan driver, for open3d to draw off screen",
    "nvcc": "the CUDA compiler, and g++",
    "reference": "the folder of public reference outputs, named by POINTADAPTERX_REFERENCE",
    "compiler": "a C++ compiler, and the compiled ops",
    "timm": "timm and torchvision, as make test-foreign installs them",
    "packages": "every Python package of the extra dev",
}
"""Names that the variable takes, separated by commas. All but ``packages`` are markers of tests as well."""


def required() -> set[str]:
    """What the environment asks for.

    Raises:
        pytest.UsageError: for a name that is not in :data:`KNOWN`.
    """
    names = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    if unknown := sorted(names - KNOWN.keys()):
        raise pytest.UsageError(f"{VARIABLE}: {', '.join(unknown)}; it takes {', '.join(KNOWN)}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    """A misspelt name must not pass for a requirement that is met."""
    required()


def _fail(report: pytest.TestReport | pytest.CollectReport, names: set[str]) -> None:
    """Turns a skip into a failure that says what is missing."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    missing = " and ".join(KNOWN[name] for name in sorted(names))
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {VARIABLE} requires {missing}, but this was skipped. {reason}"


@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """For a test."""
    outcome = yield
    report = outcome.get_result()
    if not report.skipped or call.excinfo is None:
        return
    lacking = {mark.name for mark in item.iter_markers()} & required()
    elsewhere = item.get_closest_marker("timm") is not None  # whose packages are in an environment of their own
    if not elsewhere and any(entry.name == "importorskip" for entry in call.excinfo.traceback):
        lacking |= {"packages"} & required()
    if lacking:
        _fail(report, lacking)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, None]:
    """For a whole file, which skips where it imports an optional package."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and "packages" in required():
        _fail(report, {"packages"})
