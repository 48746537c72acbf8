"""A little of SVG: boxes, arrows and words, with colours that can be told apart by everyone (Okabe and Ito).

Pictures have a light ground of their own, so that they read the same on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

GROUND, INK, SOFT = "#fbfbfa", "#222222", "#6b6b6b"
FROZEN, TRAINED, PARTLY, TOKEN = "#dcdcdc", "#e69f00", "#56b4e9", "#009e73"
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Drawing:
    """Collects elements in the order in which they are drawn.

    Args:
        width: of the picture, in pixels.
        height: the same.
        title: what a screen reader says.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.elements: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, words: str, fill: str, *, dashed: bool = False) -> None:
        """A rounded box with centred words; lines of words are separated by a line break."""
        style = " stroke-dasharray='4 3'" if dashed else ""
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='5' fill='{fill}' stroke='{INK}'{style}/>"
        )
        lines = words.split("\n")
        for number, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + 4.5 + 15 * (number - (len(lines) - 1) / 2), line)

    def text(self, x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle", ink: str = INK) -> None:
        """Words, with the baseline at ``y``."""
        self.elements.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size}' text-anchor='{anchor}' fill='{ink}' {FONT}>"
            f"{escape(words, quote=False)}</text>"
        )

    def line(self, *points: tuple[float, float], arrow: bool = True, ink: str = INK, width: float = 1.4) -> None:
        """A line through points, with an arrow at its end."""
        way = " ".join(f"{x:g},{y:g}" for x, y in points)
        head = " marker-end='url(#head)'" if arrow else ""
        self.elements.append(f"<polyline points='{way}' fill='none' stroke='{ink}' stroke-width='{width:g}'{head}/>")

    def plus(self, x: float, y: float, sign: str = "+") -> None:
        """A circle with a sign."""
        self.elements.append(f"<circle cx='{x:g}' cy='{y:g}' r='9' fill='white' stroke='{INK}'/>")
        self.text(x, y + 5, sign, size=15)

    def dot(self, x: float, y: float, fill: str, radius: float = 4.5) -> None:
        """A filled circle."""
        self.elements.append(f"<circle cx='{x:g}' cy='{y:g}' r='{radius:g}' fill='{fill}' stroke='{INK}'/>")

    def bar(self, x: float, y: float, w: float, h: float, fill: str) -> None:
        """A rectangle without an outline."""
        self.elements.append(f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' fill='{fill}'/>")

    def svg(self) -> str:
        """The file's text."""
        head = (
            "<marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
            f"<path d='M0 0 L8 4 L0 8 z' fill='{INK}'/></marker>"
        )
        return "\n".join(
            [
                f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
                f"width='{self.width}' height='{self.height}' role='img'>",
                f"<title>{escape(self.title, quote=False)}</title>",
                f"<defs>{head}</defs>",
                f"<rect width='{self.width}' height='{self.height}' rx='8' fill='{GROUND}'/>",
                *self.elements,
                "</svg>",
                "",
            ]
        )


def write(pictures: Mapping[Path, str]) -> None:
    """Writes files."""
    for path, text in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"written: {path}")
