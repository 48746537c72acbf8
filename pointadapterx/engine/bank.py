"""Several adapters on one frozen backbone: switched by name, mixed within a batch, averaged, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import adapt_backbone, build_backbone, require_shapes
from pointadapterx.checkpoints.adapter_file import AdapterInfo, load_adapter, model_recipe, read_adapter
from pointadapterx.checkpoints.shipped import stored_weights
from pointadapterx.engine.mixing import Part, features_together, kind_of, reading
from pointadapterx.errors import CheckpointError
from pointadapterx.models.packing import tensor_bytes
from pointadapterx.peft import METHODS
from pointadapterx.peft.side_by_side import form_of


class _Adapter(NamedTuple):
    """One adapter of a bank: its model, what it changes in the backbone, and see :func:`kind_of`, :func:`form_of`."""

    model: AdaptedModel
    info: AdapterInfo
    own: dict[str, Tensor]
    kind: str | None
    form: str | None


class AdapterBank(nn.Module):
    """One backbone in memory and any number of adapters, for inference alone: it is always in eval mode.

    Switching copies the few tensors that an adapter changes inside the backbone (norms, class token, biases) and lets
    its hooks act. The logits are those of separate models, bit for bit.

    Args:
        adapters: adapter files, or what :func:`~pointadapterx.checkpoints.adapter_file.read_adapter` returned, by name.
            They must belong to one backbone, which is built from the first one's config.
        weights: where the backbone's weights lie now, if not where the first adapter's config says.

    Attributes:
        names: of the adapters, in order.
        active: name of the adapter in use, the first at the beginning.

    Raises:
        CheckpointError: without an adapter, or if one belongs to another backbone or is of full fine-tuning, whose
            file is a backbone of its own.
    """

    def __init__(self, adapters: Mapping[str, str | Path | AdapterInfo], weights: str | Path | None = None) -> None:
        super().__init__()
        if not adapters:
            raise CheckpointError("a bank needs at least one adapter")
        infos = {name: a if isinstance(a, AdapterInfo) else read_adapter(a) for name, a in adapters.items()}
        self._first = first = next(iter(infos.values()))
        named = first.config.backbone.weights if weights is None else str(weights)
        found = None if named is None else stored_weights(named, first.path)
        self.backbone = build_backbone(first.config.backbone.model_copy(update={"weights": found}))
        self._plain: dict[str, Tensor] = {}
        self._adapters: dict[str, _Adapter] = {}
        self._together: set[str] = set()  # adapters whose pass was computed with others'
        self._parts = nn.ModuleList()  # methods and heads, so that the bank moves and counts as a whole
        for name, info in infos.items():
            self._adapters[name] = self._add(info)
        self._first = first._replace(tensors={})
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.eval()
        self.active = next(iter(infos))
        self.switch(self.active)

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order in which they were given."""
        return list(self._adapters)

    def classes(self, name: str) -> list[str]:
        """Class names of an adapter, in the order of its logits."""
        return self._get(name).info.classes

    def add(self, name: str, adapter: str | Path | AdapterInfo) -> None:
        """Takes in one more adapter, which is not in use yet; if it does not fit, the bank stays as it was.

        Raises:
            CheckpointError: if the name is taken, or the adapter belongs to another backbone or is damaged.
        """
        if name in self._adapters:
            raise CheckpointError(f"the bank has an adapter '{name}' already; remove it first, or choose another name")
        info = adapter if isinstance(adapter, AdapterInfo) else read_adapter(adapter)
        require_shapes(info, info.config)
        self._rest()
        try:
            added = self._add(info)
        finally:
            self.eval()  # a new model is in training mode, and its backbone with it
            self.backbone.requires_grad_(False)  # what a new method trains of it, too
            self.switch(self.active)
        self._adapters[name] = added

    def remove(self, name: str) -> None:
        """Forgets an adapter; if it is in use, the first of the others is afterwards.

        Raises:
            KeyError: for a name that the bank does not have.
            CheckpointError: for the last one: a bank has at least one adapter.
        """
        gone = self._get(name)
        rest = next((other for other in self._adapters if other != name), None)
        if rest is None:
            raise CheckpointError(f"'{name}' is the bank's last adapter; discard the bank")
        if name == self.active:
            self.switch(rest)
        del self._adapters[name]
        self._detach(gone.model)
        parts = {gone.model.method, gone.model.head}
        self._parts = nn.ModuleList(part for part in self._parts if part not in parts)

    def nbytes(self, name: str | None = None, *, packed: bool = True) -> int:
        """Memory of the tensors of an adapter, or of the backbone that all share.

        Args:
            name: of the adapter.
            packed: whether packed weights count.

        Raises:
            KeyError: for a name that the bank does not have.
        """
        if name is None:
            return tensor_bytes(self.backbone, packed=packed) + sum(tensor.nbytes for tensor in self._plain.values())
        adapter = self._get(name)
        own = sum(tensor.nbytes for tensor in adapter.own.values())
        return own + sum(tensor_bytes(part, packed=packed) for part in (adapter.model.method, adapter.model.head))

    def train(self, mode: bool = True) -> AdapterBank:
        """Stays in eval mode: in training mode BatchNorm would change what the adapters share."""
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterBank:
        """Moves and converts what waits for its turn, too."""
        super()._apply(fn, recurse)
        self._plain = {name: fn(tensor) for name, tensor in self._plain.items()}
        for name, adapter in self._adapters.items():
            self._adapters[name] = adapter._replace(own={key: fn(tensor) for key, tensor in adapter.own.items()})
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: which adapter was in use decides what such a state means. Build the bank from its adapter files."""
        raise CheckpointError("a bank has no state of its own; build it from its adapter files")

    def _add(self, info: AdapterInfo) -> _Adapter:
        first = self._first
        ours, theirs = (shape_keys(part) for part in (first, info))
        if ours != theirs:
            key = next(key for key in ours | theirs if ours.get(key) != theirs.get(key))
            raise CheckpointError(
                f"{info.path}: was trained with {key}={theirs.get(key)}, {first.path} with {ours.get(key)}; a bank has "
                "one backbone"
            )
        if METHODS[info.method.name].trains_backbone:
            raise CheckpointError(
                f"{info.path}: is of full fine-tuning, a backbone of its own; a bank shares one, load it by itself"
            )
        self.backbone.follow(info.config.backbone)  # methods are built for its options, and kinds contain them
        model = adapt_backbone(self.backbone, info.config)
        before = {name: tensor.clone() for name, tensor in self._backbone_tensors(info).items()}
        try:
            load_adapter(model, info)
            own = {name: tensor.clone() for name, tensor in self._backbone_tensors(info).items()}
            kind = kind_of(model, own)
            for part in (model.method, model.head):
                part.to(next(self.backbone.parameters()).device).requires_grad_(False).eval()
        except BaseException:
            self._detach(model)
            raise
        finally:
            self.backbone.load_state_dict(before, strict=False)
        self._plain = {**before, **self._plain}  # what the first to change a tensor found
        for hook in model.method.hooks:
            hook.enabled = False
        self._parts.extend([model.method, model.head])
        model.forget_backbone()
        return _Adapter(model, info._replace(tensors={}), own, kind, form_of(model.method))

    def _detach(self, model: AdaptedModel) -> None:
        for hook in model.method.hooks:
            hook.remove()
        self.backbone.left_by(model.method)

    def _rest(self) -> None:
        """Leaves the backbone as no adapter has it."""
        for hook in self._adapters[self.active].model.method.hooks:
            hook.enabled = False
        with torch.no_grad():
            for key, tensor in self._plain.items():
                _tensor(self.backbone, key).copy_(tensor)

    def _backbone_tensors(self, info: AdapterInfo) -> dict[str, Tensor]:
        state = self.backbone.state_dict()
        names = [name.removeprefix("backbone.") for name in info.tensors if name.startswith("backbone.")]
        return {name: state[name] for name in names if name in state}

    def _get(self, name: str) -> _Adapter:
        if name not in self._adapters:
            raise KeyError(f"no adapter '{name}' in the bank; it has {', '.join(self._adapters)}")
        return self._adapters[name]

    def switch(self, name: str) -> None:
        """Takes another adapter into use.

        Raises:
            KeyError: for a name that the bank does not have.
        """
        adapter = self._get(name)
        for hook in self._adapters[self.active].model.method.hooks:
            hook.enabled = False
        with torch.no_grad():
            for key, tensor in {**self._plain, **adapter.own}.items():
                _tensor(self.backbone, key).copy_(tensor)
        for hook in adapter.model.method.hooks:
            hook.enabled = True
        self.backbone.follow(adapter.info.config.backbone)
        self.active = name

    def model(self, name: str) -> AdaptedModel:
        """The model of an adapter, which computes until another is taken into use.

        Raises:
            KeyError: for a name that the bank does not have.
        """
        if name != self.active and name not in self._together:
            self.switch(name)
        return self._get(name).model

    def kind(self, name: str) -> str | None:
        """Equal for adapters that can be computed :meth:`together`; None for one that cannot.

        Raises:
            KeyError: for a name that the bank does not have.
        """
        return self._get(name).kind

    @contextmanager
    def together(self, inputs: Tensor, counts: Mapping[str, int]) -> Iterator[None]:
        """Computes one pass for several adapters; in the meantime the model of each answers about its own samples.

        Its logits are those of a pass of its own but for rounding, as those of another batch size are.

        Args:
            inputs: of the backbone, for example points (B, N, 3), the samples of each adapter side by side.
            counts: of the adapters' samples, in the order of their names; all of one :meth:`kind`.

        Raises:
            KeyError: for a name that the bank does not have.
        """
        parts, start = [], 0
        for name, count in counts.items():
            adapter = self._get(name)
            parts.append(Part(adapter.model, adapter.own, adapter.form, slice(start, start + count)))
            start += count
        self._rest()
        try:
            self.backbone.follow(self._get(next(iter(counts))).info.config.backbone)  # as those of all of its kind
            for part, features in zip(parts, features_together(self.backbone, inputs, parts, self._plain), strict=True):
                part.model.method.run = reading(features)  # type: ignore[method-assign]
            self._together = set(counts)
            yield
        finally:
            self._together = set()
            for part in parts:
                part.model.method.__dict__.pop("run", None)
            self.switch(self.active)

    @torch.inference_mode()
    def forward(
        self, inputs: Tensor, adapters: str | Sequence[str] | None = None, condition: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """Logits.

        Args:
            inputs: of the backbone, for example points (B, N, 3).
            adapters: name of one adapter, by default the one in use; or of each sample's, which share passes.
            condition: (B,) int64, the second input of models that take one, such as each object's category.

        Returns:
            (B, …) as the head gives them, such as (B, classes); with a name for each sample a list of B tensors (…).

        Raises:
            KeyError: for a name that the bank does not have.
            ValueError: for another number of names than samples.
        """
        if adapters is None or isinstance(adapters, str):
            return self.model(adapters or self.active)(inputs, condition).logits
        if len(adapters) != len(inputs):
            raise ValueError(f"{len(adapters)} names of adapters for {len(inputs)} samples; give one a sample")
        rows = {name: [row for row, own in enumerate(adapters) if own == name] for name in dict.fromkeys(adapters)}
        passes: dict[str, list[str]] = {}
        for name in rows:
            passes.setdefault(self.kind(name) or f"alone {name}", []).append(name)
        logits: dict[int, Tensor] = {}
        for names in passes.values():
            all_rows, counts = [row for name in names for row in rows[name]], {name: len(rows[name]) for name in names}
            with self.together(inputs[all_rows], counts) if len(names) > 1 else nullcontext():
                for name in names:
                    given = None if condition is None else condition[rows[name]]
                    found = self.model(name)(inputs[rows[name]], given).logits
                    logits |= dict(zip(rows[name], found, strict=True))
        return [logits[row] for row in range(len(inputs))]


def shape_keys(info: AdapterInfo) -> dict[str, object]:
    """What of the backbone's section all adapters of a bank share; positions are added as each wants it."""
    apart = ("weights", "init_seed", "drop_path", "label", "position")
    return {f"backbone.{key}": value for key, value in info.config.backbone.model_dump().items() if key not in apart}


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def average_adapters(adapters: Sequence[AdapterInfo], weights: Sequence[float] | None = None) -> AdapterInfo:
    """Weighted mean of the tensors of adapters of one recipe, backbone and task.

    It is a mean of parameters, not of what they compute: that of LoRA's thin matrices is not LoRA of the mean update,
    and experts that two runs have numbered differently do not match. Use it for runs with a common beginning.

    Args:
        adapters: from :func:`~pointadapterx.checkpoints.adapter_file.read_adapter`.
        weights: one an adapter, normalised to sum 1; equal by default.

    Returns:
        The first adapter with the mean tensors, for :func:`~pointadapterx.checkpoints.adapter_file.load_adapter` or a
        bank; whole numbers, such as BatchNorm's counters, are its own.

    Raises:
        CheckpointError: without adapters, if they differ in recipe, backbone or classes, or for weights that do not
            fit.
    """
    _require_alike(adapters)
    shares = list(weights) if weights is not None else [1.0] * len(adapters)
    if len(shares) != len(adapters) or sum(shares) <= 0:
        raise CheckpointError(
            f"weights {shares} do not fit {len(adapters)} adapters; give one each, with a positive sum"
        )
    total = sum(shares)
    mean = {}
    for name, first in adapters[0].tensors.items():
        if not first.is_floating_point():
            mean[name] = first
            continue
        parts = [share / total * a.tensors[name].double() for share, a in zip(shares, adapters, strict=True)]
        mean[name] = torch.stack(parts).sum(dim=0).to(first.dtype)
    inputs = [adapter.metrics.get("inputs") for adapter in adapters]
    metrics = {"inputs": inputs[0]} if inputs[0] is not None and all(other == inputs[0] for other in inputs) else {}
    return adapters[0]._replace(tensors=mean, metrics=metrics, facts=adapters[0].facts.unfitted())


def compare_adapters(one: AdapterInfo, other: AdapterInfo) -> dict[str, tuple[float, float]]:
    """How alike two adapters of one recipe are.

    Returns:
        For every trained tensor the cosine of the two as vectors, and the norm of their difference over the mean of
        their norms.

    Raises:
        CheckpointError: if they differ in recipe, backbone or classes.
    """
    _require_alike([one, other])
    found = {}
    for name, first in one.tensors.items():
        if first.is_floating_point():
            a, b = first.double().flatten(), other.tensors[name].double().flatten()
            size = (a.norm() + b.norm()) / 2
            same = torch.equal(a, b)
            cosine = 1.0 if same else torch.nn.functional.cosine_similarity(a, b, dim=0).item()
            found[name] = (cosine, 0.0 if same else ((a - b).norm() / size).item())
    return found


def _require_alike(adapters: Sequence[AdapterInfo]) -> None:
    if not adapters:
        raise CheckpointError("no adapters were given")
    first = adapters[0]
    for other in adapters[1:]:
        what = {
            "recipe": model_recipe(first.config) == model_recipe(other.config),
            "backbone": first.backbone_hash == other.backbone_hash,
            "classes": first.classes == other.classes,
            "tensors": first.tensors.keys() == other.tensors.keys(),
        }
        differing = [key for key, same in what.items() if not same]
        if differing:
            raise CheckpointError(f"{other.path}: differs from {first.path} in its {' and '.join(differing)}")
