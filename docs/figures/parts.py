"""The picture of the README that labels points: what they are, what an adapter takes them for, and where it is wrong.

    python tools/main.py --config cfgs/ldraw_parts.yaml --output runs/parts
    python docs/figures/parts.py runs/parts [NAME ...]      # writes docs/figures/parts.svg

The clouds are in the test part of the embedded LDraw parts. Labels differ between machines, since rounding does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from clouds import draw_cloud
from drawing import FROZEN, SOFT, Drawing, write

NAMES = ("3002", "4859", "3736", "3831", "3956")  # files of LDraw's library, without their endings
POINTS = 640  # of a cloud, at most: more make the file large
SIDE, COLUMN, ROW = 118, 158, 132  # of a cloud, and from one to the next
LEFT, TOP = 90, 52  # of the first cloud
COLOURS = {
    "flat": "#8c8c8c",
    "inclined": "#56b4e9",
    "curved": "#0072b2",
    "stud": "#e69f00",
    "tube": "#cc79a7",
    "hole": "#009e73",
    "joint": "#f0e442",
}
WRONG = "#d55e00"


class Labelled(NamedTuple):
    """A cloud with the labels of its points.

    Attributes:
        title: above it.
        points: (N, 3), y up.
        truth: (N,), kinds of surfaces, such as ``"stud"``.
        found: (N,), what they were taken for.
    """

    title: str
    points: np.ndarray
    truth: np.ndarray
    found: np.ndarray


def draw(clouds: Sequence[Labelled], share: float) -> str:
    """The text of the SVG file.

    Args:
        clouds: from left to right.
        share: of the points of the test set that are right, in percent.
    """
    seen = {str(kind) for cloud in clouds for part in (cloud.truth, cloud.found) for kind in part}
    width, height = LEFT + COLUMN * len(clouds), TOP + 3 * ROW + 44
    drawing = Drawing(
        width, height, "CAD parts whose points are coloured by kind of surface: truth, prediction, errors"
    )
    for row, words in enumerate(("truth", "prediction", "errors")):
        drawing.text(16, TOP + ROW * row + SIDE / 2 + 5, words, anchor="start", size=14)
    for column, cloud in enumerate(clouds):
        left = LEFT + COLUMN * column + (COLUMN - SIDE) / 2
        drawing.text(left + SIDE / 2, 28, cloud.title, size=14)
        wrong = np.where(cloud.truth == cloud.found, FROZEN, WRONG)
        for row, labels in enumerate((cloud.truth, cloud.found)):
            colours = np.array([COLOURS[str(kind)] for kind in labels])
            draw_cloud(drawing, left, TOP + ROW * row + SIDE / 2, SIDE, cloud.points, colours, 3.2)
        draw_cloud(drawing, left, TOP + ROW * 2 + SIDE / 2, SIDE, cloud.points, wrong, 3.2)
    x, y = 16.0, height - 18
    legend = [(kind, colour) for kind, colour in COLOURS.items() if kind in seen]
    for kind, colour in [*legend, (f"wrong ({100 - share:.0f} % of all test points)", WRONG)]:
        drawing.bar(x, y - 10, 10, 10, colour)
        drawing.text(x + 15, y, kind, anchor="start", size=12, ink=SOFT)
        x += 30 + 7 * len(kind)
    return drawing.svg()


def labelled_of(run: str, names: Sequence[str]) -> tuple[list[Labelled], float]:
    """What a run's adapter says about clouds of its test set, and the share of right points in percent.

    Raises:
        SystemExit: if a name is of no test cloud.
    """
    from pointadapterx.visualize.labels import labelled
    from pointadapterx.visualize.loaded_run import Subject

    subject = Subject(run)
    numbers = {Path(name).stem: number for number, name in enumerate(subject.test.names)}
    if unknown := [name for name in names if name not in numbers]:
        sys.exit(f"{unknown[0]}: no test cloud of {run} has this name; some have: {', '.join(list(numbers)[:8])}")
    chosen = [numbers[name] for name in names]
    found = labelled(subject, chosen)
    kinds = np.array([name.rpartition(" ")[2] for name in found.classes])
    clouds = []
    for row, (name, number) in enumerate(zip(names, chosen, strict=True)):
        step = -(-len(found.clouds[row]) // POINTS)
        truth, guess = kinds[found.truth[row]][::step], kinds[found.found[row]][::step]
        title = f"{subject.test.classes[int(subject.test.labels[number])]} {name}"
        clouds.append(Labelled(title, found.clouds[row].numpy()[::step], truth, guess))
    both, _, truth = subject.predictions.rows.double().sum(dim=0).chunk(3)
    return clouds, 100 * float(both.sum() / truth.sum())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/figures/parts.py RUN [NAME ...]")
    write({Path(__file__).with_name("parts.svg"): draw(*labelled_of(sys.argv[1], sys.argv[2:] or NAMES))})
