"""The parts of a report's page, as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pointadapterx.templates import macros, render, text

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

DPI, WIDEST, SHADES = 90, 1600, 128  # of pictures: at most so many pixels and colours, so that the page stays small
# Nothing may be fetched: the page is one file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, sections: Sequence[tuple[str, Markup]], clouds: Sequence[Mapping[str, Any]]) -> str:
    """The whole page.

    Args:
        title: of it.
        sections: headings and their HTML.
        clouds: what the viewer turns, see :func:`~pointadapterx.report.gallery.pack_clouds`.
    """
    return render(
        "page.html",
        title=title,
        policy=Markup(POLICY),
        sections=sections,
        clouds=list(clouds),
        style=_own("page.css"),
        viewer=_own("viewer.js"),
    )


def _own(name: str) -> Markup:
    return Markup(files("pointadapterx.report").joinpath(name).read_text(encoding="utf-8"))


def _part(name: str, *values: object) -> Markup:
    html: Markup = getattr(macros("parts.html"), name)(*values)
    return html


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; cells are text."""
    return _part("table", header, rows)


def shares(header: Sequence[str], rows: Iterable[tuple[str, int, float | None]]) -> Markup:
    """A table of names, counts, and percentages with bars."""
    return _part("shares", header, rows)


def note(remark: str) -> Markup:
    """A paragraph of remarks, as HTML."""
    return _part("note", remark)


def code(content: str) -> Markup:
    """A command, in lines."""
    return _part("code", text(content, keep="\n"))


def file(name: str, content: str) -> Markup:
    """A text file, which the reader can open."""
    return _part("file", name, text(content, keep="\n"))


def image(figure: Figure, about: str) -> Markup:
    """A figure as a picture within the page."""
    return _part("image", data_url(figure), about)


def kinds(meanings: Iterable[tuple[str, np.ndarray]]) -> Markup:
    """A legend: what each colour (3,) in [0, 1] means."""
    return _part("kinds", [(meaning, _css(colour)) for meaning, colour in meanings])


def scale(low: str, colours: np.ndarray, high: str) -> Markup:
    """A legend: what the first and the last of colours (n, 3) mean, between which amounts lie."""
    return _part("scale", low, [_css(colour) for colour in colours], high)


def _css(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in colour)


def gallery(items: Iterable[tuple[int | None, str, str]], modes: Mapping[str, Markup] | None = None) -> Markup:
    """Figures with captions.

    Args:
        items: number of the cloud, or None for what does not turn; address of the still picture; caption.
        modes: names of the colours that the reader may choose among, and their legends; the pictures have the first.
    """
    return _part("gallery", items, dict(modes or {}))


def data_url(figure: Figure, dpi: int = DPI) -> str:
    """A figure as the address of a PNG within the page."""
    from PIL import Image

    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=min(dpi, WIDEST / figure.get_size_inches()[0]))
    Image.open(drawn).convert("RGB").quantize(SHADES, dither=Image.Dither.NONE).save(content, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
