"""A table of classes by name, with "did you mean" suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from pointadapterx.errors import ConfigError, shown

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str], *others: str) -> str:
    """``; did you mean 'x'?`` for the known name that is closest, whatever its case, or a full stop.

    Args:
        name: an unknown one.
        known: names to choose from.
        others: what may have been meant instead, if nothing is close to ``name``.
    """
    by_lower = {text.lower(): text for text in reversed([*known])}
    for text in (name, *others):
        close = difflib.get_close_matches(text.lower(), by_lower, n=1, cutoff=0.6)
        if close:
            return f"; did you mean '{by_lower[close[0]]}'?"
    return "."


def unknown_name(name: object, known: Iterable[str]) -> str:
    """What to say of a ``name:`` in a config that is none of the known ones."""
    names = sorted(known)
    return f"unknown name {shown(name)}{did_you_mean(str(name), names)} Known: {', '.join(names)}"


class Registry(Mapping[str, T]):
    """Read-only mapping from public names to classes, filled by :meth:`register`.

    Args:
        kind: what the entries are, for messages (``"method"``, ``"data set"``).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a class under ``name``.

        Raises:
            ValueError: if the name is taken by another class.
        """

        def add(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise ConfigError(
                f"unknown {self.kind} '{name}'{did_you_mean(name, self._entries)} "
                f"Known: {', '.join(sorted(self._entries))}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
