"""One HTML file of a run, or of several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from pointadapterx.adapted_model import count_parameters
from pointadapterx.config import dump_config
from pointadapterx.datasets.inputs import regime
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.files import write_text
from pointadapterx.hub import HUB
from pointadapterx.optional import need
from pointadapterx.report import page
from pointadapterx.report.gallery import modes_of, modes_of_labels, objects_of, pack_clouds, pixel_gallery
from pointadapterx.run_folder import CONFIG_FILE, HISTORY_FILE, METRICS_FILE, not_of_a_run, read_history, read_metrics
from pointadapterx.study.resampling import Records, record_difference, record_intervals
from pointadapterx.study.statistics import (
    Interval,
    count_units,
    difference_interval,
    mean_class_interval,
    mean_difference,
    score_interval,
)
from pointadapterx.tasks.presentation import too_few
from pointadapterx.visualize import plots
from pointadapterx.visualize.drawing import Sheet, paint
from pointadapterx.visualize.labels import has_labels, labelled, labels_pixels, worst
from pointadapterx.visualize.loaded_run import Subject, name_apart
from pointadapterx.visualize.objects import finds_objects
from pointadapterx.visualize.pictures import PICTURES, plain_view, surest_mistakes, unsuited

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8  # mistakes, and as many samples of different classes


def write_report(runs: Sequence[str | Path], overrides: Sequence[str] = (), output: Path | None = None) -> Path:
    """Writes one HTML file, which opens without a network and without a server.

    Args:
        runs: run folders or adapter files; the first in full, the others beside it.
        overrides: of their configs, such as ``data.root=…``.
        output: the file; default: ``report.html`` beside the first adapter.

    Returns:
        The file.

    Raises:
        PointAdapterXError: without matplotlib, or if adapters or data cannot be read, or know different classes.
    """
    need("matplotlib.figure", "a report needs matplotlib", "viz", ConfigError)
    if output is None and str(runs[0]).startswith(HUB):
        raise ConfigError(f"{runs[0]}: lies on the hub; add --output FILE for the report")
    subjects = [Subject(run, overrides) for run in runs]
    name_apart(subjects)
    plots.require_same_classes(subjects)
    for subject in subjects[1:]:
        if subject.test.checksum != subjects[0].test.checksum:
            raise ConfigError(f"{subject.path}: is tested on other samples than {subjects[0].path}; report them apart")
    records = [_record(subject) for subject in subjects]
    first = subjects[0]
    clouds: list[dict[str, Any]] = []
    sections = [
        ("Result", _result(subjects, records)),
        ("Data", _data(first)),
        *(_of_classes(subjects, clouds) if first.task.predicts_classes else _of_task(subjects, clouds)),
        *_looking(subjects),
        ("Course of training", _course(subjects, records)),
        ("How to repeat it", _recipe(subjects)),
    ]
    title = f"{' and '.join(subject.name for subject in subjects)} on {first.config.data.name}"
    output = output or first.path.parent / "report.html"
    write_text(output, page.page(title, [(heading, body) for heading, body in sections if body], clouds))
    return output


def _of_classes(subjects: Sequence[Subject], clouds: list[dict[str, Any]]) -> list[tuple[str, Markup]]:
    """What there is to show where every sample gets a class; clouds are added to those that the viewer turns."""
    first = subjects[0]
    return [
        ("Classes", _classes(subjects)),
        ("Confusion", page.image(plots.confusion(subjects), "confusion matrix")),
        ("Features", _features(subjects)),
        ("Surest mistakes", _gallery(first, _surest(first), clouds)),
        ("Samples", _gallery(first, _samples(first), clouds)),
    ]


def _of_task(subjects: Sequence[Subject], clouds: list[dict[str, Any]]) -> list[tuple[str, Markup]]:
    """The tables of any other task, and galleries where it labels points."""
    first = subjects[0]
    tables = [(subject, table) for subject in subjects for table in subject.task.tables(subject.metrics)]
    sections = [
        (table.title if len(subjects) == 1 else f"{table.title}, {subject.name}", page.table(table.header, table.rows))
        for subject, table in tables
    ]
    if finds_objects(first):
        sections.append(("Pictures: objects, and what was found", objects_of(first, first.spread(SHOWN))))
    if has_labels(first):
        last = [(index, f"{first.title(index)}: {words}") for index, words in worst(first, SHOWN)]
        sections += [("Worst samples", _gallery(first, last, clouds))] * bool(last)
        some = [(index, first.title(index)) for index in first.spread(SHOWN)]
        sections.append(("Samples", _gallery(first, some, clouds)))
    elif labels_pixels(first):
        for title, items in (
            ("Worst samples", worst(first, SHOWN)),
            ("Samples", [(i, "") for i in first.spread(SHOWN)]),
        ):
            named = [(index, f"{first.title(index)}{words and f': {words}'}") for index, words in items]
            sections.append((title, pixel_gallery(first, named)))
    return sections


def _record(subject: Subject) -> dict[str, Any]:
    """The metrics that a run recorded, if the adapter is in a run's folder."""
    folder, found = subject.path.parent, dict[str, Any]()
    if not (folder / CONFIG_FILE).is_file():
        return found
    if (folder / METRICS_FILE).is_file():
        found["metrics"] = read_metrics(folder)
        if not _is_metrics(found["metrics"], subject.task.scores):
            raise not_of_a_run(folder / METRICS_FILE)
    if (folder / HISTORY_FILE).is_file():
        found["history"] = read_history(folder)
    return found


def _is_metrics(content: Mapping[str, Any], scores: Iterable[str]) -> bool:
    """Whether metrics have what is read of them."""
    if not isinstance(content.get("test"), dict):
        return False
    numbers = [content.get("seconds_per_epoch"), content.get("epochs"), *map(content["test"].get, scores)]
    memory = content.get("peak_memory_mib", "")
    known = {"best_epoch", "hardware", "versions"} <= content.keys() and (memory is None or _is_number(memory))
    return known and all(map(_is_number, numbers))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _right(subject: Subject) -> np.ndarray:
    logits, labels = subject.predictions.logits, subject.predictions.labels
    return (logits.argmax(dim=-1) == labels).numpy()


def _outcomes(subject: Subject) -> np.ndarray | Records | None:
    """Which test samples are right, (n,) bool, or their scores, float64, or records; None where there is no such."""
    if subject.task.predicts_classes:
        return _right(subject)
    records = subject.task.sample_records(subject.predictions)
    if records is not None:
        return Records(records.double().numpy(), subject.task.scores_of)
    scores = subject.task.sample_scores(subject.predictions)
    return None if scores is None else scores.double().numpy()


def _difference(own: Any, base: Any, groups: np.ndarray | None) -> tuple[float, Interval]:
    """First score of a run minus another's of the same task, and its interval."""
    if isinstance(own, Records):
        return record_difference([own], [base], groups=groups)
    return mean_difference([own], [base]), difference_interval([own], [base], groups=groups)


def _result(subjects: Sequence[Subject], records: Sequence[Mapping[str, Any]]) -> Markup:
    """The table of results, with one column per run."""
    groups = subjects[0].judged.groups
    of_objects = None if groups is None else groups.numpy()
    columns = [_measures(subject, record, of_objects) for subject, record in zip(subjects, records, strict=True)]
    task, base = subjects[0].task, _outcomes(subjects[0])
    missing = _missing(subjects[0], of_objects)
    if len(subjects) > 1 and base is not None:
        short = next(iter(task.scores.values())).short
        for subject, column in zip(subjects, columns, strict=True):
            own = _outcomes(subject)
            difference, (low, high) = _difference(own, base, of_objects)
            mark, sure = ("", "") if missing else (" [95 %]", f" [{low:+.2f}, {high:+.2f}]")
            column[f"{short}, difference to {subjects[0].name}{mark}"] = (
                "" if subject is subjects[0] else f"{difference:+.2f}{sure}"
            )
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, *(column.get(name, "–") for column in columns)) for name in names]
    table = page.table(["", *(subject.name for subject in subjects)], rows)
    count = len(subjects[0].judged)
    how = missing and f"There are no intervals: {missing}"
    how = how or "Intervals are bootstrap intervals over the test samples"
    if not task.predicts_classes:
        note = f"Test set of {count} samples, evaluated for this report, for one seed."
        return table + page.note(note if base is None else f"{note} {how}.")
    largest = int(subjects[0].test.labels.bincount().max())
    remark = (
        f"Test set of {count} samples, evaluated for this report. {how}, for one seed; another "
        f"seed gives another accuracy. Always answering the largest class gives {100 * largest / count:.2f} %."
    )
    return table + page.note(remark)


def _measures(subject: Subject, record: Mapping[str, Any], groups: np.ndarray | None) -> dict[str, str]:
    """Names to numbers of one run."""
    run, parameters = record.get("metrics", {}), count_parameters(subject.model)
    found = {
        **(_accuracies(subject, groups) if subject.task.predicts_classes else _scores(subject, groups)),
        "selection": str(subject.info.metrics.get("protocol", "–")),
        **({"evaluation": subject.task.evaluation} if subject.task.evaluation else {}),
        "augmentation regime": regime(subject.config.data),
        "seed": str(subject.config.train.seed),
        "trained parameters": f"{parameters.trainable:,} ({parameters.percent:.2f} % of full fine-tuning), "
        f"{parameters.components['head'].trainable:,} of them the head's",
        "versions": ", ".join(f"{name} {version}" for name, version in subject.info.versions.items()),
        "adapter file": f"{subject.path.stat().st_size / 1e6:.2f} MB",
    }
    judged = subject.task.judge(subject.predictions).get("calibration")
    if judged is not None:
        found["expected calibration error, as trained"] = f"{judged['calibration_error_before']:.2f} %"
        found["the same with the stored temperature"] = (
            f"{judged['calibration_error']:.2f} % (T = {judged['temperature']:.2f}, {judged['fitted_on']} validation "
            f"samples){': ' + judged['reason'] if judged['reason'] else ''}"
        )
    if run:
        found |= {
            **_recorded(subject, run),
            "epochs, kept": f"{run['epochs']}, {run['best_epoch']}",
            "seconds an epoch": f"{run['seconds_per_epoch']:.2f}",
            "peak memory": "–" if run["peak_memory_mib"] is None else f"{run['peak_memory_mib']:,.0f} MiB",
            "hardware": str(run["hardware"]),
        }
    return found


def _accuracies(subject: Subject, groups: np.ndarray | None) -> dict[str, str]:
    """OA and mAcc with their intervals."""
    right, metrics = _right(subject), subject.metrics
    found = {
        "overall accuracy (OA)": metrics["overall_accuracy"],
        "mean-class accuracy (mAcc)": metrics["mean_class_accuracy"],
    }
    if _missing(subject, groups):
        return {name: f"{value:.2f}" for name, value in found.items()}
    sure = score_interval([right], groups=groups), mean_class_interval(right, subject.test.labels.numpy())
    return {
        f"{name} [95 %]": f"{value:.2f} [{low:.2f}, {high:.2f}]"
        for (name, value), (low, high) in zip(found.items(), sure, strict=True)
    }


def _scores(subject: Subject, groups: np.ndarray | None) -> dict[str, str]:
    """The scores of any task, with intervals where samples have records; the first where they have scores."""
    scores, outcomes = subject.task.scores, _outcomes(subject)
    intervals: Mapping[str, Interval] = {}
    if _missing(subject, groups):
        outcomes = None
    if isinstance(outcomes, Records):
        intervals = record_intervals([outcomes], groups=groups)
    elif outcomes is not None:
        intervals = {next(iter(scores)): score_interval([outcomes], groups=groups)}
    found = {}
    for key, score in scores.items():
        value = f"{subject.metrics[key]:.4g} {score.unit}".rstrip()
        if key in intervals:
            low, high = intervals[key]
            found[f"{score.long} [95 %]"] = f"{value} [{low:.4g}, {high:.4g}]"
        else:
            found[score.long] = value
    return found


def _missing(subject: Subject, groups: np.ndarray | None) -> str:
    """Why scores have no intervals, where test samples are too few."""
    return too_few(count_units(len(subject.judged), groups))


def _recorded(subject: Subject, run: Mapping[str, Any]) -> dict[str, str]:
    """The first score as the run wrote it."""
    key, score = next(iter(subject.task.scores.items()))
    return {f"{score.short} as the run recorded it": f"{run['test'][key]:.2f}"}


def _features(subjects: Sequence[Subject]) -> Markup:
    try:
        return page.image(plots.embedding(subjects, "t-SNE"), "t-SNE of the features")
    except ConfigError as error:
        return page.note(str(error))


def _data(subject: Subject) -> Markup:
    data, test = subject.config.data, subject.test
    stored = data.model_dump()
    rows = [
        ("name", data.name),
        *((key, stored[key]) for key in ("variant", "few_shot", "train_size") if stored[key] is not None),
        *([("classes", len(subject.classes))] if subject.classes else []),
        ("training samples", _count_training(subject)),
        ("test samples", len(test)),
        ("checksum of the test part", test.checksum),
    ]
    if subject.is_points:
        rows.append(("points of a cloud", data.num_points))
    return page.table(["", ""], rows)


def _count_training(subject: Subject) -> str:
    try:
        return str(len(subject.train))
    except PointAdapterXError:  # whoever has the test split alone gets a report all the same
        return "not here"


def _classes(subjects: Sequence[Subject]) -> Markup:
    parts = []
    for subject in subjects:
        classes = subject.metrics["per_class"]
        rows = [(name, entry["count"], entry["accuracy"]) for name, entry in classes.items()]
        parts.append(page.shares([subject.name, "samples", "accuracy %"], rows))
    return Markup("\n").join(parts)


def _samples(subject: Subject) -> list[tuple[int, str]]:
    """Numbers and captions of samples of different classes."""
    best = subject.probabilities.max(dim=-1)
    return [
        (i, f"{subject.title(i)}: {subject.classes[int(best.indices[i])]} ({100 * float(best.values[i]):.0f} %)")
        for i in subject.spread(SHOWN)
    ]


def _surest(subject: Subject) -> list[tuple[int, str]]:
    """Numbers and captions of the surest mistakes."""
    return [
        (index, f"{subject.title(index)}, taken for {answer} ({100 * sure:.0f} %)")
        for index, answer, sure in surest_mistakes(subject, SHOWN)
    ]


def _gallery(subject: Subject, items: Sequence[tuple[int, str]], clouds: list[dict[str, Any]]) -> Markup:
    """Test samples by number, with captions; clouds are added to those that the viewer turns."""
    if not items:
        return page.note("None on this test set.")
    indices, captions = zip(*items, strict=True)
    inputs = subject.choose(indices).inputs
    modes = modes_of(subject, inputs) if subject.is_points else {}
    if has_labels(subject):
        modes = modes_of_labels(labelled(subject, indices)) | modes
    views = [plain_view(subject, "", value) for value in inputs]
    if subject.is_points:
        shown = next(iter(modes.values())).colours
        views = [view._replace(colours=colours) for view, colours in zip(views, shown, strict=True)]
    stills = [page.data_url(paint(Sheet("", [[view]])), 60) for view in views]
    numbers: list[int | None] = [None] * len(items)
    legends: Mapping[str, Markup] = {}
    if subject.is_points:
        packed, legends = pack_clouds(subject, inputs, modes)
        numbers = list(range(len(clouds), len(clouds) + len(packed)))
        clouds += packed
    hint = page.note("Drag a cloud to turn it.") if subject.is_points else Markup()
    return hint + page.gallery(zip(numbers, stills, captions, strict=True), legends)


def _looking(subjects: Sequence[Subject]) -> list[tuple[str, Markup]]:
    """Routing of every run that routes; attention of the first."""
    parts = []
    for subject in subjects:
        if unsuited("routing", subject) is None:
            strip = _drawn("routing", subject, 1)
            body = page.image(plots.experts(subject), "load of the experts") + page.image(strip, "routing of a sample")
            parts.append((f"Routing of {subject.name}" if len(subjects) > 1 else "Routing", body))
    first = subjects[0]
    if unsuited("attention", first) is not None:
        return parts
    return [*parts, ("Attention", page.image(_drawn("attention", first, 3), "attention of the class token"))]


def _drawn(name: str, subject: Subject, samples: int) -> Figure:
    sheet = PICTURES[name].make([subject], subject.choose(subject.spread(samples)))
    return paint(sheet) if isinstance(sheet, Sheet) else sheet


def _course(subjects: Sequence[Subject], records: Sequence[Mapping[str, Any]]) -> Markup:
    named = [(s.name, r["history"]) for s, r in zip(subjects, records, strict=True) if r.get("history")]
    return page.image(plots.curves(named, subjects[0].task.scores), "loss and scores by epoch") if named else Markup()


def _recipe(subjects: Sequence[Subject]) -> Markup:
    parts = []
    for subject in subjects:
        parts.append(page.note(f"{subject.name}: the whole config, saved as config.yaml, and"))
        parts.append(page.code("pointadapterx train --config config.yaml"))
        parts.append(page.file("config.yaml", dump_config(subject.info.config)))
    return Markup().join(parts)
