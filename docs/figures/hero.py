"""The first picture of the README: a cloud, the class that an adapter predicts, and the points that decide it.

    python tools/main.py --config cfgs/demo.yaml --output runs/hero
    python docs/figures/hero.py runs/hero      # writes docs/figures/hero.svg

The cloud is in the test part of the embedded LDraw-20. Percentages differ between machines, since rounding does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from clouds import draw_cloud
from drawing import FROZEN, INK, SOFT, TRAINED, Drawing, write

from pointadapterx.visualize.colours import SIGNED, of_signed

CLOUD = "76409"  # the file of LDraw's library, without its ending
WIDTH, HEIGHT, SIDE = 880, 270, 190
MIDDLE = 138  # of the row of pictures
CLOUD_AT, MODEL_AT, ANSWER_AT, LOOK_AT = 16, 232, 410, 676  # left edges
LEVELS = 5  # steps of saliency: points of one step share an SVG path, which keeps the file small


class Answer(NamedTuple):
    """What is drawn of a prediction.

    Attributes:
        points: (N, 3), y up.
        classes: names of the likeliest classes, the likeliest first.
        probabilities: of these classes, in [0, 1].
        saliency: (N,) in [-1, 1]: what the answer loses without the patch a point belongs to, over the largest loss.
        share: of the parameters of full fine-tuning that were trained, in percent.
    """

    points: np.ndarray
    classes: Sequence[str]
    probabilities: Sequence[float]
    saliency: np.ndarray
    share: float


def draw(answer: Answer) -> str:
    """The text of the SVG file."""
    drawing = Drawing(
        WIDTH, HEIGHT, f"A point cloud, its predicted class {answer.classes[0]}, and the points that decide it"
    )
    for left, width, words in (
        (CLOUD_AT, SIDE, "your cloud"),
        (MODEL_AT, 150, "frozen model, adapter"),
        (ANSWER_AT, 240, "what it is"),
        (LOOK_AT, SIDE, "what decides it"),
    ):
        drawing.text(left + width / 2, 28, words, size=15)
    _points(drawing, CLOUD_AT, answer.points, None)
    _model(drawing, answer.share)
    for row, (name, probability) in enumerate(zip(answer.classes, answer.probabilities, strict=True)):
        y = MIDDLE - 46 + 46 * row
        drawing.text(ANSWER_AT, y - 6, name, anchor="start", size=15 if row == 0 else 13)
        drawing.text(ANSWER_AT + 232, y - 6, f"{100 * probability:.0f} %", anchor="end", size=15 if row == 0 else 13)
        drawing.bar(ANSWER_AT, y, 232, 12, FROZEN)
        drawing.bar(ANSWER_AT, y, max(232 * probability, 2), 12, TRAINED if row == 0 else SOFT)
    _points(drawing, LOOK_AT, answer.points, answer.saliency)
    for x, colour, words in ((LOOK_AT + 8, SIGNED[2], "speaks for it"), (LOOK_AT + 104, SIGNED[0], "against it")):
        drawing.bar(x, HEIGHT - 25, 10, 10, colour)
        drawing.text(x + 15, HEIGHT - 15, words, anchor="start", size=12, ink=SOFT)
    for start, end in ((CLOUD_AT + SIDE + 2, MODEL_AT - 4), (MODEL_AT + 152, ANSWER_AT - 6)):
        drawing.line((start, MIDDLE), (end, MIDDLE))
    return drawing.svg()


def _model(drawing: Drawing, share: float) -> None:
    """A stack of frozen blocks with one trained adapter for all of them."""
    for block in range(5):
        drawing.box(MODEL_AT + 8, MIDDLE - 62 + 26 * block, 76, 20, "", FROZEN)
        drawing.line((MODEL_AT + 84, MIDDLE - 52 + 26 * block), (MODEL_AT + 104, MIDDLE - 52 + 26 * block), arrow=False)
    drawing.box(MODEL_AT + 104, MIDDLE - 62, 40, 124, "", TRAINED)
    drawing.text(MODEL_AT + 46, HEIGHT - 40, "frozen", size=12, ink=SOFT)
    drawing.text(MODEL_AT + 122, HEIGHT - 40, "trained", size=12, ink=SOFT)
    drawing.text(MODEL_AT + 75, HEIGHT - 20, f"{share:.2f} % of the parameters", size=12, ink=SOFT)


def _points(drawing: Drawing, left: float, points: np.ndarray, saliency: np.ndarray | None) -> None:
    """A cloud in ink, or in the colours of ``saliency``."""
    if saliency is None:
        colours = np.full(len(points), INK)
    else:
        steps = np.round(LEVELS * saliency) / LEVELS
        colours = np.array([_hex(of_signed(step)) for step in steps])
    draw_cloud(drawing, left, MIDDLE, SIDE, points, colours, 2.8)


def _hex(colour: np.ndarray) -> str:
    """(3,) in [0, 1] -> ``#rrggbb``."""
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in colour)


def answer_of(run: str, name: str = CLOUD) -> Answer:
    """What a run's adapter says about a cloud of its test set.

    Raises:
        SystemExit: if no test cloud has this name.
    """
    from pointadapterx import count_model
    from pointadapterx.visualize.introspection import nearest_patch
    from pointadapterx.visualize.loaded_run import Subject

    subject = Subject(run)
    numbers = [number for number, other in enumerate(subject.test.names) if Path(other).stem == name]
    if not numbers:
        sys.exit(f"{name}: no test cloud of {run} has this name")
    chosen = subject.choose(numbers[:1])
    best = subject.probabilities[numbers[0]].topk(3)
    falls = subject.saliency(chosen.inputs)[0].float()
    patches = nearest_patch(subject.model, chosen.inputs)[1][0].cpu()
    return Answer(
        chosen.inputs[0].cpu().numpy(),
        [subject.classes[index] for index in best.indices.tolist()],
        best.values.tolist(),
        (falls / falls.abs().max())[patches].numpy(),
        count_model(subject.info.config).parameters.percent,
    )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python docs/figures/hero.py RUN [CLOUD]")
    write({Path(__file__).with_name("hero.svg"): draw(answer_of(*sys.argv[1:]))})
