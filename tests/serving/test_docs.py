"""The page about serving: its commands start a server, and its requests are answered."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.labelled_files import write_labelled
from pointadapterx.serving import server
from pointadapterx.serving.app import PARTS
from tests.conftest import ROOT
from tests.docs.pages import blocks, commands
from tests.parts import CLASSES
from tests.serving.running import BEFORE, READY, Reply, Running, cloud

PAGE = ROOT / "docs" / "serving.md"
TOKEN = "correct-horse-battery"
OTHER = {"pip install starlette uvicorn prometheus-client": "loads packages from the network"}


def shown(beginning: str) -> list[str]:
    """The commands of the page that begin with a word."""
    found = [one for block in blocks(PAGE) if block.language == "sh" for one in commands(block)]
    assert [
        one for one in found if one not in OTHER and not one.startswith(("pointadapterx", "curl", "python -c"))
    ] == []
    return [one for one in found if one.startswith(beginning)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page names."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "adapters").mkdir()
    (folder / "RUN_OR_ADAPTER").mkdir()
    shutil.copy(READY, folder / "RUN_OR_ADAPTER" / "adapter.safetensors")
    shutil.copy(READY, folder / "b.safetensors")
    (folder / "token").write_text(TOKEN)
    np.save(folder / "scan.npy", cloud(0))
    for name in ("scan", "brick"):
        points = cloud(1, 1500)
        label, sure = np.zeros(len(points), np.int64), np.ones(len(points), np.float32)
        write_labelled(folder / f"{name}.ply", ".ply", points, label, sure, CLASSES)
    return folder


def test_the_commands_start_a_server(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.chdir(place)
    monkeypatch.setattr(server, "run", lambda *arguments: given.append(arguments))
    for command in shown("pointadapterx"):
        assert main(shlex.split(command)[1:]) == 0
    first, second, third, last = given
    assert first[0] == {"ldraw20": str(READY)}
    assert second[0] == {"RUN_OR_ADAPTER": "RUN_OR_ADAPTER", "tools": "b.safetensors"}
    assert (third[0], third[1]) == ({}, Path("adapters"))
    assert last[-1] == server.Place("0.0.0.0", 8000, TOKEN)
    last[-1].check()
    (make,) = (one for one in shown("python -c") if one.endswith("> token"))
    exec(shlex.split(make)[2], {})
    assert server.token_of(None, capsys.readouterr().out) is not None


@pytest.fixture(scope="module")
def answering(parts_adapter: Path) -> Iterator[Running]:
    sources = {"ldraw20": READY, "tools": READY, "parts": parts_adapter, "small": BEFORE / "lora.safetensors"}
    with Running(sources) as found:
        yield found


def curl(running: Running, command: str, place: Path) -> Reply:
    """What such a command would get."""
    words = iter(shlex.split(re.sub(r"\$\(cat token\)", TOKEN, command))[1:])
    method, body, headers, path = "", None, {}, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word in ("--data-binary", "-d"):
            text = next(words)
            body = (place / text[1:]).read_bytes() if text.startswith("@") else text.encode()
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        else:
            path = word.removeprefix("http://127.0.0.1:8000")
    return running.ask(method or ("GET" if body is None else "POST"), path, body, headers)


def test_the_requests_are_answered(
    answering: Running, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (as_json,) = (one for one in shown("python -c") if one.endswith("> scan.json"))
    exec(shlex.split(as_json)[2], {})
    (place / "scan.json").write_text(capsys.readouterr().out)
    for command in shown("curl"):
        command = command.replace("condition=brick", "condition=mug").replace(
            "predict?file", "predict?adapter=tools&file"
        )
        reply = curl(answering, command, place)
        assert reply.status == 200, reply.body
        if "/predict" in command:
            assert len(reply.content["answers"]) == command.count("adapter=")


def test_the_example_runs(answering: Running, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (example,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    namespace: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8000/", answering.address), namespace)
    examples = [json.loads(block.text)["answers"] for block in blocks(PAGE) if block.language == "json"]
    parts = answering.predict("adapter=parts&condition=mug&file=brick.ply", (place / "brick.ply").read_bytes())
    for found, (wanted,) in zip([namespace["answer"], *parts.content["answers"]], examples, strict=True):
        assert found.keys() == wanted.keys()
        assert [type(value) for value in found.values()] == [type(value) for value in wanted.values()]


def test_the_tables_have_what_there_is(answering: Running) -> None:
    text = PAGE.read_text(encoding="utf-8")
    metrics = re.findall(
        r"^# TYPE (pointadapterx_\w+?)(?:_created)? ", answering.ask("GET", "/metrics").body.decode(), re.M
    )
    assert [name for name in metrics if name not in text] == []
    assert all(answering.ask("GET", path).status == 200 for path in PARTS)


def test_the_proxy_passes_on_the_host_with_its_port() -> None:
    """``$host`` has none, and the page's requests, whose ``Origin`` has it, would be refused."""
    (block,) = [one.text for one in blocks(PAGE) if one.language == "nginx"]
    assert re.findall(r"proxy_set_header Host (\S+);", block) == ["$http_host"]
