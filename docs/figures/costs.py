"""Costs and accuracies on the pages of the methods: python docs/figures/costs.py writes them into docs/methods/*.md

They are taken from docs/results: parameters.md, training_methods.md and ldraw20_methods/report.md.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
RESULTS = DOCS / "results"
BEGIN, END = "<!-- costs: python docs/figures/costs.py -->", "<!-- end of costs -->"
BEGIN_MEASURED, END_MEASURED = "<!-- accuracies: python docs/figures/costs.py -->", "<!-- end of accuracies -->"
BACKBONES = {"## Point-MAE": "Point-MAE", "## ViT-B/16": "ViT-B/16"}
LABELS = {
    "full": ("full fine-tuning",),
    "linear": ("linear probe",),
    "bitfit": ("BitFit",),
    "vpt": ("VPT, deep", "VPT, shallow"),
    "lora": ("LoRA",),
    "ssf": ("SSF",),
    "adapter": ("Adapter,",),
    "adaptformer": ("AdaptFormer,",),
    "noah": ("NOAH",),
    "idpt": ("IDPT",),
    "stag": ("STAG",),
    "dapt": ("DAPT,",),
    "adapter_x": ("Adapter-X",),
    "adaptformer_x": ("AdaptFormer-X",),
    "dapt_x": ("DAPT-X",),
    "e3va": ("E³VA,",),
    "e3va_x": ("E³VA-X",),
}
"""Beginnings of the rows of the study of LDraw-20."""
PUBLISHED = {
    "full": ("85.18; rotated 88.31", "68.9"),
    "linear": ("–", "57.6"),
    "bitfit": ("–", "65.2"),
    "vpt": ("–", "72.0"),
    "lora": ("–", "74.5"),
    "ssf": ("–", "75.7"),
    "adapter": ("–", "73.9"),
    "adaptformer": ("–", "76.1"),
    "noah": ("–", "75.5"),
    "idpt": ("rotated 88.51", "–"),
    "dapt": ("85.08; rotated 87.13", "–"),
    "adapter_x": ("–", "74.3"),
    "adaptformer_x": ("–", "76.2"),
    "dapt_x": ("rotated 88.45", "–"),
}
"""Single figures of papers, as Adapter-X's paper (arXiv 2406.03051) lists them; chosen on the test set in 3-D."""
HEADER = """\
| on | trained | without head | of full | forward | backward | kept |
|---|---:|---:|---:|---:|---:|---:|"""
LEGEND = (
    "Forward and backward are 10⁹ multiply-adds per sample of a training step, kept is what the backward pass holds, "
    "MiB per sample in float32; Point-MAE is for ScanObjectNN unless said, ViT-B/16 for VTAB-1K, both at "
    "their published sizes ([counted](../results/parameters.md))."
)


def table(name: str) -> str:
    """What stands between the marks on the page of a method."""
    lines = [BEGIN, HEADER, *_counted(name), "", LEGEND, *_timed(name), *_accurate(name), END]
    return "\n".join(lines)


def overview(name: str) -> tuple[str, str]:
    """Of a method's row of the index: trained parameters and their share at the published size."""
    _, trained, _, share, *_ = _cells(_counted(name)[0])
    return trained, share


def field() -> str:
    """What stands between the marks of the index: sizes, steps and published figures, then what was measured."""
    papers = "published, Point-MAE on PB_T50_RS | published, ViT-B/16 on VTAB-1K"
    head = f"| method | trained | of full | s/step | step MiB | {papers} |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    for name in LABELS:
        trained, share = overview(name)
        seconds, memory = next(((s.split()[0], m) for where, s, m in _steps(name) if where == "fp32"), ("–", "–"))
        cells = [f"[`{name}`]({name}.md)", trained, share, seconds, memory, *PUBLISHED.get(name, ("–", "–"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([BEGIN, *lines, END])


def measured() -> str:
    """The same of the other marks: every row of the studies, with its own sizes."""
    head = "| row of the study | trained | of full | LDraw-20 | home | electronics |"
    lines = [head, "|---|---:|---:|---:|---:|---:|"]
    for name in LABELS:
        for label, _, accuracy, _, _, trained, _, share, *_ in _studied(name):
            others = [
                next((row[2] for row in _studied(name, f"{study}_methods") if row[0] == label), "–")
                for study in ("home", "electronics")
            ]
            words = f"[{label}]({name}.md)"
            scores = " | ".join(cell.partition(" [")[0] for cell in (accuracy, *others))
            lines.append(f"| {words} | {trained} | {share} % | {scores} |")
    return "\n".join([BEGIN_MEASURED, *lines, END_MEASURED])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _counted(name: str) -> list[str]:
    rows, backbone = [], ""
    for line in (RESULTS / "parameters.md").read_text(encoding="utf-8").splitlines():
        backbone = next((words for head, words in BACKBONES.items() if line.startswith(head)), backbone)
        if line.startswith((f"| `{name}` ", f"| `{name}`, ")):
            label, trained, alone, share, _, *costs = _cells(line)
            sizes = label.partition(", ")[2]
            rows.append(
                f"| {backbone}{f': {sizes}' if sizes else ''} | {' | '.join([trained, alone, share, *costs])} |"
            )
    return rows


def _steps(name: str) -> list[tuple[str, str, str]]:
    """Precision, seconds and MiB of the timed steps of a method."""
    found = []
    for line in (RESULTS / "training_methods.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| {name}, "):
            label, _, memory, _, _, seconds, _ = _cells(line)
            found.append((label.partition(", ")[2], seconds, memory))
    return found


def _timed(name: str) -> list[str]:
    found = [f"{seconds.split()[0]} s and {memory} MiB in {where}" for where, seconds, memory in _steps(name)]
    if not found:
        return []
    step = "[A step](../results/training_methods.md) of 8 clouds"
    where = f"{step} on two threads of an AMD EPYC, Point-MAE at its published size"
    return ["", f"{where}: {'; '.join(found)}."]


def _studied(name: str, study: str = "ldraw20_methods") -> list[list[str]]:
    """Cells of a study's rows of a method."""
    lines = (RESULTS / study / "report.md").read_text(encoding="utf-8").splitlines()
    return [_cells(line) for line in lines if line.startswith(tuple(f"| {x}" for x in LABELS[name])) and "±" in line]


def _accurate(name: str) -> list[str]:
    found = []
    for label, _, accuracy, _, difference, _, _, share, *_ in _studied(name):
        away = "" if difference == "baseline" else f", {difference.replace('-', '−')} points to full fine-tuning"
        found.append(f"{label} ({share} % trained) {accuracy.partition(' [')[0]}{away}")
    if not found:
        return []
    where = "[Test OA on LDraw-20](../results/ldraw20_methods/README.md) with the small shipped backbone"
    return ["", f"{where}, three seeds [95 %]: {'; '.join(found)}."]


def pictures() -> dict[Path, str]:
    """The pages, with these costs."""
    pages = {}
    for name, block in (*((name, table(name)) for name in LABELS), ("index", field())):
        path = DOCS / "methods" / f"{name}.md"
        pages[path] = _between(path.read_text(encoding="utf-8"), BEGIN, END, block)
        if name == "index":
            pages[path] = _between(pages[path], BEGIN_MEASURED, END_MEASURED, measured())
    return pages


def _between(text: str, begin: str, end: str, block: str) -> str:
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page, text in pictures().items():
        page.write_text(text, encoding="utf-8")
