"""Configs: YAML with ``_base_`` includes and ``a.b=c`` overrides, checked before anything is built.

Every problem of a config is found and reported at once, each with the file and line that set the key.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from easydict import EasyDict
from pydantic import BaseModel, Field, ValidationError

from pointadapterx.checkpoints.shipped import shipped_weights
from pointadapterx.datasets import DATASETS, build_augment
from pointadapterx.datasets.point_files import KINDS, problem_of_columns
from pointadapterx.errors import ConfigError, DataError, shown
from pointadapterx.hub import HUB
from pointadapterx.models import BACKBONES, Backbone
from pointadapterx.models.masking import hidden_groups
from pointadapterx.models.tokens import POOLS
from pointadapterx.peft import METHODS, Method
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Blocks, Many, Points, Rate, Section, Times
from pointadapterx.tasks.heads import HeadConfig
from pointadapterx.yaml_text import MOST_CHARACTERS, parse_yaml

SHIPPED = Path(str(importlib.resources.files("pointadapterx.cfgs")))
"""Folder of the shipped configs: the checkout's, or an installed package's own copy."""

JOBS = {
    "adaptation": ("backbone", "method", "head", "data", "train", "eval"),
    "pre-training": ("backbone", "pretrain", "data", "train", "eval"),
}
"""Sections of a config by what it asks for; one with a ``pretrain`` section asks for pre-training."""

LOCATIONS = ("data.root", "data.cache_dir", "backbone.weights", "train.cache_folder")
"""Keys that say where files lie: what lies there counts, not where."""

MOST_FILES = 100
"""Files of a config, of which each may include several."""

MOST_LINES = 50
"""Problems of a config that a message lists."""
MOST_WIDE = 2_000  # characters of a line of it

AugmentSpec = str | list[str | dict[str, dict[str, Any] | None]]


class FewShotConfig(Section):
    """``data.few_shot:``: one fold of a few-shot task; ``queries`` are test clouds a class, all if null."""

    ways: int = Field(ge=2, le=2**20)
    shots: Times
    fold: int = Field(0, ge=0)
    queries: Times | None = None


class DataConfig(Section):
    """``data:``: ``augment`` is a transform's name, ``none``, or a list of names and {name: parameters}.

    ``train_size`` is a number of labelled training samples (those for validation included) to draw, all if null.
    ``num_points`` belongs to clouds. ``mean`` and ``std`` belong to images, a number a channel of images in [0, 1];
    0.5 by default.
    """

    name: str
    root: str | None = None
    variant: str | None = None
    num_points: Points | None = None
    augment: AugmentSpec = "none"
    normalize: bool | None = None
    cache_dir: str | None = None
    up: Literal["x", "y", "z"] | None = None
    stored_points: Points | None = None
    suffixes: list[str] | None = Field(None, min_length=1)
    columns: list[int | str] | None = None
    nan: Literal["drop", "error"] | None = None
    few_shot: FewShotConfig | None = None
    train_size: int | None = Field(None, ge=2)
    mean: list[float] | None = Field(None, min_length=1)
    std: list[Annotated[float, Field(gt=0.0)]] | None = Field(None, min_length=1)


class TrainConfig(Section):
    """``train:``: ``batch_size`` is per optimiser step, over all processes and ``accumulate`` parts.

    Optional keys are null by default, so that runs keep their names (see ``study.identity``).
    """

    epochs: Times = 300
    batch_size: int = Field(32, ge=2, le=2**24)
    accumulate: Points = 1
    lr: float = Field(5e-4, gt=0)
    min_lr: float = Field(1e-6, ge=0)
    warmup_epochs: int = Field(10, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_grad: float | None = Field(10.0, gt=0)
    label_smoothing: Rate = 0.0
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    frozen_bn: Literal["eval", "batch"] = "eval"
    save_every: int = Field(1, ge=1)
    compile: bool | None = None
    gradient_checkpointing: bool | None = None
    cached_views: Times | None = None
    cache_folder: str | None = None


class VoteConfig(Section):
    """``eval.vote:``: K copies per vote, one vote per seed."""

    copies: Times = 10
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1, max_length=10_000)


class EvalConfig(Section):
    """``eval:``: which epoch is kept, and how it is tested.

    ``protocol: validation`` selects on a part of the training set, ``last`` trains on all of it and keeps the
    last epoch, ``published`` selects on the test set.
    """

    protocol: Literal["validation", "last", "published"] = "validation"
    val_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    every: int = Field(1, ge=1)
    select: Literal["overall_accuracy", "mean_class_accuracy"] = "overall_accuracy"
    batch_size: Points = 32
    vote: VoteConfig = Field(default_factory=lambda: VoteConfig.model_validate({}))


class ProbeConfig(Section):
    """``pretrain.probe:``: labelled data whose training part is cut for the linear probe; ``every: 0`` probes never."""

    every: int = Field(10, ge=0)
    name: str = "ldraw20"
    root: str | None = None
    variant: str | None = None
    val_fraction: float = Field(0.25, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)


class PretrainConfig(Section):
    """``pretrain:``: the masked autoencoder of Point-MAE; ``draw`` is a number of clouds, 0 draws nothing."""

    mask: Literal["random", "block"] = "random"
    mask_ratio: float = Field(0.6, gt=0, lt=1)
    chamfer: Literal["l1", "l2"] = "l2"
    decoder_depth: Blocks = 4
    decoder_heads: Many = 6
    decoder_drop_path: Rate = 0.1
    draw: int = Field(4, ge=0, le=10**6)
    probe: ProbeConfig = Field(default_factory=lambda: ProbeConfig.model_validate({}))


class Problem(NamedTuple):
    """One thing wrong with a config: dotted key and message."""

    key: str
    message: str


class _Origins(dict[str, str]):
    """Where each dotted key was set: ``file:line`` or ``override``; and how many files were read."""

    files = 0

    def of(self, key: str) -> str:
        """Origin of the key, or of the nearest section around it."""
        while key:
            if key in self:
                return self[key]
            key = key.rpartition(".")[0]
        return self.get("", "config")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> EasyDict:
    """Reads, merges, overrides and checks a config.

    Args:
        path: YAML file; ``demo`` or ``cfgs/demo.yaml`` also finds a shipped config. ``_base_: other.yaml``
            (or a list), relative to the file, is read first and overridden by what follows. A ``method``
            with another ``name`` than its base replaces the base's, whose keys belong to another method, and so do
            the pools of its prompts in ``head.pools``.
        overrides: ``"train.lr=1e-3"``; the value is YAML.

    Returns:
        The complete config, every default filled in.

    Raises:
        ConfigError: listing every problem, each with file, line, key and the way out.
    """
    origins = _Origins()
    return _checked(_read(_find(path), origins, ()), overrides, origins, str(path))


def check_config(config: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> EasyDict:
    """Checks a config that was stored with an adapter, as :func:`load_config` checks a file.

    Args:
        config: complete config.
        source: where it was stored, for messages.
        overrides: as in :func:`load_config`.

    Raises:
        ConfigError: listing every problem.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source}: a config is a mapping of sections, this is a {type(config).__name__}")
    return _checked(_plain(config), overrides, _Origins({"": source}), source)


def _checked(raw: dict[str, Any], overrides: Sequence[str], origins: _Origins, source: str) -> EasyDict:
    # A new method replaces the old one's section, so it comes before the keys that belong to it.
    ordered = sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".name"))
    problems = [problem for text in ordered if (problem := _override(raw, text, origins)) is not None]
    config, found = check(raw)
    problems += found
    if problems:
        lines = [f"  {origins.of(p.key)}: {p.key or 'config'}: {p.message}" for p in problems]
        many = "problem" if len(lines) == 1 else "problems"
        more = [f"  … and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        kept = [line if len(line) <= MOST_WIDE else f"{line[:MOST_WIDE]}…" for line in lines[:MOST_LINES]]
        raise ConfigError("\n".join([f"{source}: {len(lines)} {many} in the config", *kept, *more]))
    return config


def parse_value(text: str) -> Any:
    """The value of an override, which is YAML.

    Raises:
        ConfigError: if it is not.
    """
    try:
        return _plain(parse_yaml(text).content)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"override value {shown(text)} is not valid YAML; quote it") from None


class Document(NamedTuple):
    """A YAML file of another kind than a run's config: where it lies, its merged content, and who set each key."""

    path: Path
    content: dict[str, Any]
    origin: Callable[[str], str]


def read_document(path: str | Path) -> Document:
    """Reads a YAML file with ``_base_`` includes, found and merged as :func:`load_config` does, but not checked.

    Args:
        path: YAML file, or the name of a shipped one.

    Returns:
        The document; its ``origin`` tells file and line of a dotted key.

    Raises:
        ConfigError: if the file is missing, not YAML, or sets a key twice.
    """
    origins, found = _Origins(), _find(path)
    return Document(found, _read(found, origins, ()), origins.of)


def check(raw: dict[str, Any]) -> tuple[EasyDict, list[Problem]]:
    """Fills defaults and finds every problem: unknown keys, wrong types, impossible combinations."""
    problems: list[Problem] = []
    job = "pre-training" if "pretrain" in raw else "adaptation"
    wanted = JOBS[job]
    models: dict[str, type[BaseModel]] = {
        "pretrain": PretrainConfig,
        "head": HeadConfig,
        "data": DataConfig,
        "train": TrainConfig,
        "eval": EvalConfig,
    }
    options: dict[str, dict[str, type[BaseModel]]] = {
        "backbone": {name: kind.Options for name, kind in BACKBONES.items()},
        "method": {name: kind.Options for name, kind in METHODS.items()},
    }
    for section, known_options in options.items():
        name = raw[section].get("name") if isinstance(raw.get(section), Mapping) else None
        if isinstance(name, str) and name in known_options:
            models[section] = known_options[name]
        elif section in raw:
            problems.append(_unknown_name(section, name, list(known_options)))
    for key in raw:
        if key in wanted:
            continue
        if key in JOBS["adaptation"]:
            problems.append(Problem(key, "belongs to adaptation, but there is a section 'pretrain'; remove one"))
        else:
            known = dict.fromkeys(section for sections in JOBS.values() for section in sections)
            near = did_you_mean(key, known)
            problems.append(Problem(key, f"unknown section{near} Known: {', '.join(known)}"))

    sections: dict[str, Any] = {}
    for section in wanted:
        if section not in raw and section not in ("train", "eval"):
            problems.append(Problem("", f"section '{section}' is missing; add it or inherit it with _base_"))
        elif section in models:
            checked, found = _check_section(section, raw.get(section, {}), models[section])
            problems += found
            if checked is not None:
                sections[section] = checked
    if "head" in sections and sections["head"].pools is None:
        pools = default_pools(sections.get("method"))
        sections["head"] = sections["head"].model_copy(update={"pools": pools})
    problems += _check_names(sections)
    problems += _check_combinations(sections)
    config = EasyDict({s: sections[s].model_dump() for s in wanted if s in sections})
    if {"head", "data"} <= sections.keys() and config.head.num_classes is None and config.data.name in DATASETS:
        problems += _count_classes(config, sections["data"])
    if not problems and config.backbone.init_seed is None:
        config.backbone.init_seed = config.train.seed
    return config, problems


def _count_classes(config: EasyDict, data: DataConfig) -> Iterator[Problem]:
    """Sets ``head.num_classes``, for which nothing but a null looks at files: a stored config stands without them."""
    found = _classes_of_data(data)
    if found is None and not (DATASETS[data.name].needs_variant and data.variant is None):
        try:
            found = DATASETS[data.name].classes_in(data.root)
        except (ConfigError, DataError, OSError) as error:
            yield Problem("data.root", str(error))
            return
        if found is None:
            yield Problem("head.num_classes", f"is required, as only the files of {data.name} tell it")
    config.head.num_classes = found


def default_pools(method: Method.Options | None) -> list[str]:
    """What the head reads where ``head.pools`` is null: class token and patches, and prompts where there are some."""
    return ["cls", *(["prompt_mean"] if method is not None and method.makes_prompts else []), "patch_max"]


def without_locations(config: Mapping[str, Any], keys: Sequence[str] = LOCATIONS) -> dict[str, Any]:
    """A complete config with null for paths of this machine; weights that are found everywhere stay.

    Args:
        config: from :func:`load_config`.
        keys: which of :data:`LOCATIONS`.
    """
    plain: dict[str, Any] = _plain(config)
    for section, key in (name.split(".") for name in keys):
        value = plain[section][key]
        if section != "backbone" or value is None or not (value.startswith(HUB) or value in shipped_weights()):
            plain[section][key] = None
    return plain


def dump_config(config: Mapping[str, Any]) -> str:
    """The config as YAML that :func:`load_config` reads back to an equal config."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _find(path: str | Path) -> Path:
    path = Path(path)
    shipped = SHIPPED / Path(*path.parts[1:] if path.parts[:1] == ("cfgs",) else path.parts)
    for candidate in (path, shipped, shipped.parent / f"{shipped.name}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(p.relative_to(SHIPPED).with_suffix("").as_posix() for p in SHIPPED.rglob("*.yaml"))
    known = [name for name in known if not name.startswith("base/")]  # parts of configs
    name = path.relative_to("cfgs") if path.parts[:1] == ("cfgs",) else path
    near = did_you_mean(name.as_posix().removesuffix(".yaml"), known, path.stem)
    raise ConfigError(f"{path}: no such config{near} Shipped: {', '.join(known)} (in {SHIPPED})")


def _read(path: Path, origins: _Origins, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    origins.files += 1
    if origins.files > MOST_FILES:
        raise ConfigError(f"{path}: _base_ leads to more than {MOST_FILES} files; include each once")
    if path in chain:
        raise ConfigError(f"{path}: _base_ includes itself: {' -> '.join(p.name for p in (*chain, path))}")
    try:
        parsed = parse_yaml(_text(path))
        content, node = _plain(parsed.content), parsed.node
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML passes on the ValueError of an impossible date
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({_reason(error)})") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, this is a {type(content).__name__}")

    bases = content.pop("_base_", [])
    if not isinstance(bases, (str, list)) or (isinstance(bases, list) and not all(isinstance(b, str) for b in bases)):
        raise ConfigError(f"{path}: _base_ must be a file name or a list of them, not {shown(bases)}")
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        target = path.parent / base
        if not target.is_file():
            raise ConfigError(f"{path}: _base_ names {base}, but {target} does not exist")
        _merge(merged, _read(target, origins, (*chain, path)))
    if node is not None:
        for key, number in _lines(node, path):
            origins[key] = f"{path}:{number}"
    origins.setdefault("", str(path))
    _merge(merged, content)
    return merged


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > 4 * MOST_CHARACTERS:  # bytes of a character
        raise ValueError(f"{size:,} bytes, of at most {4 * MOST_CHARACTERS:,}")
    return path.read_text(encoding="utf-8")


def _lines(node: yaml.Node, path: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, line) of every key; a key given twice in one mapping is an error, not silently the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = f"{prefix}{key_node.value}"
        if key in seen:
            raise ConfigError(f"{path}:{line}: {key} is set twice, first in line {seen[key]}; remove one")
        seen[key] = line
        yield key, line
        yield from _lines(value_node, path, f"{key}.")


def _merge(into: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Merges nested mappings; a method of another ``name`` is replaced, as its other keys belong to the old one."""
    replaces = _replaces_method(into.get("method"), update.get("method"))
    if replaces:
        _leave_pools(into, update["method"])
    for key, value in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            if replaces and key == "method":
                into[key] = dict(value)
            else:
                _merge(old, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


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
    try:
        return METHODS[method["name"]].Options.model_validate(dict(method))
    except (ConfigError, KeyError, TypeError, ValidationError):
        return None


def _override(raw: dict[str, Any], text: str, origins: _Origins) -> Problem | None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        return Problem("", f"override '{text}' is not of the form section.key=value")
    try:
        update = parse_value(value)
    except ConfigError as error:
        return Problem(key, f"{error}")
    conflict = _conflict(raw, key.split("."), update)
    if conflict is not None:
        return conflict
    for part in reversed(key.split(".")):
        update = {part: update}
    _merge(raw, update)
    origins[key] = f"override {text}"
    return None


def _conflict(raw: Mapping[str, Any], parts: Sequence[str], value: Any) -> Problem | None:
    """An override that would put one value in place of a section, or a section in place of one value."""
    old: Any = raw
    for depth, part in enumerate(parts):
        if old is None:
            return None
        if not isinstance(old, Mapping):
            key = ".".join(parts[:depth])
            return Problem(
                key, f"is {shown(old)}, which has no keys, but an override sets {'.'.join(parts)}; remove one"
            )
        old = old.get(part)
    nullable = len(parts) > 1  # as data.few_shot
    if isinstance(old, Mapping) and not isinstance(value, Mapping) and not (value is None and nullable):
        key = ".".join(parts)
        example = f", for example {key}.{next(iter(old))}=..." if old else ""
        return Problem(key, f"is a section with keys of its own, not {shown(value)}; set one of them{example}")
    return None


def _unknown_name(section: str, name: Any, known: list[str]) -> Problem:
    key = f"{section}.name"
    if name is None:
        return Problem(section, f"needs a name, one of {', '.join(sorted(known))}")
    return Problem(key, f"unknown name {shown(name)}{did_you_mean(str(name), known)} Known: {', '.join(sorted(known))}")


def _check_section(section: str, values: Any, model: type[BaseModel]) -> tuple[Any, list[Problem]]:
    if not isinstance(values, Mapping):
        return None, [Problem(section, f"must be a mapping of keys, not {shown(values)}")]
    try:
        return model.model_validate(_plain(values)), []
    except ValidationError as error:
        problems: dict[str, Problem] = {}
        for detail in error.errors():
            problem = _describe(section, detail, model)
            problems.setdefault(problem.key, problem)  # one line a key, though a union reports each branch
        return None, list(problems.values())


def _describe(section: str, detail: Any, model: type[BaseModel]) -> Problem:
    location = list(detail["loc"])
    fields = model
    if section == "eval" and location[:1] == ["vote"]:
        fields = VoteConfig
    elif section == "pretrain" and location[:1] == ["probe"]:
        fields = ProbeConfig
    elif section == "data" and location[:1] == ["few_shot"]:
        fields = FewShotConfig
    elif section == "data" and location[:1] == ["augment"]:
        location = ["augment"]
    key = ".".join(map(str, [section, *location]))
    if detail["type"] == "extra_forbidden":
        known = list(fields.model_fields)
        return Problem(key, f"unknown key{did_you_mean(str(location[-1]), known)} Known: {', '.join(known)}")
    if detail["type"] == "missing":
        return Problem(key, "is required")
    if key == "data.augment":
        return Problem(key, f"must be a name or a list of names and {{name: parameters}}, not {shown(detail['input'])}")
    return Problem(key, f"{detail['msg']}, not {shown(detail['input'])}")


def _check_names(sections: Mapping[str, Any]) -> Iterator[Problem]:
    head, data = sections.get("head"), sections.get("data")
    for pool in head.pools if head is not None else ():
        if pool not in POOLS:
            yield Problem(
                "head.pools",
                f"unknown pool '{pool}'{did_you_mean(pool, POOLS)} Known: {', '.join(POOLS)}",
            )
    if data is None:
        return
    if data.name not in DATASETS:
        yield _unknown_name("data", data.name, list(DATASETS))
    else:
        variants = DATASETS[data.name].variants
        if data.variant is None and DATASETS[data.name].needs_variant:
            yield Problem("data.variant", f"is required for {data.name}, one of {', '.join(variants)}")
        if data.variant is not None and data.variant not in variants:
            options = ", ".join(variants) or "none: leave it out"
            yield Problem(
                "data.variant",
                f"unknown variant '{data.variant}'{did_you_mean(data.variant, variants)} Known: {options}",
            )
    for suffix in data.suffixes or ():
        if suffix not in KINDS:
            yield Problem(
                "data.suffixes",
                f"unknown kind '{suffix}'{did_you_mean(suffix, KINDS)} Known: {', '.join(KINDS)}",
            )
    if data.columns is not None and (problem := problem_of_columns(data.columns)) is not None:
        yield Problem("data.columns", problem)
    try:
        build_augment(data.augment, DATASETS[data.name].modality if data.name in DATASETS else "points")
    except ConfigError as error:
        yield Problem("data.augment", f"{error}")


def _check_combinations(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """What no single section can see."""
    backbone, method, head = sections.get("backbone"), sections.get("method"), sections.get("head")
    data, train = sections.get("data"), sections.get("train")
    if backbone is not None:
        for key, message in backbone.problems():
            yield Problem(f"backbone.{key}", message)
    if backbone is not None and method is not None:
        for key, message in method.problems(backbone):
            yield Problem(f"method.{key}", message)
    if method is not None and head is not None:
        yield from _check_pools(method, head)
    yield from _check_pretraining(sections)
    if head is not None and len(set(head.pools)) != len(head.pools):
        yield Problem("head.pools", f"a pool is named twice in {head.pools}")
    if head is not None and not all(1 <= width <= 2**16 for width in head.hidden):
        yield Problem("head.hidden", f"widths must be from 1 to {2**16}, not {shown(head.hidden)}")
    yield from _check_classes(sections)
    if backbone is not None and data is not None and data.name in DATASETS:
        yield from _check_modality(backbone, data)
    if train is not None:
        if train.warmup_epochs >= train.epochs and train.warmup_epochs > 0:
            yield Problem(
                "train.warmup_epochs",
                f"{train.warmup_epochs} leaves nothing of train.epochs={train.epochs}; lower it, for example with "
                f"train.warmup_epochs={train.epochs // 10}",
            )
        for key in ("min_lr", "warmup_lr"):
            if getattr(train, key) > train.lr:
                text = f"{getattr(train, key)} exceeds train.lr={train.lr}; lower it, for example with train.{key}=0"
                yield Problem(f"train.{key}", text)
        if train.cached_views is not None and (train.frozen_bn == "batch" or "pretrain" in sections):
            why = (
                "pre-training freezes nothing"
                if "pretrain" in sections
                else "train.frozen_bn=batch changes frozen layers"
            )
            yield Problem("train.cached_views", f"{why}, so there is nothing to keep; remove it")
        if train.compile and train.gradient_checkpointing:
            message = "torch.compile chooses itself what to keep and what to compute again; remove one of the two"
            yield Problem("train.gradient_checkpointing", message)
        if train.batch_size < 2 * train.accumulate:
            yield Problem(
                "train.accumulate",
                f"{train.accumulate} parts of train.batch_size={train.batch_size} hold fewer than 2 samples, "
                "too few for BatchNorm; lower it",
            )


def _check_pools(method: Method.Options, head: HeadConfig) -> Iterator[Problem]:
    """Pools of prompts that there are not, and prompts that no pool reads."""
    of_prompts = [pool for pool in head.pools or () if pool.startswith("prompt_")]
    if not method.makes_prompts:
        for pool in of_prompts:
            yield Problem(
                "head.pools", f"{pool} needs prompt tokens, which method {method.name} does not make; remove it"
            )
    elif method.needs_prompt_pool and not of_prompts:
        yield Problem("method.prompts", "its prompts are read by a prompt pool alone; add prompt_mean to head.pools")


def _check_modality(backbone: Backbone.Options, data: DataConfig) -> Iterator[Problem]:
    """A backbone that takes the data, and keys that belong to what it takes."""
    wanted, given = BACKBONES[backbone.name].modality, DATASETS[data.name].modality
    if wanted != given:
        fitting = ", ".join(sorted(name for name, kind in DATASETS.items() if kind.modality == wanted))
        yield Problem("data.name", f"{data.name} holds {given}, but {backbone.name} takes {wanted}: {fitting}")
        return
    if given == "points":
        for key in ("mean", "std"):
            if getattr(data, key) is not None:
                yield Problem(f"data.{key}", f"belongs to images, but {data.name} holds points; remove it")
        if data.num_points is None:
            yield Problem("data.num_points", "is required")
            return
        for key in ("num_groups", "group_size"):
            if getattr(backbone, key, 0) > data.num_points:
                yield Problem(
                    f"backbone.{key}",
                    f"{getattr(backbone, key)} exceeds data.num_points={data.num_points}; lower it",
                )
        return
    for key in ("num_points", "normalize", "up", "stored_points", "suffixes", "columns", "nan", "cache_dir"):
        if getattr(data, key) is not None:
            yield Problem(f"data.{key}", f"belongs to point clouds, but {data.name} holds images; remove it")
    channels = getattr(backbone, "channels", 0)
    for key in ("mean", "std"):
        values = getattr(data, key)
        if values is not None and len(values) != channels:
            yield Problem(f"data.{key}", f"{len(values)} numbers for backbone.channels={channels}; give one a channel")


def _check_classes(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Classes of the data, of the few-shot task and of the head."""
    head, data = sections.get("head"), sections.get("data")
    if data is None or data.name not in DATASETS:
        return
    available = DATASETS[data.name].count_classes(data.variant)
    if "pretrain" in sections:
        for key in ("few_shot", "train_size"):
            if getattr(data, key) is not None:
                yield Problem(f"data.{key}", "belongs to adaptation, but there is a section 'pretrain'; remove one")
    if data.few_shot is not None:
        if data.train_size is not None:
            yield Problem("data.train_size", "a few-shot task has its own number of samples; remove one of the two")
        if available is not None and data.few_shot.ways > available:
            yield Problem("data.few_shot.ways", f"{data.few_shot.ways} exceeds the {available} classes of {data.name}")
    if head is None:
        return
    expected = _classes_of_data(data)
    if None not in (expected, head.num_classes) and head.num_classes != expected:
        what = data.name if data.few_shot is None else "data.few_shot"
        yield Problem("head.num_classes", f"{head.num_classes}, but {what} has {expected} classes")


def _classes_of_data(data: DataConfig) -> int | None:
    """Number of classes of the few-shot task or the data set; None where only the files tell it."""
    return data.few_shot.ways if data.few_shot is not None else DATASETS[data.name].count_classes(data.variant)


def _check_pretraining(sections: Mapping[str, Any]) -> Iterator[Problem]:
    pretrain, backbone = sections.get("pretrain"), sections.get("backbone")
    if pretrain is None:
        return
    probe = pretrain.probe
    if probe.every and probe.name not in DATASETS:
        known = list(DATASETS)
        yield Problem(
            "pretrain.probe.name",
            f"unknown name {probe.name!r}{did_you_mean(probe.name, known)} Known: {', '.join(sorted(known))}",
        )
    elif probe.every and not DATASETS[probe.name].has_labels(probe.root):
        yield Problem("pretrain.probe.name", f"{probe.name} has no labels for a probe; choose another data set")
    if probe.every and probe.name in DATASETS and DATASETS[probe.name].modality != "points":
        yield Problem("pretrain.probe.name", f"{probe.name} holds images; choose a data set of point clouds")
    if backbone is None:
        return
    if backbone.name != "point_mae":
        yield Problem("backbone.name", f"{backbone.name} cannot be pre-trained, only point_mae can")
        return
    if backbone.dim % pretrain.decoder_heads != 0:
        yield Problem(
            "pretrain.decoder_heads",
            f"{pretrain.decoder_heads} heads do not divide backbone.dim={backbone.dim}; choose a divisor",
        )
    if not 1 <= hidden_groups(pretrain.mask_ratio, backbone.num_groups) < backbone.num_groups:
        yield Problem(
            "pretrain.mask_ratio",
            f"{pretrain.mask_ratio} of backbone.num_groups={backbone.num_groups} hides no group; raise it",
        )
