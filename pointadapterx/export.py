"""A trained model as one file that runs without this package."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import restore_model
from pointadapterx.checkpoints.adapter_file import AdapterInfo, read_adapter, versions
from pointadapterx.checkpoints.shipped import without_locations
from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.preparation import wants_unit_sphere
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.errors import ConfigError, ExportError, MergeError, PointAdapterXError
from pointadapterx.files import replacing, require_utf8
from pointadapterx.ops.decomposed import DECOMPOSITIONS, ONNX_DECOMPOSITIONS
from pointadapterx.optional import need_all

FORMAT = "pointadapterx-export-1"
METADATA = "pointadapterx.json"  # entry of a .pt2 file
TOLERANCE = 1e-4
CHECKED = (1, 3, 4)  # sizes of the batches that a file is checked on

Run = Callable[..., Tensor]
"""Inputs of a model, and its condition where it takes one -> its logits."""


class Exported(NamedTuple):
    """The result of an export.

    Attributes:
        path: the file.
        metadata: what it says of itself.
        difference: the largest between its logits and torch's, over the inputs that it was checked on.
    """

    path: Path
    metadata: dict[str, Any]
    difference: float


def export_adapter(
    adapter: str | Path,
    output: str | Path,
    *,
    batch_size: int | None = None,
    weights: str | Path | None = None,
    tolerance: float = TOLERANCE,
    progress: Callable[[str], object] = lambda step: None,
) -> Exported:
    """Writes the whole model of an adapter, backbone included, in float32.

    The file maps clouds (B, num_points, 3), or images (B, channels, S, S), prepared as for the model, to what the head
    says, such as logits (B, classes); a task that has categories takes one (B,) as second input. What can be merged is.
    It is read again and checked against torch on random inputs.

    Args:
        adapter: what :func:`~pointadapterx.checkpoints.adapter_file.read_adapter` takes.
        output: ``FILE.onnx``; or ``FILE.pt2``, which :func:`torch.export.load` reads.
        batch_size: B; None is any.
        weights: where the backbone's weights lie now, if not where the adapter's config says.
        tolerance: the largest difference between logits that passes.
        progress: called with what is done next, which may take a minute.

    Raises:
        ConfigError: for an output of another kind.
        CheckpointError: if adapter or weights cannot be read, or the file not be written.
        ExportError: if packages are missing, the model cannot be exported, or the file computes something else.
    """
    output = Path(output)
    kind = FORMATS.get(output.suffix)
    if kind is None:
        raise ConfigError(f"{output}: ends in neither {' nor '.join(FORMATS)}; choose such a name")
    require_utf8(output)
    need_all(kind.needs, f"{output}: needs", "export", ExportError)
    info = read_adapter(adapter)
    if info.task.unexportable:
        raise ExportError(f"{info.path}: the task {info.config.task.name} cannot be exported: {info.task.unexportable}")
    progress("building the model")
    model = restore_model(info, weights).eval()
    with suppress(MergeError):  # other methods stay beside the backbone
        model = model.merge()
    sizes = CHECKED if batch_size is None else (batch_size, batch_size)
    inputs = [random_inputs(info, size, seed) for seed, size in enumerate(sizes)]
    with replacing(output) as temporary, _quiet(), torch.no_grad():
        try:
            metadata = describe(info, batch_size, model(*inputs[-1]).logits.shape)
            progress("tracing the model")
            program = trace(model, inputs[-1], batch_size, kind.decompositions)
            progress(f"writing {output.name}")
            kind.write(program, metadata, temporary)
            progress(f"checking {output.name} against torch")
            run = kind.open(temporary)
            difference = float(torch.stack([(run(*part) - model(*part).logits).abs().max() for part in inputs]).max())
        except (OSError, PointAdapterXError):
            raise
        except Exception as error:  # the exporters raise many types
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ExportError(f"{info.path}: cannot be exported to {output.suffix} ({reason})") from error
        if not difference <= tolerance:  # NaN is not
            raise ExportError(
                f"{output}: not written, its logits differ from torch's by {difference:.2g}, more than {tolerance:g}"
            )
    return Exported(output, metadata, difference)


def describe(info: AdapterInfo, batch_size: int | None, outputs: Sequence[int]) -> dict[str, Any]:
    """What an exported file says of itself: all that is needed to prepare its inputs and to read its logits.

    Args:
        info: the adapter.
        batch_size: B; None is any.
        outputs: shape of the logits of some batch.
    """
    task, batch = info.task, batch_size or "batch"
    condition = {"name": task.condition, "shape": [batch], "categories": task.categories}
    return {
        "format": FORMAT,
        "input": _describe_input(info, batch_size),
        **({"condition": condition} if task.categories else {}),
        "output": {"name": "logits", "shape": [batch, *outputs[1:]]},
        **task.reading(),
        "config": without_locations(info.config).dump(),
        "metrics": info.metrics,
        "backbone_hash": info.backbone_hash,
        "versions": info.versions,
        "exported_by": versions(),
    }


def _describe_input(info: AdapterInfo, batch_size: int | None) -> dict[str, Any]:
    data = info.config.data
    shape = [batch_size or "batch", *info.config.backbone.input_shape(data.num_points)]
    if DATASETS[data.name].modality == "images":
        mean, std = data.statistics(info.config.backbone.input_shape(None)[0])  # subtracted, divided by
        return {"name": "images", "shape": shape, "range": [0.0, 1.0], "mean": mean, "std": std}
    return {
        "name": "points",
        "shape": shape,
        "up": "y",
        "unit_sphere": wants_unit_sphere(info.metrics, data),
        "resampling": "farthest points from the first one on",
    }


def random_inputs(info: AdapterInfo, count: int, seed: int) -> tuple[Tensor, ...]:
    """Clouds (count, num_points, 3) in the unit sphere, or images (count, channels, S, S); and categories (count,)."""
    generator = torch.Generator().manual_seed(seed)
    shape = _describe_input(info, count)["shape"]
    values = torch.randn(shape, generator=generator)
    values = values if len(shape) == 4 else NormalizeUnitSphere()(values)
    kinds = len(info.task.categories)
    return (values, torch.randint(kinds, (count,), generator=generator)) if kinds else (values,)


def trace(
    model: AdaptedModel,
    inputs: tuple[Tensor, ...],
    batch_size: int | None,
    decompositions: Mapping[Any, Callable[..., Any]] = DECOMPOSITIONS,
) -> ExportedProgram:
    """The model's logits as a program of standard operators.

    Args:
        model: in eval mode.
        inputs: some of more than one sample, or of ``batch_size``; with a condition where the model takes one.
        batch_size: B; None is any.
        decompositions: of the point operations.
    """
    batch = {0: Dim("batch", min=1)}
    shapes = dict.fromkeys(("inputs", "condition")[: len(inputs)], batch) if batch_size is None else None
    # Strict: by torch.compile's tracer, through which every method goes without a break.
    program = torch.export.export(_Logits(model), inputs, dynamic_shapes=shapes, strict=True)
    program = program.run_decompositions(dict(decompositions))
    for node in program.graph.nodes:  # lines and paths of this package's source
        node.meta.pop("stack_trace", None)
    return program


class _Logits(nn.Module):
    """A model without its auxiliary loss."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        logits: Tensor = self.model(inputs, condition).logits
        return logits


def _write_onnx(program: ExportedProgram, metadata: Mapping[str, Any], path: Path) -> None:
    from pointadapterx.ops.onnx_loops import TRANSLATIONS  # needs onnxscript

    inputs = [metadata[key]["name"] for key in ("input", "condition") if key in metadata]
    dynamic = None if isinstance(metadata["input"]["shape"][0], int) else [{0: "batch"} for _ in inputs]
    outputs = [metadata["output"]["name"]]
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        custom_translation_table=TRANSLATIONS,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=dynamic,
        verbose=False,
    )
    assert onnx is not None
    for node in onnx.model.graph.all_nodes():
        node.metadata_props.clear()
    onnx.model.metadata_props.update(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    )
    onnx.save(path, external_data=False)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: values.numpy() for name, values in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def _write_program(program: ExportedProgram, metadata: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def _open_program(path: Path) -> Run:
    with path.open("rb") as file:
        return torch.export.load(file).module()


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        needs: packages.
        decompositions: of the point operations.
        write: a traced model with its metadata.
        open: to run it.
    """

    needs: tuple[str, ...]
    decompositions: Mapping[Any, Callable[..., Any]]
    write: Callable[[ExportedProgram, Mapping[str, Any], Path], None]
    open: Callable[[Path], Run]


FORMATS = {
    ".onnx": Format(("onnx", "onnxscript", "onnxruntime"), ONNX_DECOMPOSITIONS, _write_onnx, _open_onnx),
    ".pt2": Format((), DECOMPOSITIONS, _write_program, _open_program),
}
"""Kinds of files by their suffix."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, which are about torch's own code and packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
