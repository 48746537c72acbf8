"""Adapters of a part of a data set's classes, and what they make of clouds of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import h5py
import torch
from accelerate import Accelerator
from torch import Tensor

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import Splits, build_model
from pointadapterx.config import Config, read_config
from pointadapterx.datasets import PointClouds, derive_seed, stratified_draw, stratified_split
from pointadapterx.datasets.h5 import read_h5
from pointadapterx.datasets.ldraw20 import LDraw20
from pointadapterx.engine.features import FeatureCache, StoredBatches, open_features
from pointadapterx.engine.trainer import Trainer
from pointadapterx.errors import DataError
from pointadapterx.models.frozen import Frozen

EMBEDDED = "ldraw20"
VIEWS = 4


class Seen(NamedTuple):
    """What a model computes of n clouds.

    Attributes:
        features: what the head reads, (n, D).
        hidden: what its last layer reads, (n, H).
        logits: (n, classes).
        labels: (n,), among the classes that were trained; -1 for the others.
        groups: (n,), equal for near-copies of one object.
    """

    features: Tensor
    hidden: Tensor
    logits: Tensor
    labels: Tensor
    groups: Tensor


class Run(NamedTuple):
    """An adapter of some of the classes, and all that is needed to judge novelty.

    Attributes:
        data: name of the data set.
        config: name of the config.
        split: number of the draw of classes.
        held_out: names of the classes that it has not seen.
        accuracy: of the known test clouds, in %.
        train: the clouds that it was trained on.
        val: clouds of the same classes, on which a score may be fitted.
        known: test clouds of the same classes.
        unknown: test clouds of the held-out classes.
        far: test clouds of the other data sets, by name.
    """

    data: str
    config: str
    split: int
    held_out: list[str]
    accuracy: float
    train: Seen
    val: Seen
    known: Seen
    unknown: Seen
    far: dict[str, Seen]


def read_clouds(name: str, root: Path | None, split: str) -> PointClouds:
    """A split of a data set: ``ldraw20``, or a folder with ``train.h5`` and ``test.h5``.

    These hold ``data (n, N, 3)``, ``label (n,)``, an attribute ``classes`` and, optionally, ``group (n,)``.

    Raises:
        DataError: if the file is missing or damaged.
    """
    if name == EMBEDDED:
        return LDraw20(split, root=root)
    if root is None:
        raise DataError(f"--data {name}: only {EMBEDDED} is embedded; write {name}=FOLDER, of train.h5 and test.h5")
    path = root / f"{split}.h5"
    try:
        with h5py.File(path) as file:
            classes = [str(one) for one in file.attrs["classes"]]
            groups = torch.from_numpy(file["group"][:]).long() if "group" in file else None
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read, or has no attribute 'classes' ({error})") from None
    content = read_h5(path, len(classes))
    return PointClouds(content.points, content.labels, classes, split, groups=groups, source=[path])


def held_out_classes(classes: int, share: float, split: int) -> Tensor:
    """Classes drawn at random, (k,), sorted; the draw is a function of ``split`` alone."""
    generator = torch.Generator().manual_seed(derive_seed(split, "held-out classes"))
    return torch.randperm(classes, generator=generator)[: max(1, round(share * classes))].sort().values


class Part(NamedTuple):
    """Some samples of a cache of features."""

    cache: FeatureCache
    index: Tensor

    @property
    def views(self) -> int:
        """Number of views of every sample."""
        return self.cache.views

    def fetch(self, indices: Tensor, views: Tensor, device: torch.device | str = "cpu") -> Frozen:
        """As :meth:`FeatureCache.fetch`, of the part's samples."""
        return self.cache.fetch(self.index[indices], views, device)


class _Trainer(Trainer):
    """Trains from features that the splits of a data set share."""

    parts: tuple[Part, Part]

    def prepare(self) -> None:
        train, val = self.parts
        device, selection = self.accelerator.device, self.selection
        assert selection is not None
        self.batches = StoredBatches(train, self.task.targets(self.dataset), device)
        self.selection_batches = StoredBatches(val, self.task.targets(selection), device)


class Source:
    """A data set with its frozen features, computed once for all draws of classes.

    Args:
        name: of the data set.
        root: its folder.
        config: from :func:`~pointadapterx.config.read_config`, whose number of classes is replaced.
        accelerator: device and precision.
        most: training clouds at most, drawn with the same share of every class.
    """

    def __init__(self, name: str, root: Path | None, config: Config, accelerator: Accelerator, most: int) -> None:
        self.name, self.accelerator = name, accelerator
        train, self.test = read_clouds(name, root, "train"), read_clouds(name, root, "test")
        few = len(train) <= most
        self.train = train if few else train.subset(stratified_draw(train.labels, most, seed=0))
        config = for_classes(config, len(self.train.classes))
        model = build_model(config).to(accelerator.device)
        self.augmented = open_features(model, self.train, config, accelerator, views=VIEWS)
        self.plain = open_features(model, self.train, config, accelerator, views=None)
        self.tested = open_features(model, self.test, config, accelerator, views=None)

    def run(self, name: str, config: Config, split: int, share: float, others: list[Source]) -> Run:
        """An adapter of all classes but some.

        Args:
            name: of the config.
            config: of the adapter.
            split: number of the draw.
            share: of the classes that are held out.
            others: data sets whose test clouds are far from this one's.
        """
        out = held_out_classes(len(self.train.classes), share, split)
        kept = [c for c in range(len(self.train.classes)) if c not in out.tolist()]
        config = for_classes(config, len(kept))
        known = torch.isin(self.train.labels, out).logical_not().nonzero().flatten()
        new = torch.full((len(self.train.classes),), -1)
        new[kept] = torch.arange(len(kept))
        groups = None if self.train.groups is None else self.train.groups[known]
        settings = config.eval
        cut = stratified_split(self.train.labels[known], settings.val_fraction, settings.split_seed, groups)
        train, val = (known[part] for part in cut)
        splits = Splits(
            *(_part(self.train, index, new, kept) for index in (train, val)),
            _part(self.test, torch.arange(len(self.test)), new, kept),
        )
        model = build_model(config)
        with TemporaryDirectory() as folder, ops.unchecked():
            trainer = _Trainer(config, model, splits, Path(folder), self.accelerator)
            trainer.parts = (Part(self.augmented, train), Part(self.plain, val))
            trainer.fit()
        model.eval()
        everything = torch.arange(len(self.test))
        test = self._look(model, self.tested, everything, splits.test)
        inside = test.labels >= 0
        right = test.logits[inside].argmax(dim=1) == test.labels[inside]
        return Run(
            self.name,
            name,
            split,
            [self.train.classes[c] for c in out.tolist()],
            100.0 * float(right.float().mean()),
            self._look(model, self.plain, train, splits.train),
            self._look(model, self.plain, val, splits.val),
            Seen(*(part[inside] for part in test)),
            Seen(*(part[~inside] for part in test)),
            {o.name: self._look(model, o.tested, torch.arange(len(o.test)), o.test) for o in others},
        )

    def _look(self, model: AdaptedModel, cache: FeatureCache, index: Tensor, clouds: PointClouds) -> Seen:
        rows = []
        with torch.inference_mode(), self.accelerator.autocast():
            for part in index.split(64):
                frozen = cache.fetch(part, torch.zeros_like(part), self.accelerator.device)
                features = model.head.pool(model.read(frozen))
                rows.append([values.float().cpu() for values in (features, *model.head.classify(features))])
        groups = torch.arange(len(clouds)) if clouds.groups is None else clouds.groups
        return Seen(*(torch.cat(column) for column in zip(*rows, strict=True)), clouds.labels, groups)


def _part(clouds: PointClouds, index: Tensor, new: Tensor, kept: list[int]) -> PointClouds:
    """Clouds at ``index`` with other labels; without points, since their features are there."""
    part = clouds.outline().subset(index)
    part.labels = new[part.labels]
    part.classes = [part.classes[c] for c in kept]
    return part


def model_config(name: str, overrides: list[str]) -> Config:
    """A config whose last epoch counts."""
    config = read_config(name, [f"train.cached_views={VIEWS}", "train.precision=fp32", *overrides])
    return config.replaced(eval={"every": config.train.epochs})


def for_classes(config: Config, count: int) -> Config:
    """The config with another number of classes than its data set has, which no check would let pass."""
    assert config.head is not None
    return replace(config, head=config.head.model_copy(update={"num_classes": count}))
