"""LoRA beside huggingface/peft: a training step of the same transformers ViT, of random weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks.jobs import MIB, Job, about, peak_bytes, publish, seconds, spread
from pointadapterx.adapting import adapt

RANK, ALPHA = 8, 16
FORMS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
"""Options of ours; those of peft begin with ``use_``."""
PACKAGES = ("peft", "pointadapterx")
NOTE = (
    f"LoRA with r = {RANK}, alpha = {ALPHA} at queries and values of a transformers ViT with random weights, images of "
    "224 x 224 in patches of 16, float32. A step is forward, backward and AdamW. Memory is the peak of tensors beyond "
    "what stays between steps. The rows take turns, and who is first changes: times are medians of the rounds, in "
    "brackets the fastest and the slowest; *of peft's* is the median of the ratios within a round. *CPU s* is the "
    "process's time on the processor, which other work on the machine disturbs less."
)


def make_model(dim: int, depth: int) -> nn.Module:
    """A transformers ViT classifier with random weights, the same each time."""
    transformers = import_module("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=dim // 64,
        intermediate_size=4 * dim,
        num_labels=100,
    )
    return transformers.ViTForImageClassification(config)


def adapted(package: str, form: str, model: nn.Module) -> nn.Module:
    """The model with LoRA of one of :data:`PACKAGES`."""
    if package == "pointadapterx":
        return adapt(model, "lora", rank=RANK, alpha=float(ALPHA), targets=["q", "v"], **FORMS[form])
    peft = import_module("peft")
    flags = {f"use_{name}": value for name, value in FORMS[form].items()}
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], **flags)
    return peft.get_peft_model(model, config)


def make_job(package: str, form: str, sizes: tuple[int, int], batch_size: int, device: torch.device) -> Job:
    """Forward, backward and AdamW on a random batch."""
    model = adapted(package, form, make_model(*sizes)).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    images = torch.randn(batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(batch_size) % 100).to(device)

    def step() -> None:
        model(pixel_values=images, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # which creates the optimiser's state
    static = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return Job(f"{form}, {package}", sum(parameter.numel() for parameter in trained), static, step)


def measure(forms: Sequence[str], sizes: tuple[int, int], batch_size: int, rounds: int) -> dict[str, Any]:
    """Parameters, peak memory and step times of both packages for each form."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for form in forms:
        jobs = [make_job(package, form, sizes, batch_size, device) for package in PACKAGES]
        peaks = [peak_bytes(job.step, device) for job in jobs]
        wall: list[list[float]] = [[], []]
        busy: list[list[float]] = [[], []]
        for turn in range(rounds):
            for place in (0, 1) if turn % 2 else (1, 0):
                started = process_time()
                wall[place].append(seconds(jobs[place].step, device))
                busy[place].append(process_time() - started)
        for place, job in enumerate(jobs):
            row = {"name": job.name, "trainable": job.trainable, "step_mib": peaks[place] / MIB}
            row |= {"memory_ratio": peaks[place] / peaks[0], "seconds": wall[place], "cpu_seconds": busy[place]}
            row |= {"ratio": _ratio(wall[place], wall[0]), "cpu_ratio": _ratio(busy[place], busy[0])}
            rows.append(row)
    packages = {name: import_module(name).__version__ for name in ("peft", "transformers")}
    return {**about(device, batch_size, []), "sizes": sizes, "packages": packages, "rows": rows}


def _ratio(taken: Sequence[float], others: Sequence[float]) -> float:
    return median(one / other for one, other in zip(taken, others, strict=True))


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The table, each pair compared with peft."""
    dim, depth = result["sizes"]
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    lines = [
        "# LoRA beside peft",
        "",
        f"`{command}`",
        "",
        NOTE,
        "",
        f"{depth} blocks of width {dim}, batch {result['batch_size']}; {result['hardware']}, torch "
        f"{result['versions']['torch']}, {packages}.",
        "",
        "| | trainable | step MiB | of peft's | s/step | of peft's | CPU s | of peft's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [row["name"], f"{row['trainable']:,}", f"{row['step_mib']:.1f}", f"{row['memory_ratio']:.3f}"]
        cells += [spread(row["seconds"]), f"{row['ratio']:.3f}", spread(row["cpu_seconds"]), f"{row['cpu_ratio']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peft", description=__doc__)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--dim", type=int, default=384, help="width, a multiple of 64")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_args(argv)
    if min(options.dim, options.depth, options.batch_size, options.rounds) < 1 or options.dim % 64:
        parser.error("--dim is a multiple of 64; --depth, --batch-size and --rounds are at least 1")
    try:
        result = measure(options.forms, (options.dim, options.depth), options.batch_size, options.rounds)
    except ImportError as error:
        parser.exit(2, f"error: {error.name} is not installed: pip install peft transformers\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks peft", *argv])), options.output)
    return 0
