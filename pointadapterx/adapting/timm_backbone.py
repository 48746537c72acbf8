"""``backbone: {name: timm}``: transformers of images of timm."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from pointadapterx.adapting.backbone import ForeignBackbone
from pointadapterx.adapting.hf_backbone import WEIGHTS, Statistics, say_once
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.hub import HUB, Address
from pointadapterx.models.backbone import BACKBONES
from pointadapterx.models.checkpoint_keys import Translated
from pointadapterx.optional import need, reason_of
from pointadapterx.registry import did_you_mean

OWN = ("img_size", "in_chans", "num_classes", "pretrained", "drop_path_rate")
"""Arguments of timm that keys of the section stand for, or that a backbone has no use for."""


@BACKBONES.register("timm")
class TimmBackbone(ForeignBackbone):
    """A model of timm: VisionTransformer, SwinTransformer, Eva."""

    class Options(ForeignBackbone.Options):
        """``backbone:`` of a config.

        ``model`` is a name of timm, ``architecture`` has further arguments of ``timm.create_model``. ``weights`` are
        timm's own unless they are set: a file, ``hf://owner/name``, or null for random ones.
        """

        name: Literal["timm"] = "timm"
        needs = ("timm",)
        extra = "timm"

        def read(self) -> tuple[ForeignBackbone.Options, Statistics | None]:
            """With what timm knows of ``model``, and its mean and std."""
            timm = need("timm", "needs timm", "timm", ConfigError)
            if self.model is None:
                raise ConfigError("is required: a name of timm.list_models(), such as vit_tiny_patch16_224")
            if not timm.is_model(self.model):
                raise ConfigError(f"{self.model}: no model of timm{did_you_mean(self.model, timm.list_models())}")
            cfg = timm.get_pretrained_cfg(self.model)
            weights = self.weights
            if "weights" not in self.model_fields_set:
                if cfg is None or not cfg.hf_hub_id:
                    raise ConfigError(
                        f"{self.model}: timm has no weights of it; set backbone.weights to yours, or null"
                    )
                weights = f"{HUB}{cfg.hf_hub_id}"
            if weights is not None and weights.startswith(HUB):
                address = Address.parse(weights)
                weights = str(address._replace(file=address.file or WEIGHTS))
            known = {
                "weights": weights,
                "label": self.label or self.model,
                "image_size": self.image_size or (224 if cfg is None else cfg.input_size[-1]),
                "channels": self.channels or (3 if cfg is None else cfg.input_size[0]),
            }
            if cfg is None:
                return self.model_copy(update=known), None
            mean, std = list(cfg.mean), list(cfg.std)
            if len(mean) != known["channels"]:
                return self.model_copy(update=known), None
            if self.label is None:  # the first time
                say_once(self.model, mean, std)
            return self.model_copy(update=known), (mean, std)

        def build(self) -> nn.Module:
            """The model, without a head."""
            import timm

            options = dict(self.architecture or {})
            for key in options:
                if key in OWN:
                    raise ConfigError(
                        f"architecture.{key}: is not set here; use image_size, channels, drop_path or weights"
                    )
            try:
                model: nn.Module = timm.create_model(
                    self.model,
                    pretrained=False,
                    num_classes=0,
                    img_size=self.image_size,
                    in_chans=self.channels,
                    drop_path_rate=self.drop_path,
                    **options,
                )
            except Exception as error:  # whatever timm raises
                raise ConfigError(f"{self.model}: timm cannot build it ({reason_of(error)[:200]})") from None
            return model

    options: TimmBackbone.Options

    def run_model(self, images: Tensor) -> object:
        """Runs all blocks on images (B, channels, S, S)."""
        model: Any = self.model
        return model.forward_features(images)

    def translate(self, state: Mapping[str, Tensor]) -> Translated:  # type: ignore[override]
        """The tensors of a file by the names of this backbone's, brought to its sizes by timm.

        Raises:
            CheckpointError: if they are of another model.
        """
        convert: Any = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        try:
            found = dict(state) if convert is None else convert(dict(state), self.model)
        except Exception as error:  # whatever timm raises
            raise CheckpointError(f"does not fit {self.options.label} ({reason_of(error)})") from None
        own = self.model.state_dict()
        tensors = {f"backbone.model.{name}": value for name, value in found.items() if name in own}
        return Translated(tensors, sorted(set(found) - set(own)), [])

    @property
    def made_by(self) -> str:
        """Library and version."""
        return f"timm {need('timm', 'needs timm', 'timm', ConfigError).__version__}"

    @property
    def recomputed(self) -> bool:
        """Whether activations are recomputed in the backward pass instead of being kept."""
        return any(bool(getattr(module, "grad_checkpointing", False)) for module in self.model.modules())

    @recomputed.setter
    def recomputed(self, wanted: bool) -> None:
        model: Any = self.model
        if wanted != self.recomputed:
            model.set_grad_checkpointing(wanted)
