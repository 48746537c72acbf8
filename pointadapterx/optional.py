"""Optional packages: imported where they are needed, with a helpful message if they are missing."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from pointadapterx.errors import DataError, PointAdapterXError, reason_of

REQUIREMENTS = {"laspy": "laspy[lazrs]", "prometheus_client": "prometheus-client", "umap": "umap-learn"}
"""What to install for a package, where it is not the name that is imported."""


ABSENT = "is not installed"


def install_command(*packages: str) -> str:
    """The command that installs packages, given by the names that are imported.

    It names them and no extra of this project: that is right from a checkout and from a wheel, while a requirement
    of ``pointadapterx[...]`` would ask an index, and none has the project.
    """
    return shlex.join(["pip", "install", *(REQUIREMENTS.get(package, package) for package in packages)])


def missing(package: str, extra: str) -> str | None:
    """Why ``package`` cannot be imported, in words that follow its name, and what to do; None where it can.

    Args:
        package: or one of its modules, for example ``"matplotlib.figure"``.
        extra: of this project, which installs it.
    """
    name = package.partition(".")[0]
    try:
        importlib.import_module(name)
        importlib.import_module(package)
    except Exception as error:  # a package whose libraries are missing may raise anything
        if find_spec(name) is None:
            return f"{ABSENT}; {install_command(name)} (the extra {extra})"
        return f"is installed but cannot be imported ({reason_of(error)}); install what it lacks"
    return None


def need(package: str, what: str, extra: str, error: type[PointAdapterXError] = DataError) -> Any:
    """The module ``package``.

    Args:
        package: what is imported, for example ``"trimesh"``.
        what: needs it, for the message, which goes on with "which is not installed".
        extra: of this project, which installs it.
        error: the class of the message.

    Raises:
        PointAdapterXError: of the class ``error``, if it is not installed or cannot be imported; it says which.
    """
    reason = missing(package, extra)
    if reason is not None:
        raise error(f"{what}, which {reason}")
    return importlib.import_module(package)


def need_all(packages: Sequence[str], what: str, extra: str, error: type[PointAdapterXError] = DataError) -> None:
    """Checks packages at once, so that a message names all that are not installed, with one command.

    Args:
        packages: that are needed.
        what: needs them, for the message, which goes on with their names.
        extra: of this project, which installs them.
        error: the class of the message.

    Raises:
        PointAdapterXError: of the class ``error``, if some are not installed or cannot be imported.
    """
    lacking = absent(dict.fromkeys(packages, extra))
    if lacking is not None:
        raise error(f"{what} {lacking}")
    for package in packages:
        if (reason := missing(package, extra)) is not None:
            raise error(f"{what} {package}, which {reason}")


def absent(needed: Mapping[str, str]) -> str | None:
    """The packages that are not installed, and one command that installs all of them; None where all are.

    Nothing is imported, so that this takes no time.

    Args:
        needed: package -> the extra of this project that installs it.
    """
    lacking = {name: extra for name, extra in needed.items() if find_spec(name) is None}
    if not lacking:
        return None
    extras = list(dict.fromkeys(lacking.values()))
    verb, noun = ("are" if len(lacking) > 1 else "is"), ("extras" if len(extras) > 1 else "extra")
    way = f"{install_command(*lacking)} (the {noun} {_listed(extras)})"
    return f"{_listed(list(lacking))}, which {verb} not installed; {way}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
