"""The tables of training on docs/speed.md: python docs/figures/speed.py writes them

They are taken from the JSON files of docs/results, which `python -m benchmarks` writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
PAGE = DOCS / "speed.md"
BEGIN, END = "<!-- {}: python docs/figures/speed.py -->", "<!-- end of {} -->"
PUBLISHED = "dapt, fp32, published"


def measured(name: str) -> dict[str, dict[str, float]]:
    """Rows of ``docs/results/<name>.json`` by their name."""
    rows = json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return {row.get("name", row.get("job")): row for row in rows}


def targets() -> list[str]:
    """What was aimed at, and what came of it; bold is what was not reached."""
    kept, system, experts = measured("training_cost"), measured("training_cost_system"), _experts()

    def times(row: str, other: str, aimed: float | None = None) -> str:
        cells = []
        for rows in (system, kept):
            ratio = rows[other]["seconds"] / rows[row]["seconds"]
            bold = "**" if aimed is not None and ratio < aimed else ""
            cells.append(f"{bold}{ratio:.2f}×{bold}")
        return f"{'' if aimed is None else f'{aimed:g}×'} | {' | '.join(cells)}"

    def smaller(row: str, other: str) -> str:
        return " | ".join(f"1/{rows[other]['step_mib'] / rows[row]['step_mib']:.1f}" for rows in (system, kept))

    products = kept["dapt, fp32"]["seconds"] / kept["dapt, fp32"]["products"]
    bold = "**" if products > 1.2 else ""
    inference = {name: _median(row["batch_seconds"]) for name, row in measured("inference").items()}
    adapted = [inference["linear, fp32, published"] / inference[f"{name}, bf16"] for name in ("dapt", "e3va_x")]
    plain = inference["linear, fp32, published"] / inference["linear, fp32"]
    return [
        "| work | compared with | aimed at | system's allocator | memory kept |",
        "|---|---|---:|---:|---:|",
        f"| DAPT step, fp32, same maths | published form, fp32 | {times('dapt, fp32', PUBLISHED, 1.2)} |",
        f"| the same | its matrix products alone | ≤ 1.2× of their time | | {bold}{products:.2f}×{bold} |",
        f"| DAPT-X step, bf16 | DAPT, published form, fp32 | {times('dapt_x, bf16', PUBLISHED, 3.2)} |",
        f"| | DAPT, ours, bf16 | {times('dapt_x, bf16', 'dapt, bf16')} |",
        f"| | itself, with torch's operations alone | {times('dapt_x, bf16', 'dapt_x, bf16, eager')} |",
        f"| E³VA-X step, bf16 | DAPT, published form, fp32 | {times('e3va_x, bf16', PUBLISHED, 7.5)} |",
        f"| | DAPT, ours, bf16 | {times('e3va_x, bf16', 'dapt, bf16')} |",
        f"| | itself, with torch's operations alone | {times('e3va_x, bf16', 'e3va_x, bf16, eager')} |",
        f"| E³VA-X step, bf16, cached views | DAPT, published form, fp32 | "
        f"{times('e3va_x, bf16, cached', PUBLISHED, 25.0)} |",
        f"| | DAPT, ours, bf16, no cache | {times('e3va_x, bf16, cached', 'dapt, bf16')} |",
        f"| E³VA-X, bf16, tensors of a step | DAPT, published form, fp32 | ≤ 1/6 | "
        f"{smaller('e3va_x, bf16', PUBLISHED)} |",
        f"| | DAPT, ours, bf16 | | {smaller('e3va_x, bf16', 'dapt, bf16')} |",
        f"| DAPT-X step, bf16, batch 8, 64 experts | 4 experts ([experts](results/experts.md)) | ≤ 1.3× the time | | "
        f"{experts:.2f}× |",
        f"| inference, batch 32, bf16, adapters on | published form of the plain backbone, fp32 | 2× | | "
        f"{adapted[0]:.2f}× to {adapted[1]:.2f}× |",
        f"| inference, batch 32, fp32, plain backbone | its published form, fp32 | | | {plain:.2f}× |",
    ]


def precision() -> list[str]:
    """DAPT's time and memory over those of E³VA-X and DAPT-X, both in the same precision, and in two."""
    steps, memory = measured("training_methods"), measured("memory")
    processes = {
        name: {
            job.partition("@")[2] or "fp32": row["peak_mib"]
            for job, row in memory.items()
            if job in (config, f"{config}@bf16")
        }
        for name, config in (
            ("dapt", "scan_pb_t50_rs_dapt"),
            ("dapt_x", "scan_pb_t50_rs"),
            ("e3va_x", "scan_pb_t50_rs_e3va_x"),
        )
    }
    lines = ["| DAPT divided by | fp32, both | bf16, both | fp32 over bf16 |", "|---|---:|---:|---:|"]
    for name, label in (("e3va_x", "E³VA-X,"), ("dapt_x", "DAPT-X,")):
        for key, words in (("seconds", "time of a step, batch 8"), ("step_mib", "tensors of a step, batch 8")):
            found = {one: {kind: steps[f"{one}, {kind}"][key] for kind in ("fp32", "bf16")} for one in ("dapt", name)}
            lines.append(f"| {label} {words} | {_ratios(found['dapt'], found[name])} |")
        lines.append(f"| {label} whole process, batch 32 | {_ratios(processes['dapt'], processes[name])} |")
    return lines


def _ratios(ours: dict[str, float], others: dict[str, float]) -> str:
    """Cells of three columns, empty where it was not measured."""
    pairs = (("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16"))
    return " | ".join(f"{ours[one] / others[other]:.1f}×" if other in others else "" for one, other in pairs)


def _experts() -> float:
    """Time with 64 experts over that with 4."""
    (curve,) = json.loads((DOCS / "results" / "experts.json").read_text(encoding="utf-8"))["curves"]
    seconds = {row["value"]: _median(row["seconds"]) for row in curve["rows"]}
    return seconds[64] / seconds[4]


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def pictures() -> dict[Path, str]:
    """The page, with these tables."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("targets", targets()), ("precision", precision())):
        begin, end = BEGIN.format(name), END.format(name)
        block = "\n".join([begin, *lines, end])
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, b=block: b, text, flags=re.DOTALL)
    return {PAGE: text}


if __name__ == "__main__":
    for page, text in pictures().items():
        page.write_text(text, encoding="utf-8")
