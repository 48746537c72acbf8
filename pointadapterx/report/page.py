"""The parts of a report's page, as HTML."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pointadapterx.text import printable

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

DPI, WIDEST, SHADES = 90, 1600, 128  # of pictures: at most so many pixels and colours, so that the page stays small
# Nothing may be fetched: the page is one file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def escape(text: object, keep: str = "") -> str:
    """Text of which nothing is markup, and which a browser shows whole; see :func:`~pointadapterx.text.printable`."""
    return html.escape(printable(text, keep))


def page(title: str, sections: Sequence[tuple[str, str]], clouds: Sequence[Mapping[str, Any]]) -> str:
    """The whole page.

    Args:
        title: of it.
        sections: headings and their HTML.
        clouds: what the viewer turns, see :func:`~pointadapterx.report.gallery.pack_clouds`.
    """
    own = files("pointadapterx.report")
    links = "".join(f'<a href="#part{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(sections))
    parts = "\n".join(
        f'<section id="part{i}"><h2>{escape(heading)}</h2>\n{body}</section>'
        for i, (heading, body) in enumerate(sections)
    )
    data = json.dumps(list(clouds)).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{own.joinpath("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<nav>{links}</nav>
{parts}
<script id="clouds" type="application/json">{data}</script>
<script>
{own.joinpath("viewer.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells are text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'


def shares(header: Sequence[str], rows: Iterable[tuple[str, int, float | None]]) -> str:
    """A table of names, counts, and percentages with bars."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{count}</td><td>{'–' if share is None else f'{share:.1f}'}</td>"
        f'<td style="text-align:left"><span class="bar" style="width:{share or 0:.0f}px"></span></td></tr>'
        for name, count, share in rows
    )
    return f"<table><thead><tr>{head}<th></th></tr></thead><tbody>\n{body}\n</tbody></table>\n"


def note(text: str) -> str:
    """A remark."""
    return f'<p class="note">{escape(text)}</p>\n'


def code(text: str) -> str:
    """A command, or a file."""
    return f"<pre>{escape(text, keep=chr(10))}</pre>\n"


def image(figure: Figure, about: str) -> str:
    """A figure as a picture within the page."""
    return f'<p><img src="{data_url(figure)}" alt="{escape(about)}"></p>\n'


def kinds(meanings: Iterable[tuple[str, np.ndarray]]) -> str:
    """A legend: what each colour (3,) in [0, 1] means."""
    swatch = '<span class="swatch" style="background:{}"></span>'
    return " ".join(f"{swatch.format(_css(colour))}{escape(meaning)}" for meaning, colour in meanings)


def scale(low: str, colours: np.ndarray, high: str) -> str:
    """A legend: what the first and the last of colours (n, 3) mean, between which amounts lie."""
    stops = ",".join(map(_css, colours))
    return (
        f'{escape(low)} <span class="scale" style="background:linear-gradient(to right,{stops})"></span> {escape(high)}'
    )


def _css(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in colour)


def gallery(items: Iterable[tuple[int | None, str, str]], modes: Mapping[str, str] | None = None) -> str:
    """Figures with captions.

    Args:
        items: number of the cloud, or None for what does not turn; address of the still picture; caption.
        modes: names of the colours that the reader may choose among, and their legends in HTML; the pictures have the
            first.
    """
    figures = []
    for number, still, caption in items:
        cloud = "" if number is None else f' class="cloud" data-cloud="{number}"'
        picture = f'<img src="{still}" width="160" height="160" alt="{escape(caption)}">'
        figures.append(f"<figure{cloud}>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    options, legends = "", ""
    for number, (mode, legend) in enumerate((modes or {}).items()):
        options += f'<option value="{escape(mode)}">{escape(mode)}</option>'
        legends += f'<p class="legend" data-mode="{escape(mode)}"{" hidden" if number else ""}>{legend}</p>\n'
    choice = f'<p><label hidden>Colours: <select class="colours">{options}</select></label></p>\n' if modes else ""
    return f'{choice}{legends}<div class="gallery">\n' + "\n".join(figures) + "\n</div>\n"


def data_url(figure: Figure, dpi: int = DPI) -> str:
    """A figure as the address of a PNG within the page."""
    from PIL import Image

    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=min(dpi, WIDEST / figure.get_size_inches()[0]))
    Image.open(drawn).convert("RGB").quantize(SHADES, dither=Image.Dither.NONE).save(content, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
