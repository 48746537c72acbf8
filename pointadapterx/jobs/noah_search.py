"""The search for a supernet's best architecture on the validation part (NOAH, arXiv 2206.04673, §3.3)."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model, build_splits, seeded
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter
from pointadapterx.config import LOCATIONS, Config, read_config
from pointadapterx.datasets import Samples, build_inputs, stratified_draw
from pointadapterx.engine.claim import claimed
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.evaluator import predict
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.files import write_json, write_text
from pointadapterx.hashing import hash_file
from pointadapterx.models.features import Features
from pointadapterx.peft.noah import COMPONENTS, Architecture, Noah, SearchConfig, SearchSpace
from pointadapterx.run_folder import ADAPTER_FILE, ARCHITECTURE_FILE, CONFIG_FILE, METRICS_FILE, SEARCH_FILE
from pointadapterx.tasks import build_task

log = logging.getLogger(__name__)

TRIES = 200  # draws for each architecture wanted, as many exceed the budget
SETTLING = 256  # training samples that give the head's BatchNorm its statistics


class Candidate(NamedTuple):
    """An architecture that was evaluated; ``score`` is the selection metric on the validation part in percent."""

    architecture: Architecture
    parameters: int
    score: float


def search(folder: Path, overrides: list[str]) -> Candidate:
    """Searches the supernet of a finished run, and writes ``architecture.yaml``, a config to train, into its folder.

    Every score is stored in ``search.json``, so an interrupted search continues where it stopped.

    Args:
        folder: the run's.
        overrides: ``method.search.…``, or where files lie.

    Returns:
        The best architecture; of equal ones that with the fewest parameters.

    Raises:
        ConfigError: for another method, a run of one architecture, one without a validation part, or an override that
            is not of the search.
        CheckpointError: if the folder holds no trained supernet.
        InUseError: if the run or another search is still running.
    """
    config = _config(folder, overrides)
    accelerator = make_accelerator(config.train.precision, config.train.device)
    with claimed(folder, accelerator, "wait for it, or stop it first"):
        return _search(folder, config, accelerator)


def _search(folder: Path, config: Config, accelerator: Accelerator) -> Candidate:
    info = read_adapter(folder / ADAPTER_FILE)
    with accelerator.main_process_first():
        train, validation, _ = build_splits(config)
    assert validation is not None
    model = build_model(config)
    load_adapter(model, info)
    model.to(accelerator.device).eval()
    method, task = model.method, build_task(config, info.facts)
    assert isinstance(method, Noah)
    identity = hash_file(info.path) + validation.checksum
    known = _known_scores(folder / SEARCH_FILE, identity)
    found: list[Candidate] = []

    def judge(architecture: Architecture) -> float:
        key = json.dumps(architecture)
        if key not in known:
            method.use(architecture)
            settle_head(model, train, config, accelerator)
            metrics = task.metrics(predict(model, validation, task, accelerator))
            known[key] = task.scores[task.select].goodness(metrics[task.select])
            if accelerator.is_main_process:
                write_json(folder / SEARCH_FILE, {"of": identity, "scores": known})
        return known[key]

    options = method.options.search
    with ops.unchecked():
        for number, found in enumerate(evolve(method.space, options, judge, config.train.seed), 1):
            log.info(
                "generation %d/%d: %d architectures, best %.2f with %s parameters",
                *(number, options.generations, len(found), found[0].score, f"{found[0].parameters:,}"),
            )
    if accelerator.is_main_process:
        write_text(folder / ARCHITECTURE_FILE, _as_config(folder, found[0], len(validation)))
        log.info("written: %s; train it with --config %s", *[folder / ARCHITECTURE_FILE] * 2)
    return found[0]


def settle_head(model: AdaptedModel, train: Samples, config: Config, accelerator: Accelerator) -> None:
    """Gives the head's BatchNorm, if any, the statistics of the model as it is, from a fixed part of the training set.

    Training averages them over all architectures that were drawn, which suits none of them.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.head.modules()):
        return
    size = max(min(SETTLING, len(train)), len(train.labels.unique()))
    count = max(1, size // max(2, config.eval.batch_size))  # of even batches: one sample has no statistics
    batches = stratified_draw(train.labels, size, 0).tensor_split(count)
    inputs = build_inputs(config)
    fetch = inputs.source(train)

    def features() -> Iterator[list[Features]]:
        for batch in batches:
            prepared = inputs.for_test(fetch(batch).to(accelerator.device))
            yield [model.read(prepared)]  # of a tuple only the first field would be passed on

    with seeded(0), accelerator.autocast():  # its dropout
        update_bn(features(), model.head)


def evolve(
    space: SearchSpace, options: SearchConfig, judge: Callable[[Architecture], float], seed: int
) -> Iterator[list[Candidate]]:
    """An evolutionary search: random architectures, then children of the best, half by crossing, half by mutation.

    Args:
        space: what to search.
        options: budget, sizes and probabilities.
        judge: score of an architecture, higher is better; asked once for each.
        seed: of the draws.

    Yields:
        After each generation all that were evaluated, the best first.
    """
    source = random.Random(seed)
    found: dict[str, Candidate] = {}

    def extend(make: Callable[[], Architecture], count: int) -> None:
        wanted = len(found) + count
        for _ in range(TRIES * count):
            if len(found) == wanted:
                return
            architecture = make()
            parameters, key = space.cost(architecture), json.dumps(architecture)
            if parameters <= options.budget and key not in found:
                found[key] = Candidate(architecture, parameters, judge(architecture))

    def ranked() -> list[Candidate]:
        return sorted(found.values(), key=lambda one: (-one.score, one.parameters))

    extend(lambda: space.smallest, 1)  # so that a tight budget leaves something to begin with
    extend(lambda: space.draw(source), options.population - 1)
    # Under a tight budget hardly any draw is small enough; what is near to those that are may be.
    near = options.population - len(found)
    extend(lambda: space.mutate(source.choice(ranked()).architecture, source, options), near)
    yield ranked()
    for _ in range(options.generations - 1):
        parents = [one.architecture for one in ranked()[: options.parents]]
        half = options.population // 2
        extend(lambda: space.cross(source.choice(parents), source.choice(parents), source), half)  # noqa: B023
        extend(lambda: space.mutate(source.choice(parents), source, options), options.population - half)  # noqa: B023
        yield ranked()


def _config(folder: Path, overrides: list[str]) -> Config:
    """The run's config, of which only what belongs to the search may change."""
    for text in overrides:
        if not text.startswith("method.search.") and text.partition("=")[0] not in LOCATIONS:
            raise ConfigError(
                f"{text}: a search keeps the run's config (method.search.* and {', '.join(LOCATIONS)} may change)"
            )
    for name in (CONFIG_FILE, ADAPTER_FILE, METRICS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: holds no {name}; give the folder of a finished run of a supernet")
    config = read_config(folder / CONFIG_FILE, overrides)
    method = config.method
    if not isinstance(method, Noah.Options):
        other = None if method is None else method.name
        raise ConfigError(f"{folder}: method.name={other} has no supernet to search; noah has")
    if method.architecture is not None:
        raise ConfigError(f"{folder}: trained one architecture, not the supernet (method.architecture is set)")
    if config.eval.protocol != "validation":
        raise ConfigError(
            f"{folder}: eval.protocol={config.eval.protocol} has no validation part to search on; train the "
            "supernet with eval.protocol=validation"
        )
    return config


def _known_scores(path: Path, identity: str) -> dict[str, float]:
    """Scores of an earlier search of the same supernet on the same data."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = {str(key): float(score) for key, score in content["scores"].items()}
        if not all(map(math.isfinite, scores.values())):
            raise ValueError("a score is not finite")
        return scores if content["of"] == identity else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged ({error!r}); delete it to search from the start") from None


def _as_config(folder: Path, best: Candidate, count: int) -> str:
    lines = [f"    {kind}: {best.architecture[kind]}" for kind in COMPONENTS]
    return "\n".join(
        [
            f"# python tools/main.py --config {folder / ARCHITECTURE_FILE}",
            f"# NOAH's best architecture: {best.parameters:,} parameters without the head; in the supernet "
            f"{best.score:.2f} % on {count} validation samples.",
            f"_base_: {CONFIG_FILE}",
            "",
            "method:",
            "  architecture:",
            *lines,
            "",
        ]
    )
