"""How one mapping of sections overrides another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pointadapterx.peft import METHODS, Method
from pointadapterx.tasks.heads import default_pools

DESCRIBED = ("architecture", "image_size", "channels", "label", "weights", "dim", "depth", "num_heads")
"""Keys of a backbone that say what a model without files is like."""


def merge(into: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Merges nested mappings; a method of another ``name`` is replaced, as its other keys belong to the old one.

    A ``model`` takes the place of an ``architecture`` in the same way.
    """
    _leave_architecture(into, update.get("backbone"))
    replaces = _replaces_method(into.get("method"), update.get("method"))
    if replaces:
        _leave_pools(into, update["method"])
    for key, value in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            if replaces and key == "method":
                into[key] = dict(value)
            else:
                merge(old, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _leave_architecture(config: dict[str, Any], new: Any) -> None:
    """Takes what describes a model without files out of ``backbone``, where a model with files replaces it."""
    old = config.get("backbone")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or new.get("model") is None:
        return
    if old.get("model") is None and old.get("architecture") is not None:
        config["backbone"] = {key: value for key, value in old.items() if key not in DESCRIBED}


def _replaces_method(old: Any, new: Any) -> bool:
    sections = isinstance(old, Mapping) and isinstance(new, Mapping)
    return sections and "name" in old and "name" in new and old["name"] != new["name"]


def _leave_pools(config: dict[str, Any], method: Mapping[str, Any]) -> None:
    """Takes what belongs to the replaced method out of ``head.pools``: its default, or pools of prompts it made."""
    head, old, new = config.get("head"), _options(config["method"]), _options(method)
    if not isinstance(head, Mapping) or not isinstance(head.get("pools"), list):
        return
    pools = head["pools"]
    if old is not None and pools == default_pools(old):
        pools = None
    elif new is not None and not new.makes_prompts:
        pools = [pool for pool in pools if not str(pool).startswith("prompt_")] or None
    config["head"] = {**head, "pools": pools}


def _options(method: Mapping[str, Any]) -> Method.Options | None:
    """Of a method's section, if it is right; what is wrong with it is found later."""
    name = method["name"]
    if not isinstance(name, str) or name not in METHODS:
        return None
    try:
        return METHODS[name].Options.model_validate(dict(method))
    except ValidationError:
        return None
