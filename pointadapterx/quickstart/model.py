"""Models by the name of their weights, which keep their config and can be stored and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model, build_restored, model_config, seeded
from pointadapterx.checkpoints.adapter_file import AdapterInfo, model_recipe, read_adapter, save_adapter
from pointadapterx.checkpoints.shipped import LARGER, shipped_weights, without_locations
from pointadapterx.config import SHIPPED, Config, dump_config, read_config, read_document
from pointadapterx.config.sections import ORDER
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.files import write_text
from pointadapterx.models import BACKBONES
from pointadapterx.registry import unknown_name
from pointadapterx.run_folder import ADAPTER_FILE, CONFIG_FILE, STATE_FILE
from pointadapterx.tasks import Facts, build_task

METHOD = "dapt_x"
STARTS = {"point_mae": "own", "vit": "vtab/digits", "hf": "hf_digits", "timm": "hf_digits"}
"""Shipped configs that a model of each backbone starts from."""
POINTS = {"point_mae": 2048, "point_mae_small": 1024, "point_mae_tiny": 1024}
"""Points of a cloud that the weights were trained for."""
PLACEHOLDER = 2  # classes of a head that is still to get those of the data


class PretrainedModel(AdaptedModel):
    """An adapted model that knows its config; made by :func:`create_model` and :meth:`from_pretrained`.

    Attributes:
        config: complete.
        facts: what its task has to know of the data that it was trained on, such as the names of the classes.
        metrics: what its training said of the kept epoch.
        awaits_classes: whether the head is to be replaced by one for the classes of the data.
    """

    config: Config
    facts: Facts | None = None
    metrics: Mapping[str, Any] = {}
    awaits_classes = False

    @property
    def classes(self) -> list[str]:
        """Names in the order of the logits; empty before the training."""
        return [] if self.facts is None else self.facts.classes

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the adapter and its config into a folder, for :meth:`from_pretrained`, ``Predictor`` and commands.

        Raises:
            CheckpointError: if the folder holds a run, or cannot be written.
        """
        folder = Path(folder)
        if (folder / STATE_FILE).exists():
            raise CheckpointError(f"{folder}: holds a run, whose adapter would be overwritten; choose another folder")
        names = self.classes or [f"class_{number}" for number in range(self.head.num_classes)]
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(
            self, folder / ADAPTER_FILE, config=self.config, classes=names, facts=self.facts, metrics=self.metrics
        )
        write_text(folder / CONFIG_FILE, dump_config(without_locations(self.config)))

    @classmethod
    def from_pretrained(cls, place: str | Path, *, weights: str | Path | None = None) -> PretrainedModel:
        """The model of a stored adapter, on the CPU, in eval mode.

        Args:
            place: a folder of :meth:`save_pretrained` or of a run, an adapter file, ``hf://owner/repository``, or the
                name of a shipped adapter.
            weights: where the backbone's weights lie now, if not where the adapter says.

        Raises:
            CheckpointError: if there is no adapter, or its backbone's weights cannot be loaded.
            HubError: if it cannot be fetched.
        """
        info = read_adapter(place)
        config = model_config(info, {} if weights is None else {"backbone.weights": str(weights)})
        model = build_restored(info, config, kind=cls)
        assert isinstance(model, cls)
        model.config = config
        model.remember(info)
        model.eval()
        return model

    def remember(self, info: AdapterInfo) -> None:
        """Takes over what a file says of the training whose result the model holds."""
        self.facts, self.metrics, self.awaits_classes = info.facts, info.metrics, False

    def fit_to(self, config: Config) -> None:
        """Takes a config of other data, and with it, where the head waits for its classes, a new head.

        Raises:
            ConfigError: if the data have another number of classes than the head.
        """
        assert config.head is not None
        assert self.config.head is not None
        wanted, there = config.head.num_classes, self.config.head.num_classes
        if wanted != there:
            if not self.awaits_classes:
                raise ConfigError(
                    f"the model has {there} classes and the data {wanted}; create it with num_classes={wanted}, or "
                    "without num_classes"
                )
            device = next(self.head.parameters()).device
            with seeded(config.train.seed):
                self.head = build_task(config).build_head(self.backbone.feature_info).to(device).train(self.training)
        self.config, self.frozen_bn = config, config.train.frozen_bn
        self.recipe, self.num_points = model_recipe(config), config.data.num_points


def create_model(
    name: str = "point_mae_tiny",
    pretrained: bool | str | Path = True,
    method: str | Mapping[str, Any] = METHOD,
    num_classes: int | None = None,
    **options: Any,
) -> PretrainedModel:
    """A pre-trained backbone with a method and a head, for :func:`~pointadapterx.quickstart.training.train` or a loop.

    ``create_model("point_mae_tiny", method="lora", num_classes=5, rank=8)``

    Args:
        name: of the backbone: ``point_mae_tiny`` and ``vit_tiny``, whose weights are shipped; ``point_mae_small``,
            whose weights are in a package of their own; or ``point_mae`` and ``vit_b16`` in their published sizes; or
            ``hf`` and ``timm`` for a ``model`` of these libraries.
        pretrained: the shipped weights, or those of ``model``; or a weights file, or ``hf://owner/repository/file``.
            False: random weights.
        method: its name, or its whole section of a config.
        num_classes: of the head; by default it is made for the classes of the data when the model is trained.
        options: keys of the method; or sections of a config, as ``head={"hidden": []}``; or ``model`` and
            ``image_size`` of the backbones ``hf`` and ``timm``.

    Returns:
        The model on the CPU, in training mode, with only method and head to train.

    Raises:
        ConfigError: for an unknown name, method or key.
        CheckpointError: if the weights cannot be loaded.
    """
    foreign = BACKBONES[name].foreign if name in BACKBONES else False
    backbone = _foreign(name, pretrained, options) if foreign else _architecture(name)
    sections = {key: options.pop(key) for key in [*options] if key in ORDER}
    chosen = {"name": method} if isinstance(method, str) else dict(method)
    changes: dict[str, Any] = {
        "backbone": backbone if foreign else {**backbone, "weights": _weights(name, pretrained)},
        "head": {"num_classes": PLACEHOLDER if num_classes is None else num_classes},
        "data": {"num_points": POINTS[name]} if name in POINTS else {},
    }
    if BACKBONES[backbone["name"]].modality == "images":
        changes["data"]["name"] = "imagefolder"
    for section, values in {**sections, "method": {**chosen, **options}}.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"{section}={values!r}: give the keys of the section, as {section}={{...}}")
        changes[section] = {**changes.get(section, {}), **values}
    config = read_config(STARTS[backbone["name"]], changes)
    model = build_model(config, kind=PretrainedModel)
    assert isinstance(model, PretrainedModel)
    model.config, model.awaits_classes = config, num_classes is None
    return model


def from_pretrained(place: str | Path, *, weights: str | Path | None = None) -> PretrainedModel:
    """See :meth:`PretrainedModel.from_pretrained`."""
    return PretrainedModel.from_pretrained(place, weights=weights)


def _architecture(name: str) -> dict[str, Any]:
    """The ``backbone`` section of a backbone by its name."""
    found = {path.stem: read_document(path).content for path in sorted((SHIPPED / "base").glob("*.yaml"))}
    known = {key: content["backbone"] for key, content in found.items() if not content.keys() & {"method", "data"}}
    if name not in known:
        raise ConfigError(f"{unknown_name(name, known)}; weights of your own go to pretrained=FILE")
    return dict(known[name])


def _foreign(name: str, pretrained: bool | str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """The ``backbone`` section of a model of another library, whose keys are taken out of the options."""
    if "model" not in options:
        raise ConfigError(f"{name}: name a model, as create_model('{name}', model=...)")
    model = str(options.pop("model"))
    section = {"name": name, "model": model, "architecture": None, "image_size": options.pop("image_size", None)}
    if pretrained is not True:
        section["weights"] = None if pretrained is False else str(pretrained)
    elif name == "hf":
        section["weights"] = model
    return section


def _weights(name: str, pretrained: bool | str | Path) -> str | None:
    """``backbone.weights``."""
    if not isinstance(pretrained, bool):
        return str(pretrained)
    if pretrained and name not in (*shipped_weights(), *LARGER):
        raise ConfigError(
            f"{name}: no weights of it are shipped; give pretrained=FILE or hf://owner/repository/file, or "
            "pretrained=False for random ones"
        )
    return name if pretrained else None
