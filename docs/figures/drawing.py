"""A small SVG writer: boxes, arrows and text, in colours that everyone can distinguish (Okabe and Ito).

Every picture has a background of its own, which is dark where the reader prefers dark pages, so it stays legible where
a page ignores this preference.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

GROUND, INK, SOFT = "#fbfbfa", "#222222", "#6b6b6b"
FROZEN, TRAINED, PARTLY, TOKEN = "#dcdcdc", "#e69f00", "#56b4e9", "#009e73"
DARK = {
    GROUND: "#161b22",
    INK: "#e6edf3",
    SOFT: "#9da7b3",
    "white": "#22272e",
    FROZEN: "#4a525c",
    "#bbbbbb": "#4a525c",
}
"""What the colours of backgrounds, lines and text become on dark pages; the others suit both."""
ON_BRIGHT = "#111111"
"""Text on orange, blue and green, on light and dark pages alike."""
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Drawing:
    """Collects elements; later ones cover earlier ones.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        title: what a screen reader says.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.elements: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, words: str, fill: str, *, dashed: bool = False) -> None:
        """A rounded box with centred text, which may have several lines."""
        style = " stroke-dasharray='4 3'" if dashed else ""
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='5' fill='{fill}' stroke='{INK}'{style}/>"
        )
        lines = words.split("\n")
        ink = ON_BRIGHT if fill in (TRAINED, PARTLY, TOKEN) else INK
        for number, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + 4.5 + 15 * (number - (len(lines) - 1) / 2), line, ink=ink)

    def text(self, x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle", ink: str = INK) -> None:
        """One line of text, with its baseline at ``y``."""
        self.elements.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size}' text-anchor='{anchor}' fill='{ink}' {FONT}>"
            f"{escape(words, quote=False)}</text>"
        )

    def line(self, *points: tuple[float, float], arrow: bool = True, ink: str = INK, width: float = 1.4) -> None:
        """A line through ``points``, with an arrowhead at its end."""
        way = " ".join(f"{x:g},{y:g}" for x, y in points)
        head = " marker-end='url(#head)'" if arrow else ""
        self.elements.append(f"<polyline points='{way}' fill='none' stroke='{ink}' stroke-width='{width:g}'{head}/>")

    def plus(self, x: float, y: float, sign: str = "+") -> None:
        """A circle with a sign in it, for an addition."""
        self.elements.append(f"<circle cx='{x:g}' cy='{y:g}' r='9' fill='white' stroke='{INK}'/>")
        self.text(x, y + 5, sign, size=15)

    def dot(self, x: float, y: float, fill: str, radius: float = 4.5) -> None:
        """A filled circle with an outline."""
        self.elements.append(f"<circle cx='{x:g}' cy='{y:g}' r='{radius:g}' fill='{fill}' stroke='{INK}'/>")

    def bar(self, x: float, y: float, w: float, h: float, fill: str) -> None:
        """A filled rectangle without an outline."""
        self.elements.append(f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' fill='{fill}'/>")

    def svg(self) -> str:
        """The text of the SVG file."""
        head = (
            "<marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
            f"<path d='M0 0 L8 4 L0 8 z' fill='{INK}'/></marker>"
        )
        return "\n".join(
            [
                f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
                f"width='{self.width}' height='{self.height}' role='img'>",
                f"<title>{escape(self.title, quote=False)}</title>",
                f"<style>{_dark_style()}</style>",
                f"<defs>{head}</defs>",
                f"<rect width='{self.width}' height='{self.height}' rx='8' fill='{GROUND}'/>",
                *self.elements,
                "</svg>",
                "",
            ]
        )


def _dark_style() -> str:
    """CSS that replaces :data:`DARK`'s colours, wherever an element has one, on dark pages."""
    rules = [f"[{kind}='{light}']{{{kind}:{dark}}}" for light, dark in DARK.items() for kind in ("fill", "stroke")]
    return f"@media (prefers-color-scheme:dark){{{''.join(rules)}}}"


def write(pictures: Mapping[Path, str]) -> None:
    """Writes each text to its path, creating folders as needed."""
    for path, text in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"written: {path}")
