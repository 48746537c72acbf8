"""The model that is trained, composed of backbone, method and head, and who owns which parameter."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pointadapterx.adapting.adapters import parts_of
from pointadapterx.errors import ConfigError, MergeError
from pointadapterx.hashing import hash_tensors
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import Features, Head
from pointadapterx.models.frozen import Frozen
from pointadapterx.models.packing import unpack
from pointadapterx.models.trainable import TrainableModel
from pointadapterx.ops import farthest_point_sample
from pointadapterx.peft.base import Method
from pointadapterx.peft.linear import Linear


class ModelOutput(NamedTuple):
    """Output of :class:`AdaptedModel`.

    Attributes:
        logits: of the head, (B, number of classes) for classification, (B, N, ...) where it answers for each point.
        auxiliary_loss: scalar to add to the task loss, or None.
    """

    logits: Tensor
    auxiliary_loss: Tensor | None


class ModelFeatures(NamedTuple):
    """Output of :meth:`AdaptedModel.features`.

    Attributes:
        pooled: (B, D), what the head reads: for classification its pools side by side, D = pools · C.
        patches: (B, G, C), the normalised tokens of the patches.
        class_token: (B, C), None in a backbone without one.
        centers: (B, G, 3), where in the cloud the patches lie; None for images.
    """

    pooled: Tensor
    patches: Tensor
    class_token: Tensor | None
    centers: Tensor | None


class AdaptedModel(TrainableModel):
    """Connects backbone, method and head, and freezes every parameter that nobody owns.

    Ownership: the method's parameters and the head's are trainable, and so are the backbone parameters
    that the method names; everything else is frozen.

    Args:
        backbone: with its pre-trained weights already loaded.
        method: not yet attached; this attaches it.
        head: built from the backbone's ``feature_info``.
        frozen_bn: ``"eval"`` keeps frozen BatchNorm layers in eval mode, so that their statistics stay
            those of pre-training; ``"batch"`` normalises by the batch and updates them, as the published
            code does by leaving the frozen patch encoder in training mode.

    Attributes:
        backbone_hash: see :func:`hash_backbone`, of the backbone as it came.
        recipe: the sections of the config that decide what the model computes, where it was built from one.
        num_points: of the clouds that it is trained on and tested with, where it was built from a config of clouds.
    """

    recipe: dict[str, Any] | None = None
    num_points: int | None = None
    _warned_of_number = False

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        head: Head,
        frozen_bn: Literal["eval", "batch"] = "eval",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.head = head
        self.frozen_bn = frozen_bn
        method.require(backbone)
        method.attach(backbone)
        backbone.adapted_by(method)
        self.requires_grad_(False)
        for owner in (method, head):
            owner.requires_grad_(True)
        for parameter in method.trained_backbone_parameters(backbone):
            parameter.requires_grad_(True)
        self.remember_backbone()
        self.train(self.training)

    def remember_backbone(self) -> None:
        """Remembers the backbone's current weights as those that adapters belong to."""
        self.backbone_hash = hash_backbone(self.backbone)
        stored = self.backbone.state_dict()  # without buffers that follow from the options
        self._initial_buffers = {
            f"backbone.{name}": buffer.clone() for name, buffer in self.backbone.named_buffers() if name in stored
        }
        self._initial_parameters = {  # for unload; those of full fine-tuning would be the whole backbone again
            name: parameter.detach().clone()
            for name, parameter in self.backbone.named_parameters()
            if parameter.requires_grad and not self.method.trains_backbone
        }

    def forget_backbone(self) -> None:
        """Discards what only :meth:`unload` and :meth:`adapter_state` need."""
        self._initial_parameters, self._initial_buffers = {}, {}

    def merge(self) -> AdaptedModel:
        """A plain model that computes the same, in eval mode with nothing to train; this model is not changed.

        Raises:
            MergeError: if the method cannot be merged.
        """
        merged = copy.deepcopy(self)
        merged.method.merge(merged.backbone)
        merged._leave_plain()
        return merged

    def unload(self) -> Backbone:
        """The original backbone, without the method; this model is not changed.

        ``model.unload()(inputs)`` are its :class:`~pointadapterx.models.features.Features`.

        Raises:
            MergeError: after full fine-tuning, which leaves nothing of it.
        """
        if self.method.trains_backbone:
            raise MergeError("full fine-tuning has changed the whole backbone; build it again from its weights file")
        plain = copy.deepcopy(self)
        plain._leave_plain()
        initial = {name.removeprefix("backbone."): buffer for name, buffer in self._initial_buffers.items()}
        plain.backbone.load_state_dict({**initial, **self._initial_parameters}, strict=False)
        return plain.backbone

    def _leave_plain(self) -> None:
        unpack(self.modules())
        for hook in self.method.hooks:
            hook.remove()
        self.method = Linear(Linear.Options())
        self.backbone.adapted_by(self.method, alone=True)
        self.requires_grad_(False)
        self.recipe = None
        self.eval()

    def forward(self, inputs: Tensor | Frozen, condition: Any = None) -> ModelOutput:
        """Inputs of the backbone, for example points (B, N, 3), or what is kept of them -> :class:`ModelOutput`.

        ``condition`` (B, ...) is what else the head is to know of the samples, where it asks for something.

        Clouds are taken as they come: one of another number of points than :attr:`num_points` costs accuracy, of which
        a warning is given once. :meth:`resample` brings them to that number.
        """
        self._check_number(inputs)
        features = self.read(inputs, condition)
        auxiliary = self.method.auxiliary_loss(features.losses) if features.losses else None
        return ModelOutput(self.head(features), auxiliary)

    def read(self, inputs: Tensor | Frozen, condition: Any = None) -> Features:
        """All that the head is given of inputs and ``condition``, see :meth:`forward`."""
        sequence, losses, centers, kept, _, _ = self.method.run(self.backbone, inputs, self.head.blocks)
        return Features(sequence, losses, centers, kept, inputs if isinstance(inputs, Tensor) else None, condition)

    def pooled(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        """Inputs of the backbone -> what the head's ``mlp`` reads, (B, pools · C)."""
        self._check_number(inputs)
        return self.head.pool(self.read(inputs, condition))

    def features(self, inputs: Tensor, condition: Tensor | None = None) -> ModelFeatures:
        """Inputs of the backbone -> what the adapted backbone makes of them, whole and patch by patch.

        Call it in eval mode, and under ``torch.no_grad()`` where no gradient is wanted.
        """
        self._check_number(inputs)
        found = self.read(inputs, condition)
        return ModelFeatures(self.head.pool(found), found.sequence.patches, found.class_token, found.centers)

    def print_trainable_parameters(self) -> None:
        """Prints the numbers of trained and of all parameters in one line."""
        found = count_parameters(self)
        print(
            f"trained: {found.trainable:,} ({found.trainable_without_head:,} without the head) of {found.total:,} "
            f"parameters; {found.percent:.2f} % of full fine-tuning"
        )

    def resample(self, points: Tensor) -> Tensor:
        """Clouds (B, N, 3) with the number of points of a test, as it chooses them: (B, ``num_points``, 3).

        The farthest points from the first one on; of a cloud with fewer some are repeated.

        Raises:
            ConfigError: if the model is of images, or was not built from a config.
        """
        grouping = getattr(self.backbone, "grouping", None)
        if self.num_points is None or grouping is None:
            raise ConfigError("resample: the model takes no clouds, or was not built from a config of clouds")
        found, wanted = points.shape[1], self.num_points
        if found <= wanted:
            return points[:, torch.arange(wanted, device=points.device) % found]
        chosen = farthest_point_sample(points, wanted, skip_origin=grouping.skip_origin)
        return points.take_along_dim(chosen.unsqueeze(-1), dim=1)

    def _check_number(self, inputs: Tensor | Frozen) -> None:
        if torch.compiler.is_compiling() or self.num_points is None or self._warned_of_number:
            return
        if isinstance(inputs, Tensor) and inputs.ndim == 3 and inputs.shape[1] != self.num_points:
            self._warned_of_number = True
            warnings.warn(
                f"clouds of {inputs.shape[1]} points, but the model is of {self.num_points} (data.num_points), and "
                "accuracy suffers; give it model.resample(points), or use Predictor, which resamples (said once)",
                stacklevel=5,  # whoever calls the module
            )

    def train(self, mode: bool = True) -> AdaptedModel:
        """Training mode for everything except frozen BatchNorm (see ``frozen_bn``)."""
        super().train(mode)
        if mode and self.frozen_bn == "eval":
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                    module.eval()
        return self

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Tokens: parameters that take no weight decay though they are not 1-D."""
        return [*self.backbone.undecayed_parameters(), *self.method.undecayed_parameters()]

    def learning_rates(self) -> dict[int, float]:
        """Factors of the learning rate that the method asks for, by ``id(parameter)``."""
        groups = self.method.learning_rates(self.backbone)
        return {id(p): factor for parameters, factor in groups for p in parameters if factor != 1.0}

    def begin_epoch(self, epoch: int) -> None:
        """Tells the method."""
        self.method.begin_epoch(epoch)

    def adapter_state(self) -> dict[str, Tensor]:
        """What a task needs in addition to the backbone's weights file.

        Trainable parameters, the class token (a self-supervised checkpoint has none), all buffers of
        method, head and trained backbone layers, and the other backbone buffers that differ from those it came with.
        """
        state = self.state_dict()
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        names |= {f"backbone.{name}" for name in self.backbone.class_parameters()}
        names |= {name for name, _ in self.named_buffers() if not name.startswith("backbone.")}
        names |= {  # a layer that is trained keeps its statistics, changed or not
            f"backbone.{layer}.{name}"
            for layer, module in self.backbone.named_modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
            for name, _ in module.named_buffers(recurse=False)
        }
        names |= {
            name
            for name, initial in self._initial_buffers.items()
            if not torch.equal(initial, state[name].to(initial.device))
        }
        return {name: state[name].detach().contiguous() for name in state if name in names}


def hash_backbone(backbone: Backbone) -> str:
    """SHA-256 over names, shapes and float32 values of a backbone's state, class token excluded.

    The class token is excluded because every adapter file contains its own.
    """
    excluded = set(backbone.class_parameters())
    return hash_tensors({k: v for k, v in backbone.state_dict().items() if k not in excluded})


class ParameterCount(NamedTuple):
    """Number of parameters of one component (backbone, method or head)."""

    trainable: int
    total: int


class ParameterReport(NamedTuple):
    """Parameters of an adapted model.

    Attributes:
        components: ``backbone``, ``method``, ``head``.
        trainable: trainable parameters, head included.
        trainable_without_head: the same without the head.
        total: all parameters of the adapted model.
        full: parameters that full fine-tuning would train: the backbone and the same head without prompt
            pools, since a plain backbone makes no prompts (22.1 M for Point-MAE).
        percent: 100 · trainable / full, both with the head, as papers on point clouds print it.
    """

    components: dict[str, ParameterCount]
    trainable: int
    trainable_without_head: int
    total: int
    full: int
    percent: float

    @property
    def percent_without_head(self) -> float:
        """100 · trainable_without_head / parameters of the backbone, as papers on VTAB-1K print it."""
        return 100.0 * self.trainable_without_head / self.components["backbone"].total


def count_parameters(model: AdaptedModel | nn.Module) -> ParameterReport:
    """Counts the parameters of backbone, method and head, each tensor once.

    Of a model that :func:`~pointadapterx.adapting.adapt` has adapted, what ``train`` names is the head, and the method
    is the active adapter's.

    Raises:
        ConfigError: if the model is not adapted.
    """
    if not isinstance(model, AdaptedModel):
        return _count_foreign(model)
    components = {}
    for name in ("backbone", "method", "head"):
        parameters = list(model.get_submodule(name).parameters())
        components[name] = ParameterCount(
            sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
        )
    trainable = sum(count.trainable for count in components.values())
    total = sum(count.total for count in components.values())
    full = components["backbone"].total + components["head"].total - model.head.prompt_pool_parameters()
    return ParameterReport(
        components, trainable, trainable - components["head"].trainable, total, full, 100.0 * trainable / full
    )


def _count_foreign(model: nn.Module) -> ParameterReport:
    parts = {"backbone": (0, 0), "method": (0, 0), "head": (0, 0)}
    for name, parameter in parts_of(model):
        trainable, total = parts[name]
        parts[name] = (trainable + parameter.numel() * parameter.requires_grad, total + parameter.numel())
    components = {name: ParameterCount(*counts) for name, counts in parts.items()}
    trainable = sum(count.trainable for count in components.values())
    full = components["backbone"].total + components["head"].total
    without_head = trainable - components["head"].trainable
    return ParameterReport(
        components, trainable, without_head, full + components["method"].total, full, 100.0 * trainable / full
    )
