"""A node that dies in the middle: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import h5py
import numpy as np
import pytest

from benchmarks.cluster import Nodes
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.cluster.connection import connected
from pointadapterx.cluster.runs import RayProcesses
from pointadapterx.commands.main import main
from pointadapterx.engine.predictor import Predictor
from pointadapterx.study.plan import read_plan
from pointadapterx.study.runner import Runner
from pointadapterx.tasks.exchange import Answer
from pointadapterx.tasks.point_segmentation import PointFacts
from tests.conftest import ROOT, randomise
from tests.mechanisms import exhaustive
from tests.rooms import CLASSES, room, rooms_config
from tests.test_scoring import NUMBERS

pytestmark = [pytest.mark.slow, exhaustive]

BEFORE = ROOT / "tests" / "files_of_before" / "adapters"
FILES, CHUNK = 200, 8
BROKEN = {198, 199}  # the last: others would move the batches behind them


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    draw = np.random.default_rng(0)
    for number in range(FILES):
        path = folder / f"{number:03d}.npy"
        if number in BROKEN:
            path.write_bytes(b"not an array")
        else:
            np.save(path, draw.normal(size=(64, 3)).astype(np.float32))
    return folder


def test_every_file_of_a_listing_is_answered_once(
    two_nodes: Nodes, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, found = tmp_path / "plain.csv", tmp_path / "found.csv"
    assert main(["predict", str(scans), "--batch-size", str(CHUNK), "--output", str(plain)]) == 3
    expected = capsys.readouterr()
    chunks = tmp_path / "found.csv.chunks"
    arguments = ["predict", str(scans), "--batch-size", str(CHUNK), "--output", str(found)]
    cluster = ["--engine", "ray", "--address", two_nodes.address, "--chunk", str(CHUNK)]

    def stop() -> None:
        while len(list(chunks.glob("*.json"))) < 4:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    assert main([*arguments, *cluster]) == 128 + signal.SIGTERM
    stopping.join()
    assert f"stopped by SIGTERM: {chunks} has what is done, the same command continues" in capsys.readouterr().err
    first = chunks / "0000000.json"  # is not computed again
    first.write_text(first.read_text().replace(",ldraw20,", ",kept,"))
    done = len(list(chunks.glob("*.json")))
    with two_nodes.losing_one(lambda: len(list(chunks.glob("*.json"))) >= done + 4):
        assert main([*arguments, *cluster]) == 3
    lines = plain.read_text().splitlines()
    lines[1 : 1 + CHUNK] = [line.replace(",ldraw20,", ",kept,") for line in lines[1 : 1 + CHUNK]]
    assert found.read_text().splitlines() == lines
    got = capsys.readouterr()
    assert got.err == expected.err
    assert got.out == expected.out.replace(str(plain), str(found))
    assert not chunks.exists()


class Done(NamedTuple):
    """What a command has said, and written into its folder, by name."""

    status: int
    out: str
    err: str
    files: dict[str, bytes]


def same_as_plain(
    cluster: Nodes, arguments: list[str], folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> Done:
    """The command writes and says the same on the cluster; files are alone in their batches, as in their chunks."""
    found = []
    for name, more in (("plain", []), ("ray", ["--engine", "ray", "--address", cluster.address, "--chunk", "1"])):
        place = folder / name
        place.mkdir()
        each = ["--each", str(place / "each")] if "--score" in arguments else []
        status = main([*arguments, "--batch-size", "1", *each, "--output", str(place / f"all{suffix}"), *more])
        said = capsys.readouterr()
        files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        found.append(Done(status, said.out.replace(str(place), ""), said.err.replace(str(place), ""), files))
    assert found[0] == found[1]
    return found[0]


def test_scores_and_single_files_of_several_adapters(
    two_nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file has labels that the adapters do not know, one is broken."""
    config, adapters = rooms_config(data={"block": "whole"}), []
    for seed, name in enumerate("ab"):
        path = tmp_path / f"{name}.safetensors"
        adapters += ["--adapter", f"{name}={path}"]
        model = randomise(build_model(config), seed)
        save_adapter(model, path, config=config, facts=PointFacts(CLASSES, NUMBERS), metrics={})
    (tmp_path / "rooms").mkdir()
    for number, values in enumerate((NUMBERS, NUMBERS, [1, 2, 3, 4])):
        points, labels = room(200, number)
        rows = (f"{x},{y},{z},{values[label]}" for (x, y, z), label in zip(points / 1000, labels, strict=True))
        (tmp_path / "rooms" / f"{number}.csv").write_text("\n".join(["x,y,z,kind", *rows]))
    (tmp_path / "rooms" / "3.csv").write_text("x,y,z,kind\n")
    arguments = ["predict", *adapters, str(tmp_path / "rooms"), "--score", "--label-field", "kind"]
    done = same_as_plain(two_nodes, arguments, tmp_path, ".jsonl", capsys)
    assert done.status == 3
    assert all(f"[{name}] on labels in 2 files: mIoU " in done.out for name in "ab")
    assert "2.csv: has the label 1, which is no class of the adapter" in done.err
    answers = [json.loads(line) for line in done.files.pop("all.jsonl").splitlines()]
    answers, broken = [one for one in answers if "adapter" in one], [one for one in answers if "error" in one]
    assert [answer["adapter"] for answer in answers] == ["a", "b"] * 3
    assert {Path(one["file"]).name for one in broken} == {"3.csv"}
    assert answers[0]["on_labels"] != answers[1]["on_labels"]
    assert len(done.files) == 6  # of three files and two adapters
    assert len(set(done.files.values())) == 6


def test_clouds_of_a_file_of_many(two_nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = np.random.default_rng(0).normal(size=(7, 64, 3)).astype(np.float32)
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file["data"] = points
    adapters = [part for name in ("lora", "dapt") for part in ("--adapter", f"{name}={BEFORE / name}.safetensors")]
    done = same_as_plain(two_nodes, ["predict", *adapters, str(tmp_path / "many.h5")], tmp_path, ".csv", capsys)
    assert done.status == 0
    lines = done.files["all.csv"].decode().splitlines()
    assert len(lines) == 15
    assert all(sum(f"many.h5#{number}" in line for line in lines) == 2 for number in range(7))


STEPS = 20
# Adds a step at a time to its state, alone, until there are enough; then writes its result.
TRAIN = f"""
import json, pathlib, shutil, sys, time
from pointadapterx.locks import alone
output = pathlib.Path(sys.argv[1]) / "run"
output.mkdir(exist_ok=True)
shutil.copy(output.parent / "study.yaml", output / "config.yaml")
state = output / "state.safetensors"
with alone(output / ".lock", output, "wait"):
    while (steps := len(state.read_text()) if state.exists() else 0) < {STEPS}:
        state.write_text("x" * (steps + 1))
        (output / "steps").open("a").write(f"{{steps}} ")
        time.sleep(0.1)
    test = {{"overall_accuracy": 50.0, "mean_class_accuracy": 50.0}}
    (output / "metrics.json").write_text(json.dumps({{"val_overall_accuracy": 50.0, "test": test}}))
"""


def test_every_run_of_a_study_is_trained_once(
    two_nodes: Nodes,
    make_study: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run that was at work on the dead node goes on from its state, on the other."""
    plan = read_plan(make_study(processes=2))
    runs = tmp_path / "runs"

    def both_at_work() -> bool:
        steps = [len(path.read_text().split()) for path in runs.glob("*/run/steps")]
        return sum(0 < count < STEPS for count in steps) == 2

    with connected(two_nodes.address), two_nodes.losing_one(both_at_work):
        outcome = Runner(plan, lambda run, folder: ["-c", TRAIN, str(folder)], engine=RayProcesses).run()
    assert (len(outcome.finished), outcome.failures) == (6, {})
    done = {path.parent.parent.name: path.read_text().split() for path in runs.glob("*/run/steps")}
    assert {name: list(map(int, steps)) for name, steps in done.items()} == {name: list(range(STEPS)) for name in done}
    assert len(done) == 6
    assert caplog.text.count("its machine is gone; it is started again") == 1


def test_replicas_answer_as_one_server_does(two_nodes: Nodes) -> None:
    pytest.importorskip("fastapi")
    from pointadapterx.cluster.serving import MODEL_HEADER, served
    from pointadapterx.serving.limits import Limits
    from pointadapterx.serving.served import Answering
    from pointadapterx.serving.server import Place
    from tests.serving.running import READY

    adapters = {"ldraw20": READY, "lora": BEFORE / "lora.safetensors"}
    alone = "linear"  # asked for by Ray Serve's header alone
    points = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    body = io.BytesIO()
    np.save(body, points)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = Place("127.0.0.1", free.getsockname()[1], "a token of some length")
    token = {"Authorization": f"Bearer {place.token}"}
    sources = {name: str(path) for name, path in adapters.items()} | {alone: str(BEFORE / f"{alone}.safetensors")}

    def holding(name: str) -> set[bool]:
        """Whether replicas hold an adapter, of as many as answer; each request goes to one of them."""
        listing = Request(f"http://127.0.0.1:{place.port}/adapters", headers=token)
        found = set()
        for _ in range(20):
            with urlopen(listing, timeout=100) as reply:
                found |= {one.get("in_memory", False) for one in json.load(reply)["adapters"] if one["name"] == name}
        return found

    def ask(name: str, **headers: str) -> tuple[int, dict[str, Any]]:
        address = f"http://127.0.0.1:{place.port}/predict?adapter={name}&file=scan.npy"
        request = Request(address, body.getvalue(), {"Content-Type": "application/octet-stream", **headers})
        try:
            with urlopen(request, timeout=100) as reply:
                return reply.status, json.load(reply)
        except HTTPError as refused:
            return refused.code, {}

    with (
        connected(two_nodes.address),
        served(sources, None, Answering("cpu"), Limits(), place, replicas=2),
    ):
        for name, path in adapters.items():
            ((expected),) = Predictor[Answer](path)(points)
            for headers in ({}, {MODEL_HEADER: name}):
                status, found = ask(name, **token, **headers)
                assert status == 200
                (answer,) = found["answers"]
                assert answer["adapter"] == name
                assert answer["probabilities"] == pytest.approx(expected.content()["probabilities"], abs=1e-4)
        assert ask("unknown", **token)[0] == 404
        assert ask("lora")[0] == 401
        assert ask(alone, **token, **{MODEL_HEADER: alone})[0] == 200
        time.sleep(3)  # until Ray knows who has it
        assert [ask(alone, **token, **{MODEL_HEADER: alone})[0] for _ in range(12)] == [200] * 12
        assert holding(alone) == {True, False}  # one replica answered all
        assert [ask(alone, **token)[0] for _ in range(12)] == [200] * 12
        assert holding(alone) == {True}
