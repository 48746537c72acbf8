"""The house: which room may import which, as CONTRIBUTING.md draws it, and how long a file may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

PACKAGE = "pointadapterx"
HOMES = {PACKAGE: PACKAGE, "datasets": f"{PACKAGE}.datasets", "extensions": f"{PACKAGE}.extensions"}
"""Folders of the checkout, and the packages that they are."""
PRODUCT = ("pointadapterx", "datasets", "extensions", "tools", "benchmarks")
CODE = {".py", ".js"}
SHADOWED = {"datasets": "pointadapterx.datasets", "extensions": "pointadapterx.extensions"}
"""Folders of the checkout that could be imported from it by a name that an installed package does not have."""
LONGEST = 400  # lines of a file
MODULE = re.compile(rf"{PACKAGE}((?:\.\w+)+)(:\w+)?")
BELOW = re.compile(r"\.\w+(\.\w+)*")
IMPORTERS = {"import_module", "__import__", "resolve_name", "find_spec", "run_module"}
"""Functions that import a module, or look for it, by its name."""


class Import(NamedTuple):
    """One mention of a module of the package.

    Attributes:
        place: file and line.
        module: its name.
        importer: room that it is mentioned in.
        imported: room that it is in.
    """

    place: str
    module: str
    importer: str
    imported: str


@cache
def modules() -> dict[str, Path]:
    """Names of modules to their files."""
    found = {}
    for folder, package in HOMES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """The part of the package that a module is in; that of ``pointadapterx`` itself is ``__init__``."""
    return [*module.split("."), "__init__"][1]


def mentioned(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and name of every module that is imported, lazily or for its types too, or named in a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base if node.level else node.module}.{alias.name}"
                yield node.lineno, name if name in modules() else name.rpartition(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.rstrip(".")  # also the beginning of f"pointadapterx.commands.{name}"
            if MODULE.fullmatch(name) and (found := module_of(name)) is not None:
                yield node.lineno, found
        elif isinstance(node, ast.Call) and called_name(node) in IMPORTERS and node.args:
            yield from ((node.lineno, name) for name in named(node.args[0], module, is_package))


def module_of(name: str) -> str | None:
    """The module that a dotted name is, or is within: ``pointadapterx.ops`` for ``….ops.knn`` and ``….ops:knn``."""
    name = name.partition(":")[0]
    while name != PACKAGE and name not in modules():
        name = name.rpartition(".")[0]
    return name if name != PACKAGE else None


def called_name(node: ast.Call) -> str:
    """Name of the function that is called, without its module."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def named(argument: ast.expr, module: str, is_package: bool) -> Iterator[str]:
    """What a function that imports by name gets: a relative name, or one that is only known when it runs."""
    text = argument.values[0] if isinstance(argument, ast.JoinedStr) and argument.values else argument
    text = text.left if isinstance(text, ast.BinOp) else text
    if not isinstance(text, ast.Constant) or not isinstance(text.value, str):
        return
    if text.value.rstrip(".") == PACKAGE:  # and something behind it: any room
        yield PACKAGE
    elif BELOW.fullmatch(text.value):
        package = module if is_package else module.rpartition(".")[0]
        yield module_of(f"{package}{text.value}") or PACKAGE


@cache
def imports() -> list[Import]:
    """Every import of a module of the package."""
    found = []
    for module, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in mentioned(tree, module, path.name == "__init__.py"):
            first = name.split(".")[0]
            name = name.replace(first, SHADOWED.get(first, first), 1)
            if name.split(".")[0] == PACKAGE:
                found.append(Import(f"{path.relative_to(ROOT)}:{line}", name, room(module), room(name)))
    return found


def between_rooms() -> list[Import]:
    """Those from one room into another."""
    return [found for found in imports() if found.importer != found.imported]


def picture() -> dict[str, int]:
    """Rooms to their storeys, the lowest is 0."""
    drawn = re.search(r"```text\n(__main__.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert drawn is not None
    return {name: level for level, line in enumerate(reversed(drawn[1].splitlines())) for name in line.split()}


def test_what_is_imported_is_there() -> None:
    """A type checker that ignores missing packages does not see it."""
    assert [f"{found.place}: {found.module}" for found in imports() if found.module not in modules()] == []


def test_the_picture_has_every_room() -> None:
    assert set(picture()) == {room(module) for module in modules()}


def test_no_room_imports_a_higher_one() -> None:
    storeys = picture()
    lost = len(storeys)
    up = [found for found in between_rooms() if storeys.get(found.imported, lost) > storeys.get(found.importer, lost)]
    assert [f"{found.place}: {found.importer} imports {found.imported}, which is above it" for found in up] == []


def test_rooms_are_not_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for found in between_rooms():
        graph.setdefault(found.importer, set()).add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
        steps = zip(circle[1:], circle, strict=False)  # each is imported by the one behind it
        places = [next(f.place for f in between_rooms() if (f.importer, f.imported) == step) for step in steps]
        pytest.fail(f"{' → '.join(reversed(circle))}: {', '.join(places)}")


def test_no_file_is_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_bytes().splitlines())
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*")
        if path.suffix in CODE
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import pointadapterx.files", ["pointadapterx.files"]),
        ("from pointadapterx import files, build_model", ["pointadapterx.files", "pointadapterx"]),
        ("from . import text\nfrom .engine import trainer", ["pointadapterx.text", "pointadapterx.engine.trainer"]),
        ("if TYPE_CHECKING:\n    from pointadapterx.files import write_text", ["pointadapterx.files"]),
        ("def f():\n    import_module('pointadapterx.jobs')", ["pointadapterx.jobs"]),
        ("import_module(f'pointadapterx.commands.{name}')", ["pointadapterx.commands"]),
        ("HOME = {'knn': 'pointadapterx.ops'}", ["pointadapterx.ops"]),
        ("import_module(f'pointadapterx.{name}')", ["pointadapterx"]),
        ("importlib.import_module('pointadapterx.' + name)", ["pointadapterx"]),
        ("import_module('.jobs', 'pointadapterx')", ["pointadapterx.jobs"]),
        ("__import__('pointadapterx')", ["pointadapterx"]),
        ("pkgutil.resolve_name('pointadapterx.jobs:train')", ["pointadapterx.jobs"]),
        ("HOME = 'pointadapterx.jobs.train'", ["pointadapterx.jobs"]),
        ("import datasets", ["datasets"]),
        ("logging.getLogger('pointadapterx')", []),
    ],
)
def test_what_counts_as_an_import(text: str, names: list[str]) -> None:
    assert [name for _, name in mentioned(ast.parse(text), "pointadapterx.version", is_package=False)] == names
