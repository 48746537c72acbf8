"""Training steps and inference as jobs with names, for the measurements."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.published import published_form
from pointadapterx import build_model, ops
from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.checkpoints.adapter_file import save_adapter, versions
from pointadapterx.config import Config, read_config
from pointadapterx.engine.devices import hardware
from pointadapterx.engine.optim import build_optimizer
from pointadapterx.errors import ConfigError
from pointadapterx.export import export_adapter
from pointadapterx.files import write_json, write_text
from pointadapterx.models.frozen import EXACT, Frozen, restore
from pointadapterx.models.packing import pack_frozen, tensor_bytes
from pointadapterx.peft.parts.mixture import SharedMixture

MIB = 2**20
VARIANTS = {
    "published": "the plain form of the public code: see benchmarks/published.py",
    "cached": "from features of the frozen layers that are there (train.cached_views)",
    "eager": "torch's operations alone: no packed weights, no compiled mixtures",
    "compiled": "train.compile",
    "checkpointed": "train.gradient_checkpointing",
    "graphed": "the whole step as one CUDA graph",
    "onnx": "inference alone: the exported model in onnxruntime, on the CPU",
}
_SPEC = re.compile(rf"(?P<config>[^@+]+)(@(?P<precision>fp32|bf16))?(\+(?P<variant>{'|'.join(VARIANTS)}))?")


class Spec(NamedTuple):
    """What is measured: CONFIG[@fp32|bf16][+VARIANT].

    Attributes:
        config: name of a config.
        precision: autocast to bf16, or none.
        variant: one of :data:`VARIANTS`, or None.
    """

    config: str
    precision: str
    variant: str | None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """A spec as it is written.

        Raises:
            ConfigError: if it is not one.
        """
        found = _SPEC.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text}: is no CONFIG[@fp32|bf16][+{'|'.join(VARIANTS)}]")
        return cls(found["config"], found["precision"] or "fp32", found["variant"])

    def label(self, method: str) -> str:
        """The spec in a table."""
        return ", ".join(filter(None, (method, self.precision, self.variant)))


class Job(NamedTuple):
    """A model at work; ``step`` does the same each time.

    Attributes:
        name: for a table.
        trainable: parameters that are trained.
        static: bytes that stay between steps: parameters, buffers, optimiser state.
        step: one whole optimiser step, or one batch of inference.
    """

    name: str
    trainable: int
    static: int
    step: Callable[[], None]


def make_parser(kind: str, description: str | None, jobs: list[str]) -> argparse.ArgumentParser:
    """The command line that the measurements of jobs share."""
    variants = "; ".join(f"{name}: {meaning}" for name, meaning in VARIANTS.items())
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {kind}", description=description, epilog=f"VARIANT is {variants}."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides of every row")
    parser.add_argument(
        "--jobs", nargs="+", default=jobs, metavar="CONFIG[@bf16][+VARIANT]", help="the first is compared with"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    return parser


def about(device: torch.device, batch_size: int, overrides: list[str]) -> dict[str, Any]:
    """What the figures of a measurement depend on."""
    return {
        "batch_size": batch_size,
        "overrides": overrides,
        "hardware": hardware(device),
        "versions": versions(),
        "ops": ops.implementation(device),
    }


def publish(result: Any, text: str, output: Path | None) -> None:
    """Prints a measurement, and writes it as ``output``.json and .md."""
    print(text)
    if output is not None:
        write_json(output.with_suffix(".json"), result)
        write_text(output.with_suffix(".md"), text)


def make_training(spec: Spec, overrides: list[str], batch_size: int, device: torch.device, *, warm: bool = True) -> Job:
    """Forward, backward and AdamW on a random batch; with ``warm`` the optimiser has its state already."""
    if spec.variant == "onnx":
        raise ConfigError(f"{spec.config}+onnx: exported models do not train; leave it to `benchmarks infer`")
    config, model, inputs = _prepare(spec, overrides, batch_size, device)
    model.train()
    optimizer = build_optimizer(model, config.train)
    if spec.variant == "published":
        for group in optimizer.param_groups:
            group["fused"] = False
    for group in optimizer.param_groups:
        group["capturable"] = spec.variant == "graphed"
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(model.head.num_classes, (batch_size,), generator=generator).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            logits, auxiliary = model(inputs())
        loss = F.cross_entropy(logits.float(), labels)
        (loss if auxiliary is None else loss + auxiliary).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if warm or spec.variant == "graphed":
        step()  # which creates the optimiser's state
    slots = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return _job(spec, model, slots, _graphed(step) if spec.variant == "graphed" else step)


def make_inference(spec: Spec, overrides: list[str], batch_size: int, device: torch.device) -> Job:
    """Logits of a random batch."""
    config, model, inputs = _prepare(spec, overrides, batch_size, device)
    model.eval()

    def step() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            model(inputs())

    if spec.variant == "onnx":
        step = _exported(config, model, random_batch(config, batch_size), spec)
    for _ in range(2 if spec.variant == "compiled" else 1):  # a compiler may compile the first two calls
        step()
    return _job(spec, model, [], _graphed(step) if spec.variant == "graphed" else step)


def _exported(config: Config, model: AdaptedModel, batch: Tensor, spec: Spec) -> Callable[[], None]:
    """The same by onnxruntime, with as many threads."""
    if spec.precision != "fp32":
        raise ConfigError(
            f"{spec.config}@{spec.precision}+onnx: exported models compute in fp32; leave the precision out"
        )
    import onnxruntime

    with TemporaryDirectory() as folder:
        adapter = Path(folder, "adapter.safetensors")
        save_adapter(model, adapter, config=config, classes=[str(n) for n in range(model.head.num_classes)])
        path = export_adapter(adapter, Path(folder, "model.onnx"), batch_size=len(batch)).path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads would slow the next row
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: batch.numpy()}
    return lambda: session.run(None, inputs)


def _graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Captures a step, which then is replayed: with the same inputs, and without a wait for the host in it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what is allocated and chosen once must not be a part of the graph
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _job(spec: Spec, model: AdaptedModel, slots: list[Tensor], step: Callable[[], None]) -> Job:
    static = tensor_bytes(model) + sum(slot.nbytes for slot in slots)
    return Job(spec.label(model.method.options.name), count_parameters(model).trainable, static, step)


def _prepare(
    spec: Spec, overrides: list[str], batch_size: int, device: torch.device
) -> tuple[Config, AdaptedModel, Callable[[], Tensor | Frozen]]:
    """The config, its model with random weights, and where a step gets its inputs."""
    if spec.variant == "graphed" and device.type != "cuda":
        raise ConfigError(f"{spec.config}+graphed: CUDA graphs need a CUDA device; leave it out here")
    config = read_config(spec.config, overrides)
    torch.manual_seed(0)
    model = build_model(config, restored=True).to(device)  # no warning about random weights
    inputs = random_batch(config, batch_size).to(device)
    if spec.variant == "published":
        published_form(model, inputs)
    elif spec.variant == "eager":
        without_compiled_mixtures(model)
    elif spec.variant == "compiled":
        model.compile()
    elif spec.variant == "checkpointed":
        for block in model.backbone.blocks:
            block.recomputed = True
    if spec.variant not in ("published", "eager", "compiled"):
        pack_frozen(model)  # as training and prediction do
    if spec.variant == "cached":
        return config, model, _cached(model, inputs, spec.precision)
    return config, model, lambda: inputs


def without_compiled_mixtures(model: nn.Module) -> None:
    """Leaves a model's mixtures to torch's operations."""
    for module in model.modules():
        if isinstance(module, SharedMixture):
            module.compiled = False


def random_batch(config: Config, batch_size: int) -> Tensor:
    """Points (B, N, 3) or images (B, channels, S, S)."""
    shape = config.backbone.input_shape(config.data.num_points)
    return torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))


def _cached(model: AdaptedModel, inputs: Tensor, precision: str) -> Callable[[], Frozen]:
    """Features in half precision, picked and restored for every step as training does."""
    model.method.frozen_state(model.backbone)  # refuses what cannot be kept
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    model.eval()
    with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = model.method.precompute(model.backbone, inputs)
    stored = [v if name in EXACT else v.to("cpu", half) for name, v in zip(features._fields, features, strict=True)]
    order = torch.randperm(len(inputs))
    return lambda: restore(type(features), (values[order].to(inputs.device) for values in stored))


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Bytes of tensors that one step holds at most, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    recorded = profiler.profiler.kineto_results.events()  # every allocation and release of the CPU allocator
    held = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Duration of one step in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - started


def take_turns(jobs: list[Job], rounds: int, device: torch.device, again: bool = False) -> list[list[float]]:
    """Durations of every job's step; the jobs take turns, so that a slower minute slows them all.

    With ``again`` each turn is two steps, and the second counts: the first after other shapes takes longer.
    """
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for taken, job in zip(times, jobs, strict=True):
            if again:
                job.step()
            taken.append(seconds(job.step, device))
    return times


def spread(taken: list[float]) -> str:
    """Median, minimum and maximum of durations."""
    return f"{median(taken):.3f} [{min(taken):.3f}, {max(taken):.3f}]"
