"""How well novelty is recognised: clouds of held-out classes and other data sets against known test clouds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.jobs import publish
from benchmarks.novelty_runs import EMBEDDED, Run, Seen, Source, model_config
from benchmarks.novelty_scores import EARLIER, OURS, PLAIN, Pair, intervals, make_scores, measure, product
from pointadapterx.checkpoints.adapter_file import versions
from pointadapterx.engine.devices import hardware, make_accelerator
from pointadapterx.errors import PointAdapterXError

COMPARED = [OURS, PLAIN, "energy", EARLIER]
FIRST = 10  # the score was chosen on the draws before
MOST = 800  # training clouds of a data set

NOTE = (
    "Adapters learn some of a data set's classes, drawn at random, from its training clouds; then every test cloud "
    "gets a score. *Held-out* compares test clouds of the classes that were learned with those of the other classes, "
    "*other sets* with the test clouds of the other data sets. AUROC is the chance that an unknown cloud scores higher "
    "than a known one: 0.5 is a coin toss, 1 is perfect. Means over the draws; in brackets 95 % intervals over draws "
    "and objects (bootstrap; near-copies of an object are drawn together). Intervals from few draws are rough, and one "
    "draw says nothing about other choices of classes. The kept score was chosen on draws 0 to 9 of ldraw20 and home "
    "with a linear probe; later draws, electronics and DAPT-X took no part. The shipped backbone was pre-trained, "
    "without labels, on clouds of all of ldraw20's classes."
)


def run_of(run: Run) -> tuple[dict[str, Any], dict[str, Pair]]:
    """Figures of one adapter, and the scores behind them by the kind of unknown clouds."""
    scores, novelty = make_scores(run), product(run)
    kinds = {"held-out": [run.unknown], "other sets": list(run.far.values())}
    known = {name: score(run.known) for name, score in scores.items()}
    record: dict[str, Any] = {
        "config": run.config,
        "data": run.data,
        "split": run.split,
        "held_out": run.held_out,
        "accuracy": run.accuracy,
        "clouds": {name: len(getattr(run, name).labels) for name in ("train", "val", "known", "unknown")},
        "bytes": sum(tensor.nbytes for tensor in novelty.tensors().values()),
        "known_passing": float(novelty.is_known(run.known.hidden, run.known.logits).float().mean()),
        "kinds": {},
    }
    pairs = {}
    for kind, sets in kinds.items():
        if not sets:
            continue
        unknown = _joined(sets)
        values = {name: (known[name], score(unknown)) for name, score in scores.items()}
        shown = [novelty.share_below(seen.hidden, seen.logits) for seen in (run.known, unknown)]
        record["kinds"][kind] = {
            "scores": {name: measure(*pair)._asdict() for name, pair in values.items()},
            "shown": measure(shown[0], shown[1])._asdict(),
            "flagged": float((~novelty.is_known(unknown.hidden, unknown.logits)).float().mean()),
            "sets": {name: measure(known[OURS], scores[OURS](seen)).auroc for name, seen in run.far.items()}
            if kind == "other sets"
            else {},
        }
        pairs[kind] = Pair(run.known, unknown, values)
    return record, pairs


def _joined(parts: list[Seen]) -> Seen:
    """Clouds of several data sets, seen by one model; objects of different sets stay different."""
    numbered = [seen._replace(groups=seen.groups + 10**9 * number) for number, seen in enumerate(parts)]
    return Seen(*(torch.cat(column) for column in zip(*numbered, strict=True)))


def summarise(results: list[tuple[dict[str, Any], dict[str, Pair]]]) -> list[dict[str, Any]]:
    """A row for each config, data set and kind of unknown clouds."""
    rows = []
    for config, data in dict.fromkeys((record["config"], record["data"]) for record, _ in results):
        mine = [one for one in results if (one[0]["config"], one[0]["data"]) == (config, data)]
        for kind in mine[0][1]:
            found = [record["kinds"][kind] for record, _ in mine]
            rows.append(
                {
                    "config": config,
                    "data": data,
                    "kind": kind,
                    "draws": len(mine),
                    "accuracy": fmean(record["accuracy"] for record, _ in mine),
                    "scores": {
                        name: {
                            key: fmean(one["scores"][name][key] for one in found)
                            for key in ("auroc", "passing", "flagged")
                        }
                        for name in found[0]["scores"]
                    },
                    "intervals": intervals([pairs[kind] for _, pairs in mine], COMPARED, OURS),
                    "shown": fmean(one["shown"]["auroc"] for one in found),
                    "known_passing": fmean(record["known_passing"] for record, _ in mine),
                    "flagged": fmean(one["flagged"] for one in found),
                }
            )
    return rows


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The measurement as Markdown tables."""
    rows = result["rows"]
    most = max(record["bytes"] for record in result["runs"])
    lines = [
        "# How well novelty is noticed",
        "",
        f"`{command}`",
        "",
        NOTE,
        "",
        f"{100 * result['share']:.0f} % of the classes are held out; at most {result['most']} training clouds per data "
        f"set; draws from number {result['first']}. {result['hardware']}, torch {result['versions']['torch']}.",
        "",
        "## The score that is kept",
        "",
        f"*{OURS}* is what an adapter stores, here in at most {most / 1000:.0f} kB. *Known pass* is the share of known "
        "test clouds that get `known: yes` (the limit is set on validation clouds, for 95 %), *noticed* the share of "
        "unknown ones that get `known: no`; *at 80 %* is the share that would be noticed if the limit let only 80 % of "
        "the known test clouds pass.",
        "",
        "| config | data | against | draws | OA, known | AUROC | known pass | noticed | at 80 % |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ours = row["scores"][OURS]
        lines.append(
            f"| {row['config']} | {row['data']} | {row['kind']} | {row['draws']} | {row['accuracy']:.1f} | "
            f"{ours['auroc']:.3f} {_interval(row['intervals'][OURS]['auroc'])} | {100 * row['known_passing']:.1f} % | "
            f"{100 * row['flagged']:.1f} % | {100 * ours['flagged']:.0f} % |"
        )
    lines += [
        "",
        "## Beside other scores",
        "",
        "AUROC; in brackets unknown clouds that pass where 95 % of the known do.",
    ]
    columns = [f"{row['config']}, {row['data']}, {row['kind']}" for row in rows]
    lines += ["", f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(rows)}"]
    for name in rows[0]["scores"]:
        cells = [f"{row['scores'][name]['auroc']:.3f} ({100 * row['scores'][name]['passing']:.0f} %)" for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"*{EARLIER}* is what adapters stored before. Differences of the kept score to others, with intervals:",
        "",
        f"| config | data | against | to {' | to '.join(COMPARED[1:])} |",
        f"|---|---|---|{'---:|' * (len(COMPARED) - 1)}",
    ]
    for row in rows:
        cells = [
            f"{row['scores'][OURS]['auroc'] - row['scores'][name]['auroc']:+.3f} "
            f"{_interval(row['intervals'][name]['difference'], '+')}"
            for name in COMPARED[1:]
        ]
        lines.append(f"| {row['config']} | {row['data']} | {row['kind']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(ends: list[float], sign: str = "") -> str:
    return f"[{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"


def describe(
    results: list[tuple[dict[str, Any], dict[str, Pair]]], options: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        **options,
        "hardware": hardware(device),
        "versions": versions(),
        "rows": _rounded(summarise(results)),
        "runs": _rounded([record for record, _ in results]),
    }


def _rounded(value: Any) -> Any:
    """With four decimals, more than any of these figures is worth."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks novelty", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[EMBEDDED],
        metavar="NAME[=FOLDER]",
        help=f"{EMBEDDED}, which is embedded, and folders of train.h5 and test.h5 with data, label and an attribute "
        "classes; group where several clouds are of one object",
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        default=["demo_linear=10"],
        metavar="CONFIG[=DRAWS]",
        help="adapters, and how many draws of classes (default: one)",
    )
    parser.add_argument(
        "--first",
        type=int,
        default=FIRST,
        metavar="N",
        help=f"number of the first draw; the score was chosen below {FIRST}",
    )
    parser.add_argument("--share", type=float, default=0.3, help="of the classes that are held out")
    parser.add_argument("--most", type=int, default=MOST, metavar="N", help="training clouds of a data set")
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_intermixed_args(argv)
    roots = {
        name: Path(folder) if folder else None for name, _, folder in (text.partition("=") for text in options.data)
    }
    counts = {name: count or "1" for name, _, count in (text.partition("=") for text in options.configs)}
    if not all(count.isdigit() and int(count) for count in counts.values()):
        parser.error("--configs takes CONFIG=DRAWS, at least one draw")
    if not 0 < options.share < 1:
        parser.error(f"--share {options.share}: between 0 and 1")
    try:
        accelerator = make_accelerator("fp32")
        results = []
        for name, count in counts.items():
            config = model_config(name, options.overrides)
            sources = [Source(data, root, config, accelerator, options.most) for data, root in roots.items()]
            for split in range(options.first, options.first + int(count)):
                for source in sources:
                    others = [other for other in sources if other is not source]
                    record, pairs = run_of(source.run(name, config, split, options.share, others))
                    print(name, source.name, split, f"OA {record['accuracy']:.1f}", flush=True)
                    results.append((record, pairs))
        settings = {"first": options.first, "share": options.share, "most": options.most}
        result = describe(results, settings, accelerator.device)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks novelty", *argv])), options.output)
    return 0
