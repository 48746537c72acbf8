"""Predictions for one's own files."""

from __future__ import annotations

import copy
import csv
import errno
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pointadapterx import AdapterBank, Predictor
from pointadapterx import jobs as run
from pointadapterx.build import build_model, build_splits, restore_model
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.datasets import entries
from pointadapterx.datasets.resample import resample_test
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.engine import devices
from pointadapterx.engine.input_form import Failure
from pointadapterx.errors import CheckpointError, ConfigError, DataError
from pointadapterx.run_folder import ADAPTER_FILE
from pointadapterx.tasks.classification import Prediction
from tests.conftest import ROOT, small_config
from tests.docs.pages import blocks

trimesh = pytest.importorskip("trimesh", exc_type=ImportError)

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("predictor") / "run"
    config = small_config("dapt_x", data={"root": str(small_data)}, train={"lr": 1e-2, "epochs": 4})
    run.train(config, "test", folder, devices.make_accelerator("fp32"))
    return folder


@pytest.fixture(scope="module")
def clouds(trained: Path) -> torch.Tensor:
    """The test clouds."""
    return build_splits(read_adapter(trained / ADAPTER_FILE).config).test.points


def only_predictions(found: list[Prediction | Failure]) -> list[Prediction]:
    assert all(isinstance(one, Prediction) for one in found), found
    return [one for one in found if isinstance(one, Prediction)]


def test_files_get_what_the_test_gave(trained: Path, clouds: torch.Tensor, tmp_path: Path) -> None:
    for number, cloud in enumerate(clouds):
        np.save(tmp_path / f"{number:02}.npy", cloud.numpy())
    files = sorted(tmp_path.glob("*.npy"))
    info = read_adapter(trained / ADAPTER_FILE)
    model = build_model(info.config).eval()
    load_adapter(model, info)
    assert info.facts.calibration is not None
    with torch.inference_mode():
        wanted = info.facts.calibration.probabilities(model(resample_test(clouds, 128)).logits)
    found = only_predictions(Predictor(trained, batch_size=7, top=len(info.classes))(files))
    assert [one.name for one in found] == [str(path) for path in files]
    assert {one.adapter for one in found} == {"run"}
    assert not any(one.warnings for one in found)
    for one, row in zip(found, wanted, strict=True):
        told = dict(zip(one.classes, one.probabilities, strict=True))
        assert [told[name] for name in info.classes] == pytest.approx(row.tolist(), abs=1e-5)


def unit_sphere(trained: Path, folder: Path) -> Path:
    """The adapter as if its training clouds had been in the unit sphere."""
    info = read_adapter(trained / ADAPTER_FILE)
    model = build_model(info.config)
    load_adapter(model, info)
    inputs = {**info.metrics["inputs"], "radius": [1.0, 1.0, 1.0], "offset": 0.0}
    path = folder / "unit.safetensors"
    save_adapter(model, path, config=info.config, classes=info.classes, metrics={"inputs": inputs})
    return path


def test_clouds_are_normalised_where_those_of_training_were(
    trained: Path, clouds: torch.Tensor, tmp_path: Path
) -> None:
    unit = NormalizeUnitSphere()(clouds[:3])
    found = only_predictions(Predictor(unit_sphere(trained, tmp_path))([*unit, *(50 * unit + 7)]))
    assert not any(one.warnings for one in found)
    for one, moved in zip(found[:3], found[3:], strict=True):
        assert one.probabilities == pytest.approx(moved.probabilities, abs=1e-4)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_disk_that_runs_full(
    suffix: str,
    trained: Path,
    clouds: torch.Tensor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "cloud.npy", clouds[0].numpy())

    def full(*arguments: object) -> Callable[[object], None]:
        def write(found: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        return write

    monkeypatch.setattr("pointadapterx.predicting.answer_files._csv_sink", full)
    monkeypatch.setattr("pointadapterx.predicting.answer_files._json_sink", full)
    output = tmp_path / f"found.{suffix}"
    assert main(["predict", str(trained), str(tmp_path / "cloud.npy"), "--output", str(output)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]  # before it a warning of random weights
    assert line.startswith(f"error: {output}: cannot be written (No space left on device)")
    assert not output.exists()


def test_a_model_that_computes_nan_says_nothing(
    trained: Path, clouds: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the logits of one adapter, and in what the last layer of the other reads."""
    predictor = Predictor({"one": trained, "two": trained})
    for name, part, row in (("one", 1, 1), ("two", 0, 2)):
        head = predictor._models(name).head

        def broken(
            pooled: torch.Tensor,
            classify: Callable[..., tuple[torch.Tensor, ...]] = head.classify,
            part: int = part,
            row: int = row,
        ) -> tuple[torch.Tensor, ...]:
            found = classify(pooled)
            found[part][row, 0] = float("nan")
            return found

        monkeypatch.setattr(head, "classify", broken)
    found = predictor(list(clouds[:3]))
    failures = [place for place, one in enumerate(found) if isinstance(one, Failure)]
    assert failures == [2, 5]  # of each input there are two answers
    assert [one.reason for one in found if isinstance(one, Failure)] == [
        f"input {number}: logits or features of adapter {name} are not finite; try --precision fp32, or train the "
        "adapter again"
        for number, name in ((1, "one"), (2, "two"))
    ]


def test_arrays_and_tensors(trained: Path, clouds: torch.Tensor) -> None:
    predictor = Predictor(trained)
    inputs = [clouds[0], clouds[1].numpy(), torch.cat([clouds[2], torch.ones(len(clouds[2]), 3)], dim=1)]
    first, second, third = only_predictions(predictor(inputs))
    assert [first.name, second.name, third.name] == ["input 0", "input 1", "input 2"]
    assert len(first.classes) == 3
    assert first.probabilities == sorted(first.probabilities, reverse=True)
    (alone,) = only_predictions(predictor([clouds[2]]))
    assert alone.probabilities == pytest.approx(third.probabilities, abs=1e-5)
    bad = predictor([torch.ones(5), np.full((200, 3), np.nan), clouds[0]])
    assert isinstance(bad[0], Failure)
    assert bad[0].reason == "input 0 is float64 of shape (5,), not numbers (points, 3 or more)"
    assert isinstance(bad[1], Failure)
    assert "all 200 points have NaN or infinite coordinates" in bad[1].reason
    assert isinstance(bad[2], Prediction)
    (half,) = only_predictions(predictor([clouds[0].bfloat16()]))
    assert half.name == "input 0"


def test_what_looks_wrong_with_coordinates_is_a_warning(trained: Path, clouds: torch.Tensor, tmp_path: Path) -> None:
    cloud = clouds[0].double().numpy()
    holes = np.concatenate([cloud, np.full((3, 3), np.nan)])
    np.save(tmp_path / "holes.npy", holes)
    np.save(tmp_path / "nodata.npy", np.concatenate([cloud, np.full((9, 3), -9999.0)]))
    np.save(tmp_path / "map.npy", (5 * cloud + (5e5, 4.5e6, 0)).astype(np.float32))
    predictor = Predictor(unit_sphere(trained, tmp_path))
    whole, given, *read = only_predictions(predictor([cloud, holes, *sorted(tmp_path.glob("*.npy"))]))
    dropped, spoilt, empty = read
    assert whole.warnings == []
    total = len(holes)
    assert (
        given.warnings == dropped.warnings == [f"3 of {total} points have NaN or infinite coordinates and are left out"]
    )
    assert given.probabilities == pytest.approx(whole.probabilities, abs=1e-5)
    assert empty.warnings == [f"9 of {total + 6} points have x = -9999, which stands for no data"]
    assert len(spoilt.warnings) == 1
    assert "different values of y" in spoilt.warnings[0]
    assert "float32, with steps of 0.5 at 45000" in spoilt.warnings[0]
    assert predictor.doubts() == [
        "2 of 5 clouds: NaN or infinite coordinates",
        "1 of 5 clouds: coordinates spoilt by float32",
        "1 of 5 clouds: values for no data",
    ]
    (refused,) = Predictor(trained, nan="error")([tmp_path / "holes.npy"])
    assert isinstance(refused, Failure)
    assert f"point {total - 2} has NaN or infinite coordinates, as 3 of {total} have" in refused.reason


def test_columns_of_text_files_are_named(
    trained: Path, clouds: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cloud.csv"
    rows = np.concatenate([np.ones((len(clouds[0]), 1)), clouds[0].numpy()], axis=1)
    np.savetxt(file, rows, delimiter=",", header="id,one,two,three", comments="", fmt="%.9g")
    (expected,) = only_predictions(Predictor(trained)([clouds[0]]))
    for columns in (["one", "two", "three"], [1, 2, 3]):
        (found,) = only_predictions(Predictor(trained, columns=columns)([file]))
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    info = read_adapter(trained / ADAPTER_FILE)
    model = build_model(info.config)
    load_adapter(model, info)
    config = info.config.replaced(data={"columns": ["one", "two", "three"]})
    path = tmp_path / "knows.safetensors"
    save_adapter(model, path, config=config, classes=info.classes, metrics=info.metrics)
    (found,) = only_predictions(Predictor(path)([file]))
    assert found.classes == expected.classes
    with pytest.raises(ConfigError, match="need three different columns"):
        Predictor(trained, columns=["one", "two"])
    assert main(["predict", str(trained), str(file)]) == 3
    assert "its columns are id, one, two, three, of which no three are known" in capsys.readouterr().err
    assert main(["predict", str(trained), str(file), "--columns", "one, two, three"]) == 0


@pytest.fixture(scope="module")
def folder(clouds: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clouds as files, one of them below, and a file of another kind."""
    root = tmp_path_factory.mktemp("folder")
    (root / "below").mkdir()
    for number, name in enumerate(("a.npy", "b.npy", "below/c.npy")):
        np.save(root / name, clouds[number].numpy())
    (root / "notes.md").write_text("of no kind that is read")
    return root


@pytest.mark.parametrize("kind", ["path", "text", "folder", "array", "tensor", "batch", "iterator", "mixed"])
def test_one_or_several_of_anything(kind: str, trained: Path, clouds: torch.Tensor, folder: Path) -> None:
    first, names = clouds[0].numpy(), [str(folder / name) for name in ("a.npy", "b.npy", "below/c.npy")]
    given, expected = {
        "path": (folder / "a.npy", names[:1]),
        "text": (names[0], names[:1]),
        "folder": (str(folder), names),
        "array": (first, ["input 0"]),
        "tensor": (clouds[0], ["input 0"]),
        "batch": (clouds[:3], ["input 0", "input 1", "input 2"]),
        "iterator": (iter([names[0], folder / "b.npy"]), names[:2]),
        "mixed": ([first, folder, clouds[1:3]], ["input 0", *names, "input 4", "input 5"]),
    }[kind]
    predictor = Predictor(trained)
    found = only_predictions(predictor(given))
    assert [one.name for one in found] == expected
    (alone,) = only_predictions(predictor([names[0]]))
    assert found[0].probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_the_documented_loop_is_type_checked() -> None:
    """mypy reads this file of the tests."""
    (loop,) = (text for text in blocks(ROOT / "docs" / "predicting.md") if "predictor.stream" in text.text)
    imported, _, rest = loop.text.partition("\n\n")
    checked = (ROOT / "tests" / "typed_use.py").read_text(encoding="utf-8")
    assert imported in checked
    assert rest.strip() in checked


@pytest.fixture
def many(clouds: torch.Tensor, tmp_path: Path) -> Path:
    """A file of several clouds, one of which has no finite point."""
    data = clouds[:5].numpy().copy()
    data[3] = np.nan
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("data", data=data, chunks=(2, *data.shape[1:]), compression="gzip")
        file["label"] = np.zeros(5, int)
    return tmp_path / "all.h5"


def test_clouds_of_a_file_are_predicted_one_by_one(
    many: Path,
    trained: Path,
    clouds: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = only_predictions(Predictor(trained)(clouds[:5]))
    monkeypatch.setattr(entries, "BLOCK", 2 * clouds[0].numpy().nbytes)  # two clouds in memory
    found = Predictor(trained)([many, clouds[0]])
    assert [one.name for one in found] == [*(f"{many}#{number}" for number in range(5)), "input 5"]
    assert isinstance(found[3], Failure)
    assert found[3].reason.startswith(f"{many}#3: all {clouds.shape[1]} points have NaN or infinite coordinates")
    for number in (0, 1, 2, 4):
        assert found[number].probabilities == pytest.approx(expected[number].probabilities, abs=1e-5)
    output = many.with_name("found.csv")
    assert main(["predict", str(trained), str(many.parent), "--output", str(output)]) == 3
    with output.open() as file:
        assert [Path(row["file"]).name for row in csv.DictReader(file)] == [f"all.h5#{number}" for number in range(5)]
    printed = capsys.readouterr()
    assert "1 of 5 files could not be predicted" in printed.err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((4, 300, 2)), "'data' holds 4 clouds of shape (300, 2), expected (points, 3 or more)"),
        (
            {"xyz_mm": 0, "label": 0, "offset": 0},
            "it holds the scenes of data.name=rooms, and predict takes files of one",
        ),
        (b"no file", "cannot be read as .h5"),
    ],
)
def test_a_file_of_clouds_that_cannot_be_read_is_one_failure(
    content: Any, reason: str, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "all.h5"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with h5py.File(path, "w") as file:
            for name, values in (content if isinstance(content, dict) else {"data": content}).items():
                file[name] = values
    (found,) = Predictor(trained)(path)
    assert isinstance(found, Failure)
    assert isinstance(content, bytes) or "damaged" not in found.reason
    assert found.reason.startswith(f"{path}: ")
    assert reason in found.reason or "not an HDF5 file" in found.reason


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3, "inputs of type int: give a file, a folder, points"),
        (None, "inputs of type NoneType: give"),
        (b"scan.ply", "inputs of type bytes: give"),
        ({"a": "scan.ply"}, "inputs of type dict: give"),
        ({"scan.ply"}, "inputs of type set: give"),  # in no order
        (["scan.ply", 3], r"inputs\[1\] of type int: give"),
        ([[[0.0, 0.0, 0.0]]], r"inputs\[0\] of type list: give"),
    ],
)
def test_anything_else_is_refused(given: Any, says: str, trained: Path) -> None:
    with pytest.raises(TypeError, match=says):
        Predictor(trained).stream(given)


def test_a_folder_without_a_cloud(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file that is read in it"):
        Predictor(trained)(tmp_path)


def test_another_number_of_points_is_told_once(trained: Path, clouds: torch.Tensor) -> None:
    """It computes something else without a word from the shapes; ``resample`` gives what a test has."""
    model = restore_model(read_adapter(trained / ADAPTER_FILE)).eval()
    assert model.num_points == 128
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        resampled = model(model.resample(clouds)).logits
        assert torch.equal(resampled, model(resample_test(clouds, 128)).logits)
        with pytest.raises(UserWarning, match=r"clouds of 256 points, but the model is of 128 .*model\.resample"):
            model(clouds)
        other = model(clouds).logits  # told once
        copy.deepcopy(model).pooled(clouds[:, :100])
    assert not torch.allclose(resampled, other)
    assert model.resample(clouds[:, :100]).shape == (len(clouds), 128, 3)
    bank = AdapterBank({"one": trained / ADAPTER_FILE})
    with pytest.warns(UserWarning, match="clouds of 256 points"):
        bank(clouds)


def test_images_have_no_number_of_points() -> None:
    model = build_model(small_config("linear", kind="vit"))
    assert model.num_points is None
    with pytest.raises(ConfigError, match="resample: the model takes no clouds"):
        model.resample(torch.zeros(1, 3, 16, 16))


def test_arrays_far_from_the_origin_keep_their_shape(trained: Path, clouds: torch.Tensor, tmp_path: Path) -> None:
    path = unit_sphere(trained, tmp_path)
    near = clouds[0].double().numpy()
    one, moved, equal = Predictor(path)([near, near + np.array([500_000.0, 4_500_000.0, 0.0]), np.ones((200, 3))])
    assert isinstance(one, Prediction)
    assert isinstance(moved, Prediction)
    assert moved.probabilities == pytest.approx(one.probabilities, abs=1e-4)
    assert isinstance(equal, Failure)
    assert equal.reason == "input 2: 1 different point; the model's groups need 16"


def test_a_mesh_is_the_same_wherever_it_lies(trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pytest.importorskip("trimesh").creation.box((1, 2, 3)).export(tmp_path / f"{name}.stl")
    one, other = only_predictions(Predictor(trained)([tmp_path / "a.stl", tmp_path / "b.stl"]))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_an_adapter_outlives_its_data(trained: Path, clouds: torch.Tensor, tmp_path: Path) -> None:
    info = read_adapter(trained / ADAPTER_FILE)
    model = build_model(info.config)
    load_adapter(model, info)
    for root in (tmp_path / "gone", tmp_path):  # nothing there, and nothing with labels
        config = info.config.replaced(data={"name": "folder", "root": str(root)})
        path = tmp_path / "moved.safetensors"
        save_adapter(model, path, config=config, classes=info.classes, metrics=info.metrics)
        assert len(only_predictions(Predictor(path)([clouds[0]]))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device gpu: cannot be used here"),
        ({"device": "cuda:99"}, "device cuda:99: cannot be used here"),
        ({"precision": "fp33"}, "precision=fp33: choose auto, fp32 or bf16"),
    ],
)
def test_wrong_devices_and_precisions(options: dict[str, str], message: str, trained: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Predictor(trained, **options)


def test_bf16_without_the_hardware_is_fp32(
    trained: Path, clouds: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pointadapterx.engine.precision.multiplies_bf16", lambda device: False)
    found = Predictor(trained, precision="bf16", device="cpu")([clouds[0]])
    assert "cpu has no bf16: predicting in fp32" in caplog.text
    assert found == Predictor(trained, precision="fp32", device="cpu")([clouds[0]])


def test_failures_do_not_wait_without_end(trained: Path, tmp_path: Path) -> None:
    stream = Predictor(trained, batch_size=2).stream([tmp_path / f"{number}.npy" for number in range(1000)])
    assert isinstance(next(stream), Failure)


def test_few_points_are_repeated_and_too_few_refused(trained: Path, clouds: torch.Tensor) -> None:
    some, few = Predictor(trained)([clouds[0][:50], clouds[0][:5]])
    assert isinstance(some, Prediction)
    assert some.warnings == ["50 different points, fewer than the 128 that the model takes: some are repeated"]
    assert isinstance(few, Failure)
    assert few.reason == "input 1: 5 different points; the model's groups need 16"


def test_what_is_unlike_the_training_data_is_told(trained: Path, clouds: torch.Tensor) -> None:
    noise = torch.randn(10, 256, 3, generator=torch.Generator().manual_seed(0))
    predictor = Predictor(trained)
    usual = [one.novelty for one in only_predictions(predictor(list(clouds)))]
    unusual = [one.novelty for one in only_predictions(predictor(list(noise)))]
    assert np.mean(usual) < np.mean(unusual)
    assert np.mean(unusual) > 0.9
    for one in only_predictions(predictor(list(clouds))):
        assert one.known is not None


def test_an_adapter_without_novelty_says_so(
    trained: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, output = unit_sphere(trained, tmp_path), tmp_path / "found.csv"
    assert main(["predict", str(old), str(scans / "a.npy"), "--output", str(output)]) == 0
    with output.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["novelty"], row["known"]) == ("", "not available")
    assert "note: unit: novelty is not available" in capsys.readouterr().err


def test_another_unit_is_told_where_clouds_keep_theirs(trained: Path, clouds: torch.Tensor, tmp_path: Path) -> None:
    info = read_adapter(trained / ADAPTER_FILE)
    model = build_model(info.config)
    load_adapter(model, info)
    inputs = {**info.metrics["inputs"], "radius": [2.0, 3.0, 4.0]}
    path = tmp_path / "metres.safetensors"
    save_adapter(model, path, config=info.config, classes=info.classes, metrics={"inputs": inputs})
    right, wrong = only_predictions(Predictor(path)([3 * clouds[0], 3000 * clouds[0]]))
    assert right.warnings == []
    assert right.novelty is None
    assert right.known is None
    assert len(wrong.warnings) == 1
    assert wrong.warnings[0].endswith("e+03 from the origin, training clouds 3: another unit or place")


def test_another_axis_up_is_told(trained: Path) -> None:
    predictor = Predictor(trained)
    info = read_adapter(trained / ADAPTER_FILE)
    shape = torch.tensor(info.metrics["inputs"]["extents"])
    assert shape.sum() == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(10, 200, 3, generator=generator) * torch.tensor([1.0, 0.2, 1.0])
    predictor._form = _with_extents(predictor._form, [0.45, 0.1, 0.45])
    predictor(list(flat))
    assert predictor.doubts() == []
    predictor = Predictor(trained)
    predictor._form = _with_extents(predictor._form, [0.45, 0.1, 0.45])
    predictor(list(flat[..., [2, 0, 1]]))  # z up
    assert predictor.doubts() == ["the clouds are shaped as if z pointed up, not y; if so, give it as up (--up z)"]
    turned = Predictor(trained, up="z")
    turned._form = _with_extents(turned._form, [0.45, 0.1, 0.45])
    turned(list(flat[..., [2, 0, 1]]))
    assert turned.doubts() == []


def _with_extents(form: Any, extents: list[float]) -> Any:
    return replace(form, stored=form.stored._replace(extents=extents))


def test_several_adapters_on_one_backbone(trained: Path, clouds: torch.Tensor, tmp_path: Path) -> None:
    info = read_adapter(trained / ADAPTER_FILE)
    model = build_model(info.config)
    load_adapter(model, info)
    with torch.no_grad():
        model.head.mlp[-1].bias += torch.linspace(5, -5, model.head.num_classes)
    other = tmp_path / "other.safetensors"
    save_adapter(model, other, config=info.config, classes=info.classes, metrics=info.metrics)
    both = Predictor({"one": trained, "other": other}, batch_size=3)
    found = only_predictions(both(list(clouds[:5])))
    assert [one.adapter for one in found] == ["one", "other"] * 5
    alone = only_predictions(Predictor(trained)(list(clouds[:5])))
    for one, expected in zip(found[::2], alone, strict=True):
        assert one.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    save_adapter(
        model,
        other,
        config=info.config.replaced(data={"num_points": 64}),
        classes=info.classes,
        metrics=info.metrics,
    )
    with pytest.raises(CheckpointError, match=r"other\.safetensors: prepares its inputs otherwise than"):
        Predictor({"one": trained, "other": other})


def test_wrong_arguments(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="at least one adapter"):
        Predictor({})
    with pytest.raises(ConfigError, match="up=w: is no axis"):
        Predictor(trained, up="w")
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        Predictor(tmp_path / "none.safetensors")


@pytest.fixture
def scans(clouds: torch.Tensor, tmp_path: Path) -> Path:
    """Three readable files of different kinds and four that are not."""
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    np.save(folder / "a.npy", clouds[0].numpy())
    pytest.importorskip("trimesh").PointCloud(clouds[1].numpy()).export(folder / "b.ply")
    np.savetxt(folder / "deep" / "c.xyz", clouds[2].numpy())
    (folder / "d.ply").write_bytes(b"ply\nbroken")
    (folder / "e.npy").write_bytes(b"")
    np.savetxt(folder / "f.txt", np.full((300, 3), np.inf))
    np.save(folder / "g.npy", np.zeros((500, 3)))
    (folder / "notes.md").write_text("no cloud")
    return folder


def test_the_command_lists_what_fails_and_goes_on(
    trained: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "found.csv"
    missing = scans / "missing.npy"
    assert main(["predict", str(trained), str(scans), str(missing), "--output", str(output), "--top", "2"]) == 3
    with output.open() as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert set(rows) == {"a.npy", "b.ply", "c.xyz", "d.ply", "e.npy", "f.txt", "g.npy", "missing.npy"}
    for name in ("a.npy", "b.ply", "c.xyz"):
        assert rows[name]["error"] == ""
        assert float(rows[name]["probability_1"]) >= float(rows[name]["probability_2"])
        assert 0 <= float(rows[name]["novelty"]) <= 1
        assert rows[name]["known"] in ("yes", "no")
    for name, reason in (
        ("d.ply", "cannot be read as .ply"),
        ("e.npy", "empty"),
        ("f.txt", "NaN or infinite"),
        ("g.npy", "1 different point; the model's groups need 16"),
        ("missing.npy", "no such file"),
    ):
        assert reason in rows[name]["error"]
        assert rows[name]["class_1"] == ""
    told = capsys.readouterr()
    assert "5 of 8 files could not be predicted" in told.err
    assert "missing.npy: no such file" in told.err
    assert not list(output.parent.glob("*.part"))


def test_the_command_prints_lines_and_json(
    trained: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(trained / ADAPTER_FILE), str(scans / "[ab].*")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(scans / "a.npy"), str(scans / "b.ply")]
    assert re.search(r"%; novelty [01]\.\d\d( \(unfamiliar\))?$", lines[0])
    output = tmp_path / "found.jsonl"
    named = ["--adapter", f"parts={trained}", "--adapter", f"again={trained}"]
    assert main(["predict", *named, str(scans / "a.npy"), "--output", str(output)]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["adapter"] for one in found] == ["parts", "again"]
    assert set(found[0]) == {"file", "adapter", "classes", "probabilities", "novelty", "known", "warnings"}


def test_options_may_stand_between_and_the_output_is_no_input(trained: Path, scans: Path) -> None:
    output = scans / "found.csv"
    for _ in range(2):
        assert main(["predict", str(trained), "--up", "z", str(scans), "--output", str(output)]) == 3
        with output.open() as file:
            assert len(list(csv.DictReader(file))) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["RUN"],
            "nothing to predict: first give a run's folder, an adapter file or hf://owner/repository, then files",
        ),
        (["RUN", "a.npy", "--output", "found.txt"], "ends in .csv or .jsonl"),
        (["RUN", "a.npy", "--top", "0"], "--top 0: at least 1"),
        (["--adapter", "parts", "a.npy"], "--adapter takes NAME=FILE"),
        (["--adapter", "a=b", "--adapter", "a=c", "a.npy"], "each name once"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", *(str(trained) if text == "RUN" else text for text in arguments)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_files_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(trained), str(tmp_path / "empty")]) == 2
    assert "no file that is read in it (asc csv" in capsys.readouterr().err


def test_pictures(tmp_path: Path) -> None:
    config = small_config("linear", kind="vit")
    run.train(config, "test", tmp_path / "run", devices.make_accelerator("fp32"))
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    predictor = Predictor(tmp_path / "run")
    found = predictor([*sorted(tmp_path.glob("?.png")), tmp_path / "broken.png"])
    assert [type(one) for one in found] == [Prediction] * 3 + [Failure]
    assert "png" in predictor.suffixes
    (array,) = predictor([np.zeros((20, 3))])
    assert isinstance(array, Failure)
    assert array.reason == "input 0 is an array; an adapter for pictures takes files"


@pytest.mark.parametrize(
    ("path", "holds", "reason"),
    [
        ("a.safetensors", ("a.safetensors",), "{}: not a readable"),
        ("nope", (), "{}: no such run or file; give a run's folder, an adapter file or hf://owner/repository"),
        ("scans", ("scans/a.npy",), "{}: holds no adapter; give a run's folder, an adapter file or hf://"),
        (
            "run",
            ("run/state.safetensors",),
            "{}: the run is not finished and has kept no adapter yet; continue it with",
        ),
        ("run", ("run/state.safetensors", "run/metrics.json"), "{}: is a run without an adapter; weights of a pre-"),
    ],
)
def test_the_error_of_a_wrong_adapter_is_one_line(
    path: str, holds: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in holds:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing")
    assert main(["predict", str(tmp_path / path), "x.npy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {reason.format(tmp_path / path)}")


@pytest.mark.slow
def test_a_thousand_files_with_five_broken_ones(trained: Path, clouds: torch.Tensor, tmp_path: Path) -> None:
    """Each broken in its own way; memory does not grow with the number of files."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(995):
        np.save(folder / f"{number:04}.npy", (clouds[number % len(clouds)] * (1 + number / 1e5)).numpy())
    broken = {
        "empty.npy": b"",
        "cut.npy": (folder / "0000.npy").read_bytes()[:200],
        "nan.txt": b"1 2 nan\n" * 200,
        "words.xyz": b"these are no numbers\n",
        "few.csv": b"1,2,3\n4,5,6\n",
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    script = f"""
from pathlib import Path
from pointadapterx.engine.predictor import Predictor
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
predictor = Predictor({str(trained)!r})
sizes = []
for number, found in enumerate(predictor.stream(sorted(Path({str(folder)!r}).iterdir()))):
    if number in (300, 990):
        sizes.append(resident())
print(sizes[1] - sizes[0])
"""
    output = tmp_path / "found.jsonl"
    assert main(["predict", str(trained), str(folder), "--output", str(output), "--batch-size", "32"]) == 3
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    failed = {Path(row["file"]).name: row["error"] for row in rows if "error" in row}
    assert failed.keys() == broken.keys()
    assert all(name in failed[name] for name in broken)
    assert len({reason.replace(name, "") for name, reason in failed.items()}) >= 4  # they say what is wrong
    assert len(rows) - len(failed) == 995
    if sys.platform == "linux":
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert float(done.stdout) < 10, "MiB, from file 300 to file 990"
