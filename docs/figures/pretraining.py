"""Curves of a pre-training in one or several stages: python docs/figures/pretraining.py RUN... FOLDER

Writes FOLDER/history.csv, of every epoch of the runs one after the other, and FOLDER/curves.png.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

KEYS = ("lr", "train_loss", "val_loss", "probe_accuracy", "seconds")


def rows_of(runs: list[Path]) -> list[dict[str, Any]]:
    """A row for each epoch, numbered over all runs."""
    rows = list[dict[str, Any]]()
    for stage, run in enumerate(runs, start=1):
        for record in json.loads((run / "history.json").read_text()):
            known = {key: record.get(key, "") for key in KEYS}
            rows.append({"stage": stage, "epoch": len(rows) + 1, **known})
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Losses above, the probe below, over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, probe = figure.subplots(2, 1, sharex=True)
    for key, words in (("train_loss", "training"), ("val_loss", "held-out clouds")):
        some = [row for row in rows if row[key] != ""]
        losses.plot([row["epoch"] for row in some], [1e3 * row[key] for row in some], marker=".", label=words)
    losses.set_yscale("log")
    losses.set_ylabel("Chamfer-L2 of hidden groups, 1e-3")
    losses.legend()
    some = [row for row in rows if row["probe_accuracy"] != ""]
    probe.plot([row["epoch"] for row in some], [row["probe_accuracy"] for row in some], marker="o", color="C2")
    probe.set_ylabel("linear probe, % (validation)")
    probe.set_xlabel("epoch")
    for first in (row["epoch"] for row, before in zip(rows[1:], rows, strict=False) if row["stage"] != before["stage"]):
        for axes in (losses, probe):
            axes.axvline(first - 0.5, color="grey", linestyle=":")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Runs this module from the command line."""
    *runs, folder = map(Path, sys.argv[1:])
    if not runs:
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    rows = rows_of(runs)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, folder / "curves.png")
    print(f"{folder}: {len(rows)} epochs, {sum(row['seconds'] for row in rows) / 3600:.1f} hours")
    return 0


if __name__ == "__main__":
    sys.exit(main())
