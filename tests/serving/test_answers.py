"""Answers are those of ``predict``, whatever they are computed with."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from pointadapterx.datasets.images import SUFFIXES
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.engine.predictor import Predictor
from tests.serving.running import BEFORE, Held, Running, cloud, eventually, npy

NEAR = {"probabilities": 1e-5, "confidence": 1.01e-4, "novelty": 1e-5}
"""Differences that batches of different sizes may make, in fp32; confidence is rounded to four digits."""


def expected(path: Path, source: Path, condition: str | None = None) -> dict[str, Any]:
    """What ``predict`` writes."""
    (found,) = Predictor[Any](source, device="cpu", condition=condition)(path)
    return {"file": path.name, **found.content()}


def require_equal(answer: dict[str, Any], wanted: dict[str, Any], adapter: str) -> None:
    assert answer == {**wanted, "adapter": adapter, **{key: answer[key] for key in NEAR if key in wanted}}
    for key in NEAR.keys() & wanted.keys():
        assert answer[key] == pytest.approx(wanted[key], abs=NEAR[key])


def test_mixed_requests_get_the_answers_of_predict(running: Running, sources: dict[str, Path], tmp_path: Path) -> None:
    files = [npy(tmp_path, seed, 300 + 400 * (seed % 2)) for seed in range(4)]
    asked = [(name, file) for name in sources for file in files]

    def ask(one: tuple[str, Path]) -> Any:
        name, file = one
        said = "&condition=mug" if name == "parts" else ""
        return running.predict(f"adapter={name}&file={file.name}{said}", file.read_bytes())

    with ThreadPoolExecutor(len(asked)) as pool:
        with Held(running):
            waiting = [pool.submit(ask, one) for one in asked]
            eventually(lambda: len(running.service.batcher._queue) == len(asked), 30)
        replies = [one.result() for one in waiting]
    for (name, file), reply in zip(asked, replies, strict=True):
        assert reply.status == 200, reply.body
        (answer,) = reply.content["answers"]
        require_equal(answer, expected(file, sources[name], "mug" if name == "parts" else None), name)
    assert running.metric("pointadapterx_batch_adapters_sum") > running.metric("pointadapterx_batch_adapters_count")


def test_where_no_pass_can_be_shared_each_has_its_own(
    running: Running, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("cannot be shared")

    monkeypatch.setattr(AdapterBank, "together", fail)
    file = npy(tmp_path, 4)
    reply = running.predict("adapter=lora&adapter=linear&file=4.npy", file.read_bytes())
    for answer, name in zip(reply.content["answers"], ("lora", "linear"), strict=True):
        require_equal(answer, expected(file, sources[name]), name)


def test_several_adapters_answer_about_one_file(running: Running, sources: dict[str, Path], tmp_path: Path) -> None:
    file = npy(tmp_path, 5)
    reply = running.predict("adapter=lora&adapter=ldraw20&file=5.npy", file.read_bytes())
    for answer, name in zip(reply.content["answers"], ("lora", "ldraw20"), strict=True):
        require_equal(answer, expected(file, sources[name]), name)


def test_arrays_are_points(running: Running, sources: dict[str, Path], tmp_path: Path) -> None:
    file = npy(tmp_path, 6)
    body = json.dumps({"points": cloud(6).tolist()})
    reply = running.ask("POST", "/predict?adapter=lora", body, {"Content-Type": "application/json"})
    (answer,) = reply.content["answers"]
    require_equal(answer, {**expected(file, sources["lora"]), "file": "points"}, "lora")


def test_a_file_of_several_clouds_has_an_answer_for_each(running: Running, tmp_path: Path) -> None:
    clouds = np.stack([cloud(seed) for seed in range(3)])
    clouds[1] = np.nan
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["data"] = clouds.astype(np.float32)
    reply = running.predict("adapter=lora&file=all.h5", (tmp_path / "all.h5").read_bytes())
    answers = reply.content["answers"]
    assert [answer["file"] for answer in answers] == ["all.h5#0", "all.h5#1", "all.h5#2"]
    assert "all 300 points have NaN" in answers[1]["error"]
    assert answers[0]["classes"]


def test_pictures_are_served_too(tmp_path: Path) -> None:
    with Running({"digits": BEFORE / "lora_on_images.safetensors"}) as running:
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
        reply = running.predict("file=a.png", (tmp_path / "a.png").read_bytes())
        (answer,) = reply.content["answers"]
        require_equal(answer, expected(tmp_path / "a.png", BEFORE / "lora_on_images.safetensors"), "digits")
        assert running.predict("file=a.npy", b"x").status == 415
        look = running.ask("POST", "/look?file=a.png", (tmp_path / "a.png").read_bytes()).content
        assert look["cloud"] is None
        (described,) = running.ask("GET", "/adapters").content["adapters"]
        assert described["inputs"] == "pictures"
        assert {f".{kind}" for kind in described["kinds"]} == set(SUFFIXES)


def test_a_condition_is_needed_known_and_taken(running: Running, tmp_path: Path) -> None:
    body = npy(tmp_path, 7).read_bytes()
    missing, unknown = (running.predict(f"adapter=parts&file=7.npy{said}", body) for said in ("", "&condition=cup"))
    assert missing.status == unknown.status == 422
    assert "lamp" in missing.error
    assert "cup" in unknown.error


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ("adapter=lora&file=a.npy", b"no array", 422, r"^a.npy: cannot be read as .npy"),
        ("adapter=lora&file=a.ply", b"ply\nformat ascii 1.0\nelement vertex 9", 422, "^a.ply: "),
        ("adapter=lora&file=/etc/passwd", b"x", 415, "no suffix; the adapter lora reads asc csv"),
        ("adapter=lora&file=a.exe", b"x", 415, "'.exe' is no kind of file that the adapter lora reads"),
        ("adapter=lora", b"x", 400, "give the file's name"),
        ("adapter=lora&file=a.npy", b"", 400, "no body"),
        ("file=a.npy", b"x", 400, "name one of the adapters"),
        ("adapter=lroa&file=a.npy", b"x", 404, "no adapter 'lroa'; did you mean 'lora'"),
        ("adapter=../lora&file=a.npy", b"x", 404, "no adapter '../lora'"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(
    running: Running, query: str, body: bytes, status: int, words: str
) -> None:
    reply = running.predict(query, body)
    assert reply.status == status
    assert re.search(words, reply.error)
    assert "\n" not in reply.error
    assert "pointadapterx-serve" not in reply.error  # no path of the server's


@pytest.mark.parametrize("content", ['{"points": 3}', "[]", '{"points": [[1, 2], [3]]}', "{", "[" * 100_000])
def test_json_of_another_form_is_refused(running: Running, content: str) -> None:
    reply = running.ask("POST", "/predict?adapter=lora", content, {"Content-Type": "application/json"})
    assert reply.status == 422
    assert "points" in reply.error


def test_forms_are_explained(running: Running) -> None:
    reply = running.ask("POST", "/predict?adapter=lora", "x", {"Content-Type": "multipart/form-data; boundary=x"})
    assert reply.status == 415
    assert "--data-binary" in reply.error


def test_looking_gives_a_cloud_with_experts_and_what_the_answer_depends_on(running: Running, tmp_path: Path) -> None:
    body = npy(tmp_path, 8).read_bytes()
    found = running.ask("POST", "/look?adapter=dapt_x&file=8.npy&saliency=1", body).content
    modes = list(found["cloud"]["modes"])
    assert modes[0] == "height"
    assert modes[-1] == "what the answer depends on"
    assert any(mode.startswith("expert, block 1") for mode in modes)
    parts = running.ask("POST", "/look?adapter=parts&file=8.npy&condition=mug", body).content
    assert list(parts["cloud"]["modes"]) == ["parts", "height"]
    assert {name for name, _ in parts["legends"]["parts"]} <= {"body", "handle"}
    assert [share for _, share in parts["answer"]["shares"]] == sorted(
        (share for _, share in parts["answer"]["shares"]), reverse=True
    )
