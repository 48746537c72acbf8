"""The contract of an adaptation method: one class, in one file, with one registry line.

A method creates modules of its own, names the backbone parameters that it also trains, and acts at named sites of the
backbone's blocks (:mod:`pointadapterx.models.sites`): as a *tap* behind a site, as a *branch* beside it, as a *change*
of what a layer computes, or on what is *recorded* there without gradient. Whatever it creates is trainable; everything
else is frozen. No parameter is ever chosen by a substring of its name.

=============  ==============================================  ========================================================
act            at                                              how
=============  ==============================================  ========================================================
tap            any site                                        :meth:`Method.tap`: ``module(output)``
branch         any site                                        :meth:`Method.branch`: ``output + module(input)``
change         linear layers                                   :meth:`Method.change`: of layer, input and output
branch         ``ffn``, with input *and* output, and a loss    :meth:`Method.adapt_ffn`: ``FfnUpdate.update``
tap            ``block``, prompts behind it                    :meth:`Method.adapt_ffn`: ``FfnUpdate.prompt``
tap            ``block``, tokens on their way in or out        :meth:`Method.before_block`, :meth:`Method.after_block`
record         ``attention``, ``ffn`` and ``block``            ``backbone.record(inputs)`` in :meth:`Method.run`
=============  ==============================================  ========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn

from pointadapterx.errors import ConfigError, MergeError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import Frozen
from pointadapterx.models.host import Host
from pointadapterx.models.sites import Site
from pointadapterx.peft.hooks import Change, ChangeHook, Hook
from pointadapterx.registry import Registry
from pointadapterx.schema import Section


class Method(nn.Module):
    """Base class; on its own it adds nothing.

    The order of events (see :func:`pointadapterx.build.build_model`): the backbone gets its pre-trained
    weights, then :meth:`require` checks that it has what the method needs, then ``attach`` creates the method's
    modules for it, then everything that is neither created by the method nor named by
    :meth:`trained_backbone_parameters` is frozen.

    Attributes:
        trains_backbone: whether every backbone parameter is trained (full fine-tuning).
        hooks: the taps and branches of the method, see :meth:`tap` and :meth:`branch`.
    """

    class Options(Section):
        """``method:`` of a config. A subclass declares its keys here, including ``name``."""

        name: str

        @property
        def makes_prompts(self) -> bool:
            """Whether these options insert prompt tokens."""
            return False

        @property
        def needs_prompt_pool(self) -> bool:
            """Whether the prompts of these options have an effect only through a prompt pool of the head."""
            return False

        @property
        def needs_class_token(self) -> bool:
            """Whether these options work only behind a class token, as prompts do."""
            return self.makes_prompts

        @property
        def counts_patches(self) -> bool:
            """Whether these options work only for the number of patches that the backbone was built for."""
            return False

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """Sites (:data:`~pointadapterx.models.sites.SITES`) that every block must have."""
            return ()

        @property
        def needs_own_pass(self) -> str:
            """Why these options only work in backbones of this package; empty where they work in any model."""
            return ""

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """(key, message) for each impossible combination with a backbone of these options."""
            if self.needs_class_token and not backbone.has_class_token:
                yield "name", self.without_class_token(backbone.name)
            elif self.needs_class_token and backbone.no_prompts:
                switch = "prompts" in type(self).model_fields
                way = "set method.prompts=false" if switch else "choose another method"
                yield "name", f"{self.name} inserts prompt tokens, but {backbone.no_prompts}; {way}"

        def without_class_token(self, backbone: str) -> str:
            """Why these options cannot adapt a backbone of that name, which has no class token."""
            what = "inserts prompts behind a class token" if self.makes_prompts else "needs a class token"
            switch = self.makes_prompts and "prompts" in type(self).model_fields
            way = "set method.prompts=false" if switch else "choose another method"
            return f"{self.name} {what}, which backbone {backbone} does not have; {way}"

    trains_backbone: ClassVar[bool] = False

    def __init__(self, options: Section) -> None:
        super().__init__()
        self.options = options
        self.hooks: list[Hook] = []

    def tap(self, site: Site, module: nn.Module) -> None:
        """Sends the output of a site through ``module``, which is one of the method's.

        Raises:
            ConfigError: if nothing can be done to the output there.
        """
        if site.untapped:
            raise ConfigError(
                f"{getattr(self.options, 'name', 'the method')} cannot act at {site.name}: {site.untapped}"
            )
        self.hooks.append(Hook(site, module, beside=False))

    def branch(self, site: Site, module: nn.Module) -> None:
        """Adds ``module`` of a site's input to its output; ``module`` is one of the method's."""
        self.hooks.append(Hook(site, module, beside=True))

    def change(self, site: Site, module: Change) -> None:
        """Replaces what the linear layers of a site compute by what ``module``, one of the method's, makes of it."""
        self.hooks.append(ChangeHook(site, module, beside=True))

    def require(self, backbone: Host) -> None:
        """Checks that a backbone has what the method needs.

        Raises:
            ConfigError: naming the method, the backbone and what is missing.
        """
        options = self.options
        if not isinstance(options, Method.Options):
            return
        name = backbone.title
        if options.needs_class_token and not backbone.has_class_token:
            raise ConfigError(f"method {options.without_class_token(name)}")
        for block in backbone.every_block():
            lacking = [site for site in options.needs_sites if site not in block.sites]
            if lacking:
                raise ConfigError(
                    f"method {options.name} acts at {', '.join(lacking)}, which block {block.index} of backbone {name} "
                    f"does not have (it has {', '.join(block.sites)}); choose another method"
                )

    def attach(self, backbone: Host) -> None:
        """Creates the method's modules for ``backbone`` and places them at its sites."""

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """Backbone parameters that the method also trains; by default what is not pre-trained.

        These are the class token and its position, if the backbone's weights have none.
        """
        yield from backbone.class_parameters().values()

    def enter_stage(self, number: int, centers: Tensor | None) -> None:
        """Called before the first block of a stage, with the centres (B, G, 3) of its patches where they have any."""

    def leave_stage(self, tokens: Tensor, lead: Callable[[Tensor], Tensor]) -> None:
        """Called behind the last block of a stage that another follows, in backbones of this package.

        Args:
            tokens: (B, [1 +] G, C), without prompts.
            lead: the frozen way to the next stage, tokens to those of it.
        """

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into block ``index``; may insert tokens after CLS."""
        return tokens

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way out of block ``index``."""
        return tokens

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate | None:
        """The branch at the site ``ffn`` of block ``index``, and the prompts behind its site ``block``.

        Args:
            index: number of the block in the whole backbone, from 0.
            ffn_input: u = norm2(h), (B, L, C).
            ffn_output: mlp(u), (B, L, C).
        """
        return None

    def run(self, backbone: Backbone, inputs: Tensor | Frozen, keep: Collection[int] = ()) -> Features:
        """The whole pass; a side network overrides it.

        Args:
            backbone: the one that the method is attached to.
            inputs: of the task, or the result of :meth:`precompute` for them.
            keep: numbers of the blocks whose tokens are kept in ``Features.intermediates``.
        """
        return backbone(inputs, self, keep)

    @property
    def remembers(self) -> bool:
        """Whether something goes from block to block beside the tokens, so that no block can be run on its own."""
        return False

    def begin(self) -> None:
        """Called before each forward pass of a model that keeps its own forward, in place of :meth:`run`."""

    def end(self) -> None:
        """Called behind such a pass."""

    def precompute(self, backbone: Backbone, inputs: Tensor, keep: Collection[int] = ()) -> Frozen:
        """What does not depend on anything trained: here the patch tokens. Computed in eval mode, without gradient.

        A method that leaves more of the backbone frozen overrides this and :meth:`run`.

        Args:
            backbone: the one that the method is attached to.
            inputs: of the task.
            keep: as :meth:`run` will be asked for.
        """
        hooks = [hook for hook in self.hooks if hook.site.module is backbone.patch_module]
        for hook in hooks:
            hook.enabled = False
        try:
            return backbone.patches(inputs)
        finally:
            for hook in hooks:
                hook.enabled = True

    @property
    def precomputed_by(self) -> str:
        """Name of what :meth:`precompute` runs; methods with the same one and the same frozen state share features."""
        return type(self).precompute.__qualname__

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """Parameters and buffers that determine the result of :meth:`precompute`.

        Raises:
            ConfigError: if some of them are trained.
        """
        layers = backbone.patch_layers()
        inside = {module for layer in layers for module in layer.modules()}
        acts_inside = any(
            hook.site.module in inside and (hook.beside or hook.site.module is not backbone.patch_module)
            for hook in self.hooks
        )
        if acts_inside or any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
            name = getattr(self.options, "name", "this method")
            raise ConfigError(f"train.cached_views: {name} trains the patch embedding; remove the key")
        return {f"{i}.{name}": value for i, layer in enumerate(layers) for name, value in layer.state_dict().items()}

    def tapped(self, module: nn.Module, output: Tensor) -> Tensor:
        """What :meth:`tap` makes of the output of a module of the backbone that was not run."""
        for hook in self.hooks:
            if hook.site.module is module:
                output = hook(module, (), {}, output)
        return output

    def auxiliary_loss(self, losses: list[Tensor]) -> Tensor | None:
        """One scalar to add to the task loss, from the losses of the blocks, or None."""
        return None

    def statistics(self) -> dict[str, Tensor]:
        """Health of the method in the last forward pass in training mode; cleared when read.

        Returns:
            Detached sums over the B samples of that pass, of any shape: divided by the number of samples, sums
            over batches and processes give the mean.
        """
        return {}

    def merge(self, backbone: Host) -> None:
        """Folds the method into the backbone's weights, so that it is no longer needed.

        The hooks are removed by the caller.

        Raises:
            MergeError: if no plain backbone computes the same.
        """
        name = getattr(self.options, "name", "it")
        raise MergeError(
            f"{name} adds what no plain backbone computes, so it cannot be merged; methods that can: "
            f"{', '.join(sorted(n for n, kind in METHODS.items() if kind.merge is not Method.merge))}"
        )

    def merge_nothing(self, backbone: Host) -> None:
        """The :meth:`merge` of a method that only trains the backbone's own parameters, or none."""

    def learning_rates(self, backbone: Host) -> Iterator[tuple[Iterable[nn.Parameter], float]]:
        """Trained parameters whose learning rate is not ``train.lr``, and the factor; the rest have 1."""
        yield from ()

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch of training, numbered from 0, also of a resumed run."""

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The method's tokens (prompts), which take no weight decay though they are not 1-D."""
        yield from ()


METHODS: Registry[type[Method]] = Registry("method")
"""Methods by the name used in ``method.name``."""
