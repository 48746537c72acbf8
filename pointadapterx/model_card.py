"""The model card of an adapter: what it is, how good, what it needs, and how to use it; only what its files know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pointadapterx.adapted_model import hash_backbone
from pointadapterx.build import build_backbone
from pointadapterx.checkpoints.adapter_file import AdapterInfo
from pointadapterx.checkpoints.shipped import shipped_licence, shipped_weights
from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.preparation import wants_unit_sphere
from pointadapterx.engine.protocol import chooses
from pointadapterx.errors import PointAdapterXError
from pointadapterx.hashing import hash_file
from pointadapterx.hub import HUB, Address
from pointadapterx.peft import METHODS
from pointadapterx.text import markdown

TASKS = {"points": "point-cloud-classification", "images": "image-classification"}
ACCURACIES = {"overall_accuracy": "overall accuracy (OA)", "mean_class_accuracy": "mean-class accuracy (mAcc)"}


OWN_DATA = ("folder", "h5", "imagefolder")


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
    """What an adapter needs besides its file, with the SHA-256 of a local file as long as the right one is there."""
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
    data, method, needed = info.config.data, info.method.name, needed_weights(info)
    what = " ".join(filter(None, (_name(data.name), data.variant)))
    parts = (
        f"# {address.name}",
        f"`{method}` on {markdown(what)}: {len(info.classes)} classes. An adapter of PointAdapterX, which holds what "
        "this task changed of the backbone or added to it.",
        _table(_facts(info, report, license, needed)),
        _results(info, report),
        _usage(info, address, needed),
        *(f"## {title}\n\n{text}" for title, text in info.task.card(report)),
        _limits(info, report),
    )
    return f"---\n{_front_matter(info, report, address, license, needed)}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(
    info: AdapterInfo, report: Mapping[str, Any] | None, address: Address, license: str | None, needed: Needed
) -> str:
    data, backbone = info.config.data, info.config.backbone.name
    task = TASKS[_modality(info)]
    content: dict[str, Any] = {"library_name": "pointadapterx"}
    if license is not None:
        content["license"] = license
    if needed.base is not None:
        content["base_model"] = needed.base
    if _modality(info) == "images":  # the hub has no such task for point clouds
        content["pipeline_tag"] = task
    content["tags"] = ["pointadapterx", "adapter", task, backbone, info.method.name]
    if report is not None:
        under = f"protocol {info.config.eval.protocol}, regime {report['regime']}, seed {report['seed']}"
        drawn = ", ".join(_drawn(data.model_dump()).values())
        own = _name(data.name)
        name = f"{own}, {drawn}" if drawn else own
        dataset = {"type": own.replace(" ", "-"), "name": name, "split": "test"}
        if drawn or data.variant is not None:
            dataset["config"] = ", ".join(filter(None, (data.variant, drawn)))
        metrics = [
            {"type": "accuracy", "name": f"{name} in %, {under}", "value": round(report["test"][key], 2)}
            for key, name in ACCURACIES.items()
        ]
        result = {"task": {"type": task, "name": task.replace("-", " ")}, "dataset": dataset, "metrics": metrics}
        content["model-index"] = [{"name": address.name, "results": [result]}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


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
        "classes": ", ".join(info.classes),
    }
    if report is not None:
        count = report["parameters"]
        facts["trained parameters"] = f"{count['trainable']:,}, {count['percent']:.2f} % of full fine-tuning"
    return {
        **facts,
        "file": f"adapter.safetensors, {info.path.stat().st_size / 1e6:.2f} MB, SHA-256 {hash_file(info.path)}",
        "made with": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
        "licence": license or "not stated; ask the owner of the repository",
    }


def _results(info: AdapterInfo, report: Mapping[str, Any] | None) -> str:
    title = "## How good it is\n\n"
    if report is None:
        return f"{title}Its run's metrics are not here: no test result is known."
    data, test = report["data"], report["test"]
    what = " ".join(filter(None, (_name(data["name"]), data["variant"])))
    rows = {name: f"{test[key]:.2f} %" for key, name in ACCURACIES.items()} | {
        "test set": f"{what}, {test['count']:,} samples, checksum {data['checksum']}",
        **_drawn(data),
        "protocol": report["protocol"],
        "regime of augmentation": report["regime"],
        "seed": f"{report['seed']}; one run",
        "precision, hardware": f"{info.config.train.precision}, {report['hardware']}",
    }
    return title + _table(rows)


def _usage(info: AdapterInfo, address: Address, needed: Needed) -> str:
    place = str(address)
    flag, argument = ("", "") if needed.portable else (" --weights FILE", ', weights="FILE"')
    kind = "picture.png" if _modality(info) == "images" else "scan.ply"
    return (
        "## How to use it\n\n"
        f"```sh\npointadapterx predict {place} {kind}{flag}\n"
        f"pointadapterx pull {place.removeprefix(HUB)}    # the files of this repository\n```\n\n"
        "```python\nfrom pointadapterx import Failure, Predictor\n\n"
        f'predictor = Predictor("{place}"{argument})\n'
        f'for found in predictor(["{kind}"]):\n'
        "    if isinstance(found, Failure):\n"
        "        print(found.reason)\n"
        "    else:\n"
        "        print(found.name, found.classes[0], found.probabilities[0], found.known)\n```\n\n"
        "`config.yaml` is the complete config of the training, without the paths of its machine."
    )


def _limits(info: AdapterInfo, report: Mapping[str, Any] | None) -> str:
    lines = info.task.limits()
    if report is not None:
        lines.append(f"The figures are of one seed and {report['test']['count']:,} test samples, under this protocol.")
        if info.config.eval.protocol == "published" and chooses(info.config):
            lines.append("The epoch was chosen on the test set, so the figures are optimistic.")
    if not METHODS[info.method.name].trains_backbone:
        lines.append("On a backbone with another hash it is refused.")
        if info.config.backbone.weights is None:
            lines.append("The backbone has random weights: its results only test the pipeline.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _name(data: str) -> str:
    """Of a data set; a folder's is nobody else's."""
    return "own data" if data in OWN_DATA else data


def _drawn(data: Mapping[str, Any]) -> dict[str, str]:
    """What of a data set's training part there was to learn from, where that was not all."""
    task, size = data.get("few_shot"), data.get("train_size")
    words = {}
    if task is not None:
        words["few-shot task"] = f"{task['ways']}-way {task['shots']}-shot, fold {task['fold']}"
        words["few-shot task"] += f", {task['queries']} queries a class" if task["queries"] is not None else ""
    if size is not None:
        words["training set"] = f"{size:,} labelled training samples"
    return words


def _licence_of_weights(weights: str | None) -> dict[str, str]:
    if weights is None or weights not in shipped_weights():
        return {}
    licence, attribution = shipped_licence(weights)
    return {f"licence of {weights}": licence, f"attribution of {weights}": attribution}


def _table(rows: Mapping[str, str]) -> str:
    lines = (f"| {name} | {markdown(value)} |" for name, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def _modality(info: AdapterInfo) -> str:
    return DATASETS[info.config.data.name].modality
