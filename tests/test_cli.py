"""The command line: its words, its exit status, and that commands and flags are the same thing."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import pointadapterx
from pointadapterx import jobs
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import read_adapter, save_adapter
from pointadapterx.commands.main import COMMANDS, main
from pointadapterx.config import dump_config
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.jobs import testing
from pointadapterx.quickstart.fitting import shorter_warmup
from pointadapterx.run_folder import new_folder
from tests.conftest import ROOT, small_config
from tests.synthetic import write_ldraw20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config, its data and an adapter."""
    write_ldraw20(tmp_path / "data", train_per_class=3, test_per_class=1, num_points=160)
    config = small_config(data={"root": str(tmp_path / "data")}, train={"epochs": 1}, eval={"vote": {"seeds": [0, 1]}})
    (tmp_path / "small.yaml").write_text(dump_config(config))
    save_adapter(build_model(config), tmp_path / "adapter.safetensors", config=config, classes=LDRAW20_CLASSES)
    return tmp_path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The jobs that are called instead of run, each with what it is given."""
    calls: list[tuple[Any, ...]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda *given: calls.append((name, *given))

    monkeypatch.setattr("pointadapterx.quickstart.ending.end", lambda folder, **options: None)
    for name in ("train", "resume", "test", "count", "probe", "search"):
        monkeypatch.setattr(jobs, name, record(name))
    monkeypatch.setattr("pointadapterx.engine.devices.make_accelerator", lambda *given: given)
    monkeypatch.setattr("pointadapterx.config.read_config", lambda path, overrides: Given(path, tuple(overrides)))
    return calls


class Given(NamedTuple):
    """What a config was read from."""

    path: str
    overrides: tuple[str, ...]
    train: SimpleNamespace = SimpleNamespace(precision="fp32", device="cuda:1")


DEVICE = ("fp32", "cuda:1")


@pytest.mark.parametrize(
    ("flags", "command", "call"),
    [
        ("--config a.yaml", "train --config a.yaml", ("train", Given("a.yaml", ()), "a", None, DEVICE)),
        (
            "x.y=1 --config a.yaml --output o z.w=2",
            "train x.y=1 --output o --config a.yaml z.w=2",
            ("train", Given("a.yaml", ("x.y=1", "z.w=2")), "a", Path("o"), DEVICE),
        ),
        ("--resume r", "resume r", ("resume", Path("r"), [])),
        ("--resume r data.root=b", "train --resume r data.root=b", ("resume", Path("r"), ["data.root=b"])),
        ("--test a", "test a", ("test", "a", [], None, False, None)),
        ("--test a data.root=b", "test a data.root=b", ("test", "a", ["data.root=b"], None, False, None)),
        ("--test a --vote 10", "vote a", ("test", "a", [], 10, False, None)),
        ("--test a --vote 3", "vote a 3", ("test", "a", [], 3, False, None)),
        ("--test a --vote 3", "test a --vote 3", ("test", "a", [], 3, False, None)),
        ("--test a --vote-published", "test a --vote-published", ("test", "a", [], None, True, None)),
        ("--test a --vote 10 --vote-published", "vote a --vote-published", ("test", "a", [], 10, True, None)),
        (
            "--test a --vote 3 data.root=b --output c",
            "vote a 3 data.root=b --output c",
            ("test", "a", ["data.root=b"], 3, False, Path("c")),
        ),
        ("--test a --vote 10 data.root=b", "vote a data.root=b", ("test", "a", ["data.root=b"], 10, False, None)),
        ("--search r", "search r", ("search", Path("r"), [])),
        ("--search r a.b=1", "search r a.b=1", ("search", Path("r"), ["a.b=1"])),
        ("--count --config a", "count --config a", ("count", Given("a", ()))),
        ("--probe --config a b.c=1", "probe --config a b.c=1", ("probe", Given("a", ("b.c=1",)), DEVICE)),
    ],
)
def test_flags_and_commands_call_the_same_job(
    flags: str, command: str, call: tuple[Any, ...], called: list[tuple[Any, ...]]
) -> None:
    assert main(flags.split()) == 0
    assert main(command.split()) == 0
    assert called == [call, call]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "give --config FILE"),
        ("train", "give FOLDER (your own files), --config FILE (for example --config demo) or --resume RUN"),
        ("train a b", "choose one of a and b"),
        ("train --resume a --output b", "--resume writes into the run's folder; remove --output"),
        ("count", "give --config FILE (for example --config cfgs/demo.yaml)"),
        ("count a b", "choose one of a and b"),
        ("probe", "give --config FILE (for example --config cfgs/pretrain/point_mae_tiny.yaml)"),
        ("train.lr=1", "give --config FILE"),
        ("doctr scans", "unknown command 'doctr'; did you mean 'doctor'?"),
        ("Train --config demo", "unknown command 'Train'; did you mean 'train'?"),
        ("xyz", "unknown command 'xyz'."),
        ("test", "the following arguments are required: RUN_OR_ADAPTER\n"),
        ("vote", "the following arguments are required: RUN_OR_ADAPTER\n"),
        ("train --config a --resume b", "choose one of --config and --resume"),
        ("--config a --resume b", "choose one of --config, --resume, --test and --search"),
        ("--test a --resume b", "choose one of --config, --resume, --test and --search"),
        ("--config a --search b", "choose one of --config, --resume, --test and --search"),
        ("--search a --output b", "--search writes into the run's folder"),
        ("--resume a --output b", "--resume writes into the run's folder; remove --output"),
        ("--search a --count", "--count and --probe need --config FILE alone"),
        ("--config a --count --probe", "--count and --probe need --config FILE alone"),
        ("--config a --count --output b", "--count and --probe need --config FILE alone"),
        ("search", "the following arguments are required: RUN\n"),
        ("--config a --vote 3", "--vote needs --test CKPT"),
        ("--config a --vote-published", "--vote needs --test CKPT"),
        ("--test a --vote 0", "--vote 0: at least 1 copy"),
        ("--test a --vote many", "invalid int value: 'many'"),
        ("--confg a", "unrecognized arguments: --confg"),
    ],
)
def test_wrong_arguments_say_what_to_give(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("usage: ")


def test_help_lists_every_command_without_importing_torch() -> None:
    script = (
        "import sys\nfrom pointadapterx.commands.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'rich', 'pydantic'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--resume RUN" in done.stdout
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


SLOW_TO_IMPORT = {"sklearn", "scipy", "torchmetrics", "transformers", "tensorboard", "matplotlib", "open3d"}
SLOW_TO_IMPORT |= {"torch._dynamo", "onnx", "huggingface_hub", "jinja2"}


def test_commands_start_without_what_is_slow_to_import() -> None:
    """Most without torch; the others name data sets, pictures or tolerances in their help. No job brings in more."""
    waiting = {"doctor", "export", "predict", "visualize"}
    script = (
        "import sys\nfrom pointadapterx.commands.main import build_parser\n"
        f"for name in {sorted(COMMANDS.keys() - waiting)}:\n    build_parser(name, name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        f"for name in {sorted(waiting)}:\n    build_parser(name, name)\n"
        "import pointadapterx.jobs\n"
        f"assert not (found := {SLOW_TO_IMPORT} & sys.modules.keys()), found"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: pointadapterx {command} ")
    assert f"examples:\n  pointadapterx {command} " in shown
    assert not re.search(r":\w+:|``", shown)  # no markup of the documentation
    assert all(len(line) <= 120 for line in shown.splitlines())


def test_every_command_is_one_file_and_every_file_a_command() -> None:
    folder = ROOT / "pointadapterx" / "commands"
    shared = {"__init__", "main", "options", "flags", "conditions", "scoring", "each"}
    assert {path.stem for path in folder.glob("*.py")} - shared == set(COMMANDS)


@pytest.mark.parametrize("tool", ["compare", "predict", "visualize"])
def test_tools_of_one_command(tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pointadapterx.commands.main.keep_freed_memory", lambda: True)  # of the process of the tests
    monkeypatch.setattr(sys, "argv", [tool])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: python tools/{tool}.py ")


def test_ctrl_c_while_a_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(name: str, prog: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pointadapterx.commands.main.build_parser", stopped)
    assert main(["doctor", "scans"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pointadapterx {pointadapterx.__version__}\n"


def test_tab_completion_finds_what_is_imported_on_first_use() -> None:
    """And every name leads somewhere, and nothing is imported to list them."""
    assert set(pointadapterx.__all__) <= set(dir(pointadapterx))
    assert set(pointadapterx._HOME) == set(pointadapterx.__all__)
    for name in pointadapterx.__all__:
        assert getattr(pointadapterx, name) is not None
    script = "import sys, pointadapterx\nassert 'Predictor' in dir(pointadapterx)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_count_prints_the_budget_and_needs_neither_data_nor_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--config", "scan_obj_bg", "backbone.weights=/nowhere.pth", "data.root=/nowhere"]) == 0
    printed = capsys.readouterr().out
    for figure in ("415,699", "49,860", "1.88 %", "22,093,327"):
        assert figure in printed
    for part, trainable in (("class token and positions", "768"), ("blocks", "9,216"), ("mixture", "29,892")):
        assert re.search(rf"  {part} +│ +{trainable} │", printed)
    for cost, value in (("forward", "4.29 G"), ("backward", "3.34 G"), ("activations kept, fp32", "39.92 MiB")):
        assert re.search(rf"{cost} +│ +{value} │", printed)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ("labelled_folder", "task.classes=[wheel,body]"),
        ("labelled_folder", "task.parts={car: [wheel, body]}"),
        ("own", "head.num_classes=4"),
    ],
)
def test_count_takes_the_classes_in_place_of_data(config: str, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    others = ["task.name=part_segmentation"] if "parts" in given else []
    assert main(["count", "--config", config, *others]) == 2
    assert f"where there are no data, as for count, give {given.partition('=')[0]}=" in capsys.readouterr().err
    assert main(["count", "--config", config, *others, given, "backbone.depth=1"]) == 0
    assert "parameters of dapt_x" in capsys.readouterr().out


def test_count_takes_what_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = read_adapter("ldraw20")
    (tmp_path / "config.yaml").write_text(dump_config(info.config), encoding="utf-8")  # of a run that goes on
    for place in ("ldraw20", str(info.path), str(tmp_path)):
        assert main(["count", place, "backbone.depth=1"]) == 0
    one, *others = capsys.readouterr().out.split("parameters of dapt_x")[1:]
    assert others == [one, one]


def test_a_run_by_default_goes_beside_a_run_and_not_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_folder("shapes").parent == Path("runs/shapes")
    (tmp_path / "runs" / "shapes").mkdir(parents=True)
    assert new_folder("shapes").parent == Path("runs/shapes")
    (tmp_path / "runs" / "shapes" / "config.yaml").touch()
    assert re.fullmatch(r"runs/shapes-\d{8}-\d{6}", new_folder("shapes").as_posix())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["train.epochs=2"], 0),
        (["train.epochs=3"], None),
        (["train.epochs=2", "train.warmup_epochs=2"], None),  # refused by name
        (["train.epochs=no"], None),
    ],
)
def test_fewer_epochs_shorten_the_warm_up(overrides: list[str], expected: int | None) -> None:
    assert shorter_warmup("demo", overrides) == expected
    assert shorter_warmup("scan_pb_t50_rs", ["train.epochs=10"]) == 1  # of the 10 by default


def test_count_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["count", "--config", "demo", "backbone.weights=null", "backbone.depth=1"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_to_a_folder_named_after_its_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["train", "--config", "small.yaml", "train.seed=3"]) == 0
    (run,) = (folder / "runs" / "small").iterdir()
    assert json.loads((run / "metrics.json").read_text())["seed"] == 3
    finished = (run / "metrics.json").read_bytes()
    assert main(["--resume", str(run)]) == 0  # a finished run stays as it is
    assert (run / "metrics.json").read_bytes() == finished


def test_test_and_vote_write_beside_the_adapter_or_to_output(folder: Path) -> None:
    assert main(["test", str(folder / "adapter.safetensors")]) == 0
    (beside,) = folder.glob("test-*")
    report = json.loads((beside / "test.json").read_text())
    assert report["test"]["count"] == 20
    assert "vote" not in report
    assert main(["vote", str(folder), "2", "--output", str(folder / "out")]) == 0
    voted = json.loads((folder / "out" / "test.json").read_text())
    assert voted["test"] == report["test"]
    assert (voted["vote"]["copies"], voted["vote"]["seeds"]) == (2, [0, 1])


def test_the_published_vote_is_the_maximum_of_299(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(testing, "PUBLISHED_VOTES", 3 if testing.PUBLISHED_VOTES == 299 else 0)  # 299 take minutes
    assert main(["--test", str(folder), "--vote", "1", "--vote-published", "--output", str(folder / "out")]) == 0
    vote = json.loads((folder / "out" / "test.json").read_text())["vote"]
    assert len(vote["overall_accuracy"]["votes"]) == 3
    assert vote["overall_accuracy"]["published_maximum"] == max(vote["overall_accuracy"]["votes"])
    assert "published protocol: maximum of 3 votes on the test set, optimistic" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "pointadapterx", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("pointadapterx ")
