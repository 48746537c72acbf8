"""Adapters on the hub: what is pushed, what is pulled, and what is said when that fails. Nothing leaves the machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file, save_file

from pointadapterx import Predictor, pull_adapter, push_adapter, sharing
from pointadapterx import jobs as run
from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints.adapter_file import read_adapter, save_adapter
from pointadapterx.checkpoints.shipped import SHIPPED, find_weights
from pointadapterx.commands.main import main
from pointadapterx.config import Config, load_config, read_config
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.datasets.options import DataConfig, FewShotConfig
from pointadapterx.engine import devices
from pointadapterx.errors import CheckpointError, HubError
from pointadapterx.export import describe
from pointadapterx.hub import Address, fetch
from pointadapterx.jobs import testing
from pointadapterx.model_card import needed_weights, write_card
from pointadapterx.tasks.calibration import Calibration
from tests.conftest import randomise, small_config
from tests.models.plain_layouts import LAYOUTS, random_state
from tests.models.test_descendants import SMALL
from tests.synthetic import write_ldraw20

COMMIT = "0123456789" * 4
FILES = {"README.md", "adapter.safetensors", "config.yaml"}


class Hub(BaseHTTPRequestHandler):
    """Answers ``/owner/repository/resolve/revision/file`` from the folders ``owner/repository``, as the hub does."""

    def __init__(self, root: Path, *arguments: Any) -> None:
        self.root = root
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        owner, name, _, revision, file = self.path.strip("/").split("/", 4)
        repository = self.root / owner / name
        if not repository.is_dir():
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if not (repository / file).is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = (repository / file).read_bytes()
        return self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its folder of repositories, which pushing writes to and pulling reads through HTTP."""
    root = tmp_path / "hub"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root))
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append((repository, options))
            (root / repository).mkdir(parents=True, exist_ok=True)

        def create_branch(self, repository: str, **options: Any) -> None:
            calls.append((repository, options))

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> SimpleNamespace:
            calls.append((repo_id, options))
            for path in [path for path in (root / repo_id).rglob("*") if path.is_file()]:
                name = path.relative_to(root / repo_id).as_posix()
                if any(fnmatch(name, pattern) for pattern in options["delete_patterns"] or ()):
                    path.unlink()
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{COMMIT}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Hub, "calls", calls, raising=False)
    yield root
    server.shutdown()
    server.server_close()


def save(config: Config, path: Path) -> Path:
    classes = LDRAW20_CLASSES if config.data.name == "ldraw20" else [str(digit) for digit in range(10)]
    save_adapter(randomise(build_model(config)), path, config=config, classes=classes)
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter file without a run."""
    return save(small_config("dapt_x"), tmp_path_factory.mktemp("adapter") / "adapter.safetensors")


def test_what_is_pulled_is_what_was_pushed(
    hub: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(adapter), "owner/parts", "--private"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"pushed: https://hub/owner/parts/commit/{COMMIT}",
        "weights of the backbone: random ones of backbone.init_seed=0, which the same version of torch draws again",
    ]
    assert {path.name for path in (hub / "owner" / "parts").iterdir()} == FILES
    assert Hub.calls[0] == ("owner/parts", {"private": True, "exist_ok": True})
    assert Hub.calls[1] == (
        "owner/parts",
        {
            "revision": None,
            "commit_message": "Adapter of dapt_x",
            "delete_patterns": ["metrics.json"],
        },
    )
    monkeypatch.chdir(tmp_path)
    assert main(["pull", "owner/parts"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "pulled: parts"
    assert {path.name for path in (tmp_path / "parts").iterdir()} == FILES
    assert (tmp_path / "parts" / "adapter.safetensors").read_bytes() == adapter.read_bytes()
    assert read_config("parts/config.yaml") == read_adapter(adapter).config
    assert main(["pull", "owner/parts"]) == 2
    assert capsys.readouterr().err == "error: parts: is there already; remove it, or choose another folder\n"


def test_an_adapter_of_the_hub_predicts(hub: Path, adapter: Path) -> None:
    push_adapter(adapter, "owner/parts")
    cloud = np.random.default_rng(0).normal(size=(200, 3))
    (here,), (there,) = Predictor(adapter)([cloud]), Predictor("hf://owner/parts@main")([cloud])
    assert there.probabilities == here.probabilities
    assert there.classes == here.classes


def test_an_adapter_of_the_hub_is_tested(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ldraw20(tmp_path / "data", train_per_class=1, test_per_class=1, num_points=160)
    config = small_config("linear", data={"root": str(tmp_path / "data")})
    push_adapter(save(config, tmp_path / "adapter.safetensors"), "owner/parts")
    monkeypatch.chdir(tmp_path)
    assert main(["test", "hf://owner/parts", f"data.root={tmp_path / 'data'}"]) == 0
    (folder,) = (tmp_path / "runs" / "parts").iterdir()  # not in the hub's cache
    assert {path.name for path in folder.iterdir()} == {"test.json", "predictions.csv"}


def test_where_data_lay_elsewhere_says_nothing_here(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DataConfig] = []

    def stop(config: Config) -> None:
        seen.append(config.data)
        raise HubError("enough")

    config = small_config("linear", data={"root": str(tmp_path), "cache_dir": str(tmp_path)})
    push_adapter(save(config, tmp_path / "adapter.safetensors"), "owner/parts")
    monkeypatch.setattr(testing, "build_test_split", stop)
    for arguments in (["hf://owner/parts"], ["hf://owner/parts", "data.root=mine"], [str(tmp_path)]):
        assert main(["test", *arguments]) == 2
    found = [(data.root, data.cache_dir) for data in seen]
    assert found == [(None, None), ("mine", None), (str(tmp_path), str(tmp_path))]


def test_paths_are_not_pushed(tmp_path: Path) -> None:
    places = {"data": {"root": "/mine/a", "cache_dir": "/mine/b"}, "train": {"cache_folder": "/mine/c"}}
    config = small_config("linear", **places)
    for weights, left in (("/mine/d.pth", None), ("point_mae_tiny", "point_mae_tiny"), *[("hf://a/b/c.pth",) * 2]):
        stored = config.replaced(backbone={"weights": weights})
        path = tmp_path / "adapter.safetensors"
        save_adapter(build_model(config), path, config=stored, classes=LDRAW20_CLASSES)
        folder = tmp_path / weights.replace("/", "-")
        push_adapter(path, "owner/parts", folder=folder)
        assert "/mine" not in (folder / "config.yaml").read_text()
        pushed = load_config(folder / "config.yaml")
        assert pushed["backbone"]["weights"] == left
        assert pushed["data"] == config.data.model_dump() | {"root": None, "cache_dir": None}
        assert describe(read_adapter(path), None, (1, 20))["config"] == pushed


def test_full_fine_tuning_needs_nothing_else(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(SHIPPED / "vit_tiny.safetensors", weights)
    config = read_config("vtab/digits", [f"backbone.weights={weights}", "method.name=full", "head.pools=[cls]"])
    adapter = save(config, tmp_path / "adapter.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    (here,) = Predictor(adapter)([tmp_path / "a.png"])
    weights.unlink()
    assert main(["push", str(adapter), "owner/digits"]) == 0
    assert "weights of the backbone: none: the file brings the whole backbone\n" in capsys.readouterr().out
    caplog.clear()
    (there,) = Predictor("hf://owner/digits")([tmp_path / "a.png"])
    assert there.probabilities == here.probabilities
    assert "random weights" not in caplog.text
    assert "--weights" not in (hub / "owner" / "digits" / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_the_run_learnt_from(trained: Path) -> None:
    info, report = read_adapter(trained), json.loads((trained / "metrics.json").read_text())

    def card(**changes: Any) -> str:
        few_shot = changes["few_shot"] and FewShotConfig(**changes["few_shot"])
        data = info.config.data.model_copy(update=changes | {"few_shot": few_shot})
        changed = info._replace(config=replace(info.config, data=data))
        return write_card(changed, {**report, "data": report["data"] | changes}, Address("owner/a"), None)

    task = {"ways": 5, "shots": 10, "fold": 2, "queries": None}
    text = card(few_shot=task, train_size=None)
    (dataset, *_) = ModelCard(text).data.eval_results
    assert (dataset.dataset_name, dataset.dataset_config) == ("digits, 5-way 10-shot, fold 2", "5-way 10-shot, fold 2")
    assert "| few-shot task | 5-way 10-shot, fold 2 |" in text
    text = card(name="imagefolder", few_shot=None, train_size=None)
    (dataset, *_) = ModelCard(text).data.eval_results
    assert (dataset.dataset_name, dataset.dataset_type, dataset.dataset_config) == ("own data", "own-data", None)
    assert "on own data: 10 classes" in text
    assert "imagefolder" not in text


@pytest.mark.parametrize(
    ("name", "licence", "attribution"),
    [
        (
            "point_mae_tiny",
            "CC BY 4.0, like the data",
            "LDraw Parts Library, LDraw.org, © 2012–2025 its contributors, ",
        ),
        (
            "vit_tiny",
            "Apache-2.0, as the project; Fashion-MNIST is under the MIT licence",
            "Fashion-MNIST, Han Xiao, Kashif Rasul, Roland Vollgraf, arXiv 1708.07747 (https://arxiv.org/abs/",
        ),
    ],
)
def test_shipped_weights_are_attributed(
    name: str, licence: str, attribution: str, adapter: Path, trained: Path, tmp_path: Path
) -> None:
    info = read_adapter(adapter if name == "point_mae_tiny" else trained)
    info = info._replace(config=info.config.replaced(backbone={"weights": name}))
    text = write_card(info, None, Address("owner/a"), None)
    assert f"| licence of {name} | {licence} |" in text
    assert f"| attribution of {name} | {attribution}" in text
    info = info._replace(config=info.config.replaced(backbone={"weights": "other.pth"}))
    assert "attribution" not in write_card(info, None, Address("owner/a"), None)


def test_a_branch(hub: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(adapter), "owner/parts", "--revision", "second"]) == 0
    assert Hub.calls[1] == ("owner/parts", {"branch": "second", "exist_ok": True})
    assert Hub.calls[2][1]["revision"] == "second"
    assert main(["pull", "owner/parts", "--revision", "third"]) == 2
    assert "hf://owner/parts/adapter.safetensors@third: the repository has no revision third" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on shipped weights."""
    folder = tmp_path_factory.mktemp("run") / "run"
    changes = ["train.epochs=1", "train.warmup_epochs=0", "data.train_size=100", "method.rank=4", "train.seed=3"]
    run.train(read_config("vtab/digits", changes), "digits", folder, devices.make_accelerator("fp32"))
    return folder


def test_the_card_says_what_the_run_found(trained: Path, tmp_path: Path) -> None:
    place = push_adapter(trained, "owner/digits", folder=tmp_path / "layout", license="cc-by-4.0")
    assert {path.name for path in Path(place).iterdir()} == FILES | {"metrics.json"}
    report = json.loads((trained / "metrics.json").read_text())
    text = (tmp_path / "layout" / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert (data.library_name, data.license, data.pipeline_tag) == (
        "pointadapterx",
        "cc-by-4.0",
        "image-classification",
    )
    assert {"vit", "adapter_x"} <= set(data.tags)
    overall, per_class = data.eval_results
    assert overall.metric_value == round(report["test"]["overall_accuracy"], 2)
    assert per_class.metric_value == round(report["test"]["mean_class_accuracy"], 2)
    assert [overall.metric_type, per_class.metric_type] == ["accuracy", "balanced_accuracy"]
    assert overall.metric_name == "overall accuracy (OA) in %, protocol validation, regime shift, seed 3"
    assert (overall.dataset_name, overall.dataset_split) == ("digits, 100 labelled training samples", "test")
    assert overall.dataset_config == "100 labelled training samples"
    calibration = report["calibration"]
    for told in (
        report["protocol"],
        report["data"]["checksum"],
        f"{report['parameters']['trainable']:,}, {report['parameters']['percent']:.2f} % of full fine-tuning; "
        f"{report['parameters']['components']['head'][0]:,} of them the head's",
        "vit_tiny, which come with the package",
        read_adapter(trained).backbone_hash,
        f"softmax(logits). No temperature: {calibration['reason']}. Expected calibration error on the test set: "
        f"{calibration['calibration_error']:.2f} % (15 bins)",
        "most objects of other classes pass as known",
        "| training set | 100 labelled training samples |",
        "pointadapterx predict hf://owner/digits picture.png\n",
        "The figures are of one seed and 797 test samples",
    ):
        assert told in text
    assert str(trained) not in text
    assert "optimistic" not in text
    info = read_adapter(trained)
    kept = info._replace(facts=replace(info.facts, calibration=Calibration(1.5, 200)))
    text = write_card(kept, report, Address("owner/digits"), None)
    assert "softmax(logits / 1.5000), fitted on 200 validation samples. Expected calibration error on" in text
    assert (
        f"{calibration['calibration_error']:.2f} %, without it {calibration['calibration_error_before']:.2f} %" in text
    )
    info = info._replace(config=info.config.replaced(eval={"protocol": "published"}))
    assert "optimistic" not in write_card(info, report, Address("owner/digits"), None)  # one epoch: no choice
    info = info._replace(config=info.config.replaced(train={"epochs": 2}))
    assert "so the figures are optimistic" in write_card(info, report, Address("owner/digits"), None)


def test_metrics_of_an_earlier_push_do_not_stay(hub: Path, trained: Path, adapter: Path) -> None:
    push_adapter(trained, "owner/digits")
    (hub / "owner" / "digits" / "mine.txt").touch()
    assert "metrics.json" in {path.name for path in (hub / "owner" / "digits").iterdir()}
    push_adapter(adapter, "owner/digits")
    assert {path.name for path in (hub / "owner" / "digits").iterdir()} == FILES | {"mine.txt"}
    assert "no test result is known" in (hub / "owner" / "digits" / "README.md").read_text(encoding="utf-8")


def test_metrics_of_another_run_are_refused(trained: Path, tmp_path: Path) -> None:
    report = json.loads((trained / "metrics.json").read_text())
    shutil.copy(trained / "adapter.safetensors", tmp_path)
    for name, value in (
        ("method", "linear"),
        ("protocol", "last: …"),
        ("regime", "none"),
        ("seed", 4),
        ("data.name", "ldraw20"),
        ("data.variant", "bg"),
        ("data.few_shot", {"ways": 5}),
        ("data.train_size", None),
    ):
        section, _, key = name.rpartition(".")
        changed = {**report, "data": dict(report["data"])}
        (changed[section] if section else changed)[key] = value
        (tmp_path / "metrics.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=rf"metrics\.json: is of another run, its {name} is "):
            push_adapter(tmp_path, "owner/digits", folder=tmp_path / "layout")
    for changed in (
        {**report, "test": {}},
        {**report, "parameters": 5},
        {**report, "test": report["test"] | {"count": "9"}},
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=r"metrics\.json: is damaged"):
            push_adapter(tmp_path, "owner/digits", folder=tmp_path / "layout")


def test_a_class_name_cannot_write_into_the_card(tmp_path: Path) -> None:
    config = small_config("linear")
    classes = ["a|b", "`c`", "<img src=x>", "d\n\n# e", *LDRAW20_CLASSES[4:]]
    save_adapter(build_model(config), tmp_path / "a.safetensors", config=config, classes=classes)
    push_adapter(tmp_path / "a.safetensors", "owner/parts", folder=tmp_path / "layout")
    text = (tmp_path / "layout" / "README.md").read_text(encoding="utf-8")
    assert "| classes | a&#124;b, \\`c\\`, \\<img src=x\\>, d\\\\n\\\\n\\# e, " in text
    for license in ("cc by", "mit\ntags: x", "MIT", ""):
        with pytest.raises(HubError, match=r"^license .* is not an identifier of the hub"):
            push_adapter(tmp_path / "a.safetensors", "owner/parts", folder=tmp_path / "other", license=license)


def test_the_card_says_what_weights_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "mine" / "weights.safetensors"
    weights.parent.mkdir()
    shutil.copy(SHIPPED / "vit_tiny.safetensors", weights)
    config = read_config("vtab/digits", [f"backbone.weights={weights}", "eval.protocol=published"])
    adapter = save(config, tmp_path / "adapter.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert main(["push", str(adapter), "owner/digits", "--folder", str(tmp_path / "layout")]) == 0
    needed = f"weights.safetensors, a file with SHA-256 {digest} that does not come along: give yours as --weights FILE"
    assert f"weights of the backbone: {needed}\n" in capsys.readouterr().out
    text = (tmp_path / "layout" / "README.md").read_text(encoding="utf-8")
    assert needed in text
    assert str(weights) not in text
    assert 'Predictor("hf://owner/digits", weights="FILE")' in text
    assert "no test result is known" in text
    assert "optimistic" not in text  # there are no figures
    assert ModelCard(text).data.eval_results is None
    tensors = {key: tensor + 1 for key, tensor in load_file(weights).items()}
    save_file(tensors, weights)  # another file under the same name
    assert needed_weights(read_adapter(adapter)).text.startswith("weights.safetensors, a file that does not come along")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: does not exist"):
        Predictor(tmp_path / "layout")
    Predictor(tmp_path / "layout", weights="vit_tiny")


def test_weights_of_the_hub_are_the_base_model(adapter: Path, tmp_path: Path) -> None:
    info = read_adapter(adapter)
    config = info.config.replaced(backbone={"weights": "hf://owner/mae/weights.pth@v2"})
    save_adapter(build_model(info.config), tmp_path / "a.safetensors", config=config, classes=info.classes)
    push_adapter(tmp_path / "a.safetensors", "owner/parts", folder=tmp_path / "layout")
    data = ModelCard((tmp_path / "layout" / "README.md").read_text(encoding="utf-8")).data
    assert (data.base_model, data.pipeline_tag) == ("owner/mae", None)
    assert "point-cloud-classification" in data.tags


def test_what_goes_wrong_is_one_line(
    hub: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    monkeypatch.chdir(tmp_path)
    (hub / "owner" / "empty").mkdir(parents=True)
    assert "hf://owner/none/adapter.safetensors: no such repository, or no access" in fails("pull", "owner/none")
    assert "hf://owner/empty/adapter.safetensors: the repository has no such file" in fails("pull", "owner/empty")
    assert "hf://owner/empty/adapter.safetensors: the rep" in fails("predict", "hf://owner/empty", "scan.ply")
    (hub / "owner" / "empty" / "adapter.safetensors").write_bytes(b"damaged")
    assert fails("pull", "owner/empty").startswith(
        "error: hf://owner/empty/adapter.safetensors: not a readable safetensors file"
    )
    assert "nothing: is not of the form owner/repository or hf://owner/repository, " in fails("pull", "nothing")
    assert "nothing: is not of the form owner/repository or hf://owner/repository, " in fails(
        "push", str(adapter), "nothing"
    )
    assert "owner/a/file: is not of the form owner/repository or hf://owner/repo" in fails(
        "push", str(adapter), "owner/a/file"
    )
    for command in (["push", str(adapter)], ["pull"]):
        assert fails(*command, "owner/x@a", "--revision", "b") == (
            "error: owner/x@a: names a revision already; remove --revision b"
        )
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hf://owner/a: pushing needs a token; run `hf auth login`" in fails("push", str(adapter), "owner/a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "could not be fetched" in fails("pull", "owner/none")
    assert {path.name for path in tmp_path.iterdir()} <= {"hub", "cache"}  # nothing half pulled


def test_an_adapter_of_the_cache_is_pulled_without_the_hub(
    hub: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    push_adapter(adapter, "owner/parts")
    read_adapter("hf://owner/parts")
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        pull_adapter("owner/parts", tmp_path / "alone")
        assert {path.name for path in (tmp_path / "alone").iterdir()} == {"adapter.safetensors"}
        assert "hf://owner/parts: README.md is not in the cache, and the hub does not answer" in caplog.text
    pull_adapter("owner/parts", tmp_path / "whole")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pull_adapter("owner/parts", tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES


def test_what_is_pulled_is_of_one_commit(
    hub: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_adapter(adapter, "owner/parts")
    asked: list[Address] = []
    monkeypatch.setattr(sharing, "fetch", lambda address: asked.append(address) or fetch(address))
    pull_adapter("owner/parts@main", tmp_path / "parts")
    assert [address.revision for address in asked] == ["main", COMMIT, COMMIT, COMMIT]


@pytest.mark.parametrize(
    "text",
    ["o/n/../m", "o/n/./m", "o/n/a\\b", "o/n@..", "o/n@a/../b", "o/n@a//b", "o/n@/a", "o/n@a/", "o/n@a\\b"],
)
def test_addresses_that_lead_elsewhere(text: str) -> None:
    with pytest.raises(HubError, match="file and revision must be plain paths"):
        Address.parse(text)


def test_a_refused_push_says_why(hub: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, repository: str, **options: Any) -> None:
        raise OSError("403 Forbidden\nand much more")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(HubError, match=r"hf://owner/parts: could not be pushed \(403 Forbidden\); check the name"):
        push_adapter(adapter, "owner/parts")


def test_metrics_of_something_else_are_refused(adapter: Path, tmp_path: Path) -> None:
    shutil.copy(adapter, tmp_path)
    for content, says in (("{", "cannot be read"), ('{"seed": 0}', "has no data, hardware, method, parameters")):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"metrics\.json: {says}"):
            push_adapter(tmp_path, "owner/parts", folder=tmp_path / "layout")
    assert not (tmp_path / "layout").exists()


def test_a_folder_that_is_taken(hub: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(CheckpointError, match="taken: is there already"):
        push_adapter(adapter, "owner/parts", folder=tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    push_adapter(adapter, "owner/parts")
    assert torch.equal(
        pull_adapter("hf://owner/parts", tmp_path / "empty").tensors["head.mlp.0.weight"],
        read_adapter(adapter).tensors["head.mlp.0.weight"],
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("owner/name", Address("owner/name")),
        ("hf://owner/name.v2@main", Address("owner/name.v2", "main")),
        ("hf://o-1/n_2/folder/file.pth@refs/pr/1", Address("o-1/n_2", "refs/pr/1", "folder/file.pth")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


def test_weights_of_torch_pointcloud_need_no_file_name(hub: Path) -> None:
    """``hf://torch-pointcloud/<name>`` is the one file that its repositories have."""
    layout = LAYOUTS["torch_pointcloud"]
    repository = hub / "torch-pointcloud" / "pointmae-modelnet40"
    repository.mkdir(parents=True)
    save_file(random_state(layout.shapes(SMALL)), repository / "model.safetensors")
    address = "hf://torch-pointcloud/pointmae-modelnet40"
    options = small_config("linear", backbone={"weights": address}).backbone
    assert torch.isfinite(build_backbone(options)(torch.randn(2, 128, 3)).sequence.tokens).all()
    assert find_weights(address) == find_weights(f"{address}/model.safetensors@main")
    with pytest.raises(HubError, match=r"torch-pointcloud/none/model\.safetensors: no such repository, or no access"):
        find_weights("hf://torch-pointcloud/none")
