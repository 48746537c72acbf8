"""Two processes (gloo) give the figures of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pointadapterx.build import build_model, build_splits
from pointadapterx.checkpoints.adapter_file import read_adapter, save_adapter
from pointadapterx.config import dump_config
from pointadapterx.datasets import build_dataset
from tests.conftest import ROOT, randomise, small_config
from tests.processes import run_together
from tests.synthetic import write_ldraw20

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package"),
]


def launch(processes: int, *arguments: object, script: Path = ROOT / "tools" / "main.py") -> str:
    """Runs a script, the command line by default, on the CPU in one process or several; what it printed.

    They get the variables that torchrun sets. :func:`torchrun` starts it itself, which takes seconds.
    """
    shared = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environments = [shared]
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environments = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return run_together(script, [str(argument) for argument in arguments], environments)


def torchrun(processes: int, *arguments: object) -> None:
    """Runs the command line as users do."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(ROOT / "tools" / "main.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def one_epoch(folder: Path) -> list[str]:
    """Arguments of a small training run; its data, config and output are in ``folder``."""
    write_ldraw20(folder / "data", train_per_class=4, test_per_class=1, num_points=128)
    config = small_config(data={"root": str(folder / "data")}, eval={"val_fraction": 0.5}, train={"epochs": 1})
    (folder / "small.yaml").write_text(dump_config(config))
    return ["--config", str(folder / "small.yaml"), "--output", str(folder / "run")]


def test_metrics_and_votes_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """On the embedded test set, whose 262 clouds leave the processes unequal shares and a short last batch."""
    config = small_config(eval={"batch_size": 20, "vote": {"seeds": [0, 1]}})
    classes = build_dataset("ldraw20", "test").classes
    save_adapter(randomise(build_model(config)), tmp_path / "adapter.safetensors", config=config, classes=classes)
    reports: list[dict[str, Any]] = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        printed = launch(processes, "--test", tmp_path / "adapter.safetensors", "--vote", 2, "--output", folder)
        assert f"{processes} process(es)" in printed
        assert printed.count("vote of 2 copies") == 1  # one process prints
        reports.append(json.loads((folder / "test.json").read_text()))
    one, two = reports
    assert one["test"]["count"] == 262
    assert sum(map(sum, one["test"]["confusion_matrix"])) == 262
    assert two["test"] == one["test"]
    assert two["vote"] == one["vote"]
    assert (tmp_path / "1" / "predictions.csv").read_bytes() == (tmp_path / "2" / "predictions.csv").read_bytes()


def test_two_processes_train_one_adapter(tmp_path: Path) -> None:
    """Batches of 9 in 2 parts over 2 processes: shares are uneven, and every sample counts once."""
    write_ldraw20(tmp_path / "data", train_per_class=4, test_per_class=2, num_points=160)
    config = small_config(
        data={"root": str(tmp_path / "data")},
        train={"epochs": 2, "batch_size": 9, "accumulate": 2},
        eval={"val_fraction": 0.3, "batch_size": 7},
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    run = tmp_path / "run"
    torchrun(2, "--config", tmp_path / "config.yaml", "--output", run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["count"] == 40
    assert sum(map(sum, metrics["test"]["confusion_matrix"])) == 40
    history = json.loads((run / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2]
    splits = build_splits(config)
    assert splits.val is not None
    for record in history:  # accuracies over every sample once are multiples of one over their number
        for figure, part in (("train_accuracy", splits.train), ("val_overall_accuracy", splits.val)):
            correct = record[figure] / 100 * len(part)
            assert correct == pytest.approx(round(correct), abs=1e-6)
    assert [path.name for path in run.glob("adapter*")] == ["adapter.safetensors"]
    info = read_adapter(run / "adapter.safetensors")
    initial = build_model(config).state_dict()
    assert any(not torch.equal(tensor, initial[name]) for name, tensor in info.tensors.items())
    assert not list(run.glob(".*"))

    launch(1, "--test", run, "--output", tmp_path / "test")
    assert json.loads((tmp_path / "test" / "test.json").read_text())["test"] == metrics["test"]
    state = {name.removeprefix("model/"): t for name, t in load_file(run / "state.safetensors").items()}
    assert info.tensors.keys() <= state.keys()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads as Linux does")
@pytest.mark.parametrize("code", [0, 2])
def test_the_threads_of_the_process_group_end_with_the_command(tmp_path: Path, code: int) -> None:
    """A process that exits while they run aborts now and then. With code 2 an error ends the training."""
    command = one_epoch(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import time
from contextlib import suppress
from pathlib import Path
from pointadapterx.commands.main import main
from pointadapterx.engine import devices
from pointadapterx import jobs as run
from pointadapterx.engine import trainer
from pointadapterx.errors import PointAdapterXError
def threads():
    names = set()
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it ended just now
            names.add(path.read_text().strip())
    return {{name for name in names if "gloo" in name}}
def fail(*arguments, **options):
    raise PointAdapterXError("made to fail")
leave = devices.leave_process_group
def watched():
    print("before", sorted(threads()))
    leave()
devices.leave_process_group = watched
if {code}:
    trainer.predict = fail
assert main({command!r}) == {code}
deadline = time.monotonic() + 10
while threads() and time.monotonic() < deadline:  # a joined thread may be listed for a moment
    time.sleep(0.1)
assert not threads(), threads()
"""
    )
    assert "before ['" in launch(2, script=script)


def test_processes_hold_the_same_model_after_an_epoch(tmp_path: Path) -> None:
    """BatchNorm statistics included, so that all of them select the best epoch by one model."""
    command = one_epoch(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(
        f"""
from pathlib import Path
from safetensors.torch import save_file
from pointadapterx.engine import trainer
from pointadapterx.commands.main import main
predict = trainer.predict
def keep(model, dataset, task, accelerator, copies):
    state = {{name: tensor.clone() for name, tensor in model.state_dict().items()}}
    save_file(state, Path({str(tmp_path)!r}) / f"{{accelerator.process_index}}.safetensors")
    return predict(model, dataset, task, accelerator, copies=copies)
trainer.predict = keep
raise SystemExit(main({command!r}))
"""
    )
    launch(2, script=script)
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
