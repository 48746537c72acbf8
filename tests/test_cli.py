"""The command line: its words, its exit status, and that verbs and flags are the same thing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pointadapterx
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.commands.main import COMMANDS, _expand_verb, build_parser, main
from pointadapterx.config import dump_config
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
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


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("train --config a.yaml", "--config a.yaml"),
        ("test a", "--test a"),
        ("test a data.root=b", "--test a data.root=b"),
        ("vote a", "--test a --vote 10"),
        ("vote a 3", "--test a --vote 3"),
        ("vote a 3 data.root=b --output c", "--test a --vote 3 data.root=b --output c"),
        ("vote a data.root=b", "--test a --vote 10 data.root=b"),
        ("count --config a.yaml", "--count --config a.yaml"),
    ],
)
def test_verbs_are_flags(verb: str, flags: str) -> None:
    parser = build_parser("x")
    expanded = parser.parse_intermixed_args(_expand_verb(verb.split(), parser))
    assert expanded == parser.parse_intermixed_args(flags.split())


def test_overrides_may_stand_anywhere() -> None:
    parser = build_parser("x")
    wanted = parser.parse_intermixed_args(["a.b=1", "c.d=2", "--config", "f"])
    assert parser.parse_intermixed_args(["a.b=1", "--config", "f", "c.d=2"]) == wanted
    assert wanted.overrides == ["a.b=1", "c.d=2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "give --config FILE"),
        ("train", "give --config FILE"),
        ("train.lr=1", "give --config FILE"),
        ("doctr scans", "unknown command 'doctr'; did you mean 'doctor'?"),
        ("Train --config demo", "unknown command 'Train'; did you mean 'train'?"),
        ("xyz", "unknown command 'xyz'."),
        ("test", "test needs an adapter file or a run folder"),
        ("vote", "vote needs an adapter file or a run folder"),
        ("--config a --resume b", "choose one of --config, --resume, --test and --search"),
        ("--test a --resume b", "choose one of --config, --resume, --test and --search"),
        ("--config a --search b", "choose one of --config, --resume, --test and --search"),
        ("--search a --output b", "--search writes into the run's folder"),
        ("--search a --count", "--count and --probe need --config FILE alone"),
        ("search", "search needs the folder of a run: search RUN"),
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


def test_help_shows_examples_without_importing_torch() -> None:
    script = (
        "import sys\nfrom pointadapterx.commands.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--config cfgs/demo.yaml" in done.stdout
    assert "--resume" in done.stdout
    assert ":data:" not in done.stdout
    for command in COMMANDS:
        assert f"  pointadapterx {command} " in done.stdout


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
    from pointadapterx.jobs import run

    monkeypatch.setattr(run, "PUBLISHED_VOTES", 3 if run.PUBLISHED_VOTES == 299 else 0)  # 299 would take minutes
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
