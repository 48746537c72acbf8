"""Files of pre-trained backbones: finding them by name, and writing our own."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from pointadapterx.checkpoints.eight_bit import SCALE, packed
from pointadapterx.config import LOCATIONS, Config
from pointadapterx.errors import CheckpointError
from pointadapterx.files import write_safetensors
from pointadapterx.hub import HUB, Address, fetch
from pointadapterx.models.backbone import Backbone
from pointadapterx.registry import did_you_mean

SHIPPED = Path(str(importlib.resources.files("pointadapterx"))) / "weights"
"""Folder of the shipped weights, each with a model card of the same name."""

PACKAGE = "pointadapterx_weights"
"""A package of its own with larger weights, which are found like the shipped ones where it is installed."""
WHEEL = f"{PACKAGE}-0.1.0-py3-none-any.whl"
"""Its file, beside that of this package."""
LARGER = ("point_mae_small",)
"""What it has, for messages where it is not installed."""

ADAPTERS = SHIPPED.with_name("adapters")
"""Folder of the shipped adapters, likewise."""
READY = "ldraw20"
"""The shipped adapter that predicts where no other is named."""

MIRROR, MIRROR_FILE = "torch-pointcloud", "model.safetensors"
"""Owner of the repositories that mirror published weights, and the file that each of them has."""

BACKBONE_FORMAT = "pointadapterx-backbone-1"


def find_weights(weights: str | Path) -> Path:
    """The file that ``backbone.weights`` means.

    Args:
        weights: a path; the name of shipped weights (``point_mae_tiny``); or ``hf://owner/repository/file``,
            optionally ``@revision``, which is downloaded once through huggingface_hub. In the repositories of
            ``torch-pointcloud`` the file may be left out.

    Raises:
        CheckpointError: if there is no such file, or it cannot be fetched.
    """
    text = str(weights)
    if text.startswith(f"{HUB}{MIRROR}/"):
        address = Address.parse(text)
        return fetch(address._replace(file=address.file or MIRROR_FILE))
    if text.startswith(HUB):
        return fetch(Address.parse(text, file=True))
    path = Path(text)
    if not path.exists() and text in shipped_weights():
        return _card(text).with_suffix(".safetensors")
    if not path.is_file():
        if text in LARGER and not path.exists():
            raise CheckpointError(
                f"{text}: is in a package of its own, which is not installed; in a checkout pip install "
                f"./tools/weights_package, else pip install {WHEEL}"
            )
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        known = shipped_weights()
        near = did_you_mean(text, known) if path.name == text else "."
        raise CheckpointError(
            f"{text}: {kind}; give the path of a checkpoint, {HUB}owner/repository/file, or shipped weights"
            f"{near} Shipped: {', '.join(known)}"
        )
    return path


def stored_weights(weights: str, adapter: Path) -> str:
    """The weights that an adapter's config names, wherever the adapter is used.

    A relative path counts from the folder that the run was started in, which is often above that of the run, so it is
    looked for there too. A file of the same name with other weights is refused later, by its hash.

    Args:
        weights: as for :func:`find_weights`.
        adapter: its file.

    Raises:
        CheckpointError: if there is no such file; it says how to name another.
    """
    if weights.startswith(HUB) or weights in shipped_weights() or Path(weights).exists():
        return weights
    for folder in adapter.absolute().parents:
        if (folder / weights).is_file():
            return str(folder / weights)
    try:
        return str(find_weights(weights))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; where they lie now is said by --weights FILE (predict, export), weights= (Python) or "
            "backbone.weights=FILE (other commands)"
        ) from None


def shipped_weights() -> list[str]:
    """Names of the weights that come with this package, and with :data:`PACKAGE` where it is installed."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.safetensors")})


def _folders() -> list[Path]:
    """Where they lie."""
    found = find_spec(PACKAGE)
    return [SHIPPED, *map(Path, [] if found is None else found.submodule_search_locations or ())]


def _card(name: str) -> Path:
    """The model card of shipped weights, beside their file."""
    return next(folder for folder in _folders() if (folder / f"{name}.safetensors").is_file()) / f"{name}.md"


def shipped_adapter(name: str | Path) -> Path | None:
    """The file of a shipped adapter, or None for what is none's name, or a path that exists."""
    file = ADAPTERS / f"{name}.safetensors"
    return file if Path(name).name == str(name) and not Path(name).exists() and file.is_file() else None


def without_locations(config: Config, keys: Sequence[str] = LOCATIONS) -> Config:
    """A config with null for paths of this machine; weights that are found everywhere stay.

    Args:
        config: complete config.
        keys: which of :data:`~pointadapterx.config.LOCATIONS`.
    """
    weights = config.backbone.weights
    everywhere = weights is not None and (weights.startswith(HUB) or weights in shipped_weights())
    changes: dict[str, dict[str, None]] = {}
    for section, key in (name.split(".") for name in keys):
        if section != "backbone" or not everywhere:
            changes.setdefault(section, {})[key] = None
    return config.replaced(**changes)


def shipped_licence(name: str) -> tuple[str, str]:
    """Licence and attribution of shipped weights, as their model card states them."""
    card = _card(name)
    text = card.read_text(encoding="utf-8")
    licence = re.search(r"^\| licence \| (.+?)(?:[;,] attribution below)? \|$", text, re.MULTILINE)
    attribution = re.search(r"^\*\*Attribution\.\*\* (.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if licence is None or attribution is None:
        raise CheckpointError(f"{card}: states no licence or attribution; install the package again")
    return licence[1], " ".join(attribution[1].replace("`", "").split())


def save_backbone(
    backbone: Backbone, path: Path, options: Backbone.Options, story: Mapping[str, Any], bits: Literal[8, 16] = 16
) -> None:
    """Writes a backbone in half precision, without the class token, which every task learns itself.

    Args:
        backbone: with its pre-trained weights.
        path: file to (atomically) write.
        options: its ``backbone`` section.
        story: anything JSON-able that a model card should tell.
        bits: of the values of matrices; 8 rounds them, to 127 steps either way of the largest in a row.

    Raises:
        CheckpointError: if it cannot be written, or a weight does not fit into half precision.
    """
    excluded = set(backbone.class_parameters())
    tensors = {name: tensor for name, tensor in backbone.state_dict().items() if name not in excluded}
    tensors = packed(tensors) if bits == 8 else tensors
    halves = {
        name: tensor.half() if tensor.is_floating_point() and not name.endswith(SCALE) else tensor
        for name, tensor in tensors.items()
    }
    for name, tensor in halves.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} is not finite in half precision; the weights have diverged")
    sizes = options.model_dump(exclude={"weights", "init_seed", "drop_path"})
    metadata = {"format": BACKBONE_FORMAT, "backbone": json.dumps(sizes), "story": json.dumps(dict(story))}
    write_safetensors(path, halves, metadata)


def backbone_sizes(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The ``backbone`` section that :func:`save_backbone` stored; empty for a file of another origin.

    Raises:
        CheckpointError: if it is damaged.
    """
    if metadata.get("format") != BACKBONE_FORMAT:
        return {}
    try:
        return dict(json.loads(metadata["backbone"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({error!r}); copy the file again") from None
