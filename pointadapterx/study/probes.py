"""Linear probes of several weights on several data sets, beside random weights, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from accelerate import Accelerator

from pointadapterx import ops
from pointadapterx.build import build_backbone, build_probe_data
from pointadapterx.checkpoints.shipped import backbone_sizes, find_weights
from pointadapterx.config import Config
from pointadapterx.datasets import PointClouds
from pointadapterx.errors import ConfigError
from pointadapterx.files import read_safetensors
from pointadapterx.jobs.linear_probe import PROBE_SEEDS, calibrate_batch_norm, probe_outcomes
from pointadapterx.models import BACKBONES
from pointadapterx.models.point_mae import PointMAE
from pointadapterx.study.cells import difference_cell, interval_cell, table_lines
from pointadapterx.study.comparing import Difference
from pointadapterx.study.statistics import (
    Interval,
    Runs,
    count_units,
    mean_score,
    percentile_interval,
    resampled_scores,
)
from pointadapterx.tasks.presentation import too_few
from pointadapterx.text import markdown


@dataclass(frozen=True)
class Probed:
    """Probes of one row of the table.

    Attributes:
        name: of the weights.
        size: of the backbone, in words.
        runs: data set to (n,) bool for each initialisation, which clouds are right.
    """

    name: str
    size: str
    runs: dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Probes:
    """The whole table.

    Attributes:
        rows: weights in their order, then random ones.
        parts: data set to the clouds that were learnt from, and those that were judged.
        test: whether the latter are the test split.
    """

    rows: list[Probed]
    parts: dict[str, tuple[PointClouds, PointClouds]]
    test: bool


def backbone_config(config: Config, weights: str) -> Config:
    """The config with the backbone that a file of weights says it is of.

    Args:
        config: of a pre-training job, whose backbone is that of files of other origin.
        weights: as ``backbone.weights``.

    Raises:
        CheckpointError: if there is no such file.
        ConfigError: if it is not of a backbone that can be probed.
    """
    path = find_weights(weights)
    sizes = backbone_sizes(path, read_safetensors(path)[1]) if path.suffix == ".safetensors" else {}
    name = sizes.get("name", config.backbone.name)
    if name in BACKBONES and BACKBONES[name].modality != "points":
        raise ConfigError(
            f"{weights}: weights of a {name}, which takes {BACKBONES[name].modality}; a probe needs points"
        )
    heads = {"pretrain": {"decoder_heads": sizes["num_heads"]}} if "num_heads" in sizes else {}  # of no use here
    return config.replaced(backbone={**sizes, "weights": weights}, **heads)


def probe_all(
    config: Config,
    weights: Sequence[str],
    data: Mapping[str, Mapping[str, str]],
    accelerator: Accelerator,
    *,
    test: bool,
) -> Probes:
    """Probes all weights, and random ones of each of their backbones, on all data sets.

    Args:
        config: of a pre-training job.
        weights: files or names.
        data: label of each data set to what is replaced in ``pretrain.probe``.
        accelerator: of :func:`~pointadapterx.engine.devices.make_accelerator`.
        test: judge on the test splits, from the whole training splits.

    Raises:
        ConfigError: for a config of another job.
    """
    if config.pretrain is None:
        raise ConfigError("a probe needs a pre-training config, for example cfgs/pretrain/point_mae_tiny.yaml")
    backbones = {name: backbone_config(config, name) for name in weights}
    parts = {
        label: build_probe_data(next(iter(backbones.values())).replaced(pretrain={"probe": dict(keys)}), test=test)
        for label, keys in data.items()
    }

    def judge(
        config: Config, weights: str | None, seeds: Sequence[int], calibrated: bool = False
    ) -> dict[str, list[np.ndarray]]:
        found: dict[str, list[np.ndarray]] = {label: [] for label in parts}
        for seed in seeds:
            backbone = build_backbone(config.backbone.model_copy(update={"weights": weights, "init_seed": seed}))
            backbone.to(accelerator.device)
            for label, (train, judged) in parts.items():
                if calibrated and isinstance(backbone, PointMAE):
                    calibrate_batch_norm(backbone, train, config)
                found[label].append(probe_outcomes(backbone, train, judged, config, accelerator))
        return found

    rows = []
    with ops.unchecked():
        for name, of_file in backbones.items():
            rows.append(Probed(name, _size(of_file), judge(of_file, name, [of_file.backbone.init_seed or 0])))
        for of_kind in {_kind(of_file): of_file for of_file in backbones.values()}.values():
            for name, calibrated in (("random", False), ("random, BatchNorm calibrated", True)):
                rows.append(Probed(name, _size(of_kind), judge(of_kind, None, PROBE_SEEDS, calibrated)))
    return Probes(rows, parts, test)


def render_probes(probes: Probes) -> list[str]:
    """The table in Markdown, with what its figures mean."""
    judged = "the test split, learnt from the training split" if probes.test else "a part of the training split"
    first = probes.rows[0]
    several = len(probes.parts) > 1
    lines = [
        f"Accuracy in percent of a linear SVM on frozen features, on {judged}. In brackets: 95 % bootstrap interval of "
        "the judged clouds (groups of variants are drawn together) and, of random weights, the initialisations.",
        "",
        *(
            f"- {markdown(label)}: {len(train)} clouds to learn from, {len(judged)} judged"
            f"{f' ({missing})' if (missing := _missing(probes, label)) else ''}"
            for label, (train, judged) in probes.parts.items()
        ),
        "",
    ]
    header = ["weights", "backbone", *map(markdown, probes.parts), *(["mean of data sets"] if several else [])]
    compared = [f"Δ to {markdown(first.name)}"] if len(probes.rows) > 1 else []
    rows = [[*_cells(row, probes), *([_difference(row, probes)] if compared else [])] for row in probes.rows]
    return [*lines, *table_lines([*header, *compared], rows)]


def _cells(row: Probed, probes: Probes) -> Iterator[str]:
    yield from (markdown(row.name), row.size)
    drawn = {label: _drawn([runs], probes, label)[0] for label, runs in row.runs.items()}
    values = {label: mean(map(mean_score, runs)) for label, runs in row.runs.items()}
    yield from (f"{values[label]:.2f}{interval_cell(_of_mean(probes, {label: drawn[label]}))}" for label in drawn)
    if len(drawn) > 1:
        yield f"{mean(values.values()):.2f}{interval_cell(_of_mean(probes, drawn))}"


def _difference(row: Probed, probes: Probes) -> str:
    """Of the mean over data sets to the first row's, paired by cloud."""
    first = probes.rows[0]
    if row is first:
        return "–"
    pairs = {label: [runs, first.runs[label]] for label, runs in row.runs.items()}
    drawn = {label: np.subtract(*_drawn(pair, probes, label)) for label, pair in pairs.items()}
    own, other = (mean(mean(map(mean_score, pair[i])) for pair in pairs.values()) for i in (0, 1))
    return difference_cell(Difference(own - other, _of_mean(probes, drawn), None))


def _drawn(methods: Sequence[Runs], probes: Probes, label: str) -> list[np.ndarray]:
    groups = probes.parts[label][1].groups
    stream = list(probes.parts).index(label) + 1  # so data sets are independent of each other
    return resampled_scores(methods, None if groups is None else groups.numpy(), stream)


def _of_mean(probes: Probes, drawn: Mapping[str, np.ndarray]) -> Interval | None:
    """Of the mean over these data sets; None where one has too few independent clouds."""
    if any(_missing(probes, label) for label in drawn):
        return None
    return percentile_interval(np.mean(list(drawn.values()), axis=0))


def _missing(probes: Probes, label: str) -> str:
    """Why a data set has no interval; empty where it has."""
    judged = probes.parts[label][1]
    return too_few(count_units(len(judged), None if judged.groups is None else judged.groups.numpy()))


def _size(config: Config) -> str:
    """``384/12, 64 groups of 32``."""
    backbone = config.backbone
    groups = ""
    if isinstance(backbone, PointMAE.Options):
        groups = f", {backbone.num_groups} groups of {backbone.group_size}"
    return f"{backbone.dim}/{backbone.depth}{groups}"


def _kind(config: Config) -> str:
    """What random weights depend on, and their features."""
    return config.backbone.model_dump_json(exclude={"weights", "averaged_weights", "init_seed", "drop_path"})
