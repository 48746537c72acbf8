"""What a user says of a module of their own: the paths of its blocks, and of the sites inside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, ValidationError
from torch import nn

from pointadapterx.errors import ConfigError, shown
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Many, Section, Width


def first_problem(error: ValidationError, kind: type[Section], what: str, noun: str) -> ConfigError:
    """What is wrong with the arguments of a section, in one line.

    Args:
        error: of pydantic.
        kind: the section.
        what: it belongs to, which the line begins with.
        noun: what its keys are called.
    """
    detail = error.errors()[0]
    key = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        known = [field for field in kind.model_fields if field != "name"]
        near = did_you_mean(key, known)
        return ConfigError(f"{what}: unknown {noun} '{key}'{near} Known: {', '.join(known) or 'none'}")
    if detail["type"] == "missing":
        return ConfigError(f"{what}: {noun} '{key}' is required")
    return ConfigError(f"{what}: {key}: {detail['msg']}, not {shown(detail['input'])}")


class Sites(Section):
    """Where methods may act in a module.

    All are paths of attributes, ``encoder.layers`` for ``model.encoder.layers``: those of the first group from the
    module that holds the whole transformer, those of the second from one block. Of several paths, ``a | b``, the first
    that leads to a module counts. What is left out is a site that the module does not have, and a method that needs it
    says so.

    A branch that is no module of its own is written ``entry -> exit``, ``entry`` being the module that reads what the
    branch reads, and ``exit`` the one that computes what is added to the residual stream; or ``entry -> into exit``,
    where that is what ``exit`` is given. A module that only drops something out may be left out of a branch.

    Attributes:
        blocks: the list of the blocks; with ``*``, as in ``layers.*.blocks``, one list a stage.
        norm: the final norm behind the last block.
        patch: what makes the patch tokens of the input, without positions.
        projection: its last layer with weights, relative to the model; only merging needs it.
        transition: in a model of several stages, what leads to the next one, relative to its stage.
        norm1: the norm before attention, or behind it where norms come behind.
        qkv: the joint projection to queries, keys and values.
        q: the projection to queries, where they are separate; likewise ``k`` and ``v``.
        attention: the whole branch.
        proj: the projection behind attention.
        norm2: the norm of the FFN.
        ffn: the whole branch.
        fc1: the FFN's first layer.
        act: its activation.
        fc2: its last layer.
        width: token width C; None is found from the layers.
        num_heads: attention heads; None is found from the attention.
        class_token: whether the first token is a class token.
        num_patches: patch tokens, where their number never changes; None is grid².
        registers: tokens that are neither the class token nor patches, such as register tokens.
        grid: patches along a side of a square image, where the last tokens are its patches in rows.
        patch_values: numbers in one patch, which VPT draws its prompts by.
        takes_prompts: whether the blocks can be given more tokens than usual, behind the class token.
        batch_first: whether tokens are (B, L, C) rather than (L, B, C).
    """

    blocks: str
    norm: str | None = None
    patch: str | None = None
    projection: str | None = None
    transition: str | None = None

    norm1: str | None = None
    qkv: str | None = None
    q: str | None = None
    k: str | None = None
    v: str | None = None
    attention: str | None = None
    proj: str | None = None
    norm2: str | None = None
    ffn: str | None = None
    fc1: str | None = None
    act: str | None = None
    fc2: str | None = None

    width: Width | None = None
    num_heads: Many | None = None
    class_token: bool = False
    num_patches: Width | None = None
    registers: Annotated[int, Field(ge=0)] = 0
    grid: Width | None = None
    patch_values: Width = 768
    takes_prompts: bool = True
    batch_first: bool = True

    if not TYPE_CHECKING:  # where the fields say what the arguments are

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise first_problem(error, Sites, "sites", "field") from None


class Span(NamedTuple):
    """A branch: where it begins, and where what is added to the residual stream can be changed.

    Attributes:
        entry: the module that reads what the branch reads.
        exit: the module that computes what the branch adds, or is given it.
        into: whether it is the input of ``exit`` that counts, not its output.
    """

    entry: nn.Module
    exit: nn.Module
    into: bool = False


def follow(module: nn.Module, path: str) -> nn.Module | None:
    """The module at the first of the paths ``a | b`` that lead to one."""
    for way in path.split("|"):
        found: object = module
        for name in way.strip().split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


def follow_or_complain(module: nn.Module, path: str, key: str, what: str) -> nn.Module:
    """The module at a path.

    Args:
        module: where paths begin.
        path: as in :class:`Sites`.
        key: of :class:`Sites` that has it.
        what: the module is, for the message.

    Raises:
        ConfigError: naming the key, the path and the names that come closest.
    """
    found = follow(module, path)
    if found is not None:
        return found
    wanted = path.split("|")[0].strip()
    names = [name for name, _ in module.named_modules() if name]
    raise ConfigError(f"sites.{key}: {what} has no module '{wanted}'{did_you_mean(wanted, names)}")


def span(block: nn.Module, path: str, key: str, what: str) -> Span:
    """The branch ``entry -> [into ]exit`` of a block, or ``entry`` alone.

    Raises:
        ConfigError: as :func:`follow_or_complain`.
    """
    first, _, last = (part.strip() for part in path.partition("->"))
    entry = follow_or_complain(block, first, key, what)
    if not last:
        return Span(entry, entry)
    into = last.startswith("into ")
    return Span(entry, follow_or_complain(block, last.removeprefix("into "), key, what), into)
