"""One pass of a backbone for several adapters: its frozen layers see all samples, what an adapter adds its own alone.

Samples of an adapter lie side by side in the batch. Where adapters have norms, biases or class tokens of their own,
each sample gets its adapter's. A pass computes what separate passes compute, but for the rounding of larger batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.features import BlockTokens, Features
from pointadapterx.models.tokens import TokenSequence
from pointadapterx.peft.base import Method
from pointadapterx.peft.hooks import Hook
from pointadapterx.peft.linear import Linear
from pointadapterx.peft.noah import Noah
from pointadapterx.peft.parts.routed import RoutedMethod
from pointadapterx.peft.parts.shared_mixture import SharedMixtureMethod
from pointadapterx.peft.side_by_side import side_by_side

NEW = (nn.Linear, nn.LayerNorm)
"""Layers whose output is nobody else's, so that it may be changed in place."""
ORDINARY = {kind.run for kind in (Method, RoutedMethod, SharedMixtureMethod, Linear, Noah)}
"""Passes that are the backbone's own, with a method's additions."""


class Part(NamedTuple):
    """An adapter in a pass.

    Attributes:
        model: of the adapter.
        own: tensors of the backbone that it changes, by name.
        form: of its method, see :func:`~pointadapterx.peft.side_by_side.form_of`.
        rows: its samples in the batch.
    """

    model: AdaptedModel
    own: Mapping[str, Tensor]
    form: str | None
    rows: slice


def kind_of(model: AdaptedModel, own: Mapping[str, Tensor]) -> str | None:
    """Equal for adapters of one backbone that can share a pass; None for one that cannot share any.

    Not those whose method replaces the pass, such as E³VA's, nor those that change more of the backbone than norms,
    biases of its blocks and the class token; nor any in a backbone of several stages or another library.

    Args:
        model: of the adapter; its backbone follows the adapter's options.
        own: tensors of the backbone that it changes, by name.
    """
    backbone, method = model.backbone, model.method
    if backbone.foreign or len(backbone.stages) > 1 or not _is_ordinary(type(method)):
        return None
    if not all(_can_be_own(backbone, name) for name in own):
        return None
    options = method.options
    prompts = isinstance(options, Method.Options) and (options.makes_prompts or options.name == "noah")
    return f"{getattr(backbone, 'position', '')} {options if prompts else 'no prompts'}"


def _is_ordinary(method: type[Method]) -> bool:
    runs = [vars(kind)["run"] for kind in method.__mro__ if "run" in vars(kind)]
    return all(run in ORDINARY for run in runs)


def _can_be_own(backbone: Backbone, name: str) -> bool:
    if name in backbone.class_parameters():
        return True
    owner, _, leaf = name.rpartition(".")
    module = backbone.get_submodule(owner)
    if isinstance(module, nn.LayerNorm):
        return True
    return isinstance(module, nn.Linear) and leaf == "bias" and owner.startswith("blocks.")


@torch.inference_mode()
def features_together(
    backbone: Backbone, inputs: Tensor, parts: Sequence[Part], plain: Mapping[str, Tensor]
) -> list[Features]:
    """What the backbone with each adapter makes of the adapter's samples.

    Args:
        backbone: as no adapter has it, with all hooks off; it follows the options that are common to the adapters.
        inputs: of all, (B, ...).
        parts: adapters of one :func:`kind_of`, in the order of their rows, which are all of the batch.
        plain: the backbone's own values of what any adapter changes.
    """
    groups = _groups(parts)
    order = [place for group in groups for place in group]
    inputs = torch.cat([inputs[parts[place].rows] for place in order])
    placed = dict(zip(order, _side_by_side([parts[place] for place in order]), strict=True))
    acting = [_acting([placed[place] for place in group]) for group in groups]
    keep = sorted({block for part in parts for block in part.model.head.blocks})
    with ExitStack() as stack:
        for one in acting:
            one.method.begin()
            stack.callback(one.method.end)
        stack.enter_context(_own_tensors(backbone, list(placed.values()), plain))
        stack.enter_context(_hooks(acting))
        found = backbone(inputs, _Together(acting), keep)
    return [_of_rows(found, inputs, placed[place]) for place in range(len(parts))]


class _Acting(NamedTuple):
    """What a method adds to some samples of a batch; it may be that of several adapters."""

    method: Method
    rows: slice


def _groups(parts: Sequence[Part]) -> list[list[int]]:
    """Places of the adapters, those together whose methods can act as one."""
    groups: dict[object, list[int]] = {}
    for place, part in enumerate(parts):
        groups.setdefault(part.form or place, []).append(place)
    return list(groups.values())


def _side_by_side(parts: Sequence[Part]) -> list[Part]:
    """The same adapters with rows in this order."""
    ends = list(accumulate(part.rows.stop - part.rows.start for part in parts))
    starts = [0, *ends[:-1]]
    return [part._replace(rows=slice(start, end)) for part, start, end in zip(parts, starts, ends, strict=True)]


def _acting(parts: Sequence[Part]) -> _Acting:
    """The one method of adapters of a group."""
    rows = slice(parts[0].rows.start, parts[-1].rows.stop)
    methods = [part.model.method for part in parts]
    if len(parts) == 1:
        return _Acting(methods[0], rows)
    which = [place for place, part in enumerate(parts) for _ in range(part.rows.start, part.rows.stop)]
    return _Acting(side_by_side(methods, which), rows)


def _of_rows(found: Features, inputs: Tensor, part: Part) -> Features:
    def tokens(sequence: TokenSequence) -> TokenSequence:
        return TokenSequence(sequence.tokens[part.rows], sequence.num_patches, has_class_token=sequence.has_class_token)

    def centers(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[part.rows]

    kept = {
        number: BlockTokens(tokens(block.sequence), centers(block.centers))
        for number, block in found.intermediates.items()
        if number in part.model.head.blocks
    }
    return Features(tokens(found.sequence), [], centers(found.centers), kept, inputs[part.rows])


class _Together:
    """What the backbone asks of the methods, each about its samples."""

    def __init__(self, acting: Sequence[_Acting]) -> None:
        self._methods = acting
        self._before = self._acting("before_block")
        self._after = self._acting("after_block")
        self._ffn = self._acting("adapt_ffn")

    def _acting(self, name: str) -> bool:
        return any(getattr(type(method), name) is not getattr(Method, name) for method, _ in self._methods)

    def enter_stage(self, number: int, centers: Tensor | None) -> None:
        """See :class:`~pointadapterx.models.additions.Additions`, as the others."""
        for method, rows in self._methods:
            method.enter_stage(number, None if centers is None else centers[rows])

    def leave_stage(self, tokens: Tensor, lead: Callable[[Tensor], Tensor]) -> None:
        """Never called: there is one stage."""
        raise NotImplementedError("adapters share no pass of several stages")

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """Each method's."""
        if not self._before:
            return tokens
        return torch.cat([method.before_block(index, tokens[rows]) for method, rows in self._methods])

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """Each method's."""
        if not self._after:
            return tokens
        return torch.cat([method.after_block(index, tokens[rows]) for method, rows in self._methods])

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate | None:
        """Each method's; nothing where a method adds nothing."""
        if not self._ffn:
            return None
        found = [method.adapt_ffn(index, ffn_input[rows], ffn_output[rows]) for method, rows in self._methods]
        if all(one is None for one in found):
            return None
        pairs = list(zip(found, self._methods, strict=True))
        update = torch.cat([torch.zeros_like(ffn_output[rows]) if u is None else u.update for u, (_, rows) in pairs])
        prompts = [one.prompt for one in found if one is not None and one.prompt is not None]
        assert len(prompts) in (0, len(found)), "adapters that share a pass insert prompts alike"
        return FfnUpdate(update, torch.cat(prompts) if prompts else None)

    def tapped(self, module: nn.Module, output: Tensor) -> Tensor:
        """Never called: every module is run."""
        return output


@contextmanager
def _hooks(acting: Sequence[_Acting]) -> Iterator[None]:
    """Lets the hooks of each method act on its samples alone."""
    found: dict[nn.Module, list[tuple[slice, Hook, Any]]] = {}
    for method, rows in acting:
        for hook in method.hooks:
            for (module, _), layer in zip(hook.site.pieces(), hook.layers(), strict=True):
                found.setdefault(module, []).append((rows, hook, layer))

    def joined(own: list[tuple[slice, Hook, Any]]) -> Callable[..., Tensor]:
        def act(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Tensor) -> Tensor:
            changed = output if isinstance(module, NEW) else output.clone()
            for rows, hook, layer in own:
                given = tuple(one[rows] if isinstance(one, Tensor) else one for one in inputs)
                by_name = {key: one[rows] if isinstance(one, Tensor) else one for key, one in named.items()}
                hook.enabled = True
                changed[rows] = layer(module, given, by_name, changed[rows])
                hook.enabled = False
            return changed

        return act

    handles = [module.register_forward_hook(joined(own), with_kwargs=True) for module, own in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _own_tensors(backbone: Backbone, parts: Sequence[Part], plain: Mapping[str, Tensor]) -> Iterator[None]:
    """Gives each sample its adapter's norms, biases and class token."""
    owned = [part.own for part in parts for _ in range(part.rows.start, part.rows.stop)]
    names = {name for part in parts for name in part.own}

    def of_rows(name: str) -> Tensor:
        """(B, 1, C)."""
        return torch.stack([own.get(name, plain[name]) for own in owned]).view(len(owned), 1, -1)

    tokens = [name for name in names if name in backbone.class_parameters()]
    before = {name: backbone._parameters[name] for name in tokens}
    owners = {name.rpartition(".")[0] for name in names} - {""}
    changed = [backbone.get_submodule(owner) for owner in owners]
    forwards = [vars(module).get("forward") for module in changed]  # of packed weights
    try:
        for name in tokens:
            backbone._parameters[name] = nn.Parameter(of_rows(name), requires_grad=False)
        for owner, module in zip(owners, changed, strict=True):
            own = {leaf: of_rows(f"{owner}.{leaf}") for leaf in ("weight", "bias") if f"{owner}.{leaf}" in names}
            module.forward = _norm(module, own) if isinstance(module, nn.LayerNorm) else _linear(module, own)
        yield
    finally:
        for name, parameter in before.items():
            backbone._parameters[name] = parameter
        for module, forward in zip(changed, forwards, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


def _norm(module: nn.LayerNorm, own: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(tokens: Tensor) -> Tensor:
        found = F.layer_norm(tokens, module.normalized_shape, None, None, module.eps)
        return torch.addcmul(own.get("bias", module.bias), found, own.get("weight", module.weight))

    return forward


def _linear(module: nn.Module, own: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(tokens: Tensor) -> Tensor:
        return F.linear(tokens, module.weight).add_(own["bias"])  # type: ignore[arg-type]

    return forward


def reading(features: Features) -> Callable[..., Features]:
    """What takes the place of a method's pass, for a model that is given the samples that these are of."""

    def run(backbone: Backbone, inputs: Tensor, keep: Collection[int] = ()) -> Features:
        return features

    return run
