"""Semantic segmentation: what each point of a scene is of, or of any cloud whose points have labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from rich.table import Table
from torch import Tensor

from pointadapterx.datasets import Samples, Scenes, derive_seed
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.ragged import grid_of
from pointadapterx.datasets.scenes import cell_of
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import FeatureInfo
from pointadapterx.models.point_mae import init_published
from pointadapterx.peft.base import Method
from pointadapterx.tasks.base import TASKS
from pointadapterx.tasks.exchange import Cut, Predictions, Score
from pointadapterx.tasks.from_data import read_of
from pointadapterx.tasks.point_segmentation import PointSegmentation, percent
from pointadapterx.tasks.segmentation_heads import PointOptions, SegmentationHead
from pointadapterx.tasks.tiles import Tiling
from pointadapterx.text import printable

FINEST = 16  # parts of a block that a stride may be
EVALUATIONS = {
    "clouds": "clouds: one sample of each cloud, counted over their points",
    "blocks": "blocks: random blocks of the test scenes, the same in every test, counted over their points",
    "rooms": "rooms: every point of whole scenes, by tiles of {block:g} every {stride:g}, majority of all labels of "
    "{votes} {passes}",
}
"""The ways to count a test, in words that are printed with every figure; figures of two ways cannot be compared."""


class SemanticOptions(PointOptions):
    """``task:`` of semantic segmentation.

    ``classes`` are the names of what a point may be, as the data set has them; null: filled in from it. ``test`` is how
    a test counts: ``blocks`` (random blocks of the test scenes, as epochs are always judged) or ``rooms`` (whole
    scenes, every point). ``votes`` is how often the latter goes over all tiles. ``stride`` is from one tile to the
    next, in tests and in predictions; null: half of ``data.block``.
    """

    name: Literal["semantic_segmentation"] = "semantic_segmentation"
    classes: list[str] | None = Field(None, min_length=2)
    test: Literal["blocks", "rooms"] = "blocks"
    votes: int = Field(3, ge=1, le=1_000)
    stride: float | None = Field(None, gt=0)

    @property
    def point_classes(self) -> list[str]:
        """The classes, in a complete config."""
        assert self.classes is not None
        return self.classes

    def completed(self, data: DataConfig | None) -> tuple[SemanticOptions, list[tuple[str, str]]]:
        """With the classes of the data set."""
        if data is None or data.lacks_variant:
            return self, []
        block, found = data.block_side, []
        if block is None and self.test == "rooms":
            found.append(("task.test", "rooms tests whole scenes by blocks, but data.block=whole; use blocks"))
        if self.stride is not None and block is None:
            found.append(("task.stride", "tiles belong to blocks, but data.block=whole; remove it"))
        elif self.stride is not None and block is not None and self.stride > block:
            found.append(("task.stride", f"{self.stride:g} leaves gaps between blocks of {block:g}; lower it"))
        elif self.stride is not None and block is not None and self.stride * FINEST < block:
            said = f"{self.stride:g} asks for each point in more than {FINEST}² blocks of {block:g}; raise it"
            found.append(("task.stride", said))
        if self.classes is not None:
            return self, found
        classes, problems = read_of(data, data.find_point_classes, "task.classes", "[NAME,NAME]")
        if problems:
            return self, [*found, *problems]
        if classes is None:
            said = f"is required, as {data.name} names no classes of points: give [class, …]"
            return self, [*found, ("task.classes", said)]
        return self.model_copy(update={"classes": classes}), found

    def problems(self, backbone: Backbone.Options | None, method: Method.Options | None) -> Iterator[tuple[str, str]]:
        """Classes that are named twice."""
        yield from super().problems(backbone, method)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            yield "task.classes", "names a class twice"


@TASKS.register("semantic_segmentation")
class SemanticSegmentation(PointSegmentation):
    """A class for every point.

    The scores count the points of all samples together: the mean over the classes of TP / (TP + FP + FN) and of the
    recall, and the share of all points that are right. Classes that no point is of, or is said to be of, do not count.
    """

    Options = SemanticOptions
    test_keys = ("test", "votes", "stride")
    scores: ClassVar[Mapping[str, Score]] = {
        "miou": Score("mIoU", "mean IoU (mIoU)", metric="mean_iou"),
        "mean_accuracy": Score("mAcc", "mean recall (mAcc)", metric="mean_accuracy"),
        "accuracy": Score("OA", "points that are right (OA)", metric="overall_accuracy"),
    }
    tags: ClassVar[Mapping[str, str]] = {"points": "point-cloud-semantic-segmentation"}

    @property
    def options(self) -> SemanticOptions:
        """The ``task`` section."""
        assert isinstance(self.config.task, SemanticOptions)
        return self.config.task

    @property
    def tiling(self) -> Tiling | None:
        """How whole scenes are cut; None where they are not."""
        block, size = self.config.data.block_side, self.config.data.num_points
        assert size is not None
        return None if block is None else Tiling(block, self.options.stride or block / 2, size)

    # Model.

    def build_head(self, info: FeatureInfo) -> SegmentationHead:
        """The published one starts as in ACT's code: truncated normal of 0.02, zero biases."""
        head = super().build_head(info)
        return head.apply(init_published) if self.options.head == "published" else head

    # Tests.

    @property
    def way(self) -> str:
        """The name of how a test counts, see :data:`EVALUATIONS`."""
        return "clouds" if self.tiling is None else self.options.test

    @property
    def evaluation(self) -> str:
        """That in words."""
        tiling, votes = self.tiling, self.options.votes
        if tiling is None:
            return EVALUATIONS["clouds"]
        passes = "pass" if votes == 1 else "passes"
        return EVALUATIONS[self.way].format(block=tiling.block, stride=tiling.stride, votes=votes, passes=passes)

    @property
    def tests_wholes(self) -> bool:
        """Whether a test is about rooms."""
        return self.way == "rooms"

    def judged(self, data: Samples) -> Samples:
        """The scenes, where a test is about rooms."""
        return data.wholes() if self.tests_wholes and isinstance(data, Scenes) else data

    def whole_row(self, data: Samples, index: int, ask: Callable[[Batch], Tensor], device: torch.device) -> Tensor:
        """Counts of a room: for each point the class that most of its tiles in all passes say; the first of several."""
        assert isinstance(data, Scenes)
        scene, tiling = int(data.scene[index]), self.tiling
        assert tiling is not None
        clouds = data.content
        points, rows = clouds.cloud(scene), clouds.rows(scene)
        classes, size = len(self.point_classes), self.config.eval.batch_size
        votes = torch.zeros(len(points) * classes, dtype=torch.int32, device=device)
        for vote in range(self.options.votes):
            seed = derive_seed("tiles", data.scene_names[scene], vote)
            for cuts in _batches(tiling.cuts(points, clouds.grids[scene], None, seed), size):
                given = torch.stack([cut.index for cut in cuts])
                placed = torch.stack([cut.placed for cut in cuts if cut.placed is not None])
                outputs = ask(Batch(placed.to(device), Targets()))
                if not bool(outputs.isfinite().all()):
                    return torch.full((3 * classes,), torch.nan, dtype=torch.float64)
                said = given.to(device).flatten() * classes + outputs.argmax(dim=-1).flatten()
                votes.index_add_(0, said, torch.ones_like(said, dtype=torch.int32))
        found = votes.view(-1, classes).argmax(dim=1)
        truth = torch.from_numpy(clouds.labels[rows].astype("int64")).to(device)
        return self.counts(found[None], truth[None])[0]

    # Metrics.

    def sample_records(self, found: Predictions) -> Tensor:
        """(n, 3 · classes): points of each class in both, in either, and in truth."""
        return found.rows

    @classmethod
    def scores_of(cls, sums: Tensor) -> Mapping[str, Tensor]:
        """Of the pooled points."""
        both, either, truth = sums.chunk(3, dim=-1)
        iou, recall = both / either.clamp_min(1), both / truth.clamp_min(1)
        return {
            "miou": 100.0 * iou.sum(dim=-1) / (either > 0).sum(dim=-1).clamp_min(1),
            "mean_accuracy": 100.0 * recall.sum(dim=-1) / (truth > 0).sum(dim=-1).clamp_min(1),
            "accuracy": 100.0 * both.sum(dim=-1) / truth.sum(dim=-1).clamp_min(1),
        }

    def said_of(self, row: Tensor, found: Predictions, index: int) -> dict[str, str]:
        """The scores of a single sample, and its number of points."""
        values = {name: f"{float(value):.4f}" for name, value in self.scores_of(row).items()}
        return values | {"points": str(int(row.chunk(3)[2].sum()))}

    # Predictions for single inputs.

    def pieces(self, points: Tensor, name: str) -> Iterable[Cut]:
        """Tiles, or the whole cloud where the model was trained on whole ones."""
        tiling = self.tiling
        if tiling is None:
            return super().pieces(points, name)
        array = points.numpy()
        grid, order = grid_of(array, cell_of(tiling.block), name)
        return tiling.cuts(array, grid, order, derive_seed("tiles"))

    # Presentation.

    def metrics_table(self, metrics: Mapping[str, Any], title: str) -> Table:
        """IoU and recall per class with the scores, for the terminal."""
        table = Table(title=title, title_justify="left")
        table.add_column("class")
        for name in ("points", "IoU %", "recall %"):
            table.add_column(name, justify="right")
        for name, entry in metrics["per_class"].items():
            row = f"{entry['points']:,}", percent(entry["iou"]), percent(entry["accuracy"])
            table.add_row(printable(name), *row)
        table.add_section()
        for key, score in self.scores.items():
            table.add_row(score.long, "", f"{metrics[key]:.2f}", "", style="bold")
        return table

    def result(self, metrics: Mapping[str, Any], what: str, interval: tuple[float, float] | None) -> str:
        """With the name of how the test counts."""
        return f"{super().result(metrics, self.way if self.tiling else what, interval)} ({self.way})"


def _batches(cuts: Iterator[Cut], size: int) -> Iterator[list[Cut]]:
    """So many at a time."""
    waiting: list[Cut] = []
    for cut in cuts:
        waiting.append(cut)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
