"""Models of other libraries as backbones: they keep their own forward, and methods act in them by hooks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from pointadapterx.adapting.arguments import flat
from pointadapterx.adapting.driving import Driver
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.models.additions import Recorded, Rider
from pointadapterx.models.backbone import BACKBONES, PLAIN, Additions, Backbone, Completed, Embedded
from pointadapterx.models.features import BlockTokens, Features
from pointadapterx.models.foreign import ForeignHost
from pointadapterx.models.foreign.tables import FAMILIES, family_of
from pointadapterx.models.frozen import Patches
from pointadapterx.models.sites import BlockSites, Site, Stage
from pointadapterx.models.tokens import TokenSequence
from pointadapterx.optional import reason_of
from pointadapterx.peft.base import Method
from pointadapterx.peft.hooks import first_tensor
from pointadapterx.schema import Blocks, Many, Rate, Section, Width


class Plan(NamedTuple):
    """What is known of a model once it has been built, without values.

    Attributes:
        dims: token widths of its stages.
        depths: numbers of their blocks.
        heads: of their attention.
        class_token: whether the first token is a class token.
        square: whether the patches lie on a square grid.
        registers: tokens between the class token and the patches.
        no_prompts: why its blocks take no further tokens, or empty.
    """

    dims: list[int]
    depths: list[int]
    heads: list[int]
    class_token: bool
    square: bool
    registers: int
    no_prompts: str


class ForeignBackbone(Backbone):
    """A transformer of images of another library.

    A subclass builds the model (:meth:`Options.build`) and runs it (:meth:`run_model`).

    Args:
        options: complete.

    Attributes:
        model: of the other library, without a head.
        host: the same, as methods see it.
        drivers: one for each method that has been attached; the first adds nothing.
    """

    class Options(Backbone.Options):
        """``backbone:`` of a config; what is null, and the sizes, are filled in from the model.

        ``architecture`` describes the model, ``label`` is what it is called.
        """

        dim: Width | list[Width] = 0
        depth: Blocks | list[Blocks] = 0
        num_heads: Many | list[Many] = 0
        drop_path: Rate = 0.0
        model: str | None = None
        architecture: dict[str, Any] | None = None
        label: str | None = None
        image_size: Width | None = None
        channels: Literal[1, 3] | None = None

        def completed(self) -> Completed:
            """With sizes and preprocessing of the model, and the file of its weights."""
            try:
                options, statistics = self.read()
                plan = options.plan
            except PointAdapterXError as error:
                return Completed(None, [("model", str(error))])
            sizes = {"dim": plan.dims, "depth": plan.depths, "num_heads": plan.heads}
            facts: dict[str, Any] = {key: own[0] if len(own) == 1 else own for key, own in sizes.items()}
            problems = [
                (key, f"{getattr(self, key)}, but that of the model is {own}; remove the key")
                for key, own in facts.items()
                if getattr(self, key) not in (0, own)
            ]
            return Completed(options.model_copy(update=facts), problems, statistics)

        def read(self) -> tuple[ForeignBackbone.Options, tuple[list[float], list[float]] | None]:
            """With everything but the sizes, and mean and std of the model's own preprocessing.

            Raises:
                ConfigError: if the model is not known.
                HubError: if it cannot be fetched.
            """
            raise NotImplementedError(f"{type(self).__name__} must read what its model says")

        def build(self) -> nn.Module:
            """The model with random weights.

            Raises:
                ConfigError: if the library does not know it, or refuses its options.
            """
            raise NotImplementedError(f"{type(self).__name__} must build its model")

        @property
        def plan(self) -> Plan:
            """What the model is like."""
            shape = {"model", "architecture", "image_size", "channels", "drop_path", "label"}
            return _plan(self.name, self.model_dump_json(include={"name", *shape}))

        @property
        def has_class_token(self) -> bool:
            """Whether its first token is a class token."""
            return self.plan.class_token

        @property
        def has_grid(self) -> bool:  # type: ignore[override]
            """Whether its patches lie on a square grid."""
            return self.plan.square

        @property
        def no_prompts(self) -> str:
            """Why its blocks take no further tokens; empty where they do."""
            return self.plan.no_prompts

        def input_shape(self, num_points: int | None) -> tuple[int, ...]:
            """(channels, S, S)."""
            assert self.channels is not None
            assert self.image_size is not None
            return self.channels, self.image_size, self.image_size

    foreign = True
    modality = "images"
    position = "input"
    sizes: ClassVar[dict[str, tuple[str, int]]] = {}

    def __init__(self, options: ForeignBackbone.Options) -> None:
        super().__init__()
        self.options = options
        self.image_shape = options.input_shape(None)
        self.model = options.build()
        self.host = host_of(self.model)
        last = self.host.stages[-1]
        self.registers = options.plan.registers
        self.dim, self.num_patches, self.grid = last.width, last.num_patches, last.grid
        self.patch_values, self.has_class_token = self.host.patch_values, self.host.has_class_token
        self.host.switch()
        self._gate = _Gate()
        self.patch_module.register_forward_hook(self._gate)
        self.drivers = [Driver(self.host, Method(Section()), whole=True)]

    def run_model(self, images: Tensor) -> object:
        """Runs all blocks on images (B, channels, S, S)."""
        return self.model(images)

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.host.title

    @property
    def norm(self) -> nn.Module:  # type: ignore[override]
        """The final norm."""
        return self.host.norm

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its stages in order."""
        return cast(tuple[Stage, ...], tuple(self.host.stages))

    def every_block(self) -> list[BlockSites]:
        """The blocks of all stages, as methods see them."""
        return self.host.every_block()

    def site(self, name: str) -> Site:
        """A site outside the blocks."""
        return self.host.site(name)

    @property
    def patch_module(self) -> nn.Module:
        """What makes the patch tokens."""
        return self.host.site("patch").module

    @property
    def patch_projection(self) -> nn.Linear | nn.Conv2d:
        """Its last layer."""
        return cast(nn.Conv2d, self.host.patch_projection)

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """None: the class token is pre-trained, like every other parameter."""
        return {}

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """Class and register tokens, and position embeddings, which have one row for all samples."""
        yield from (one for one in self.model.parameters() if one.ndim == 3 and len(one) == 1)

    def patches(self, inputs: Tensor) -> Patches:
        """Images (B, channels, S, S) float32 -> patch tokens (B, G, C) of the first stage.

        Raises:
            ValueError: for images of another size.
        """
        self._check(inputs)
        output = self.patch_module(inputs)
        tokens = output[0] if isinstance(output, tuple) else output
        tokens = tokens.flatten(2).transpose(1, 2) if self.site("patch").channels_first else flat(tokens)
        return Patches(tokens, tokens.new_empty(*tokens.shape[:2], 0))

    def assemble(self, patches: Patches) -> Embedded:
        """Never asked for: the model makes the input of its first block by itself."""
        raise NotImplementedError(f"{self.title} makes the input of its first block by itself")

    def _check(self, inputs: Tensor) -> None:
        if tuple(inputs.shape[1:]) != self.image_shape:
            raise ValueError(f"images have shape {tuple(inputs.shape[1:])}, the backbone needs {self.image_shape}")

    def adapted_by(self, method: Additions, *, alone: bool = False) -> None:
        """Places the hooks by which a method acts."""
        if alone:
            for driver in self.drivers[1:]:
                driver.remove()
            del self.drivers[1:]
        assert isinstance(method, Method)
        self.drivers.append(Driver(self.host, method, whole=True))

    def left_by(self, method: Additions) -> None:
        """Takes these hooks away."""
        for driver in [driver for driver in self.drivers if driver.method is method]:
            driver.remove()
            self.drivers.remove(driver)

    def _driver(self, method: Additions) -> Driver:
        """That of a method, the only one that acts from now on."""
        if method is not PLAIN and all(driver.method is not method for driver in self.drivers):
            self.adapted_by(method)
        chosen = next((driver for driver in self.drivers if driver.method is method), self.drivers[0])
        for driver in self.drivers:
            if driver.enabled != (driver is chosen):
                driver.enable(driver is chosen)
        return chosen

    def forward(self, inputs: Tensor | Patches, method: Additions = PLAIN, keep: Collection[int] = ()) -> Features:
        """Runs the model with the method's additions; see :meth:`Backbone.forward`."""
        driver, wanted = self._driver(method), frozenset(keep)
        if driver.wanted != wanted:
            driver.wanted = wanted
        self._run(inputs)
        tokens, behind = driver.passes.take_result()
        losses = list(driver.passes.losses)
        driver.passes.forget()
        kept = {number: BlockTokens(self._behind(number, behind[number]), None) for number in keep}
        return Features(self._sequence(self.stages[-1], self.norm(tokens)), losses, None, kept)

    def _run(self, inputs: Tensor | Patches) -> None:
        if isinstance(inputs, Tensor):
            self._check(inputs)
            self.run_model(inputs)
            return
        self._gate.tokens = inputs.tokens
        try:
            self.run_model(inputs.tokens.new_zeros(1).expand(len(inputs.tokens), *self.image_shape))
        finally:
            self._gate.tokens = None

    def record(self, inputs: Tensor | Patches, rider: Rider | None = None) -> Iterator[Recorded]:
        """Runs the plain model without autograd; what a highway reads of each block.

        Args:
            inputs: of the task, or what :meth:`patches` made of them.
            rider: not asked for anything, since a method that changes tokens is asked by hooks.
        """
        driver = next(driver for driver in self.drivers if driver.rides and driver.enabled)
        driver = self._driver(driver.method)
        steps: list[Recorded] = []
        driver.steps = steps
        try:
            with torch.no_grad():
                self._run(inputs)
        finally:
            driver.steps = None
        driver.passes.take_result()
        driver.passes.forget()
        stages = [stage for stage in self.stages for _ in stage.modules]
        for step, stage in zip(steps, stages, strict=True):
            attention, ffn, tokens = (self._patched(stage, part) for part in step[:3])
            yield Recorded(attention, ffn, tokens, None, step.lead)

    def _behind(self, number: int, tokens: Tensor) -> TokenSequence:
        stage = next(stage for stage in self.stages if number < stage.first + len(stage.modules))
        return self._sequence(stage, self.norm(tokens) if stage is self.stages[-1] else tokens)

    def _sequence(self, stage: Stage, tokens: Tensor) -> TokenSequence:
        return self.sequence(stage, self._patched(stage, tokens))

    def _patched(self, stage: Stage, tokens: Tensor) -> Tensor:
        """Tokens (B, [1 +] P + R + G, C) without the R registers."""
        if not self.registers:
            return tokens
        end = tokens.shape[1] - stage.num_patches
        return torch.cat([tokens[:, : end - self.registers], tokens[:, end:]], dim=1)


class _Gate:
    """Behind the module that makes patch tokens: puts those that were kept in their place."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if self.tokens is None:
            return None
        made = output[0] if isinstance(output, tuple) else output
        first = isinstance(module, nn.Conv2d)
        kept = (self.tokens.transpose(1, 2) if first else self.tokens).reshape(made.shape)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept


def host_of(model: nn.Module) -> ForeignHost:
    """A model as methods see it.

    Raises:
        ConfigError: if it is of no known family.
    """
    family = family_of(model)
    if family is None:
        names = ", ".join(dict.fromkeys(family.title for family in FAMILIES.values()))
        raise ConfigError(
            f"{type(model).__name__} is none of the models that are known: {names}; adapt it from Python: "
            "pointadapterx.adapt(model, method, sites=Sites(...))"
        )
    return ForeignHost(model, "", family.sites, family)


@lru_cache(maxsize=64)
def _plan(name: str, text: str) -> Plan:
    """That of options as JSON: the model is built, and run once, without values.

    Raises:
        ConfigError: if it is not known, or does not take images of that size.
    """
    options = cast(type[ForeignBackbone], BACKBONES[name]).Options.model_validate_json(text)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = options.build().eval()
        host = host_of(model)
        lengths = _lengths(options, model, host)
    stages = host.stages
    last = stages[-1]
    registers = lengths[-1] - last.num_patches - host.has_class_token
    if not last.num_patches or registers < 0:
        raise ConfigError(f"{host.title}: {lengths[-1]} tokens of {last.num_patches} patches are not understood")
    return Plan(
        [stage.width for stage in stages],
        [len(stage.members) for stage in stages],
        [stage.members[0].seen.num_heads for stage in stages],
        host.has_class_token,
        last.grid is not None,
        registers,
        host.no_prompts,
    )


def _lengths(options: ForeignBackbone.Options, model: nn.Module, host: ForeignHost) -> list[int]:
    """Numbers of the tokens of each stage, for one image.

    Raises:
        ConfigError: if the model cannot be run.
    """
    found: list[int] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(flat(first_tensor(inputs, named)).shape[1])

    handles = [stage.members[0].module.register_forward_pre_hook(look, with_kwargs=True) for stage in host.stages]
    try:
        with torch.no_grad():
            model(torch.empty(1, *options.input_shape(None)))
    except Exception as error:  # whatever the other library raises
        size = options.image_size
        raise ConfigError(f"{host.title} does not run on images of {size} × {size}: {reason_of(error)}") from None
    finally:
        for handle in handles:
            handle.remove()
    return found
