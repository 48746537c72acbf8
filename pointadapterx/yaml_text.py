"""YAML for configs, with limits, so that a small text cannot require much memory or time."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

MOST_CHARACTERS = 2**20  # a study of 20 data sets and 16 methods has 10,000
MOST_VALUES = 20_000  # aliases written out; such a study has 1,000
MOST_LEVELS = 64


class Parsed(NamedTuple):
    """A document: its content, and its nodes, which know their lines; both None where it is empty."""

    content: Any
    node: yaml.Node | None


class _Loader(yaml.SafeLoader):
    """Floats as in YAML 1.2, as PyYAML alone reads ``5e-4`` as a string; and no document beyond the limits."""

    levels = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses deep nesting before Python's own stack runs out, and many values before they take long."""
        self.levels += 1
        self.values += 1
        many = f"more than {MOST_VALUES:,} values" if self.values > MOST_VALUES else None
        problem = many or (f"nested more than {MOST_LEVELS} levels deep" if self.levels > MOST_LEVELS else None)
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Parsed:
    """Reads one document.

    Raises:
        yaml.YAMLError: if it is not YAML, or beyond the limits.
        ValueError: for an impossible date or number.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.MarkedYAMLError(problem=f"{len(text):,} characters, of at most {MOST_CHARACTERS:,}")
    node = yaml.compose(text, Loader=_Loader)
    if node is None:
        return Parsed(None, None)
    _require_size(node)
    try:
        return Parsed(yaml.load(text, Loader=_Loader), node)
    except (AttributeError, IndexError, KeyError, TypeError, OverflowError):  # PyYAML's, for a tag such as !!int
        raise yaml.MarkedYAMLError(problem="a value that its tag (!!) does not fit") from None


def _require_size(root: yaml.Node) -> None:
    """Counts the values of a document with its aliases written out, each node once."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise yaml.MarkedYAMLError(
                problem="nested without end; an alias (*) refers to its own anchor (&)",
                problem_mark=node.start_mark,
            )
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _inner(node)))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    total = size(root)
    if total > MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"{total:,} values with its aliases (*), of at most {MOST_VALUES:,}")


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
