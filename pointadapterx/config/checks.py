"""Defaults, unknown sections and keys, and combinations that no single section can see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pointadapterx.config.problems import Problem, problems_of
from pointadapterx.config.sections import (
    COMMON,
    MODELS,
    NAMED,
    OPTIONAL,
    ORDER,
    USUAL_TASK,
    default_task,
    own_sections,
)
from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import shown
from pointadapterx.models import BACKBONES
from pointadapterx.models.backbone import Backbone
from pointadapterx.optional import absent
from pointadapterx.peft.base import Method
from pointadapterx.registry import did_you_mean, unknown_name
from pointadapterx.schema import Section
from pointadapterx.sections import EvalConfig, TrainConfig
from pointadapterx.tasks import TASKS, Task
from pointadapterx.tasks.exchange import TaskOptions
from pointadapterx.tasks.heads import HeadConfig
from pointadapterx.tasks.reconstruction import PretrainConfig


@dataclass
class Parts:
    """The sections of a config that are right on their own."""

    task: TaskOptions | None = None
    backbone: Backbone.Options | None = None
    method: Method.Options | None = None
    head: HeadConfig | None = None
    pretrain: PretrainConfig | None = None
    data: DataConfig | None = None
    train: TrainConfig | None = None
    eval: EvalConfig | None = None


def check(raw: Mapping[str, Any]) -> tuple[Parts, list[Problem]]:
    """Fills defaults and finds every problem: unknown keys, wrong types, impossible combinations."""
    parts, problems = Parts(), []
    task, raw = _named_task(raw)
    if "head" in TASKS[task].sections:
        raw = _with_head(raw)
    wanted = [name for name in ORDER if name in ("task", *COMMON, *TASKS[task].sections)]
    for section, values in raw.items():
        if section not in wanted and values is not None:  # null leaves out a section of a base config
            problems.append(_superfluous(section, task))
    for section in wanted:
        if section not in raw and section not in OPTIONAL:
            problems.append(Problem("", f"section '{section}' is missing; add it or inherit it with _base_"))
            continue
        checked, found = _check_section(section, raw.get(section, {}))
        problems += found
        setattr(parts, section, checked)
    problems += _complete(parts)
    problems += _check_alone(parts)
    if parts.backbone is not None and parts.data is not None and parts.data.name in DATASETS:
        problems += _check_modality(parts.backbone, parts.data)
    return parts, problems


def _with_head(raw: dict[str, Any]) -> dict[str, Any]:
    """With one linear layer as the head of a model of another library, unless a head is given."""
    named = raw.get("backbone")
    name = named.get("name") if isinstance(named, Mapping) else None
    kind = BACKBONES[name] if isinstance(name, str) and name in BACKBONES else None
    if "method" not in raw or "head" in raw or kind is None or not kind.foreign:
        return raw
    return {**raw, "head": {"hidden": [], "dropout": 0.0}}


def _named_task(raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The task's name, and the sections with that name in ``task``, where the other sections imply it."""
    implied: str = default_task(raw).Options().name
    given = raw.get("task", {})
    if isinstance(given, Mapping):
        given = {"name": implied, **given}
        name = given["name"]
        return (name if isinstance(name, str) and name in TASKS else implied), {**raw, "task": given}
    return implied, dict(raw)


def _superfluous(section: str, task: str) -> Problem:
    """A section that the task does not have."""
    own = own_sections(TASKS[task])
    if section in USUAL_TASK.sections and own:
        return Problem(section, f"belongs to adaptation, but there is a section '{own[0]}'; remove one")
    if section in ORDER:
        return Problem(section, f"does not belong to the task {task}; remove it, or set it to null")
    known = list(dict.fromkeys([COMMON[0], *USUAL_TASK.sections, *COMMON[1:], *reversed(ORDER)]))
    return Problem(section, f"unknown section{did_you_mean(section, known)} Known: {', '.join(known)}")


def _check_section(section: str, values: Any) -> tuple[Section | None, list[Problem]]:
    if section in NAMED:
        name = values.get("name") if isinstance(values, Mapping) else None
        if name is None:
            way = f", written as {section}: {{name: {values}}}" if isinstance(values, str) else ""
            return None, [Problem(section, f"needs a name{way}, one of {', '.join(sorted(NAMED[section]))}")]
        if not isinstance(name, str) or name not in NAMED[section]:
            return None, [Problem(f"{section}.name", unknown_name(name, NAMED[section]))]
    if not isinstance(values, Mapping):
        return None, [Problem(section, f"must be a mapping of keys, not {shown(values)}")]
    model = NAMED[section][values["name"]].Options if section in NAMED else MODELS[section]
    try:
        return model.model_validate(dict(values)), []
    except ValidationError as error:
        return None, problems_of(section, error, model)


def _complete(parts: Parts) -> list[Problem]:
    """Fills what one section leaves to another."""
    if parts.backbone is not None and parts.train is not None and parts.backbone.init_seed is None:
        parts.backbone = parts.backbone.model_copy(update={"init_seed": parts.train.seed})
    problems = []
    lacking = _lacking(parts)
    if lacking is not None:
        parts.backbone = None
        problems.append(Problem("", lacking))
    if parts.backbone is not None:
        parts.backbone, found, statistics = parts.backbone.completed()
        problems += Problem.of("backbone", found)
        if statistics is not None and parts.data is not None:
            parts.data = parts.data.normalised(*statistics)
    if parts.task is not None and parts.eval is not None:
        parts.eval, problem = _with_score(parts.eval, TASKS[parts.task.name])
        problems += problem
    if parts.task is not None:
        data = parts.data if parts.data is not None and parts.data.name in DATASETS else None
        parts.task, found = parts.task.completed(data)
        problems += [Problem(*problem) for problem in found]
    if parts.head is not None and parts.task is not None:
        classes = TASKS[parts.task.name].predicts_classes
        parts.head, found = parts.head.completed(parts.method, parts.data if classes else None, parts.backbone)
        problems += [Problem(*problem) for problem in found]
    return problems


def _lacking(parts: Parts) -> str | None:
    """Packages that a model cannot be described without, where they are not installed, and all others to build it."""
    if parts.backbone is None or absent(dict.fromkeys(parts.backbone.needs, parts.backbone.extra)) is None:
        return None
    sections = [section for section in (parts.backbone, parts.task) if section is not None and section.needs]
    lacking = absent({package: section.extra for section in sections for package in section.needs})
    task = f" and the task {parts.task.name}" if parts.task in sections and parts.task is not None else ""
    return f"the backbone {parts.backbone.name}{task} {'need' if task else 'needs'} {lacking}"


def _with_score(options: EvalConfig, task: type[Task]) -> tuple[EvalConfig, list[Problem]]:
    """``eval`` with a score to select by, which must be one of the task's; a task without any ignores the key."""
    known = list(task.scores)
    if options.select is None:
        return options.model_copy(update={"select": known[0] if known else "overall_accuracy"}), []
    if not known or options.select in known:
        return options, []
    near = did_you_mean(options.select, known)
    message = f"unknown score {shown(options.select)}{near} Known for {task.Options().name}: {', '.join(known)}"
    return options, [Problem("eval.select", message)]


def _check_alone(parts: Parts) -> Iterator[Problem]:
    """What the owner of each section finds in it, given those that it depends on."""
    if parts.task is not None:
        yield from (Problem(*problem) for problem in parts.task.problems(parts.backbone, parts.method))
    if parts.data is not None:
        yield from Problem.of("data", parts.data.problems())
    if parts.backbone is not None:
        yield from Problem.of("backbone", parts.backbone.problems())
    if parts.backbone is not None and parts.method is not None:
        yield from Problem.of("method", parts.method.problems(parts.backbone))
    if parts.head is not None:
        classes = parts.task is not None and TASKS[parts.task.name].predicts_classes
        found = parts.head.problems(parts.method, parts.data if classes else None, parts.backbone)
        yield from (Problem(*problem) for problem in found)
    if parts.pretrain is not None:
        found = parts.pretrain.problems(parts.backbone, parts.data, parts.train)
        yield from (Problem(*problem) for problem in found)
    if parts.train is not None:
        yield from Problem.of("train", parts.train.problems())
    if parts.task is not None and parts.train is not None and parts.eval is not None:
        yield from Problem.of("train", _problems_of_training(TASKS[parts.task.name], parts.train, parts.eval))


def _problems_of_training(task: type[Task], train: TrainConfig, judged: EvalConfig) -> Iterator[tuple[str, str]]:
    """(key, message) for each key of ``train`` that the task or ``eval`` leaves without effect."""
    name = task.Options().name
    if train.class_weights is not None and not task.weighs_classes:
        yield "class_weights", f"the task {name} has no classes to weigh; remove it"
    if train.sampler == "balanced" and not task.balances_classes:
        yield "sampler", f"the task {name} has no classes to balance; remove it, or use shuffle"
    if train.cached_views is not None and task.adapts and not task.caches:
        yield "cached_views", f"the task {name} cannot train from kept features; remove it"
    if train.early_stopping is None:
        return
    if not task.scores:
        yield "early_stopping", f"the task {name} has no score to wait for; remove it"
    elif judged.protocol == "last":
        yield "early_stopping", "eval.protocol=last scores no epoch; use eval.protocol=validation, or remove it"
    elif judged.every * (train.early_stopping + 1) > train.epochs:
        yield (
            "early_stopping",
            f"{train.early_stopping} evaluations, one every {judged.every} epochs, never pass within "
            f"train.epochs={train.epochs}; lower it or eval.every, or remove it",
        )


def _check_modality(backbone: Backbone.Options, data: DataConfig) -> Iterator[Problem]:
    """A backbone that takes the data, and keys that belong to what it takes."""
    wanted, given = BACKBONES[backbone.name].modality, DATASETS[data.name].modality
    if wanted != given:
        fitting = ", ".join(sorted(name for name, kind in DATASETS.items() if kind.modality == wanted))
        yield Problem("data.name", f"{data.name} holds {given}, but {backbone.name} takes {wanted}: {fitting}")
        return
    if given == "points":
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
    channels = getattr(backbone, "channels", 0)
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) != channels:
            yield Problem(f"data.{key}", f"{len(values)} numbers for backbone.channels={channels}; give one a channel")
