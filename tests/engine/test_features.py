"""Training from features that were computed once: they are right, never out of date, and resuming is exact."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pointadapterx import jobs as run
from pointadapterx.build import build_model, build_splits
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.datasets import build_inputs
from pointadapterx.engine import devices, features
from pointadapterx.engine.features import FeatureCache, open_features
from pointadapterx.errors import ConfigError
from pointadapterx.models.frozen import RecordedBranches, restore
from pointadapterx.run_folder import STATE_FILE
from tests.resuming import train_until_stopped

MakeConfig = Callable[..., Config]
METHODS = ("dapt_x", "linear", "e3va_x")


@pytest.fixture
def cached(run_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """``run_config`` with three views in a folder of the test."""

    def make(name: str = "dapt_x", /, **changes: dict[str, Any]) -> dict[str, Any]:
        train = {"cached_views": 3, "cache_folder": str(tmp_path / "features"), **changes.pop("train", {})}
        return run_config(name, train=train, **changes)

    return make


def opened(config: Config, views: int | None = 3, part: str = "train") -> FeatureCache:
    dataset = getattr(build_splits(config), part)
    return open_features(build_model(config), dataset, config, Accelerator(cpu=True), views=views)


def folders(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "features").iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("name", METHODS)
def test_features_of_a_test_view_are_those_of_the_model(name: str, cached: MakeConfig) -> None:
    config = cached(name)
    model, dataset = build_model(config).eval(), build_splits(config).val
    assert dataset is not None
    cache = opened(config, views=None, part="val")
    indices = torch.tensor([3, 0, 5])
    inputs = build_inputs(config)
    with torch.no_grad():
        expected = model(inputs.for_test(inputs.source(dataset)(indices))).logits
        found = model(cache.fetch(indices, torch.zeros_like(indices))).logits
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)  # kept in half precision


def test_views_differ_and_are_those_of_their_seed(cached: MakeConfig, tmp_path: Path) -> None:
    indices = torch.arange(6)
    config = cached()
    cache = opened(config)
    first, second = (cache.fetch(indices, torch.full_like(indices, view)) for view in (0, 1))
    assert not torch.equal(first.tokens, second.tokens)
    mixed = cache.fetch(indices, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert torch.equal(mixed.tokens[::2], first.tokens[::2])
    assert torch.equal(mixed.tokens[1::2], second.tokens[1::2])
    shutil.rmtree(tmp_path / "features")
    again = opened(config).fetch(indices, torch.zeros_like(indices))
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


CHANGES: list[dict[str, Any]] = [
    {"data": {"augment": "scale_translate"}},
    {"data": {"num_points": 200}},
    {"backbone": {"skip_origin": True}},
    {"backbone": {"init_seed": 5}},  # other weights
    {"train": {"seed": 4}},
    {"train": {"cached_views": 2}},
    {"train": {"precision": "bf16"}},
    {"eval": {"split_seed": 3}},  # other training samples
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_decides_the_features_decides_their_folder(
    changes: dict[str, Any], cached: MakeConfig, tmp_path: Path
) -> None:
    config = cached()
    opened(config, config.train.cached_views)
    before = folders(tmp_path)
    assert len(before) == 1
    other = cached(**changes)
    opened(other, other.train.cached_views)
    assert len(folders(tmp_path) - before) == 1


@pytest.mark.parametrize(
    ("name", "method"), [("linear", {}), ("dapt_x", {"inject_from": 1}), ("e3va_x", {"inject_from": 1})]
)
def test_a_head_that_reads_more_blocks_has_features_of_its_own(
    name: str, method: dict[str, Any], cached: MakeConfig
) -> None:
    for head in ({}, {"sum_every": 1}):
        config = cached(name, method=method, head=head)
        model = build_model(config).eval()
        model(opened(config).fetch(torch.arange(2), torch.zeros(2, dtype=torch.int64)))


def test_what_does_not_decide_them_shares_the_folder(cached: MakeConfig, tmp_path: Path) -> None:
    opened(cached())
    (folder,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    written = (folder / "tokens").stat().st_mtime_ns
    opened(cached(train={"lr": 1e-2, "epochs": 9}, backbone={"drop_path": 0.3}))
    opened(cached("lora"))  # also of the patch tokens
    assert folders(tmp_path) == {folder.name}
    assert (folder / "tokens").stat().st_mtime_ns == written


def test_an_unfinished_folder_is_not_taken_for_features(
    cached: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureCache, "put", fail)
    with pytest.raises(KeyboardInterrupt):
        opened(cached())
    assert folders(tmp_path) == set()
    monkeypatch.undo()
    (lock,) = (tmp_path / "features").iterdir()
    key = lock.name.removeprefix(".").removesuffix(".lock")
    (tmp_path / "features" / f".{key}.tmp").mkdir()  # of one that was killed
    (tmp_path / "features" / key).mkdir()
    assert opened(cached()).fetch(torch.tensor([0]), torch.tensor([2])).tokens.abs().sum() > 0


def test_a_folder_that_lacks_a_file_is_made_anew(cached: MakeConfig, tmp_path: Path) -> None:
    before = opened(cached()).fetch(torch.tensor([0]), torch.tensor([2]))
    (key,) = folders(tmp_path)
    (tmp_path / "features" / key / "tokens").unlink()
    after = opened(cached()).fetch(torch.tensor([0]), torch.tensor([2]))
    assert torch.equal(before.tokens, after.tokens)


@pytest.mark.parametrize("content", ["{}", "null", "[]", '{"kind": "no", "fields": []}', "[" * 100_000, "\udcff"])
def test_a_damaged_description_is_made_anew(content: str, cached: MakeConfig, tmp_path: Path) -> None:
    opened(cached())
    (key,) = folders(tmp_path)
    description = tmp_path / "features" / key / features.DESCRIPTION
    whole = description.read_text()
    description.write_bytes(content.encode("utf-8", "surrogateescape"))
    opened(cached())
    assert description.read_text() == whole


def test_a_cache_that_cannot_be_written(cached: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, what: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(features, "in_turn", read_only)
    with pytest.raises(ConfigError, match=r"features: cannot be written \(Read-only file system\); set train"):
        opened(cached())
    monkeypatch.undo()
    before = opened(cached()).fetch(torch.tensor([0]), torch.tensor([2]))
    monkeypatch.setattr(features, "in_turn", read_only)  # but what lies there is read
    assert torch.equal(opened(cached()).fetch(torch.tensor([0]), torch.tensor([2])).tokens, before.tokens)


def test_a_change_of_the_code_is_another_folder(
    cached: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(cached())
    monkeypatch.setattr(features, "_code", lambda: "changed")
    opened(cached())
    assert len(folders(tmp_path)) == 2


def test_features_beyond_half_precision_are_refused(cached: MakeConfig, tmp_path: Path) -> None:
    config = cached()
    model, dataset = build_model(config), build_splits(config).train
    with torch.no_grad():
        model.backbone.patch_encoder.projection.bias.fill_(1e5)
    with pytest.raises(ConfigError, match=r"beyond torch.float16; use train.precision=bf16"):
        open_features(model, dataset, config, Accelerator(cpu=True), views=1)
    assert folders(tmp_path) == set()
    assert model.training


def test_a_disk_that_runs_full_is_told(cached: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ConfigError, match=r"lower train.cached_views, or set train.cache_folder"):
        opened(cached())
    assert folders(tmp_path) == set()


def test_two_at_a_time_compute_once(cached: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = features._compute

    def counted(*arguments: Any) -> None:
        calls.append(1)
        time.sleep(0.3)
        compute(*arguments)

    monkeypatch.setattr(features, "_compute", counted)
    config, accelerator = cached(), Accelerator(cpu=True)
    dataset, twins = build_splits(config).train, [build_model(config) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda model: open_features(model, dataset, config, accelerator, views=3), twins))
    assert len(calls) == 1
    assert [cache.views for cache in found] == [3, 3]


def test_a_disk_that_is_too_small_is_told_first(cached: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(ConfigError, match=r"take .* GB, but .* has 0.0 GB left; lower train.cached_views, or set"):
        opened(cached())


@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_resumed_is_bit_identical(
    name: str, cached: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cached(name, train={"epochs": 2, "batch_size": 16})
    run.train(config, "test", tmp_path / "whole", devices.make_accelerator("fp32"))
    train_until_stopped(config, tmp_path / "stopped", monkeypatch, epoch=1, step=1)
    before = folders(tmp_path)
    run.resume(tmp_path / "stopped", [])
    assert folders(tmp_path) == before  # what is trained has no part in the features
    whole, resumed = (load_file(tmp_path / part / STATE_FILE) for part in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    report = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert report["cached_views"] == 3


def test_a_method_that_trains_the_patches_is_refused_before_anything_is_written(
    config_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file("full", head={"pools": ["cls", "patch_max"]})
    assert main(["--config", str(path), "train.cached_views=2", "--output", str(tmp_path / "run")]) == 2
    assert "error: train.cached_views: full trains the patch embedding; remove the key" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_statistics_that_change_cannot_be_kept(run_config: MakeConfig) -> None:
    config = run_config(train={"cached_views": 2, "frozen_bn": "eval"})
    with pytest.raises(ConfigError, match=r"train.cached_views: train.frozen_bn=batch changes frozen layers"):
        config.replaced(train={"frozen_bn": "batch"})


@pytest.mark.parametrize("name", ["e3va", "e3va_x"])
def test_branches_in_bf16_stay_so(name: str, run_config: MakeConfig) -> None:
    model = build_model(run_config(name)).eval()
    inputs = torch.randn(4, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        computed = model.method.precompute(model.backbone, inputs)
        kept = restore(type(computed), (values.bfloat16() for values in computed))
        assert isinstance(kept, RecordedBranches)
        assert [values.dtype for values in kept] == [torch.bfloat16, torch.bfloat16, torch.float32]
        torch.testing.assert_close(model(kept).logits, model(inputs).logits, atol=0.02, rtol=0.02)
    assert {v.dtype for v in restore(type(computed), (values.half() for values in computed))} == {torch.float32}
