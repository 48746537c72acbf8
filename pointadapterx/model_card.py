"""The model card of an adapter: what it is, how good, what it needs, and how to use it; only what its files know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pointadapterx.adapted_model import hash_backbone
from pointadapterx.build import build_backbone
from pointadapterx.checkpoints.adapter_file import AdapterInfo
from pointadapterx.checkpoints.shipped import shipped_licence, shipped_weights
from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.preparation import wants_unit_sphere
from pointadapterx.engine.protocol import chooses
from pointadapterx.errors import CheckpointError, PointAdapterXError
from pointadapterx.hashing import hash_file
from pointadapterx.hub import HUB, Address
from pointadapterx.peft import METHODS
from pointadapterx.study.samples import run_intervals
from pointadapterx.templates import render

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

DIGITS = 2  # of scores, behind the point
OWN_DATA = ("folder", "h5", "imagefolder", "labelled_folder", "mask_folder")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


class Needed(NamedTuple):
    """The backbone weights that an adapter belongs to.

    Attributes:
        text: what they are, and where they come from.
        portable: whether they are found wherever the package is, or fetched.
        base: repository on the hub that they come from, or None.
    """

    text: str
    portable: bool
    base: str | None = None


def needed_weights(info: AdapterInfo) -> Needed:
    """What else an adapter needs; with the SHA-256 of a local file as long as the right one is there."""
    weights = info.config.backbone.weights
    base = Address.parse(weights).repository if weights is not None and weights.startswith(HUB) else None
    if METHODS[info.method.name].trains_backbone:
        return Needed("none: the file brings the whole backbone", True, base)
    if weights is None:
        seed = info.config.backbone.init_seed
        return Needed(f"random ones of backbone.init_seed={seed}, which the same version of torch draws again", True)
    if base is not None:
        return Needed(f"{weights}, fetched when they are needed", True, base)
    if weights in shipped_weights():
        return Needed(f"{weights}, which come with the package", True)
    file = Path(weights)
    digest = f" with SHA-256 {hash_file(file)}" if _is_of(file, info) else ""
    return Needed(f"{file.name}, a file{digest} that does not come along: give yours as --weights FILE", False)


def _is_of(file: Path, info: AdapterInfo) -> bool:
    """Whether a file holds the backbone that an adapter was trained on; another may lie there by now."""
    if not file.is_file():
        return False
    try:
        backbone = build_backbone(info.config.backbone.model_copy(update={"weights": str(file)}))
    except PointAdapterXError:
        return False
    return hash_backbone(backbone) == info.backbone_hash


def write_card(info: AdapterInfo, report: Mapping[str, Any] | None, address: Address, license: str | None) -> str:
    """The text of README.md, with the hub's front matter.

    Args:
        info: the adapter.
        report: ``metrics.json`` of its run, or None.
        address: where it will be.
        license: identifier of the hub, such as ``cc-by-4.0``, or None.
    """
    data, needed = info.config.data, needed_weights(info)
    intervals, missing = ({}, "") if report is None else _intervals(info)
    return render(
        "card.md",
        front_matter=_front_matter(info, report, address, license, needed),
        title=address.name,
        method=info.method.name,
        data=_named(data),
        classes=f": {len(info.classes)} classes" if info.classes else "",
        facts=_facts(info, report, license, needed),
        results=None if report is None else _results(info, report, intervals),
        place=str(address),
        repository=str(address).removeprefix(HUB),
        file="picture.png" if _modality(info) == "images" else "scan.ply",
        portable=needed.portable,
        usage=info.task.usage,
        sections=info.task.card(report),
        limits=_limits(info, report, intervals, missing),
    )


def _front_matter(
    info: AdapterInfo, report: Mapping[str, Any] | None, address: Address, license: str | None, needed: Needed
) -> str:
    from huggingface_hub import ModelCardData  # slow to import

    modality = _modality(info)
    task = info.task.tags.get(modality, info.config.task.name.replace("_", "-"))
    return ModelCardData(
        library_name="pointadapterx",
        license=license,
        base_model=needed.base,
        pipeline_tag=task if modality in info.task.pipelines else None,
        tags=["pointadapterx", "adapter", task, info.config.backbone.name, info.method.name],
        model_name=address.name,
        eval_results=None if report is None else _eval_results(info, report, task),
    ).to_yaml()


def _eval_results(info: AdapterInfo, report: Mapping[str, Any], task: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    data, drawn = info.config.data, ", ".join(_drawn(info.config.data).values())
    under = f"protocol {info.config.eval.protocol}, regime {report['regime']}, seed {report['seed']}"
    return [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " "),
            dataset_type=_name(data).replace(" ", "-"),
            dataset_name=f"{_name(data)}, {drawn}" if drawn else _name(data),
            dataset_config=", ".join(filter(None, (data.variant, drawn))) or None,
            dataset_split="test",
            metric_type=score.metric or key,
            metric_name=f"{score.long}{f' in {score.unit}' if score.unit else ''}, {under}",
            metric_value=round(report["test"][key], DIGITS),
        )
        for key, score in info.task.scores.items()
    ]


def _facts(info: AdapterInfo, report: Mapping[str, Any] | None, license: str | None, needed: Needed) -> dict[str, str]:
    backbone, data = info.config.backbone, info.config.data
    shape = backbone.input_shape(data.num_points)
    if _modality(info) == "images":
        channels, size, _ = shape
        mean, std = data.statistics(channels)
        kind = "grey" if channels == 1 else "RGB"
        form = f"{kind} images of {size} × {size} pixels, mean {mean}, std {std}"
    else:
        frame = "unit sphere" if wants_unit_sphere(info.metrics, data) else "in the unit of the training clouds"
        form = f"{shape[0]:,} points by FPS, {frame}, y up"
        form += f" (files: {data.up} up)" if data.up not in (None, "y") else ""
    facts = {
        "backbone": f"{backbone.name}, {backbone.dim} wide, {backbone.depth} blocks, {backbone.num_heads} heads",
        "weights of the backbone": needed.text,
        **_licence_of_weights(backbone.weights),
        "hash of the backbone's tensors": f"{info.backbone_hash}",
        "input": form,
        **({"classes": ", ".join(info.classes)} if info.classes else {}),
    }
    if report is not None:
        count = report["parameters"]
        head = count["trainable"] - count["trainable_without_head"]
        facts["trained parameters"] = (
            f"{count['trainable']:,}, {count['percent']:.2f} % of full fine-tuning; {head:,} of them the head's"
        )
    return {
        **facts,
        "file": f"adapter.safetensors, {info.path.stat().st_size / 1e6:.2f} MB, SHA-256 {hash_file(info.path)}",
        "made with": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
        "licence": license or "not stated; ask the owner of the repository",
    }


def _results(info: AdapterInfo, report: Mapping[str, Any], intervals: Mapping[str, str]) -> dict[str, str]:
    data, test = info.config.data, report["test"]
    scores = {
        score.long: f"{test[key]:.{DIGITS}f} {score.unit}".rstrip() + intervals.get(key, "")
        for key, score in info.task.scores.items()
    }
    return scores | {
        "test set": f"{_named(data)}, {test['count']:,} samples, checksum {report['data']['checksum']}",
        **_drawn(data),
        "protocol": report["protocol"],
        **({"evaluation": report["evaluation"]} if "evaluation" in report else {}),
        "regime of augmentation": report["regime"],
        "seed": f"{report['seed']}; one run",
        "precision, hardware": f"{info.config.train.precision}, {report['hardware']}",
    }


def _intervals(info: AdapterInfo) -> tuple[dict[str, str], str]:
    """What to say behind each score whose interval the files beside the adapter give, and why they give none."""
    try:
        found = run_intervals(info.path.parent, type(info.task))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{info.path.parent}: its answers to the test samples are damaged ({error!r}); move the adapter elsewhere"
        ) from None
    words = {key: f", 95 % interval {low:.{DIGITS}f} to {high:.{DIGITS}f}" for key, (low, high) in found.of.items()}
    return words, found.missing


def _limits(
    info: AdapterInfo, report: Mapping[str, Any] | None, intervals: Mapping[str, str], missing: str
) -> list[str]:
    lines = info.task.limits()
    if report is not None:
        lines.append(f"The figures are of one seed and {report['test']['count']:,} test samples, under this protocol.")
        if intervals:
            lines.append("Intervals are bootstrap intervals over the test samples; another seed gives other figures.")
        if missing:
            lines.append(f"The scores have no interval: {missing}.")
        if info.config.eval.protocol == "published" and chooses(info.config):
            lines.append("The epoch was chosen on the test set, so the figures are optimistic.")
    if not METHODS[info.method.name].trains_backbone:
        lines.append("On a backbone with another hash it is refused.")
        if info.config.backbone.weights is None:
            lines.append("The backbone has random weights: its results only test the pipeline.")
    return lines


def _named(data: DataConfig) -> str:
    """Data set and variant."""
    return " ".join(filter(None, (_name(data), data.variant)))


def _name(data: DataConfig) -> str:
    """Of a data set; a folder's is nobody else's."""
    return "own data" if data.name in OWN_DATA else data.name


def _drawn(data: DataConfig) -> dict[str, str]:
    """The part of a data set's training split that was learned from, where that was not all of it."""
    task, size = data.few_shot, data.train_size
    words = {}
    if task is not None:
        words["few-shot task"] = f"{task.ways}-way {task.shots}-shot, fold {task.fold}"
        words["few-shot task"] += f", {task.queries} queries a class" if task.queries is not None else ""
    if size is not None:
        words["training set"] = f"{size:,} labelled training samples"
    return words


def _licence_of_weights(weights: str | None) -> dict[str, str]:
    if weights is None or weights not in shipped_weights():
        return {}
    licence, attribution = (LINK.sub(r"\1 (\2)", text) for text in shipped_licence(weights))
    return {f"licence of {weights}": licence, f"attribution of {weights}": attribution}


def _modality(info: AdapterInfo) -> str:
    return DATASETS[info.config.data.name].modality
