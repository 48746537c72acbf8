"""Finds the encoder in a file: its prefix, and which of several copies to take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from pointadapterx.errors import CheckpointError

# Wrappers of torch put these into names, DistributedDataParallel in front, the others at any depth.
_INNER = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_WRAPPERS = re.compile(rf"^(?:(?:module|{_INNER})\.)+|(\.)(?:(?:{_INNER})\.)+")
# Copies that follow the trained weights; by themselves they may be what is wanted.
_COPY = re.compile(r"(^|[._])(ema|momentum|teacher|target|transformer_k|encoder_k|shadow|swa|averaged?)[._]")
_DECODED = re.compile(r"(MAE_encoder|ACT_encoder|transformer_q|transformer_k)\..*$")


_PAIRS = [("student.", "teacher.ema_model."), ("student.", "teacher."), ("transformer_q.", "transformer_k.")]
"""Trained weights, and what follows them as their average."""


class Layout(NamedTuple):
    """Patterns of names that each encoder has, after its prefix: of its patches, and of its blocks."""

    patches: str
    blocks: str


OWN = Layout(r"patch_encoder\.(?:first|second)\.\d", r"blocks\.\d+\.")
"""This package's Point-MAE."""
PUBLISHED = Layout(r"encoder\.(?:first|second)_conv\.\d", r"blocks\.blocks\.\d+\.")
"""Point-MAE's and its descendants'."""
VIT = Layout(r"patch_embed\.proj\.", r"blocks\.\d+\.")
"""timm's ViT, and ours."""


class Place(NamedTuple):
    """Prefix of an encoder's names, and what there is to say about the choice of it."""

    prefix: str
    notes: list[str]


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the parts that torch.compile, FSDP and checkpointing insert.

    Raises:
        CheckpointError: if two names become one.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = _WRAPPERS.sub(lambda match: match[1] or "", name)
        if short in plain:
            raise CheckpointError(f"{short} is there with and without a wrapper's name ({name}); keep one of them")
        plain[short] = tensor
    return plain


def averaged_copy(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The averages under the names of the trained weights, whose place they take, and a word on that.

    Raises:
        CheckpointError: if the file does not hold both.
    """
    for trained, average in _PAIRS:
        pattern = re.compile(rf"(^|\.){re.escape(average)}")
        copies = {pattern.sub(rf"\g<1>{trained}", name, count=1): name for name in state if pattern.search(name)}
        if not copies or not any(new in state for new in copies):
            continue
        rest = {name: t for name, t in state.items() if f".{trained}" not in f".{name}" and not pattern.search(name)}
        return {**rest, **{new: state[old] for new, old in copies.items()}}, f"{average} is loaded instead of {trained}"
    listed = ", ".join(f"{average} of {trained}" for trained, average in _PAIRS)
    raise CheckpointError(f"holds no average of trained weights ({listed}); set backbone.averaged_weights=false")


def find_encoder(names: Iterable[str], layout: Layout) -> Place | None:
    """The place of the only encoder or of the chosen one; None without any.

    Of Point-BERT's two, the trained ``transformer_q`` is the one that its own loader takes; no other choice is made
    here.

    Raises:
        CheckpointError: if there are several, and none is the published choice.
    """
    prefixes = _prefixes(names, layout)
    if not prefixes:
        return None
    trained = next((one for one in prefixes if one.endswith("transformer_q.")), None)
    others = [one for one in prefixes if one != trained]
    if trained is not None and all(one.endswith("transformer_k.") for one in others):
        copy = f"holds {trained} and its momentum copy {others[0]}; the former is loaded" if others else None
        return Place(trained, [copy] if copy else [])
    if len(prefixes) > 1:
        named = " and ".join(one or "names without a prefix" for one in prefixes)
        raise CheckpointError(
            f"holds {len(prefixes)} encoders ({named}), and does not say which of them is meant; keep one, with "
            f"torch.save({{n: t for n, t in state.items() if n.startswith('{prefixes[-1]}')}}, FILE)"
        )
    only = prefixes[0]
    return Place(only, [f"holds {only} alone, a copy that follows the trained weights"] if _COPY.search(only) else [])


def find_state(content: Mapping[object, object]) -> Place | None:
    """The key of the one state dict with an encoder among the values of a file; None without any.

    Raises:
        CheckpointError: if there are several.
    """
    keys = [
        str(key)
        for key, inner in content.items()
        if isinstance(inner, Mapping) and any(_prefixes(map(str, inner), one) for one in (OWN, PUBLISHED, VIT))
    ]
    if len(keys) > 1:
        raise CheckpointError(
            f"holds {len(keys)} models ({' and '.join(keys)}), and does not say which of them is meant; keep one, "
            f"with torch.save(content['{keys[-1]}'], FILE)"
        )
    if not keys:
        return None
    copy = _COPY.search(f"{keys[0]}.")
    return Place(keys[0], [f"holds {keys[0]} alone, a copy that follows the trained weights"] if copy else [])


def decoder_place(prefix: str) -> str:
    """Prefix of a decoder, which lies beside its encoder."""
    return _DECODED.sub("", prefix)


def _prefixes(names: Iterable[str], layout: Layout) -> list[str]:
    """Prefixes under which both patches and blocks of an encoder lie, in the order of the file."""
    names = list(names)
    both: list[dict[str, None]] = []
    for part in layout:
        pattern = re.compile(rf"((?:[^.]+\.)*?){part}")
        both.append(dict.fromkeys(match[1] for name in names if (match := pattern.match(name))))
    return [prefix for prefix in both[0] if prefix in both[1]]
