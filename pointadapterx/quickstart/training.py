"""Training in a line: a model, or the one to start with, on a folder, on arrays, on data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import extract_model_from_parallel

from pointadapterx import jobs
from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.config import Config, Overrides
from pointadapterx.config.overrides import flat
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.quickstart.fitting import fitting
from pointadapterx.quickstart.model import PretrainedModel
from pointadapterx.quickstart.own_data import recognise, store_arrays
from pointadapterx.registry import did_you_mean
from pointadapterx.run_folder import CONFIG_FILE, new_folder, read_metrics
from pointadapterx.sections import TrainConfig

SECTIONS = ("train", "eval", "data")
"""What may be overridden: the rest is decided when a model is created."""


class Trained(NamedTuple):
    """What a training left.

    Attributes:
        folder: of the run.
        metrics: its report, as in ``metrics.json``: ``metrics["test"]["overall_accuracy"]``.
    """

    folder: Path
    metrics: dict[str, Any]


def train(
    model: PretrainedModel,
    data: Any,
    *,
    output: str | Path | None = None,
    overrides: Overrides = (),
    **more: Any,
) -> Trained:
    """Adapts a model to data, keeps the best epoch and tests it once.

    ``train(model, "scans", epochs=10, output="run")``

    Args:
        model: from :func:`~pointadapterx.quickstart.model.create_model` or ``from_pretrained``. It holds the kept
            adapter afterwards, in eval mode, on the device that it was trained on.
        data: a folder with a folder for each class, a CSV, or HDF5 files; or ``(points, labels)``, of which 20 % of
            each class are held out for the test; or ``{"train": …, "test": …}`` of such, or of ``PointClouds``. Arrays
            are stored in the run's folder.
        output: folder of the run, which must not hold one yet; by default ``runs/<data>/<time>``.
        overrides: of the model's config, in the sections ``train``, ``eval`` and ``data``.
        more: overrides too: keys of ``train``, as ``epochs=10``, or sections, as ``data={"up": "z"}``.

    Raises:
        PointAdapterXError: for wrong data or values, in one line.
    """
    if not isinstance(model, PretrainedModel):
        raise ConfigError(f"train takes a model of create_model or from_pretrained, not {type(model).__name__}")
    changes = _changes(overrides, more)
    of_files = isinstance(data, str | Path)
    name = Path(data).resolve().stem if of_files else "arrays"
    folder = Path(output) if output is not None else new_folder(name)
    if (folder / CONFIG_FILE).exists():
        raise PointAdapterXError(f"{folder}: already holds a run; choose another output")
    own = recognise(data if of_files else store_arrays(data, folder / "data"))
    config = _config(model, own.name, own.path, changes)
    accelerator = make_accelerator(config.train.precision, config.train.device)
    model.fit_to(config)
    jobs.train(config, name, folder, accelerator, model.train())
    extract_model_from_parallel(model, keep_fp32_wrapper=False)  # which mixed precision has put around forward
    model.remember(read_adapter(folder))
    model.eval()
    return Trained(folder, read_metrics(folder))


def _changes(overrides: Overrides, more: Mapping[str, Any]) -> dict[str, Any]:
    """All overrides by dotted key, those given by name last."""
    named = {key if key in SECTIONS or "." in key else f"train.{key}": value for key, value in more.items()}
    changes = {**flat(overrides), **flat(named)}
    for key in changes:
        section, _, name = key.partition(".")
        if section not in SECTIONS:
            raise ConfigError(f"{key}: is decided when the model is created; give it to create_model")
        if section == "train" and name not in TrainConfig.model_fields and name in more:
            known = tuple(TrainConfig.model_fields)
            near = did_you_mean(name, known)
            raise ConfigError(f"{name}={more[name]!r}: is no key of train{near} Known: {', '.join(known)}")
    return changes


def _config(model: PretrainedModel, name: str, root: Path, changes: Mapping[str, Any]) -> Config:
    """The model's config with other data, and the number of classes that these have."""
    sections, old = model.config.dump(), model.config.data
    shared = {"num_points": old.num_points, "augment": old.augment, "mean": old.mean, "std": old.std}
    own = old.model_dump() if old.name == name else shared
    sections["data"] = {**own, "name": name, "root": str(root), "few_shot": None, "train_size": None}
    sections["head"]["num_classes"] = None
    fitted = fitting(model.config.train, model.config.eval, changes)
    return Config.of(sections, str(root), {**fitted, **changes})
