"""A module of another library, or of a user, as methods see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from torch import nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.foreign.sites import Sites, Span, follow, follow_or_complain, span
from pointadapterx.models.foreign.tables import FAMILIES, Family, known_within
from pointadapterx.models.sites import BlockSites, Site

LAYER_KEYS = ("norm1", "qkv", "proj", "norm2", "fc1", "act", "fc2")
ADAPTERS = "pointadapterx"
"""Name of the submodule that holds the adapters of a model."""


class ForeignBlock(NamedTuple):
    """A block of a foreign model.

    Attributes:
        module: as the model runs it.
        path: of the module, for messages.
        seen: as methods see it.
        attention: its attention, where it is known.
        ffn: its FFN, where it is known.
    """

    module: nn.Module
    path: str
    seen: BlockSites
    attention: Span | None
    ffn: Span | None


class ForeignStage(NamedTuple):
    """Blocks of one width in a row; a :class:`~pointadapterx.models.host.HostStage`.

    Attributes:
        number: of the stage, from 0.
        first: number of its first block in the whole model.
        width: token width C.
        num_patches: patch tokens G; 0 where their number is not known.
        grid: patches along a side of a square image, else None.
        members: its blocks.
        transition: what leads to the next stage, else None.
    """

    number: int
    first: int
    width: int
    num_patches: int
    grid: int | None
    members: list[ForeignBlock]
    transition: nn.Module | None

    @property
    def modules(self) -> nn.ModuleList:
        """Its blocks, as the model runs them."""
        return nn.ModuleList(block.module for block in self.members)

    @property
    def blocks(self) -> list[BlockSites]:
        """Its blocks, as methods see them."""
        return [block.seen for block in self.members]


class Shape(Backbone.Options):
    """Sizes of a foreign model, for the checks of a method's options."""

    class_token: bool
    square: bool

    @property
    def has_class_token(self) -> bool:
        """Whether its first token is a class token."""
        return self.class_token

    @property
    def has_grid(self) -> bool:  # type: ignore[override]
        """Whether its patches lie on a square grid."""
        return self.square


class ForeignHost:
    """Where methods may act in a module; a :class:`~pointadapterx.models.host.Host`.

    Args:
        model: the module that holds the whole transformer.
        path: of that module in the model that is adapted, for messages; empty where they are one.
        sites: of the module.
        family: that the sites are of, or None where a user gave them.

    Attributes:
        title: what messages call it.
        no_prompts: why its blocks take no further tokens; empty where they do.
        position: it adds positions by itself, before the first block as far as methods are concerned.

    Raises:
        ConfigError: if a path leads nowhere.
    """

    position = "input"

    def __init__(self, model: nn.Module, path: str, sites: Sites, family: Family | None = None) -> None:
        self.model = model
        self.path = path
        self.family = family
        name = type(model).__name__
        self.title = name if family is None else f"{name} ({family.title})"
        facts = {} if family is None else _facts(family, model, self.title)
        self.sites = sites.model_copy(update=dict(facts))
        self.has_class_token = self.sites.class_token
        self.patch_values = self.sites.patch_values
        self.no_prompts = family.no_prompts(model) if family is not None else ""
        if not self.sites.takes_prompts:
            self.no_prompts = "its sites say takes_prompts=False"
        self.stages = list(self._stages())
        self._norm = self._find("norm", skip=nn.Identity)
        self._patch = self._find("patch")
        self._switched: list[tuple[nn.Module, str, object]] = []

    @classmethod
    def of(cls, model: nn.Module, sites: Sites | str | None = None) -> ForeignHost:
        """That of a model.

        Args:
            model: to adapt.
            sites: where methods may act; or the path of the module inside it whose class is known; None is the only one
                that is known.

        Raises:
            ConfigError: if nothing in the model is known, or several modules are, or a path leads nowhere.
        """
        if isinstance(sites, Sites):
            return cls(model, "", sites)
        inside = model if sites is None else follow_or_complain(model, sites, "path", type(model).__name__)
        known = list(known_within(inside))
        if len(known) == 1:
            path, module, family = known[0]
            return cls(module, ".".join(part for part in (sites or "", path) if part), family.sites, family)
        if known:
            paths = ", ".join(f"'{path}' ({type(module).__name__})" for path, module, _ in known)
            raise ConfigError(
                f"{type(model).__name__} holds {len(known)} known models: {paths}; name one, sites='{known[0][0]}'"
            )
        names = ", ".join([*dict.fromkeys(family.title for family in FAMILIES.values()), "Point-MAE family"])
        raise ConfigError(
            f"no module of {type(inside).__name__} is known (known: {names}); say where its blocks are, for example "
            f"sites=Sites(blocks={_guess(inside, sites or '')!r}, norm1=..., ffn=...)"
        )

    @property
    def norm(self) -> nn.Module:
        """The final norm.

        Raises:
            ConfigError: if it is not known.
        """
        if self._norm is None:
            raise ConfigError(f"{self.title} has no site 'final norm'; name it in sites.norm, or choose another method")
        return self._norm

    @property
    def patch_projection(self) -> nn.Module:
        """The last layer of what makes the patch tokens.

        Raises:
            ConfigError: if it is not known.
        """
        found = self._find("projection")
        if found is None:
            raise ConfigError(f"{self.title} has no known last layer of its patches; name it in sites.projection")
        return found

    @property
    def patch_scale_merges(self) -> bool:
        """True: a linear layer or convolution, or a norm."""
        return True

    @property
    def has_places(self) -> bool:
        """Whether the patches of every stage are known to lie on a grid."""
        return all(stage.grid is not None for stage in self.stages)

    def position_layers(self) -> list[nn.Module]:
        """None that are known."""
        return []

    def every_block(self) -> list[BlockSites]:
        """The blocks of all stages, as methods see them."""
        return [block.seen for block in self.members()]

    def members(self) -> list[ForeignBlock]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.members]

    def site(self, name: str) -> Site:
        """A site outside the blocks.

        Raises:
            ConfigError: if it is not known.
        """
        if name == "final norm":
            return Site(name, self.norm, _width(self.norm) or self.stages[-1].width)
        if self._patch is None:
            raise ConfigError(f"{self.title} has no site '{name}'; name it in sites.{name}, or choose another method")
        first = isinstance(self._patch, nn.Conv2d)
        return Site(name, self._patch, self.stages[0].width, channels_first=first)

    def before_the_norm(self, first: int | None = None) -> Iterator[nn.Module]:
        """What is known to run before the final norm, or before block ``first``: patches, blocks, and between them."""
        yield from (block.module for block in self.members()[:first])
        ways = [stage.transition for stage in self.stages if first is None or stage.first + len(stage.members) < first]
        yield from (way for way in ways if way is not None)
        if self._patch is not None:
            yield self._patch

    def checkpointed(self) -> nn.Module | None:
        """The outermost module with the first block in it, or that block, that transformers may run in a checkpoint."""
        first = self.members()[0].module
        for module in self.model.modules():
            if hasattr(module, "gradient_checkpointing") and any(inner is first for inner in module.modules()):
                return module
        return None

    def class_parameters(self) -> Mapping[str, nn.Parameter]:
        """None: whatever it has is pre-trained."""
        return {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter of the module except those of adapters."""
        for name, parameter in self.model.named_parameters():
            if not name.startswith(f"{ADAPTERS}."):
                yield parameter

    def shape(self) -> Backbone.Options:
        """Its sizes, for the checks of a method's options."""
        dims = [stage.width for stage in self.stages]
        depths = [len(stage.members) for stage in self.stages]
        heads = [stage.members[0].seen.num_heads for stage in self.stages]
        one = len(dims) == 1
        return Shape.model_construct(
            name=self.title,
            dim=dims[0] if one else dims,
            depth=depths[0] if one else depths,
            num_heads=heads[0] if one else heads,
            class_token=self.has_class_token,
            square=self.stages[-1].grid is not None,
        )

    def switch(self) -> None:
        """Sets the attributes by which layers are run as modules."""
        for module, name in self._switches():
            self._switched.append((module, name, getattr(module, name)))
            setattr(module, name, self.family.switches[name] if self.family else None)

    def switch_back(self) -> None:
        """Sets them to what they were."""
        for module, name, value in reversed(self._switched):
            setattr(module, name, value)
        self._switched.clear()

    def _switches(self) -> Iterator[tuple[nn.Module, str]]:
        for name in {} if self.family is None else self.family.switches:
            for block in self.members():
                yield from ((module, name) for module in block.module.modules() if hasattr(module, name))

    def _find(self, key: str, skip: type[nn.Module] | None = None) -> nn.Module | None:
        path = getattr(self.sites, key)
        if path is None:
            return None
        if self.family is None:
            return follow_or_complain(self.model, path, key, self.title)
        found = (follow(self.model, way) for way in path.split("|"))
        return next((one for one in found if one is not None and not (skip and isinstance(one, skip))), None)

    def _stages(self) -> Iterator[ForeignStage]:
        lists = self._block_lists()
        transitions = self._transitions([path for path, _ in lists])
        first = 0
        for number, (path, modules) in enumerate(lists):
            blocks = [
                self._block(first + place, number, f"{path}.{place}", block) for place, block in enumerate(modules)
            ]
            patches, grid = self._patches_of(number, blocks[0].module)
            yield ForeignStage(number, first, blocks[0].seen.width, patches, grid, blocks, transitions[number])
            first += len(blocks)

    def _block_lists(self) -> list[tuple[str, list[nn.Module]]]:
        """Paths and blocks of the stages."""
        head, star, tail = self.sites.blocks.partition(".*.")
        paths = [head]
        if star:
            outer = follow_or_complain(self.model, head, "blocks", self.title)
            paths = [f"{head}.{name}.{tail}" for name, _ in outer.named_children()]
        found = []
        for path in paths:
            holder = follow_or_complain(self.model, path, "blocks", self.title)
            blocks = list(holder) if isinstance(holder, nn.ModuleList | nn.Sequential) else []
            if not blocks:
                raise ConfigError(
                    f"sites.blocks: '{path}' of {self.title} is a {type(holder).__name__}, not a list of blocks; name "
                    "the nn.ModuleList or nn.Sequential that holds them"
                )
            found.append((path, blocks))
        return found

    def _transitions(self, paths: list[str]) -> list[nn.Module | None]:
        """What leads from each stage to the next: at its own end, or at the beginning of the next one."""
        if self.sites.transition is None or len(paths) == 1:
            return [None] * len(paths)
        stages = [follow(self.model, path.rpartition(".")[0]) for path in paths]
        found = [None if stage is None else follow(stage, self.sites.transition) for stage in stages]
        at_end = found[0] is not None and not isinstance(found[0], nn.Identity)
        return found if at_end else [*found[1:], None]

    def _patches_of(self, stage: int, block: nn.Module) -> tuple[int, int | None]:
        """Number and grid of the patch tokens of a stage, where they are known."""
        size = getattr(block, "input_resolution", None)
        if len(self.sites.blocks.split(".*.")) > 1:
            return (int(size[0]) * int(size[1]), None) if isinstance(size, tuple) else (0, None)
        grid = self.sites.grid
        return self.sites.num_patches or (grid or 0) ** 2, grid

    def _block(self, index: int, stage: int, path: str, module: nn.Module) -> ForeignBlock:
        sites, what = self.sites, f"{self.title} block {index} ('{path}', a {type(module).__name__})"
        layers = {key: self._layer(module, key, what) for key in (*LAYER_KEYS, "q", "k", "v")}
        spans = {key: self._span(module, key, what) for key in ("attention", "ffn")}
        widths = (_width(layers[key]) for key in ("norm1", "norm2", "proj", "fc2") if layers[key] is not None)
        width = sites.width or next((found for found in widths if found), None)
        if width is None:
            raise ConfigError(f"{what}: its width cannot be found; give it in sites.width")
        found = list(self._sites_of(module, layers, width))
        found += [Site(key, one.exit, width, into=one.into) for key, one in spans.items() if one]
        seen = BlockSites(index, stage, width, sites.num_heads or _heads(spans["attention"]), found)
        return ForeignBlock(module, path, seen, spans["attention"], spans["ffn"])

    def _sites_of(self, block: nn.Module, layers: Mapping[str, nn.Module | None], width: int) -> Iterator[Site]:
        untapped = self.family.untapped(block) if self.family is not None else ""
        for key in LAYER_KEYS:
            module = layers[key]
            if module is not None:
                hidden = _width(layers["fc1"]) or width
                size = _width(module) or (hidden if key in ("fc1", "act") else width)
                yield Site(key, module, size, untapped=untapped if key == "qkv" else "")
        parts = [layers[key] for key in ("q", "k", "v")]
        if layers["qkv"] is None and all(part is not None for part in parts):
            three = [cast(nn.Module, part) for part in parts]
            total = sum(_width(part) or width for part in three)
            yield Site("qkv", nn.ModuleList(three), total, tuple(three))
        yield Site("block", block, width)

    def _layer(self, block: nn.Module, key: str, what: str) -> nn.Module | None:
        path = getattr(self.sites, key)
        if path is None:
            return None
        optional = self.family is not None and key in ("qkv", "q", "k", "v", "fc1", "act", "fc2")
        return follow(block, path) if optional else follow_or_complain(block, path, key, what)

    def _span(self, block: nn.Module, key: str, what: str) -> Span | None:
        path = getattr(self.sites, key)
        return None if path is None else span(block, path, key, what)


def _facts(family: Family, model: nn.Module, title: str) -> Mapping[str, Any]:
    try:
        return family.facts(model)
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{title} is not laid out as this version knows it ({error}); give its sites") from None


def _width(module: nn.Module | None) -> int | None:
    """Features of a layer's output, where they can be seen."""
    for name in ("out_features", "out_channels"):
        if isinstance(found := getattr(module, name, None), int):
            return found
    shape = getattr(module, "normalized_shape", None)
    return int(shape[-1]) if shape else None


def _heads(attention: Span | None) -> int:
    for module in [] if attention is None else attention.entry.modules():
        for name in ("num_heads", "num_attention_heads"):
            if isinstance(found := getattr(module, name, None), int):
                return found
    return 1


def _guess(inside: nn.Module, prefix: str) -> str:
    """The path of the longest list of modules of one class, which is probably that of the blocks."""
    lists = [
        (len(module), path)
        for path, module in inside.named_modules(prefix=prefix)
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(one) for one in module}) == 1 and path
    ]
    return max(lists)[1] if lists else "encoder.layers"
