"""The measurements behind the documentation's figures run, and measure what they say."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import (
    cluster,
    curves,
    dense,
    exactness,
    fuzz,
    infer,
    memory,
    novelty,
    ops,
    propagation,
    published,
    scale,
    scene,
    serve,
    serve_client,
    train,
)
from benchmarks.floor import _Recorder, product_floor
from benchmarks.jobs import peak_bytes
from benchmarks.novelty_scores import measure
from pointadapterx.config import Config
from pointadapterx.files import write_json
from pointadapterx.ops import reference
from pointadapterx.peft.parts.scale_shift import ScaleShift
from tests.conftest import ROOT
from tests.mechanisms import exhaustive

needs_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris, of the extra fuzz, is not installed")
SMALL = ["backbone.weights=null", "data.num_points=256", "backbone.encoder_width=8"]


def test_peak_of_a_known_step() -> None:
    weight = torch.randn(500, 500, requires_grad=True)
    inputs = torch.randn(500, 500)

    def step() -> None:
        ((inputs @ weight).relu() @ weight).sum().backward()
        weight.grad = None

    assert 3 <= peak_bytes(step, torch.device("cpu")) / inputs.nbytes <= 7


def test_training_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = tmp_path / "cost"
    jobs = ["scan_pb_t50_rs_dapt+published", "scan_pb_t50_rs_dapt", "demo@bf16", "demo_linear"]
    jobs += ["scan_pb_t50_rs_e3va_x@bf16+cached", "scan_pb_t50_rs_dapt+checkpointed"]
    arguments = ["--jobs", *jobs, "--rounds", "2", "--batch-size", "4", "--floor", "--output", str(stem)]
    assert train.main([*arguments, "backbone.depth=2", *SMALL]) == 0
    result = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows)[:3] == ["dapt, fp32, published", "dapt, fp32", "dapt_x, bf16"]
    plain, again, linear = (rows[f"{name}, fp32{variant}"] for name, variant in VARIED)
    assert plain["step_mib"] > again["step_mib"] > linear["step_mib"] > 0
    for row in rows.values():
        assert row["total_mib"] > row["step_mib"]
        assert len(row["seconds_all"]) == 2
        assert row["products"] > 0
    text = stem.with_suffix(".md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| e3va_x, bf16, cached |" in text


def small_parts(method: str, head: str) -> Config:
    size = {"dim": 24, "depth": 3, "num_heads": 3, "encoder_dim": 24, "encoder_width": 8, "num_groups": 8}
    return dense.parts_config(method, head).replaced(backbone=size, data={"num_points": 256})


def test_dense_tasks_by_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        dense.Row(name, lambda size, device, name=name: dense.parts_job(name, small_parts(name, "light"), size, device))
        for name in ("full", "e3va")
    ]
    monkeypatch.setattr(dense, "TABLES", {"own": ("Own rows", lambda: rows)})
    stem = tmp_path / "dense"
    assert (
        dense.main(["own", "--methods", "e3va", "full", "--rounds", "2", "--batch-size", "2", "--output", str(stem)])
        == 0
    )
    (found,) = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))["tables"].values()
    e3va, full = found
    assert e3va["shares"] == [1, 1]  # the first that is named
    assert full["multiply_adds"] > e3va["multiply_adds"] > 0
    assert full["step_mib"] > e3va["step_mib"] > 0
    assert "## Own rows, batch 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        dense.main(["others"])
    assert "no table others; there are own" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        dense.main(["own", "--methods", "e3va", "others"])
    assert "own has no row others; it has full, e3va" in capsys.readouterr().err


def test_propagation_beside_plain_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(propagation, "parts_config", small_parts)
    for name, value in {"SCENE": 3000, "POINTS": 256, "VALUES": 16}.items():
        monkeypatch.setattr(propagation, name, value)
    assert propagation.main(["--rounds", "1", "--batch-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| training step |" in printed
    assert "## Values of 3,000 points from 256" in printed
    points, known, values = torch.rand(2, 40, 3), torch.rand(2, 8, 3), torch.rand(2, 8, 5)
    torch.testing.assert_close(propagation.plain(values, known, points), propagation.ours(values, known, points))


VARIED = [("dapt", ""), ("dapt", ", checkpointed"), ("linear", "")]


def test_products_are_those_of_the_step() -> None:
    one, other = torch.randn(30, 20), torch.randn(20, 10, requires_grad=True)
    query = torch.randn(2, 3, 5, 8, requires_grad=True)

    def step() -> None:
        loss = F.linear(one, other.mT, torch.zeros(10)).sum()
        (loss + F.scaled_dot_product_attention(query, query, query).sum()).backward()

    with _Recorder() as recorder:
        step()
    shapes = sorted((left.shape, right.shape) for left, right in recorder.products.elements())
    scores = ((2, 3, 5, 8), (2, 3, 8, 5))
    mixing = ((2, 3, 5, 5), (2, 3, 5, 8))
    # Back: the scores again and dP, two alike; then dQ, dK and dV; and the layer's weight.
    assert shapes.count(scores) + shapes.count(mixing) == 7
    assert [shape for shape in shapes if len(shape[0]) == 2] in (
        [((20, 30), (30, 10)), ((30, 20), (20, 10))],
        [((10, 30), (30, 20)), ((30, 20), (20, 10))],
    )
    assert product_floor(step, torch.device("cpu"), rounds=1) > 0


def test_products_of_a_convolution() -> None:
    layer = torch.nn.Conv2d(3, 7, 4, stride=4)
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    with _Recorder() as recorder:
        layer(images).sum().backward()
    shapes = sorted((tuple(left.shape), tuple(right.shape)) for left, right in recorder.products.elements())
    assert shapes == [((2, 7, 4), (2, 4, 48)), ((2, 7, 48), (2, 48, 4)), ((2, 48, 7), (2, 7, 4))]


def test_products_of_groups() -> None:
    tokens, matrices = torch.randn(6, 8, requires_grad=True), torch.randn(2, 8, 4, requires_grad=True)
    with _Recorder() as recorder:
        F.grouped_mm(tokens, matrices, offs=torch.tensor([2, 6], dtype=torch.int32)).square().sum().backward()
    shapes = {(tuple(left.shape), tuple(right.shape)) for left, right in recorder.products}
    forward = {((2, 8), (8, 4)), ((4, 8), (8, 4))}
    assert forward | {((2, 4), (4, 8)), ((4, 4), (4, 8)), ((8, 2), (2, 4)), ((8, 4), (4, 4))} == shapes


def test_the_published_form_is_compared_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(published.FORMS, ScaleShift, lambda layer, values: values + 1)
    with pytest.raises(AssertionError, match="not close"):
        train.main(["--jobs", "scan_pb_t50_rs_dapt+published", "--batch-size", "2", "backbone.depth=1", *SMALL])


def test_inference_side_by_side(tmp_path: Path) -> None:
    stem = tmp_path / "infer"
    jobs = ["scan_pb_t50_rs_linear+published", "demo@bf16"]
    arguments = ["--jobs", *jobs, "--rounds", "2", "--batch-size", "3", "--output", str(stem)]
    assert infer.main([*arguments, "backbone.depth=1", *SMALL]) == 0
    result = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["name"] for row in result["rows"]] == ["linear, fp32, published", "dapt_x, bf16"]
    assert all(len(row[key]) == 2 for row in result["rows"] for key in ("batch_seconds", "single_seconds"))
    assert "| s, batch 3 |" in stem.with_suffix(".md").read_text(encoding="utf-8")


@exhaustive  # of a measurement, not of the product
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of resident memory need Linux")
def test_memory_of_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = tmp_path / "memory"
    jobs = ["scan_pb_t50_rs_full", "scan_pb_t50_rs_linear"]
    sizes = ["--batch-size", "4", "backbone.depth=2", *SMALL]
    assert memory.main(["--jobs", *jobs, "--output", str(stem), *sizes]) == 0
    full, linear = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))["rows"]
    assert full["peak_mib"] > linear["peak_mib"] > 0
    assert full["peak_mib"] < 400  # with all 12 blocks it has more: overrides count
    with pytest.raises(SystemExit):
        memory.main(["backbone.dept=1", "--jobs", "demo"])
    assert "backbone.dept: unknown key" in capsys.readouterr().err


def test_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        curves,
        "CURVES",
        [
            curves.Curve("samples of a batch", None, [2, 4], 0),
            curves.Curve("experts", "method.num_experts", [2, 10**6], 2),
            curves.Curve("adapters", None, [1, 2], 3),
        ],
    )
    stem = tmp_path / "curves"
    arguments = ["--config", "demo", "--rounds", "1", "--largest", "100", "--output", str(stem)]
    assert curves.main([*arguments, *SMALL]) == 0
    result = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    assert [[row["value"] for row in curve["rows"]] for curve in result["curves"]] == [[2, 4], [2], [1, 2]]
    two, four = result["curves"][0]["rows"]
    assert four["mib"] > 1.5 * two["mib"] > 0
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "| experts, batch 2 |" in stem.with_suffix(".md").read_text(encoding="utf-8")


def write_clouds(folder: Path, classes: int, shape: float) -> None:
    """Boxes, each class with sides of its own."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        labels = np.arange(classes * count) % classes
        sides = np.stack([1 + labels, np.full_like(labels, 2), np.full_like(labels, 3) * shape], axis=1)
        data = (rng.random((len(labels), 64, 3)) - 0.5) * sides[:, None] / sides.max()
        with h5py.File(folder / f"{split}.h5", "w") as file:
            file["data"], file["label"], file["group"] = data.astype(np.float32), labels, np.arange(len(labels)) // 2
            file.attrs["classes"] = [f"box_{number}" for number in range(classes)]


def test_novelty_of_held_out_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clouds(tmp_path / "flat", 5, 0.1)
    write_clouds(tmp_path / "tall", 4, 3.0)
    monkeypatch.chdir(tmp_path)  # where features are kept
    stem = tmp_path / "novelty"
    sizes = ["backbone.weights=null", "backbone.depth=1", "backbone.num_groups=8", "backbone.group_size=8"]
    sizes += ["data.num_points=64", "train.epochs=2", "train.warmup_epochs=1"]
    data = [f"{name}={tmp_path / name}" for name in ("flat", "tall")]
    arguments = ["--configs", "demo_linear=2", "--share", "0.4", "--first", "3", "--output", str(stem), "--data", *data]
    assert novelty.main([*arguments, "--", *sizes]) == 0
    result = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    assert [(run["data"], run["split"]) for run in result["runs"]] == [
        ("flat", 3),
        ("tall", 3),
        ("flat", 4),
        ("tall", 4),
    ]
    for run in result["runs"]:
        classes = 5 if run["data"] == "flat" else 4
        assert len(run["held_out"]) == 2
        assert run["clouds"]["train"] + run["clouds"]["val"] == 10 * (classes - 2)  # nothing of the others is seen
        assert (run["clouds"]["known"], run["clouds"]["unknown"]) == (4 * (classes - 2), 8)
        assert run["bytes"] < 50_000
    kinds = [(row["data"], row["kind"], row["draws"]) for row in result["rows"]]
    assert kinds == [(data, kind, 2) for data in ("flat", "tall") for kind in ("held-out", "other sets")]
    row = result["rows"][0]
    low, high = row["intervals"][novelty.OURS]["auroc"]
    assert 0 <= low <= row["scores"][novelty.OURS]["auroc"] <= high <= 1
    assert f"| {novelty.OURS} |" in stem.with_suffix(".md").read_text(encoding="utf-8")
    (tmp_path / "tall" / "test.h5").unlink()
    with pytest.raises(SystemExit) as stop:
        novelty.main([*arguments, "--", *sizes])
    assert stop.value.code == 2
    assert "test.h5: cannot be read" in capsys.readouterr().err


def test_the_measures_of_novelty_by_hand() -> None:
    known, unknown = torch.arange(20.0), torch.tensor([-1.0, 10.0, 18.5, 30.0])
    found = measure(known, unknown)
    assert found.auroc == pytest.approx((0 + 10.5 + 19 + 20) / 80)
    assert found.passing == 0.5  # the limit lies between 18 and 19
    assert found.flagged == 0.5


@pytest.mark.parametrize("values", [[170.935, 170.96], [0.11, 0.27], [0.9, 2000.0]])
def test_every_axis_of_the_curves_can_be_read(values: list[float]) -> None:
    rows = [{"value": i, "seconds": [value], "mib": value} for i, value in enumerate(values, 1)]
    figure = curves.draw({"curves": [{"title": "blocks", "rows": rows}]})
    assert len(figure.axes) == 2
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert len(ticks) >= 2
        assert low <= min(values) < max(values) <= high


def test_the_command_names_its_kinds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("benchmarks", run_name="__main__")
    printed = str(stop.value) + capsys.readouterr().err
    assert "usage: python -m benchmarks {busy,curves,dense,exactness,fuzz,gpu,infer," in printed
    assert stop.value.code not in (0, None)


def test_point_operations_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "CASES", [ops.Case(2, 300, 20), ops.Case(2, 300, 20, 5)])
    stem = tmp_path / "ops"
    assert ops.main(["--rounds", "2", "--threads", str(torch.get_num_threads()), "--output", str(stem)]) == 0
    (result,) = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    fps, knn = result["rows"]
    assert fps["exact"]
    assert knn["exact"]
    assert {"pointadapterx", "torch loop"} <= set(fps["seconds"])
    assert {"pointadapterx", "torch cdist + topk", "scipy"} <= set(knn["seconds"])
    text = stem.with_suffix(".md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| FPS 2×300→20 |" in text


def test_an_inexact_operation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.farthest_point_sample
    case = ops.Case(1, 100, 10)
    monkeypatch.setattr(reference, "farthest_point_sample", lambda *arguments: right(*arguments).roll(1, dims=1))
    assert not ops.is_exact(case, ops.clouds(case))


def test_a_wrong_override_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(["backbone.dept=1", "--jobs", "demo"])
    assert stop.value.code == 2
    assert "backbone.dept: unknown key; did you mean" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        train.main(["--jobs", "demo+fast"])
    assert stop.value.code == 2
    assert "demo+fast: is no CONFIG[@fp32|bf16][+published|cached|" in capsys.readouterr().err


@pytest.mark.compiler
def test_exactness_is_counted_and_differences_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not exactness.ops.implementation("cpu").startswith("compiled"):
        pytest.skip(exactness.ops.implementation("cpu"))
    assert exactness.main(["--cases", "20000"]) == 0
    assert "farthest_point_sample, small clouds" in capsys.readouterr().out
    monkeypatch.setattr(exactness.reference, "nearest", lambda query, points: (query[..., 0], points[..., 0].long()))
    assert exactness.main(["--cases", "20000"]) == 1
    assert "IN CALLS THAT DIFFER" in capsys.readouterr().out


@needs_atheris
def test_fuzzing_knows_its_readers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--reader", "docx"]) == 2
    assert "reader 'docx' is not known; choose from asc, csv, glb, h5" in capsys.readouterr().err
    assert all(list(target.seeds()) for target in fuzz.targets().values())


@exhaustive
@needs_atheris
def test_fuzzing_finds_what_a_reader_does_not_expect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fuzz.main(["--reader", "npy", "--seconds", "2", "--output", str(tmp_path)]) == 0
    assert "files in 2 s, no fault" in capsys.readouterr().out
    (tmp_path / "sitecustomize.py").write_text(
        "import numpy\nnumpy.lib.format.read_magic = lambda file: {}[file.read()]"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert fuzz.main(["--reader", "npy", "--seconds", "2", "--output", str(tmp_path)]) == 1
    assert len(list((tmp_path / "npy").glob("fault-*.npy"))) == 1


def test_what_the_guide_says_of_novelty_is_what_was_measured() -> None:
    rows = json.loads((ROOT / "docs" / "results" / "novelty.json").read_text(encoding="utf-8"))["rows"]
    text = (ROOT / "docs" / "predicting.md").read_text(encoding="utf-8")
    measured = {(row["config"], row["data"], row["kind"]): row for row in rows}
    for data in ("ldraw20", "home", "electronics"):
        probe, adapted = (measured[config, data, "held-out"] for config in ("demo_linear", "demo"))
        far = measured["demo_linear", data, "other sets"]
        low, high = probe["intervals"][novelty.OURS]["auroc"]
        first, second, third = (row["scores"][novelty.OURS]["auroc"] for row in (probe, adapted, far))
        assert f"| {data} | {first:.2f} [{low:.2f}, {high:.2f}] | {second:.2f} | {third:.2f} |" in text
    page = (ROOT / "docs" / "results" / "novelty.md").read_text(encoding="utf-8")
    command = page.split("`")[1]
    result = json.loads((ROOT / "docs" / "results" / "novelty.json").read_text(encoding="utf-8"))
    assert novelty.markdown(result, command) == page


@pytest.mark.slow
def test_scenes_are_labelled_and_measured(tmp_path: Path) -> None:
    """A small one beside a smaller one, by a small model."""
    sizes = ["backbone.depth=1", "backbone.dim=48", "backbone.encoder_dim=48", "backbone.num_heads=3", "method.rank=2"]
    sizes += ["backbone.weights=null", "backbone.num_groups=8", "data.num_points=256"]
    result = scene.measure("rooms", sizes, 8, points=3000, small=1000)
    assert [run["points"] for run in result["runs"].values()] == [1000, 3000]
    assert all(run["peak_bytes"] > 2**20 for run in result["runs"].values())
    table = scene.markdown(result, "python -m benchmarks scene")
    assert "| 3,000 |" in table
    assert len(scene.make_scene(3000)) == 3000


def test_answers_of_a_server_are_compared_but_for_rounding() -> None:
    wanted = {"file": "a.ply", "classes": ["x", "y"], "probabilities": [0.7, 0.3], "known": None}
    near = {**wanted, "probabilities": [0.70005, 0.29995]}
    assert serve_client.agrees(near, wanted)
    for key, value in (("probabilities", [0.7, 0.31]), ("classes", ["y", "x"]), ("probabilities", [0.7]), ("b", 1)):
        assert not serve_client.agrees({**wanted, key: value}, wanted)


def test_the_load_of_a_server_as_a_table() -> None:
    one = {
        "seconds": 0.1,
        "cpu": 0.08,
        "p50": 0.1,
        "p99": 0.2,
        "answers": 100,
        "statuses": {"200": 100},
        "wrong": [],
        "lost": [],
    }
    phases = serve.phases_of(["lora-0", "lora-1", "ssf-2", "parts-3"])
    assert phases == {
        **{"lora alone": ["lora-0"], "ssf alone": ["ssf-2"], "parts alone": ["parts-3"]},
        **{serve.CLASSIFYING: ["lora-0", "lora-1", "ssf-2"], serve.MIXED: ["lora-0", "lora-1", "ssf-2", "parts-3"]},
    }
    costs = {"lora alone": 0.1, "ssf alone": 0.05, "parts alone": 0.55}
    members = serve.mean_of_members(costs, phases[serve.MIXED])
    assert members == pytest.approx(0.2)
    mixed = {**one, "seconds": 0.25, "members_seconds": members, "cpu": 0.4, "members_cpu": members}
    mixed["wrong"] = ["adapter=a: b'{}'"]
    result = {
        **{"phases": {"lora alone": one, serve.MIXED: mixed, serve.DISTURBED: one}, "done": {"hang_up": 3}},
        **{"metrics": {"batch_samples_sum": 30.0, "batch_samples_count": 10.0}, "memory": [400.0, 401.0]},
        **{"stopped": {**one, "exit_status": 0, "cut_short": 0}, "adapters": 50, "clients": 64, "seconds": 10.0},
        "disturbed": 60.0,
        **{"hardware": "a machine", "versions": {"torch": "2"}, "ops": "compiled"},
    }
    table = serve.markdown(result, "python -m benchmarks serve")
    assert "| lora alone | 10 |  |  | 80.0 |  |  | 100 | 200 | 100 | 0 | 0 | 200: 100 |" in table
    assert "| all mixed | 4 | 5 | 0.80 | 400.0 | 200.0 | 0.50 | 100 | 200 | 100 | 1 | 0 | 200: 100 |" in table
    assert "- all mixed, answers per second: 0.40 of lora alone\n- disturbed, answers per second: 1.00 of lora" in table
    assert "Samples in a batch: 3.0 on average" in table
    assert "- adapter=a: b'{}'" in table


def test_the_table_of_a_cluster() -> None:
    rows = [{"what": "10 files, one killed", "seconds": 12.3, "status": 0, "once": True}]
    rows.append({"what": "a study of 2 runs, one killed", "seconds": 3.0, "status": 1, "once": False})
    result = {"cores": 1, "batch_size": 8, "hardware": "a machine", "versions": {"torch": "2"}, "rows": rows}
    table = cluster.markdown(result, "python -m benchmarks ray")
    assert "| 10 files, one killed | 12 | 0 | yes |" in table
    assert "| a study of 2 runs, one killed | 3 | 1 | NO |" in table


LOADED = {"answers": 100, "statuses": {"200": 100, "429": 3}, "wrong": [], "lost": []}
STOPPED = {**LOADED, "exit_status": 0, "cut_short": 0, "too_late": 4}


@pytest.mark.parametrize(
    ("phase", "change", "words"),
    [
        ("all mixed", {}, None),
        ("disturbed", {"statuses": {"200": 90, "503": 10}}, None),
        ("ssf alone", {"statuses": {"200": 90, "500": 10}}, "ssf alone: 10 responses with status 500"),
        ("all mixed", {"statuses": {"429": 9}, "answers": 0}, "all mixed: not one answer"),
        ("disturbed", {"lost": ["a: reset"]}, "disturbed: wrong or lost: a: reset"),
        ("stopped", {"wrong": ["a"]}, "stopped: wrong or lost: a"),
        ("stopped", {"statuses": {"200": 1, "504": 1}}, "stopped: 1 responses with status 504"),
        ("stopped", {"exit_status": 1}, "stopped: exit status 1"),
    ],
)
def test_the_load_of_a_server_fails_where_it_must(phase: str, change: dict[str, object], words: str | None) -> None:
    result = {"ssf alone": LOADED, "all mixed": LOADED, "disturbed": LOADED, "stopped": STOPPED}
    result[phase] = {**result[phase], **change}
    stopped = result.pop("stopped")
    assert serve.failures({"phases": result, "stopped": stopped}) == ([] if words is None else [words])


@pytest.mark.parametrize("received", [b"", b"H" * 120, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"])
@pytest.mark.parametrize("sent", [9.0, 9.95, 10.5, None])
def test_what_was_accepted_before_a_signal_is_owed(received: bytes, sent: float | None) -> None:
    """A request that was sent around the signal, or later, may be left unread; a response that has begun must end."""

    async def ask() -> serve_client.Client:
        reader, client = asyncio.StreamReader(), serve_client.Client(0)
        reader.feed_data(received)
        reader.feed_eof()
        client._streams = reader, mock.Mock(drain=mock.AsyncMock())
        with pytest.raises(asyncio.IncompleteReadError):
            await client.ask("GET", "/")
        return client

    client = asyncio.run(ask())
    assert client.begun == bool(received)
    assert client.sent is not None
    lost = serve_client.Lost("a: gone", sent, client.begun)
    found = serve.stopped_summary(serve_client.Tally(lost=[lost]), signalled=10.0, status=0)
    owed = bool(received) or sent == 9.0
    assert (found["cut_short"], found["too_late"], found["lost"]) == (int(owed), int(not owed), ["a: gone"] * owed)


def test_how_far_it_goes_is_arithmetic_on_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two cores of 50 files a second each, busy for half of the day."""
    measured = {"config": "demo", "overrides": [], "hardware": "X, 4 threads", "files": 300}
    write_json(tmp_path / "predict.json", {**measured, "seconds": {"npy": [2.0, 3.0, 9.0]}, "peak_mib": 700})
    command = ["--measured", str(tmp_path / "predict.json"), "--busy", "0.5", "--core-hour", "0.1", "--scans"]
    assert scale.main([*command, str(86_400 * 50), "1e9", "--scan-bytes", "1000", "--kept-days", "10"]) == 0
    row, larger = capsys.readouterr().out.splitlines()[-3:-1]
    assert row.split(" | ")[1:4] == ["4,320,000", "2", "1.11"]
    assert larger.split(" | ")[2] == str(-(-(10**9) // (86_400 * 25)))
    assert row.split(" | ")[6] == f"{4.32e6 * (1000 * 10 + 200 * 365) / 1e9:,.0f}"
    with pytest.raises(SystemExit, match="2"):
        scale.main([*command, "1e6", "--gpu-share", "2"])
