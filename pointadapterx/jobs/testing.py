"""Testing a stored adapter, and voting with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.build import build_restored, build_test_split, model_config
from pointadapterx.checkpoints.adapter_file import AdapterInfo, read_adapter, versions
from pointadapterx.checkpoints.shipped import without_locations
from pointadapterx.config import Config
from pointadapterx.datasets import Samples
from pointadapterx.datasets.inputs import regime
from pointadapterx.engine.claim import claimed
from pointadapterx.engine.console import console
from pointadapterx.engine.devices import agreed_folder, log_device, make_accelerator
from pointadapterx.engine.evaluator import evaluate, vote_over_seeds
from pointadapterx.engine.precision import precision_of
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.files import write_json, write_text
from pointadapterx.hub import HUB, Address
from pointadapterx.jobs.tables import parameter_table
from pointadapterx.run_folder import (
    PREDICTIONS_FILE,
    SAMPLE_RECORDS_FILE,
    SAMPLE_SCORES_FILE,
    TEST_FILE,
    VOTE_PREDICTIONS_FILE,
)
from pointadapterx.tasks import Task, build_task
from pointadapterx.tasks.exchange import Predictions

log = logging.getLogger(__name__)

ANOTHER_OUTPUT = "choose another --output"
PUBLISHED_VOTES = 299  # the number of test-set votes whose maximum the published tables print


def test(
    adapter: str | Path, overrides: list[str], copies: int | None, published: bool, output: Path | None
) -> dict[str, Any]:
    """Tests an adapter, and votes if asked.

    Args:
        adapter: what :func:`~pointadapterx.checkpoints.adapter_file.read_adapter` takes. For one of the hub,
            ``data.root`` and ``data.cache_dir`` are null unless an override sets them.
        overrides: of the adapter's stored config, as long as they leave the model what it is: ``data.…``,
            ``eval.…``, ``backbone.weights``, ``train.precision``, ``train.device``.
        copies: K copies per vote, or None for no vote.
        published: votes as the published figures do: maximum of 299 votes.
        output: folder for ``test.json`` and predictions; default: ``test-<time>`` beside the adapter.

    Returns:
        The metrics that were written.

    Raises:
        ConfigError: for an override that would make it another model.
        CheckpointError: if the adapter does not fit backbone or data.
        InUseError: if another process is writing into the folder.
    """
    info = read_adapter(adapter)
    require_same_model(info, overrides)
    on_hub = str(adapter).startswith(HUB)  # its file lies in the hub's cache
    if on_hub:  # where the data of whoever trained it lay says nothing here
        info = info._replace(config=without_locations(info.config, ("data.root", "data.cache_dir")))
    config = model_config(info, overrides)
    wants_vote = copies is not None or published
    if wants_vote and build_task(config, info.facts).tests_wholes:
        raise ConfigError(f"a vote is of samples as in training, not of {build_task(config).evaluation}")
    accelerator = make_accelerator(config.train.precision, config.train.device)
    config = config.replaced(train={"precision": precision_of(accelerator)})
    with accelerator.main_process_first():
        dataset = build_test_split(config)
    if info.task.predicts_classes and info.classes != dataset.classes:
        raise CheckpointError(
            f"{info.path}: was trained on other classes ({', '.join(info.classes[:3])}, …) than the data has "
            f"({', '.join(dataset.classes[:3])}, …)"
        )
    task = build_task(config, info.facts)
    task.check(dataset)
    model = build_restored(info, config)
    model.to(accelerator.device)
    log_device(accelerator)
    if accelerator.is_main_process:
        console.print(parameter_table(config, count_parameters(model)))
    beside = Path("runs") / Address.parse(str(adapter)).name if on_hub else info.path.parent
    folder = agreed_folder(output or beside / f"test-{time.strftime('%Y%m%d-%H%M%S')}")
    with claimed(folder, accelerator, ANOTHER_OUTPUT):
        report = evaluate_and_write(model, dataset, task, config, accelerator, folder, info.metrics.get("protocol"))
        report |= {"adapter": str(info.path), "config": config.dump(), "overrides": overrides}
        if wants_vote:
            seeds = list(range(PUBLISHED_VOTES)) if published else config.eval.vote.seeds
            votes, first = vote_over_seeds(
                model,
                dataset,
                task,
                accelerator,
                copies=copies or config.eval.vote.copies,
                seeds=seeds,
                published=published,
            )
            report["vote"] = votes | {"first_vote": task.metrics(first)}
            if accelerator.is_main_process:
                protocol = votes.get("label", info.metrics.get("protocol"))
                path = folder / VOTE_PREDICTIONS_FILE
                task.write_answers(path, first, dataset, protocol)
                console.print(_vote_line(votes, task))
        if accelerator.is_main_process:
            write_json(folder / TEST_FILE, report)
            log.info("written: %s", folder / TEST_FILE)
    return report


def require_same_model(info: AdapterInfo, overrides: Sequence[str]) -> None:
    """Refuses overrides that would make an adapter's config one of another model.

    Raises:
        ConfigError: naming the first.
    """
    of_task = [f"task.{key}" for key in info.task.test_keys]
    keys = ["backbone.weights", "train.precision", "train.device", *of_task]
    fitting = ("data.", "eval.", *(f"{key}=" for key in keys))
    for text in overrides:
        if not text.startswith(fitting):
            also = "".join(f", {key}" for key in of_task)
            raise ConfigError(
                f"{text}: a test keeps the adapter's model (data.*, eval.*, backbone.weights{also}, train.precision "
                "and train.device may change); train another adapter instead"
            )


def evaluate_and_write(
    model: AdaptedModel,
    dataset: Samples,
    task: Task,
    config: Config,
    accelerator: Accelerator,
    folder: Path,
    protocol: str | None,
) -> dict[str, Any]:
    """Tests an adapted model on the test split, and writes its answers.

    Args:
        model: of an adapter.
        dataset: the test split.
        task: with the adapter's facts.
        config: of the run or the test.
        accelerator: device, precision, processes.
        folder: for the answers.
        protocol: how the adapter was selected.

    Returns:
        The report of the test, JSON-able.
    """
    assert config.method is not None
    predictions = evaluate(model, dataset, task, accelerator)
    metrics, data, judged = task.metrics(predictions), config.data, task.judged(dataset)
    report = {
        "protocol": protocol,
        "regime": regime(data),
        "data": {
            "name": data.name,
            "variant": data.variant,
            "split": "test",
            "few_shot": None if data.few_shot is None else data.few_shot.model_dump(),
            "train_size": data.train_size,
            "checksum": dataset.checksum,
        },
        "method": config.method.name,
        "parameters": count_parameters(model)._asdict(),
        "versions": versions(),
        "ops": ops.implementation(accelerator.device),
        "test": metrics,
        **({"evaluation": task.evaluation} if task.evaluation else {}),
        **task.judge(predictions),
    }
    if accelerator.is_main_process:
        what = " ".join(filter(None, (data.name, data.variant)))
        title = f"{config.method.name} on {what}, test set\nprotocol {protocol}\nregime {report['regime']}"
        title += f"\nevaluation {task.evaluation}" if task.evaluation else ""
        console.print(task.metrics_table(metrics, title))
        task.write_answers(folder / PREDICTIONS_FILE, predictions, judged, protocol)
        _write_samples(folder, predictions, judged, task)
    return report


def _write_samples(folder: Path, found: Predictions, dataset: Samples, task: Task) -> None:
    """One line a sample for intervals: its records or else its score; classification's are in its answers."""
    records = task.sample_records(found)
    scores = None if task.predicts_classes or records is not None else task.sample_scores(found)
    if records is not None:
        names = [f"record_{number}" for number in range(1, records.shape[1] + 1)]
        _write_rows(folder / SAMPLE_RECORDS_FILE, names, records.double().tolist(), dataset)
    elif scores is not None:
        _write_rows(folder / SAMPLE_SCORES_FILE, ["score"], scores[:, None].tolist(), dataset)


def _write_rows(path: Path, names: Sequence[str], values: Sequence[Sequence[float]], dataset: Samples) -> None:
    """A CSV of index, values and group."""
    groups = [""] * len(values) if dataset.groups is None else dataset.groups.tolist()
    rows = ((index, *row, group) for index, (row, group) in enumerate(zip(values, groups, strict=True)))
    write_text(path, "".join(f"{','.join(map(str, row))}\n" for row in [("index", *names, "group"), *rows]))


def _vote_line(votes: Mapping[str, Any], task: Task) -> str:
    """The first of the task's scores."""
    key, score = next(iter(task.scores.items()))
    entry = votes[key]
    spread = f" ± {entry['std']:.2f} over {len(votes['seeds'])} vote seeds" if entry["std"] is not None else ""
    line = f"vote of {votes['copies']} copies: {score.short} {entry['mean']:.2f}{spread}"
    if "published_maximum" in entry:
        line += f"; {votes['label']}: {entry['published_maximum']:.2f}"
    return line
