"""What is written for people from templates: the page of a report, and the card of an adapter."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from jinja2.environment import TemplateModule
from markupsafe import Markup

from pointadapterx.text import markdown, printable


@cache
def _environment(html: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: files(__name__).joinpath(name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,  # a name that is misspelled is an error and not an empty text
        autoescape=html,
        finalize=_shown if html else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = markdown
    environment.policies["json.dumps_kwargs"] = {}  # keys keep their order
    return environment


def _shown(value: object) -> object:
    return value if isinstance(value, Markup) else printable(value)


def render(name: str, **values: object) -> str:
    """The text of a template.

    Args:
        name: of its file; in one that ends in ``.html`` no value is markup, unless it is :class:`markupsafe.Markup`.
        values: that it names.
    """
    return _environment(name.endswith(".html")).get_template(name).render(values)


@cache
def macros(name: str) -> TemplateModule:
    """The macros of an HTML template, to be called by name."""
    return _environment(True).get_template(name).module


def text(content: object, keep: str = "") -> Markup:
    """Text of which nothing is markup, and which a browser shows whole; see :func:`~pointadapterx.text.printable`."""
    return Markup.escape(printable(content, keep))
