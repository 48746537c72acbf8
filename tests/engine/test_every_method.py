"""Training, stopping and resuming, and two processes, of every method on both backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pointadapterx import jobs as run
from pointadapterx.engine import devices
from pointadapterx.peft import METHODS
from pointadapterx.run_folder import STATE_FILE
from tests.conftest import small_config
from tests.engine.test_distributed import launch
from tests.mechanisms import exhaustive, methods_on
from tests.resuming import assert_resumes_bit_identical
from tests.synthetic import write_ldraw20

KINDS = ("point_mae", "vit")
EVERY_FORM = methods_on(KINDS)
FORMS = [
    pytest.param([str(form.id) for form in EVERY_FORM if not form.marks], id="mechanisms"),
    pytest.param([str(form.id) for form in EVERY_FORM if form.marks], id="others", marks=exhaustive),
]
LATE = {"inject_from": 1, "neighbours": 4, "gate": "normalized", "dense_epochs": 2, "router_rate": 0.5}
MORE = {"": {}, "late": LATE}  # options of a method, by what is behind the + of a form
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of the last of several parts of a batch, or of one


def write_data(root: Path) -> None:
    """Small data for both backbones."""
    write_ldraw20(root / "point_mae", train_per_class=2, test_per_class=1, num_points=128)
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for number, name in enumerate(("dark", "bright")):
            folder = root / "vit" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * number, 100 * number + 100, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def config_of(name: str, kind: str, root: Path, **train: Any) -> dict[str, Any]:
    name, _, more = name.partition("+")
    data = {"root": str(root / kind)} | ({"name": "imagefolder"} if kind == "vit" else {})
    return small_config(
        name,
        kind=kind,
        data=data,
        head={"num_classes": 2} if kind == "vit" else {},
        method=MORE[more] | ({"dropout": 0.1} if "dropout" in METHODS[name].Options.model_fields else {}),
        train={"epochs": 2, "batch_size": 8, **train},
        eval={"protocol": "last"},
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.mark.parametrize(("name", "kind"), [*EVERY_FORM, ("dapt_x+late", "point_mae")])
def test_stopped_and_resumed_is_bit_identical(
    name: str, kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumes_bit_identical(config_of(name, kind, root), tmp_path, monkeypatch)


EVERY = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from pointadapterx import jobs as run
from pointadapterx.engine import devices
from tests.engine.test_every_method import config_of
root, output, parts = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for form in sys.argv[4:]:
    config = config_of(*form.split("-"), root, epochs=1, accumulate=parts)
    run.train(config, "test", output / form, devices.make_accelerator("fp32"))
devices.leave_process_group()
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
@pytest.mark.parametrize("forms", FORMS)
def test_two_processes_train_every_method_like_one(forms: list[str], root: Path, tmp_path: Path) -> None:
    """One process that accumulates two parts of each batch takes the same steps."""
    (tmp_path / "every.py").write_text(EVERY)
    launch(2, root, tmp_path / "2", 1, *forms, script=tmp_path / "every.py")
    for form in forms:
        config = config_of(*form.split("-"), root, epochs=1, accumulate=2)  # as many parts in all
        run.train(config, "test", tmp_path / "1" / form, devices.make_accelerator("fp32"))
        one, two = (load_file(tmp_path / n / form / STATE_FILE) for n in ("1", "2"))
        weights = [key for key in one if key.startswith("model/") and not key.endswith(BUFFERS)]
        assert weights
        for key in weights:
            torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4, msg=f"{form}: {key}")
