"""Fuzzing of adapters, configs, studies and checkpoints: targets of :mod:`benchmarks.fuzz`."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch

from pointadapterx.build import build_model, restore_model
from pointadapterx.checkpoints.adapter_file import read_adapter, save_adapter
from pointadapterx.config import SHIPPED, dump_config, read_config, read_document
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.datasets.unpickle import read_pickled_arrays
from pointadapterx.errors import PointAdapterXError
from pointadapterx.files import read_torch_file
from pointadapterx.study.schema import check_study
from pointadapterx.tasks.calibration import Calibration
from pointadapterx.tasks.classification import ClassFacts

T = TypeVar("T")
NARROW = ["backbone.dim=12", "backbone.depth=1", "backbone.encoder_width=4", "head.hidden=[4]", "data.num_points=32"]
NARROW += ["backbone.encoder_dim=12", "backbone.num_groups=4", "backbone.group_size=4", "backbone.weights=null"]


def stored_targets(make: Callable[..., T]) -> dict[str, T]:
    """Targets by name.

    Args:
        make: :class:`benchmarks.fuzz.Target`, which imports this module.
    """
    logging.getLogger("pointadapterx").setLevel(logging.CRITICAL)
    return {
        "adapter": make(".safetensors", adapters, lambda path: restore_model(read_adapter(path)), mend=mend_header),
        "dat": make(".dat", pickles, read_pickled_arrays),
        "config": make(".yaml", configs, read_yaml),
        "checkpoint": make(".pth", checkpoints, read_torch_file),
    }


def adapters() -> Iterable[bytes]:
    """Small ones of several methods, of which the header is the larger part."""
    for overrides in (["method.rank=1"], ["method.name=linear", "head.pools=[cls]"]):
        config = read_config("demo", [*NARROW, *overrides])
        with TemporaryDirectory() as folder:
            path = Path(folder, "adapter.safetensors")
            temperature = Calibration(1.5, 9)
            save_adapter(build_model(config), path, config=config, facts=ClassFacts(LDRAW20_CLASSES, temperature))
            yield path.read_bytes()


def configs() -> Iterable[bytes]:
    """The shipped ones, without what they include, and two that include nothing."""
    yield from (path.read_bytes() for path in sorted(SHIPPED.rglob("*.yaml")) if path.parent.name != "base")
    yield dump_config(read_config("demo")).encode()
    yield b"a: &a [1, 2.5e-3, 2026-01-01]\nb: &b {<<: {c: *a}, d: !!int 3}\ntrain: *b\n"


def read_yaml(path: Path) -> None:
    """As a config, and as a study."""
    with suppress(PointAdapterXError):
        read_config(path)
    check_study(read_document(path))


def checkpoints() -> Iterable[bytes]:
    """Of either layout of ``torch.save``, with what else such files carry."""
    content = {
        "model": {"norm.weight": torch.ones(3)},
        "best": np.float64(93.2),
        "curve": np.arange(4),
        "args": argparse.Namespace(lr=1e-3, output=Path("runs")),
    }
    for zipped in (True, False):
        with TemporaryDirectory() as folder:
            path = Path(folder, "weights.pth")
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            yield path.read_bytes()


def pickles() -> Iterable[bytes]:
    """Caches as Point-BERT's code writes them, by every protocol."""
    content = [[np.ones((2, 6), np.float32), np.zeros((2, 6))], [np.array([3]), np.array([4], np.int32)]]
    yield from (pickle.dumps(content, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1))


def mend_header(data: bytes) -> bytes:
    """The length of a safetensors file's JSON, which ends with a brace."""
    declared = int.from_bytes(data[:8], "little")
    end = data.rfind(b"}", 8, 8 + min(declared, len(data)) + 64) + 1
    return data if end == 0 else (end - 8).to_bytes(8, "little") + data[8:]
