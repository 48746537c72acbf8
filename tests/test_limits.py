"""Small files that ask for a machine that there is not are refused in one line, before memory or time is taken."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.fuzz_stored import stored_targets
from pointadapterx.build import build_backbone, build_model, models, restore_model
from pointadapterx.checkpoints.adapter_file import AdapterInfo, read_adapter, save_adapter
from pointadapterx.config import MOST_FILES, MOST_LINES, Config, dump_config, load_config, read_document
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.errors import CheckpointError, ConfigError, shown
from pointadapterx.files import read_safetensors
from pointadapterx.study.schema import check_study
from tests.conftest import small_config


def bomb(levels: int, width: int = 9) -> str:
    """Each level holds the one before ``width`` times: a few hundred characters for width ** levels values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels + 1)]
    return "\n".join(lines)


MERGES = "\n".join(["a0: &a0 {k: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(12), "values with its aliases (*), of at most 20,000"),
        (MERGES, "values with its aliases (*), of at most 20,000"),
        ("a: &a [*a]", "an alias (*) refers to its own anchor (&)"),
        ("a: " + "[" * 50_000, "nested more than 64 levels deep"),
        ("\n".join(" " * n + "a:" for n in range(200)), "nested more than 64 levels deep"),
        ("a: [" + "1," * 50_000 + "]", "more than 20,000 values"),
        ("a: " + "x" * 2_000_000, "2,000,003 characters, of at most 1,048,576"),
        ("a: " + "9" * 100_000, "not valid YAML"),
        ("a: !!timestamp x", "a value that its tag (!!) does not fit"),
        ("a: !!int ''", "a value that its tag (!!) does not fit"),
        ("a: !!bool x", "a value that its tag (!!) does not fit"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_yaml_bombs(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    started = time.perf_counter()
    for read in (load_config, read_document) if len(text) < 10_000 else (load_config,):
        with pytest.raises(ConfigError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}")
        assert "\n" not in str(error.value)
        assert says in str(error.value)
    if len(text) < 10_000:
        with pytest.raises(ConfigError, match="is not valid YAML"):
            load_config("demo", [f"train.lr={{{text}}}".replace("\n", ", ")])
    assert time.perf_counter() - started < 20


def test_honest_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"x: &x {{epochs: 3}}\ntrain: *x\n{dump_config(small_config()).replace('train:', 'y:')}")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()[1:]][:2] == ["x", "y"]  # and not train


def test_bases_that_double_at_each_step(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.yaml").write_text(f"_base_: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "20.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=f"leads to more than {MOST_FILES} files"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.depth", 10**9),
        ("backbone.dim", 3 * 2**20),
        ("backbone.num_groups", 10**9),
        ("backbone.encoder_width", 10**9),
        ("method.num_experts", 10**7),
        ("method.rank", 10**9),
        ("data.num_points", 2 * 10**8),
        ("data.stored_points", 2 * 10**8),
        ("head.hidden", [10**9]),
        ("head.num_classes", 10**9),
        ("train.epochs", 10**12),
        ("eval.vote.copies", 10**12),
        ("train.cached_views", 10**12),
    ],
)
def test_numbers_beyond_all_use(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Config.of(small_config(), "config", [f"{key}={value}"])
    assert key in str(error.value)
    assert "1 problem" in str(error.value)


def test_messages_stay_short() -> None:
    config = small_config().dump()
    config["train"]["lr"] = "x" * 10**6
    config |= {f"section{number}": 1 for number in range(1000)}
    with pytest.raises(ConfigError) as error:
        Config.of(config, "config")
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_LINES + 2
    assert lines[-1].startswith("  … and ")
    assert max(map(len, lines)) < 3_000
    assert len(shown("x" * 10**6)) < 200


def test_experts_of_all_blocks_together() -> None:
    with pytest.raises(ConfigError, match="1000 experts in each of 1000 blocks exceed 65,536"):
        small_config(backbone={"depth": 1_000}, method={"num_experts": 1_000, "shared": False})


def test_a_backbone_beyond_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    options = small_config(backbone={"dim": 48, "depth": 2}).backbone
    monkeypatch.setattr(models, "total_memory", lambda: 4 * 12 * 2 * 48**2)
    build_backbone(options)
    with pytest.raises(ConfigError, match=r"depth=3 and dim=48: the blocks take 0 GB, but this machine has 0 GB"):
        build_backbone(options.model_copy(update={"depth": 3}))
    with torch.device("meta"):  # which takes none
        build_backbone(options.model_copy(update={"depth": 3}))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter file."""
    config, path = small_config(), tmp_path / "adapter.safetensors"
    save_adapter(build_model(config), path, config=config, classes=LDRAW20_CLASSES)
    return path


def claiming(path: Path, **sections: dict[str, Any]) -> AdapterInfo:
    """The adapter with another config and the tensors that it has."""
    tensors, metadata = read_safetensors(path)
    config = json.loads(metadata["config"])
    for section, keys in sections.items():
        config[section] |= keys
    save_file(tensors, path, metadata | {"config": json.dumps(config)})
    return read_adapter(path)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"method": {"num_experts": 200}}, "which the file does not hold"),
        ({"method": {"rank": 60_000}}, "has shape"),
        ({"backbone": {"depth": 100}}, "which the file does not hold"),
        ({"head": {"hidden": [60_000, 256]}}, "has shape"),
    ],
)
def test_what_an_adapter_claims_is_compared_with_what_it_holds(
    sections: dict[str, Any], says: str, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = claiming(adapter, **sections)
    monkeypatch.setattr("pointadapterx.build.models.load_pretrained", None)
    with pytest.raises(CheckpointError, match=says):
        restore_model(info)


@pytest.mark.parametrize("points", [2 * 10**8, 0, -1])
def test_points_of_the_training_clouds(points: int, adapter: Path) -> None:
    metrics = {"inputs": {"points": points, "radius": [1.0] * 3, "offset": 0.0, "extents": [0.3] * 3}}
    tensors, metadata = read_safetensors(adapter)
    save_file(tensors, adapter, metadata | {"metrics": json.dumps(metrics)})
    with pytest.raises(CheckpointError, match=f"metadata is damaged .*inputs of {points} points"):
        read_adapter(adapter)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "complex64"])
def test_types_that_are_not_computed_with(kind: str, adapter: Path) -> None:
    content, metadata = load_file(adapter), read_safetensors(adapter)[1]
    name = "head.mlp.0.bias"
    content[name] = content[name].to(getattr(torch, kind))
    save_file(content, adapter, metadata)
    with pytest.raises(CheckpointError, match=f"{name} is of {kind}, which is not computed with; save it as float32"):
        read_adapter(adapter)


def test_a_study_within_limits(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("title: t\nconfig: demo\nruns: r\nresults: r\nprocesses: 1000000000\ntables: {}\n")
    with pytest.raises(ConfigError, match="processes: Input should be less than or equal to 1024"):
        check_study(read_document(path))


def test_seeds_of_the_fuzzed_files_are_whole(tmp_path: Path) -> None:
    """Else changes of them would all end at the first check."""
    for suffix, seeds, read in stored_targets(lambda *parts, **_: parts).values():
        *_, last = seeds()
        path = tmp_path / f"seed{suffix}"
        path.write_bytes(last)
        with pytest.raises(ConfigError, match="b: unknown section") if suffix == ".yaml" else nullcontext():
            (load_config if suffix == ".yaml" else read)(path)
