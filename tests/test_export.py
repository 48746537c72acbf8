"""Exported files: they compute what torch computes, say how to use them, and need nothing of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from pointadapterx import export_adapter, ops
from pointadapterx.build import build_model, restore_model
from pointadapterx.checkpoints.adapter_file import read_adapter, save_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import read_config
from pointadapterx.errors import CheckpointError, ConfigError, ExportError
from pointadapterx.export import METADATA, TOLERANCE, trace
from pointadapterx.ops import decomposed, onnx_loops, reference
from pointadapterx.tasks.calibration import Calibration
from pointadapterx.tasks.classification import ClassFacts
from tests.conftest import randomise, small_config
from tests.mechanisms import exhaustive

SMALL = {"num_groups": 8, "depth": 1}
"""Of a point backbone: exporters are slow."""


def adapter_of(config: dict[str, Any], folder: Path) -> Path:
    """An adapter that has moved away from its start."""
    path = folder / "adapter.safetensors"
    classes = [f"class {number}" for number in range(config.head.num_classes)]
    metrics = {"protocol": "validation", "regime": "none"}
    model = randomise(build_model(config))
    save_adapter(model, path, config=config, facts=ClassFacts(classes, Calibration(1.5, 30)), metrics=metrics)
    return path


def logits(adapter: Path, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return restore_model(read_adapter(adapter)).eval()(inputs).logits


def clouds(count: int, seed: int = 5, points: int = 128) -> Tensor:
    return 0.3 * torch.randn(count, points, 3, generator=torch.Generator().manual_seed(seed))


def lattice(count: int) -> Tensor:
    """Clouds of which many points are equally far from each other."""
    generator = torch.Generator().manual_seed(5)
    grid = torch.cartesian_prod(*[torch.arange(6.0)] * 3) / 8
    return torch.stack([grid[torch.randperm(len(grid), generator=generator)[:128]] for _ in range(count)])


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(5))


CONFIGS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "demo": (read_config("demo", ["backbone.num_groups=8"]), clouds(5, points=1024)),
    "e3va_x, FPS of pointnet2_ops": (
        small_config("e3va_x", backbone=SMALL | {"skip_origin": True}),
        torch.cat([clouds(3), lattice(3)]),
    ),
    "stag": (small_config("stag", backbone=SMALL | {"depth": 2}), torch.cat([clouds(3), lattice(3)])),
    "digits": (read_config("vtab/digits"), images(5)),
    "images": (small_config("dapt_x", "vit"), torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(5))),
}


COSTLY = ("demo", "digits", "stag")  # larger models of the same parts, and operators that others have


@pytest.mark.parametrize("name", [pytest.param(name, marks=[exhaustive] * (name in COSTLY)) for name in CONFIGS])
def test_onnx_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    config, inputs = CONFIGS[name]
    adapter = adapter_of(config, tmp_path)
    exported = export_adapter(adapter, tmp_path / "model.onnx")
    assert 0 < exported.difference <= TOLERANCE
    content = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(content)
    assert {entry.domain for entry in content.opset_import} == {""}  # no operator of another library
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert [given.name, *given.shape] == [exported.metadata["input"]["name"], *exported.metadata["input"]["shape"]]
    assert [made.name, *made.shape] == ["logits", "batch", config.head.num_classes]
    for part in (inputs[:1], inputs):
        found = torch.from_numpy(session.run(None, {given.name: part.numpy()})[0])
        assert (found - logits(adapter, part)).abs().max() <= TOLERANCE


def test_the_file_tells_how_to_use_it(tmp_path: Path) -> None:
    config = small_config("linear", "vit", data={"mean": [0.1, 0.2, 0.3]})
    exported = export_adapter(adapter_of(config, tmp_path), tmp_path / "model.onnx", batch_size=2)
    stored = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    told = {key: value if key in ("format", "backbone_hash") else json.loads(value) for key, value in stored.items()}
    assert told == exported.metadata
    assert told["input"] == {
        "name": "images",
        "shape": [2, 3, 16, 16],
        "range": [0.0, 1.0],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
    }
    assert told["temperature"] == 1.5
    assert told["config"] == config.dump()
    assert str(Path(__file__).parent.parent).encode() not in exported.path.read_bytes()


ALONE = """
import json, sys, torch
extra = {"pointadapterx.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
assert json.loads(extra["pointadapterx.json"])["input"]["up"] == "y"
torch.save([program(part) for part in torch.load(sys.argv[2])], sys.argv[2])
assert not any(name.startswith("pointadapterx") for name in sys.modules)
"""


def test_a_program_of_torch_runs_without_this_package(tmp_path: Path) -> None:
    adapter = adapter_of(small_config("lora", backbone=SMALL), tmp_path)
    exported = export_adapter(adapter, tmp_path / "model.pt2")
    assert exported.difference <= TOLERANCE
    names = set(torch.export.load(exported.path).state_dict)
    assert not any("method" in name for name in names)  # merged
    inputs = [clouds(1), lattice(6)]
    torch.save(inputs, tmp_path / "values.pt")
    subprocess.run([sys.executable, "-c", ALONE, exported.path, tmp_path / "values.pt"], check=True, cwd=tmp_path)
    for found, part in zip(torch.load(tmp_path / "values.pt"), inputs, strict=True):
        assert (found - logits(adapter, part)).abs().max() <= TOLERANCE
    extra = {METADATA: ""}
    torch.export.load(exported.path, extra_files=extra)
    assert json.loads(extra[METADATA]) == exported.metadata


def test_neighbours_of_tokens_become_standard_operators() -> None:
    model = randomise(build_model(small_config("idpt", backbone=SMALL))).eval()
    with torch.no_grad():
        program = trace(model, (clouds(2),), None)
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not any("pointadapterx" in target for target in targets)
        for count in (1, 3):
            difference = program.module()(clouds(count)) - model(clouds(count)).logits
            assert difference.abs().max() <= TOLERANCE


@pytest.mark.parametrize("skip_origin", [False, True])
@pytest.mark.parametrize("copies", [1, 3])
def test_farthest_points_are_those_of_the_reference(skip_origin: bool, copies: int) -> None:
    points = 0.3 * torch.randn(4, 30, 3, generator=torch.Generator().manual_seed(1)).repeat(1, copies, 1)
    wanted = reference.farthest_point_sample(points, 40 if copies > 1 else 30, 2, skip_origin)
    found = decomposed.farthest_point_sample(points, wanted.shape[1], 2, skip_origin)
    assert torch.equal(found, wanted)


def test_farthest_points_of_the_loop_are_those_of_the_reference(tmp_path: Path) -> None:
    """Also of points that are there three times, and of more samples than there are points."""

    class Chosen(torch.nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return torch.cat([ops.farthest_point_sample(points, 40, 2, skip_origin=skip) for skip in (False, True)], 1)

    def several(count: int) -> Tensor:
        return 0.3 * torch.randn(count, 30, 3, generator=torch.Generator().manual_seed(1)).repeat(1, 3, 1)

    program = torch.export.export(Chosen(), (several(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    table = {"custom_translation_table": onnx_loops.TRANSLATIONS, "dynamic_shapes": [{0: "batch"}], "verbose": False}
    torch.onnx.export(program, dynamo=True, **table).save(tmp_path / "chosen.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "chosen.onnx", providers=["CPUExecutionProvider"])
    assert "Loop" in {node.op_type for node in onnx.load(tmp_path / "chosen.onnx").graph.node}
    for count in (1, 4):
        points = several(count)
        wanted = torch.cat([reference.farthest_point_sample(points, 40, 2, skip) for skip in (False, True)], 1)
        found = session.run(None, {session.get_inputs()[0].name: points.numpy()})[0]
        assert torch.equal(torch.from_numpy(found), wanted)


def test_neighbours_are_those_of_the_reference() -> None:
    query, points = torch.cat([clouds(2), lattice(2)]), torch.cat([clouds(2, seed=6), lattice(2)])
    for found, wanted in zip(decomposed.knn(query, points, 9), reference.knn(query, points, 9), strict=True):
        assert torch.equal(found, wanted)


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_of(small_config("linear", "vit"), tmp_path)
    output = tmp_path / "model.pt2"
    output.write_text("from before")
    with pytest.raises(
        ExportError, match=r"model\.pt2: not written, its logits differ from torch's by .*, more than -1"
    ):
        export_adapter(adapter, output, tolerance=-1.0)

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr("torch.export.export", fail)
    with pytest.raises(ExportError, match=r"cannot be exported to \.pt2 \(no such operator\)$"):
        export_adapter(adapter, output)
    assert output.read_text() == "from before"
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.safetensors", "model.pt2"}


def test_missing_packages_and_wrong_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model\.pt: ends in neither \.onnx nor \.pt2"):
        export_adapter(tmp_path, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds no adapter; give a run's folder"):
        export_adapter(tmp_path, tmp_path / "model.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"needs onnxscript, which is not installed; pip install onnxscript"):
        export_adapter(tmp_path, tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    both = r"needs onnxscript and onnxruntime, which are not installed; pip install onnxscript onnxruntime \(the extra"
    with pytest.raises(ExportError, match=both):
        export_adapter(tmp_path, tmp_path / "model.onnx")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapter_of(small_config("linear", "vit"), tmp_path)
    assert main(["export", str(adapter), str(tmp_path / "model.pt2"), "--batch-size", "3"]) == 0
    printed = capsys.readouterr().out
    lines = printed[printed.index("written: ") :].splitlines()
    assert lines[0].startswith(f"written: {tmp_path / 'model.pt2'} (")
    assert lines[1:3] == ["input: images (3, 3, 16, 16) float32", "output: logits (3, 10) float32"]
    assert lines[3].startswith("checked: logits differ from torch's by at most ")
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "model.pt2")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        main(["export", str(adapter), "model.pt2", "--batch-size", "0"])
    assert "--batch-size 0: at least 1" in capsys.readouterr().err
