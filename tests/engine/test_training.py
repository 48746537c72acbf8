"""Training runs: resuming bit for bit, stopping cleanly, losing nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from pointadapterx import jobs as run
from pointadapterx.build import build_model, build_splits
from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.counting import SavedStorages
from pointadapterx.engine import devices
from pointadapterx.engine.optim import learning_rate
from pointadapterx.engine.state import load_state
from pointadapterx.engine.trainer import Interrupted, Trainer
from pointadapterx.errors import CheckpointError, ConfigError, PointAdapterXError, TrainingError
from pointadapterx.run_folder import ADAPTER_FILE, STATE_FILE
from pointadapterx.sections import TrainConfig
from tests.conftest import ROOT
from tests.processes import start
from tests.resuming import assert_same_tensors, train_until_stopped

MakeConfig = Callable[..., Config]


def train(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    """A whole run; its final state."""
    run.train(config, "test", folder, devices.make_accelerator("fp32"))
    return load_file(folder / STATE_FILE)


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "main.py"), *map(str, arguments)]


def test_a_run_leaves_its_whole_story(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config()
    train(config, tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "adapter.safetensors", "metrics.json", "predictions.csv", "history.json", "log.txt"} <= files
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["protocol"].startswith("validation")
    assert report["regime"] == "rotation"
    assert report["test"]["count"] == 40
    matrix = torch.tensor(report["test"]["confusion_matrix"])
    assert matrix.sum() == 40
    assert report["test"]["overall_accuracy"] == pytest.approx(100 * matrix.diagonal().sum().item() / 40)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert sum(int(row["correct"]) for row in rows) == matrix.diagonal().sum()
    info = read_adapter(tmp_path / "run" / ADAPTER_FILE)
    assert info.config == config
    assert info.metrics["protocol"] == report["protocol"]


def test_the_same_seed_gives_the_same_weights(run_config: MakeConfig, tmp_path: Path) -> None:
    one, other = train(run_config(), tmp_path / "a"), train(run_config(), tmp_path / "b")
    assert_identical(one, other)
    third = train(run_config(train={"seed": 1}), tmp_path / "c")
    assert any(not torch.equal(one[name], third[name]) for name in one)


@pytest.mark.slow
def test_killed_mid_epoch_and_resumed_is_bit_identical(config_file: Callable[..., Path], tmp_path: Path) -> None:
    config = config_file(train={"epochs": 4}, method={"dropout": 0.1})
    assert main(["--config", str(config), "--output", str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    # A file of its own makes the process kill itself, with SIGKILL, inside the third epoch.
    killer = tmp_path / "killer.py"
    killer.write_text(
        f"""
import os, signal, sys
from pointadapterx.commands.main import main
from pointadapterx.engine.trainer import Trainer
step = Trainer._train_step
def kill_in_third_epoch(self, number, *rest):
    if self.progress.epoch == 2 and number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, *rest)
Trainer._train_step = kill_in_third_epoch
main(["--config", {str(config)!r}, "--output", {str(killed)!r}])
"""
    )
    process = start(killer, (), os.environ, tmp_path / "printed")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "metrics.json").exists()
    AcceleratorState._reset_state()
    assert main(["--resume", str(killed)]) == 0
    assert_identical(load_file(tmp_path / "whole" / STATE_FILE), load_file(killed / STATE_FILE))
    assert_identical(load_file(tmp_path / "whole" / ADAPTER_FILE), load_file(killed / ADAPTER_FILE))
    reports = [json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "whole", killed)]
    assert reports[0]["test"] == reports[1]["test"]
    assert reports[0]["best_epoch"] == reports[1]["best_epoch"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_within_the_epoch_and_resuming_is_bit_identical(
    number: signal.Signals, run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(train={"epochs": 2}, method={"dropout": 0.1})
    whole = train(config, tmp_path / "whole")
    step = Trainer._train_step

    def interrupt(self: Trainer, index: int, *rest: Any) -> Any:
        if self.progress.epoch == 1 and index == 2:
            os.kill(os.getpid(), number)
        return step(self, index, *rest)

    monkeypatch.setattr(Trainer, "_train_step", interrupt)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "stopped")
    monkeypatch.undo()
    run.resume(tmp_path / "stopped", [])
    assert_identical(whole, load_file(tmp_path / "stopped" / STATE_FILE))


@pytest.mark.slow
def test_sigterm_exits_cleanly_with_the_way_to_continue(config_file: Callable[..., Path], tmp_path: Path) -> None:
    config = config_file(train={"epochs": 500})
    process = subprocess.Popen(
        command("--config", config, "--output", tmp_path / "run"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline, log = time.monotonic() + 120, tmp_path / "run" / "log.txt"
    while not (log.exists() and "epoch 1/" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in errors
    assert "Traceback" not in errors


def test_resume_keeps_the_best_metric(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config(train={"epochs": 2})
    train(config, tmp_path / "run")
    trainer = Trainer(
        config, build_model(config), build_splits(config), tmp_path / "run", devices.make_accelerator("fp32")
    )
    trainer.resume()
    history = trainer.progress.history
    assert trainer.progress.best_score == max(record["val_overall_accuracy"] for record in history)
    assert trainer.progress.epoch == 2


def test_a_full_disk_leaves_the_previous_checkpoint(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config()
    train(config, tmp_path / "run")
    path = tmp_path / "run" / STATE_FILE
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    trainer = Trainer(
        config, build_model(config), build_splits(config), tmp_path / "run", devices.make_accelerator("fp32")
    )
    with pytest.raises(CheckpointError, match=r"No space left on device.*previous file.*unchanged"):
        trainer._save_state()
    assert path.read_bytes() == before
    assert not list((tmp_path / "run").glob(".*tmp"))
    monkeypatch.undo()
    trainer.resume()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file size limits")
def test_a_kill_during_a_save_leaves_the_previous_checkpoint(run_config: MakeConfig, tmp_path: Path) -> None:
    """The kernel kills the writer in the middle of the file (SIGXFSZ at a size limit)."""
    config = run_config()
    train(config, tmp_path / "run")
    path = tmp_path / "run" / STATE_FILE
    before = path.read_bytes()
    script = tmp_path / "save.py"
    script.write_text(f"""
import resource, signal
from pathlib import Path
from safetensors.torch import load_file
from pointadapterx.files import write_safetensors
tensors = load_file({str(path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2}))
write_safetensors(Path({str(path)!r}), tensors, {{}})
""")
    process = start(script, (), os.environ, tmp_path / "printed")
    process.join(120)
    assert process.exitcode == -signal.SIGXFSZ
    assert path.read_bytes() == before
    model = build_model(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    load_state(path, model, set(model.adapter_state()), optimizer, {})


def test_a_non_finite_loss_stops_with_the_batch(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config()
    model = build_model(config)
    trainer = Trainer(config, model, build_splits(config), tmp_path / "run", devices.make_accelerator("fp32"))
    (tmp_path / "run").mkdir()
    with torch.no_grad():
        model.head.mlp[-1].bias[3] = float("inf")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(TrainingError, match=r"loss of epoch 1, step 1 is not finite: samples \[\d+, \d+"):
        trainer.fit()
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_accumulation_gives_the_gradient_of_the_whole_batch(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without random draws and BatchNorm, two parts are one batch."""
    monkeypatch.setattr("pointadapterx.datasets.inputs.drawn_index", lambda *_, **__: None)
    plain = {"backbone": {"drop_path": 0.0}, "head": {"hidden": []}, "data": {"augment": "none", "num_points": 256}}
    weights = []
    for parts in (1, 2):
        settings = {"epochs": 1, "accumulate": parts, "batch_size": 9}
        config = run_config("linear", train=settings, **plain)
        state = train(config, tmp_path / f"{parts}")
        weights.append(state["model/head.mlp.0.weight"])
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("progress", ["null", "[]", '{"epoch": null}', '{"history": {}}', '{"x": 1}', "[" * 99_999])
def test_progress_of_another_kind_is_damaged(progress: str, run_config: MakeConfig, tmp_path: Path) -> None:
    model = build_model(run_config("linear"))
    optimizer = torch.optim.SGD(model.parameters())
    path = tmp_path / STATE_FILE
    save_file({"model/x": torch.zeros(1)}, path, {"format": "pointadapterx-state-2", "progress": progress})
    with pytest.raises(CheckpointError, match=r"its metadata is damaged .*; start the run again"):
        load_state(path, model, set(), optimizer, {})


def test_a_folder_that_is_removed_ends_the_run(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._train_step

    def removing(self: Trainer, *arguments: Any) -> Any:
        shutil.rmtree(self.folder, ignore_errors=True)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", removing)
    with pytest.raises(TrainingError, match="run: was removed while the run wrote to it; start a new run"):
        run.train(run_config("linear"), "test", tmp_path / "run", devices.make_accelerator("fp32"))
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_written_over(config_file: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("mine")
    assert main(["--config", str(config_file()), "--output", str(folder)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == "mine"


def test_resuming_with_other_data_is_refused(run_config: MakeConfig, tmp_path: Path) -> None:
    from tests.synthetic import write_ldraw20

    train(run_config(), tmp_path / "run")
    other = tmp_path / "other"
    write_ldraw20(other, train_per_class=3, test_per_class=2, num_points=256)
    with pytest.raises(CheckpointError, match=r"the run's train data differ"):
        run.resume(tmp_path / "run", [f"data.root={other}"])
    with pytest.raises(PointAdapterXError, match="a resumed run keeps its config"):
        run.resume(tmp_path / "run", ["train.lr=1"])


def test_published_protocol_marks_every_output(run_config: MakeConfig, tmp_path: Path, capsys: Any) -> None:
    train(run_config(eval={"protocol": "published"}), tmp_path / "run")
    label = "published: best epoch selected on the TEST set"
    assert label in (tmp_path / "run" / "metrics.json").read_text()
    assert label in read_adapter(tmp_path / "run" / ADAPTER_FILE).metrics["protocol"]
    assert label in " ".join(capsys.readouterr().out.split())
    for name in ("history.json", "predictions.csv"):
        assert label in (tmp_path / "run" / name).read_text(), name
    assert "selects on TEST" in (tmp_path / "run" / "log.txt").read_text()
    report = run.test(tmp_path / "run", [], None, False, tmp_path / "again")
    assert label in report["protocol"]


@pytest.mark.parametrize(
    ("protocol", "every", "says"),
    [
        ("validation", 1, "validation: best epoch selected on a part of the training set"),
        ("validation", 2, "validation: the last epoch kept, the only one scored on a part of the training set"),
        ("published", 3, "published: the last epoch kept, the only one scored on the TEST set"),
        ("last", 1, "last: the last epoch of the whole training set, nothing selected"),
    ],
)
def test_an_epoch_is_called_best_where_there_was_a_choice(
    protocol: str, every: int, says: str, run_config: MakeConfig, tmp_path: Path
) -> None:
    config = run_config("linear", eval={"protocol": protocol, "every": every}, train={"epochs": 2})
    train(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["protocol"].startswith(says)
    assert read_adapter(tmp_path / "run" / ADAPTER_FILE).metrics["protocol"] == metrics["protocol"]
    log = (tmp_path / "run" / "log.txt").read_text()
    chosen = "best epoch selected" in says
    assert f"{'best' if chosen else 'last'} epoch {metrics['best_epoch']} kept; adapter: " in log
    assert ("  best " in log) == chosen
    assert chosen or metrics["best_epoch"] == 2


def test_a_validation_part_of_the_data_set_is_named(run_config: MakeConfig, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for label, sides in (("rod", (9, 1, 1)), ("plate", (9, 9, 1))):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for number in range(8):
                np.save(tmp_path / "data" / part / label / f"{number}.npy", draw.normal(size=(256, 3)) * sides)
    data = {"name": "folder", "root": str(tmp_path / "data"), "stored_points": 256}
    train(run_config("linear", data=data, head={"num_classes": 2}), tmp_path / "run")
    says = "validation: best epoch selected on the data set's validation part, test set used once"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["protocol"] == says
    assert says in (tmp_path / "run" / "predictions.csv").read_text()
    assert read_adapter(tmp_path / "run" / ADAPTER_FILE).metrics["protocol"] == says


def test_testing_again_leaves_the_run_as_it_is(run_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(run_config(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    run.test(folder, ["data.num_points=200"], 2, False, None)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    (written,) = folder.glob("test-*")
    report = json.loads((written / "test.json").read_text())
    assert report["config"]["data"]["num_points"] == 200
    assert report["overrides"] == ["data.num_points=200"]
    assert report["vote"]["first_vote"]["count"] == 40
    with pytest.raises(PointAdapterXError, match="a test keeps the adapter's model"):
        run.test(folder, ["method.scale=2.0"], None, False, None)


def test_a_non_finite_gradient_leaves_the_weights(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config()
    model = build_model(config)
    trainer = Trainer(config, model, build_splits(config), tmp_path, devices.make_accelerator("fp32"))
    model.head.mlp[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(TrainingError, match="gradient of epoch 1, step 1 is not finite"):
        trainer.fit()
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_resuming_with_another_number_of_processes_is_refused(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config()
    train(config, tmp_path / "run")
    model = build_model(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"used 1 process\(es\), now there are 2.*resume it with 1"):
        load_state(tmp_path / "run" / STATE_FILE, model, set(), optimizer, {"processes": "2"})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_long_run_that_is_ended_early_is_the_run_of_its_new_config(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is planned so or stopped and resumed so; what is over cannot change."""
    schedule = {"epochs": 4, "cosine_epochs": 9, "cooldown_epochs": 2}
    config = run_config("linear", train={"epochs": 9, "warmup_epochs": 1})
    train(run_config("linear", train=schedule | {"warmup_epochs": 1}), tmp_path / "planned")
    train_until_stopped(config, tmp_path / "ended", monkeypatch, epoch=2, step=1)
    kept = (tmp_path / "ended" / "config.yaml").read_text()
    for changes, message in (
        (["train.epochs=4"], "learning rate of epoch 2, which is over or has begun, would be another; .*epochs=9"),
        (["train.epochs=4", "train.cosine_epochs=9", "train.cooldown_epochs=3"], "begin behind epoch 3"),
        (["train.epochs=2", "train.cosine_epochs=9"], "train.epochs=2: 2 of the run's 9 epochs are over; .* raise it"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.resume(tmp_path / "ended", changes)
    assert (tmp_path / "ended" / "config.yaml").read_text() == kept
    overrides = [f"train.{key}={value}" for key, value in schedule.items()]
    (tmp_path / "ended" / ADAPTER_FILE).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is gone"):
        run.resume(tmp_path / "ended", overrides)
    assert (tmp_path / "ended" / "config.yaml").read_text() == kept  # written when all is in order
    (tmp_path / "elsewhere").rename(tmp_path / "ended" / ADAPTER_FILE)
    monkeypatch.setattr("pointadapterx.quickstart.ending.OWN", ("ldraw20",))  # whose summary has pictures
    assert main(["resume", str(tmp_path / "ended"), *overrides]) == 0
    assert_same_tensors(*(tmp_path / name / STATE_FILE for name in ("planned", "ended")))
    planned, ended = ((tmp_path / name / "config.yaml").read_text() for name in ("planned", "ended"))
    assert planned == ended != kept
    with pytest.raises(ConfigError, match="4 of the run's 4 epochs are over, and nothing is to come"):
        run.resume(tmp_path / "ended", ["train.epochs=6"])


def test_a_cooldown_falls_in_a_line_from_the_cosine() -> None:
    long = TrainConfig(epochs=300)
    short = TrainConfig(epochs=120, cosine_epochs=300, cooldown_epochs=20)
    assert all(learning_rate(epoch, short) == learning_rate(epoch, long) for epoch in range(101))
    begin = learning_rate(100, long)
    assert learning_rate(110, short) == pytest.approx((begin + 1e-6) / 2)
    assert learning_rate(119, short) == pytest.approx(1e-6 + (begin - 1e-6) / 20)
    for keys, message in (
        ({"epochs": 20, "cosine_epochs": 19}, "19 is less than train.epochs=20"),
        ({"epochs": 20, "cooldown_epochs": 11}, "exceeds the 10 epochs behind the warm-up"),
    ):
        assert message in next(TrainConfig(**keys).problems())[1]


def test_learning_rate_is_the_published_schedule() -> None:
    settings = TrainConfig(lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, warmup_epochs=10, epochs=300)
    assert learning_rate(0, settings) == 1e-6
    assert learning_rate(5, settings) == pytest.approx((5e-4 + 1e-6) / 2)
    assert learning_rate(150, settings) == pytest.approx((5e-4 + 1e-6) / 2)
    assert learning_rate(299, settings) < 1.1e-6 + 5e-4 * 3e-5
    rates = [learning_rate(epoch, settings) for epoch in range(10, 300)]
    assert rates == sorted(rates, reverse=True)


def assert_same_history(one: Path, other: Path) -> None:
    """Of two runs' records; weights may differ where BatchNorm in the head leaves nothing but rounding as gradient."""
    histories = [json.loads((folder / "history.json").read_text()) for folder in (one, other)]
    for expected, found in zip(*histories, strict=True):
        assert expected.keys() == found.keys()
        for key in expected.keys() - {"seconds", "protocol"}:
            torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(expected[key]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["dapt", "dapt_x", "e3va_x"])
def test_gradient_checkpointing_trains_the_same(name: str, run_config: MakeConfig, tmp_path: Path) -> None:
    train(run_config(name), tmp_path / "plain")
    train(run_config(name, train={"gradient_checkpointing": True}), tmp_path / "again")
    assert_same_history(tmp_path / "plain", tmp_path / "again")  # the routing is noted once


def test_the_key_reaches_the_blocks(run_config: MakeConfig, tmp_path: Path) -> None:
    for on in (None, True):
        config = run_config("dapt", train={"gradient_checkpointing": on})
        model = build_model(config)
        Trainer(config, model, build_splits(config), tmp_path, devices.make_accelerator("fp32"))
        assert all(block.recomputed is bool(on) for block in model.backbone.blocks)


def test_gradient_checkpointing_keeps_less(run_config: MakeConfig) -> None:
    model = build_model(run_config("dapt")).train()
    kept = []
    for recomputed in (False, True):
        for block in model.backbone.blocks:
            block.recomputed = recomputed
        storages = SavedStorages([*model.parameters(), *model.buffers()])
        with storages.watch():
            logits, _ = model(torch.randn(4, 128, 3, generator=torch.Generator().manual_seed(0)))
        logits.sum().backward()
        kept.append(storages.nbytes())
    assert kept[1] < 0.4 * kept[0]


def test_a_compiled_run_trains_the_same_and_resumes(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method that is compiled soon; tests/peft/test_methods.py compiles each of them."""
    still: dict[str, Any] = {
        "method": {"dropout": 0.0},
        "head": {"dropout": 0.0},
        "backbone": {"drop_path": 0.0, "depth": 1},
    }
    train(run_config("lora", **still), tmp_path / "plain")
    compile_module = torch.nn.Module.compile
    calls = []

    def compile_fast(self: torch.nn.Module) -> None:
        calls.append(self)
        compile_module(self, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_fast)
    config = run_config("lora", **still, train={"compile": True})
    train(config, tmp_path / "compiled")
    assert len(calls) == 1
    assert_same_history(tmp_path / "plain", tmp_path / "compiled")
    run.resume(tmp_path / "compiled", [])
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"train\.compile needs a C\+\+ compiler on a CPU"):
        train(config, tmp_path / "without")
    assert not (tmp_path / "without").exists()


@pytest.mark.parametrize(("hardware", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_hardware_has_and_is_stored(
    hardware: bool, precision: str, run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": hardware}, raising=False)
    devices.make_accelerator("fp32" if hardware else "bf16")  # of a run before, in the same process
    run.train(run_config(train={"precision": "auto"}), "test", tmp_path / "run", devices.make_accelerator("auto"))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["precision"] == precision
    assert read_adapter(tmp_path / "run" / ADAPTER_FILE).config.train.precision == precision
