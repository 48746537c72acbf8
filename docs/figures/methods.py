"""Pictures of where each method acts in a block: python docs/figures/methods.py writes docs/methods/figures/*.svg"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from drawing import FROZEN, PARTLY, SOFT, TOKEN, TRAINED, Drawing, write

FOLDER = Path(__file__).resolve().parent.parent / "methods" / "figures"
TOP = 92  # of the row of layers
MIDDLE = TOP + 20
BELOW = 178  # of what a method adds
BOXES = {  # left edge and width
    "patch": (16, 74),
    "norm1": (140, 58),
    "qkv": (208, 48),
    "attention": (266, 74),
    "proj": (350, 48),
    "norm2": (452, 58),
    "fc1": (520, 48),
    "fc2": (590, 48),
    "norm": (724, 58),
    "head": (798, 58),
}
WORDS = {"patch": "patch\nencoder", "norm": "final\nnorm"}
FIRST, SECOND = 425, 668  # where the residual branches are added
ENTRY, MIDWAY = 128, 440  # where they begin
LAYERS = ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")


class Figure(Drawing):
    """A block with the patch encoder before it and the head behind it.

    Args:
        title: of the picture.
        trained: layers that are trained, in addition to the head.
        partly: layers whose biases alone are trained.
        prompts: whether the method adds tokens.
        height: of the picture, in pixels.
    """

    def __init__(
        self,
        title: str,
        trained: Collection[str] = (),
        partly: Collection[str] = (),
        *,
        prompts: bool = False,
        height: int = 262,
    ) -> None:
        super().__init__(872, height, title)
        self.box(110, 34, 590, 120, "", "white", dashed=True)
        self.text(118, 50, "each block", anchor="start", ink=SOFT, size=12)
        self.line((90, MIDDLE), (797, MIDDLE))
        for start, end in ((ENTRY, FIRST), (MIDWAY, SECOND)):
            self.line((start, MIDDLE), (start, 66), (end, 66), (end, MIDDLE - 10))
        for name, (x, width) in BOXES.items():
            fill = TRAINED if name in (*trained, "head") else PARTLY if name in partly else FROZEN
            self.box(x, TOP, width, 40, WORDS.get(name, name), "white" if name == "attention" else fill)
        self.plus(FIRST, MIDDLE)
        self.plus(SECOND, MIDDLE)
        entries = [(FROZEN, "frozen"), (TRAINED, "trained")]
        entries += [(PARTLY, "biases trained")] if partly else []
        entries += [(TOKEN, "a token that is added")] if prompts else []
        x = 16.0
        for fill, words in entries:
            self.box(x, self.height - 26, 16, 14, "", fill)
            self.text(x + 22, self.height - 14, words, anchor="start", ink=SOFT, size=12)
            x += 52 + 6.6 * len(words)

    def between(self, start: float, end: float, words: str, *, width: float = 120, y: float = BELOW) -> None:
        """A trained box below the row of layers: reads at ``start``, is added at ``end``."""
        middle = (start + end) / 2
        self.line((start, MIDDLE), (start, y + 20), (middle - width / 2, y + 20))
        self.box(middle - width / 2, y, width, 40, words, TRAINED)
        self.line((middle + width / 2, y + 20), (end, y + 20), (end, MIDDLE + 10))

    def behind_each(self, names: Collection[str]) -> None:
        """A narrow box for scale and shift behind each of these layers."""
        for name in names:
            x, width = BOXES[name]
            self.box(x + width - 3, TOP + 6, 11, 28, "", TRAINED)


def full() -> Figure:
    """Full fine-tuning: every layer is trained."""
    return Figure("Full fine-tuning: all layers are trained", ("patch", *LAYERS, "norm"))


def linear() -> Figure:
    """Linear probe: only the head is trained."""
    return Figure("Linear probe: the head alone is trained")


def bitfit() -> Figure:
    """BitFit: biases are trained."""
    return Figure("BitFit: biases are trained", partly=("norm1", "proj", "norm2", "fc1", "fc2", "norm"))


def vpt() -> Figure:
    """VPT: prompts at the input of each block."""
    figure = Figure("VPT: learned prompt tokens enter each block")
    figure.box(46, BELOW, 130, 40, "P prompts\nof each block", TRAINED)
    figure.line((112, BELOW), (112, MIDDLE + 2))
    figure.text(190, BELOW + 25, "after CLS; shallow: only before the first block", anchor="start", ink=SOFT)
    return figure


def lora() -> Figure:
    """LoRA: an update parallel to the projections of queries and values."""
    figure = Figure("LoRA: low-rank updates of the query and value projections")
    figure.between(203, 261, "B A", width=40)
    figure.text(
        282,
        BELOW + 25,
        "of q and v; can be merged into the layer after training",
        anchor="start",
        ink=SOFT,
    )
    return figure


def ssf() -> Figure:
    """SSF: scale and shift behind every layer."""
    figure = Figure("SSF: scale and shift behind every layer")
    figure.behind_each(("patch", *LAYERS, "norm"))
    figure.text(
        140,
        BELOW + 25,
        "γ · x + β; can be merged into the layers after training",
        anchor="start",
        ink=SOFT,
    )
    return figure


def adapter() -> Figure:
    """Adapter: a bottleneck behind the FFN."""
    figure = Figure("Adapter: a bottleneck behind the FFN")
    _serial(figure, "down, GELU, up", TRAINED)
    return figure


def _serial(figure: Figure, words: str, fill: str) -> None:
    """A box below that reads the FFN's output and is added together with it."""
    figure.line((646, MIDDLE), (646, BELOW + 12), (631, BELOW + 12))
    figure.box(481, BELOW, 150, 40, words, fill)
    figure.line((631, BELOW + 28), (SECOND, BELOW + 28), (SECOND, MIDDLE + 10))


def _parallel(figure: Figure, words: str) -> None:
    """A box below that reads the FFN's input."""
    figure.line((515, MIDDLE), (515, BELOW - 10), (480, BELOW - 10), (480, BELOW + 20), (491, BELOW + 20))
    figure.box(491, BELOW, 140, 40, words, TRAINED)
    figure.line((631, BELOW + 20), (SECOND, BELOW + 20), (SECOND, MIDDLE + 10))


def adaptformer() -> Figure:
    """AdaptFormer: a bottleneck parallel to the FFN."""
    figure = Figure("AdaptFormer: a scaled bottleneck beside the FFN")
    _parallel(figure, "down, ReLU, up")
    return figure


def noah() -> Figure:
    """NOAH: prompts, LoRA and adapters."""
    figure = Figure("NOAH: prompts, LoRA and an adapter in each block, of searched widths")
    figure.box(16, BELOW, 130, 40, "prompts", TRAINED)
    figure.line((112, BELOW), (112, MIDDLE + 2))
    figure.between(203, 261, "B A", width=40)
    _serial(figure, "down, GELU, up", TRAINED)
    figure.text(276, BELOW + 25, "widths: by a search", anchor="start", ink=SOFT)
    return figure


def idpt() -> Figure:
    """IDPT: a generated prompt for the last block."""
    figure = Figure("IDPT: a prompt computed from the patch tokens, for the last block", prompts=True)
    figure.line((100, MIDDLE), (100, BELOW + 20), (119, BELOW + 20))
    figure.box(120, BELOW, 150, 40, "3 edge convolutions,\nmaximum", TRAINED)
    figure.line((270, BELOW + 20), (299, BELOW + 20))
    figure.box(300, BELOW + 3, 90, 34, "prompt", TOKEN)
    figure.line((345, BELOW + 3), (345, 162), (114, 162), (114, MIDDLE + 2))
    figure.text(402, BELOW + 25, "only before the last block", anchor="start", ink=SOFT)
    return figure


def stag() -> Figure:
    """STAG: a state of the patches that moves the tokens behind the later blocks."""
    figure = Figure("STAG: a state of the patches moves the tokens behind the later blocks", height=310)
    way = BELOW + 82
    figure.text(30, way - 8, "state, from 0", anchor="start", ink=SOFT, size=12)
    figure.line((30, way), (420, way), width=2.4)
    figure.line((ENTRY, MIDDLE), (ENTRY, BELOW - 1))
    figure.box(ENTRY - 24, BELOW, 48, 40, "W", TRAINED)
    figure.line((ENTRY, BELOW + 40), (ENTRY, way - 9))
    figure.plus(ENTRY, way)
    figure.box(420, way - 20, 150, 40, "maximum over\nnearest centres", TRAINED)
    figure.line((570, way), (700, way), width=2.4)
    figure.text(702, way + 4, "next block", anchor="start", ink=SOFT, size=12)
    figure.line((620, way), (620, BELOW + 41))
    figure.box(590, BELOW, 60, 40, "U, ReLU", TRAINED)
    figure.line((650, BELOW + 20), (706, BELOW + 20), (706, MIDDLE + 10))
    figure.plus(706, MIDDLE)
    figure.text(190, BELOW + 18, "tokens are moved behind the later blocks;", anchor="start", ink=SOFT)
    figure.text(190, BELOW + 36, "no gradient enters the blocks before", anchor="start", ink=SOFT)
    return figure


def _prompt(figure: Figure, words: str) -> None:
    """A prompt for the next block, computed from the output of the box below."""
    figure.line((610, BELOW + 40), (610, BELOW + 62), (689, BELOW + 62))
    figure.box(690, BELOW + 42, 170, 40, words, TRAINED)
    figure.line((715, BELOW + 42), (715, MIDDLE + 2))
    figure.box(704, 146, 22, 16, "", TOKEN)


def dapt() -> Figure:
    """DAPT: dynamic adapter, TFTS (scale and shift) and prompt."""
    figure = Figure("DAPT: dynamic adapters, scale and shift, generated prompts", prompts=True, height=300)
    figure.behind_each(("patch", *LAYERS, "norm"))
    _parallel(figure, "dynamic adapter")
    _prompt(figure, "γ · mean(GELU(a)) + β")
    figure.text(16, BELOW + 25, "narrow boxes: scale and shift (TFTS)", anchor="start", ink=SOFT)
    return figure


def _mixture(figure: Figure, serial: bool, kind: str) -> None:
    words = f"4 {kind}s, 1 router"
    if serial:
        _serial(figure, words, TRAINED)
    else:
        _parallel(figure, words)
    _prompt(figure, "γ · mean(a) + β")
    figure.text(16, BELOW + 25, "all blocks share one mixture;", anchor="start", ink=SOFT)
    figure.text(16, BELOW + 43, "each block has its own norm2, γ and β", anchor="start", ink=SOFT)


def adapter_x() -> Figure:
    """Adapter-X: one mixture for all blocks, behind the FFN."""
    figure = Figure("Adapter-X: one mixture of adapters behind all FFNs", ("norm2",), prompts=True, height=300)
    _mixture(figure, True, "adapter")
    return figure


def adaptformer_x() -> Figure:
    """AdaptFormer-X: one mixture for all blocks, parallel to the FFN."""
    figure = Figure("AdaptFormer-X: one mixture of adapters beside all FFNs", ("norm2",), prompts=True, height=300)
    _mixture(figure, False, "adapter")
    return figure


def dapt_x() -> Figure:
    """DAPT-X: one mixture of dynamic adapters for all blocks."""
    figure = Figure(
        "DAPT-X: one mixture of dynamic adapters beside all FFNs", ("norm2", "norm"), prompts=True, height=300
    )
    _mixture(figure, False, "expert")
    return figure


def _highway(figure: Figure, words: str) -> None:
    """Adapters whose outputs are added to a state that runs below the block to the final norm."""
    way = BELOW + 82
    figure.line((30, way), (753, way), (753, TOP + 41), width=2.4)
    figure.text(30, way - 8, "state, from 0", anchor="start", ink=SOFT, size=12)
    for start in (404, 646):
        figure.line((start, MIDDLE), (start, BELOW - 1))
        figure.box(start - 70, BELOW, 140, 40, words, TRAINED)
        figure.line((start, BELOW + 40), (start, way - 9))
        figure.plus(start, way)


def e3va() -> Figure:
    """E³VA: adapters on the highway."""
    figure = Figure("E³VA: adapters on a highway beside the frozen backbone", ("norm",), height=310)
    _highway(figure, "doubly low-rank\nadapter")
    figure.text(16, BELOW + 25, "no gradient enters the blocks", anchor="start", ink=SOFT)
    return figure


def e3va_x() -> Figure:
    """E³VA-X: one mixture on the highway."""
    figure = Figure("E³VA-X: one mixture on a highway beside the frozen backbone", ("norm",), height=310)
    _highway(figure, "4 doubly low-rank\nexperts, 1 router")
    figure.text(16, BELOW + 18, "all blocks share one mixture;", anchor="start", ink=SOFT)
    figure.text(16, BELOW + 36, "no gradient enters the blocks", anchor="start", ink=SOFT)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    kind.__name__: kind
    for kind in (
        *(full, linear, bitfit, vpt, lora, ssf, adapter, adaptformer),
        *(noah, idpt, stag, dapt, adapter_x, adaptformer_x, dapt_x, e3va, e3va_x),
    )
}


def pictures() -> dict[Path, str]:
    """The text of each SVG file."""
    return {FOLDER / f"{name}.svg": figure().svg() for name, figure in FIGURES.items()}


if __name__ == "__main__":
    write(pictures())
