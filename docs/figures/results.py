"""The picture of every method's accuracy: python docs/figures/results.py writes docs/figures/methods.svg

The numbers come from docs/results/ldraw20_methods/report.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from drawing import INK, SOFT, TRAINED, Drawing, write

DOCS = Path(__file__).resolve().parent.parent
REPORT = DOCS / "results" / "ldraw20_methods" / "report.md"
SMALL = 2.0  # percent of the parameters
ROW, TOP, LEFT, RIGHT = 23, 78, 345, 845
LOWEST, HIGHEST = -13.0, 5.0  # points


class Row(NamedTuple):
    """A method of the report; the difference to full fine-tuning in points, with its interval."""

    label: str
    accuracy: float
    deviation: float
    difference: float
    low: float
    high: float
    percent: float


def rows() -> list[Row]:
    """All methods, including full fine-tuning, sorted by their share of trained parameters."""
    found = []
    for line in REPORT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        accuracy = re.match(r"([\d.]+) ± ([\d.]+) \[", cells[2]) if len(cells) == 12 else None
        if accuracy is None:
            continue
        difference = [float(number) for number in re.findall(r"[-+]\d+\.\d+", cells[4])] or [0.0, 0.0, 0.0]
        mean, deviation = float(accuracy[1]), float(accuracy[2])
        found.append(Row(cells[0], mean, deviation, difference[0], difference[1], difference[2], float(cells[7])))
    return sorted(found, key=lambda row: (row.percent, row.label))


def place(points: float) -> float:
    """The x coordinate of a difference in points."""
    return LEFT + (points - LOWEST) / (HIGHEST - LOWEST) * (RIGHT - LEFT)


def draw() -> str:
    """The text of the SVG file."""
    methods = rows()
    bottom = TOP + ROW * len(methods)
    drawing = Drawing(880, bottom + 42, "Test accuracy on LDraw-20 minus that of full fine-tuning")
    drawing.text(20, 26, "Test accuracy minus full fine-tuning's, points [95 % interval]", size=15, anchor="start")
    drawing.text(20, 46, "LDraw-20, point_mae_tiny, three seeds; orange: under 2 % trained", anchor="start", ink=SOFT)
    for x, anchor, words in ((20, "start", "method"), (255, "end", "trained"), (322, "end", "test OA")):
        drawing.text(x, TOP - 10, words, size=12, anchor=anchor, ink=SOFT)
    for points in range(-12, 5, 4):
        x = place(points)
        width = 1.4 if points == 0 else 0.6
        drawing.line((x, TOP - 4), (x, bottom), arrow=False, ink=INK if points == 0 else "#bbbbbb", width=width)
        drawing.text(x, bottom + 18, f"{points:+d}".replace("-", "−") if points else "0", size=12, ink=SOFT)
    drawing.text(place(0), bottom + 34, "full fine-tuning", size=12, ink=SOFT)
    for number, row in enumerate(methods):
        y = TOP + ROW * (number + 0.5)
        few = row.percent < SMALL
        drawing.text(20, y + 4, row.label, anchor="start")
        drawing.text(255, y + 4, f"{row.percent:.2f} %", anchor="end")
        drawing.text(322, y + 4, f"{row.accuracy:.2f}", anchor="end")
        if row.low < row.high:
            drawing.line((place(row.low), y), (place(row.high), y), arrow=False, width=2)
        drawing.dot(place(row.difference), y, TRAINED if few else "white")
    return drawing.svg()


def pictures() -> dict[Path, str]:
    """The text of each file."""
    return {Path(__file__).with_name("methods.svg"): draw()}


if __name__ == "__main__":
    write(pictures())
