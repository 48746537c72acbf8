"""Packages that are not everyone's: imported where they are needed, with words for those who lack them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from pointadapterx.errors import DataError, PointAdapterXError


def import_problem(package: str, error: Exception) -> str:
    """Why ``package`` could not be imported, in words that follow its name: not installed, or broken by what."""
    if find_spec(package.partition(".")[0]) is None:
        return "is not installed"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"is installed and cannot be imported ({reason})"


def need(package: str, what: str, extra: str, error: type[PointAdapterXError] = DataError) -> Any:
    """The module ``package``.

    Args:
        package: what is imported, for example ``"trimesh"``.
        what: needs it, for the message, which goes on with "which is not installed".
        extra: of this project that brings it.
        error: the class of the message.

    Raises:
        PointAdapterXError: of the class ``error``, if it is not installed or cannot be imported; it says which.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as reason:
        raise error(f"{what}, which {import_problem(package, reason)}; pip install 'pointadapterx[{extra}]'") from None
