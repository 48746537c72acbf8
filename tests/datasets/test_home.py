"""Home: the shipped furniture, one built elsewhere, and files that are not such a set."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.building.lists import parts_of, read_list
from pointadapterx.building.recipes import RECIPES
from pointadapterx.building.writing import hash_of
from pointadapterx.config import read_config
from pointadapterx.datasets import build_dataset
from pointadapterx.datasets.home import EMBEDDED, HOME_CLASSES
from pointadapterx.errors import ConfigError, DataError
from tests.conftest import ROOT


@pytest.mark.parametrize(("split", "count", "least"), [("train", 348, 4), ("test", 142, 2)])
def test_shipped_files(split: str, count: int, least: int) -> None:
    data = build_dataset("home", split)
    assert data.points.shape == (count, 2048, 3)
    assert data.points.dtype == torch.float32
    assert data.classes == list(HOME_CLASSES) or data.classes == HOME_CLASSES
    assert int(data.labels.bincount(minlength=21).min()) == least
    assert data.points.mean(1).abs().max() < 1e-3  # centred, unit sphere, up to rounding to 1/2048
    assert (data.points.norm(dim=2).amax(1) - 1).abs().max() < 2e-3
    listed = parts_of(read_list("home"))[split]
    assert data.names == [model.name for model in listed]
    assert data.groups is not None
    together = {model.group: [other.name for other in listed if other.group == model.group] for model in listed}
    assert len(data.groups.unique()) == len(together)


def test_shipped_files_are_small_attributed_and_the_documented_ones() -> None:
    readme = (EMBEDDED.parent / "README.md").read_text(encoding="utf-8")
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in EMBEDDED.glob("*")) <= 4_000_000
    for path in (EMBEDDED / "train.h5", EMBEDDED / "test.h5"):
        listed = re.search(rf"`home/{path.name}` \| \d+ \| `([0-9a-f]{{64}})`", readme)
        assert listed is not None
        assert listed[1] == hashlib.sha256(path.read_bytes()).hexdigest()
        with h5py.File(path) as file:
            licences = {text.decode().partition(",")[0] for text in file["licence"][:]}
            authors = {text.decode() for text in file["author"][:]}
        assert licences == {"CC BY 3.0", "CC BY 3.0 US", "CC0 1.0"}
        missing = [author for author in authors if author not in " ".join(notice.split())]
        assert missing == []
    for licence in licences:
        assert licence in readme
        assert licence in notice


@pytest.mark.parametrize("split", ["train", "test"])
def test_shipped_files_are_those_that_the_command_builds(split: str) -> None:
    with h5py.File(EMBEDDED / f"{split}.h5") as file:
        entries = {key: file[key][:] for key in ("name", "label", "group", "title", "author", "licence")}
        assert hash_of(file["data"][:], entries) == RECIPES["home"].known[split]


def write(folder: Path, **changed: object) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        content = {
            "data": rng.normal(size=(21, 8, 3)).astype("float32"),
            "label": np.arange(21),
            "name": [f"m{i}" for i in range(21)],
            "group": np.arange(21) // 2 + 7,
        } | changed
        with h5py.File(folder / f"{part}.h5", "w") as file:
            file.attrs["classes"] = list(HOME_CLASSES)
            for key, value in content.items():
                if value is not None:
                    file[key] = value


def test_a_set_elsewhere(tmp_path: Path) -> None:
    write(tmp_path)
    data = build_dataset("home", "train", root=tmp_path)
    assert data.groups is not None
    assert data.groups.tolist() == [i // 2 for i in range(21)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"group": None}, "no data set 'group' in it"),
        ({"group": np.arange(5)}, "'group' holds int64 of shape (5,), expected a whole number for each of 21 clouds"),
        ({"group": np.ones(21)}, "'group' holds float64"),
    ],
)
def test_wrong_groups(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    write(tmp_path, **changed)
    with pytest.raises(DataError) as error:
        build_dataset("home", "train", root=tmp_path)
    assert words in str(error.value)


def test_wrong_classes_and_variants(tmp_path: Path) -> None:
    write(tmp_path)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file.attrs["classes"] = [*HOME_CLASSES[:-1], "widow"]
    with pytest.raises(DataError, match="class 20 is 'widow', expected 'window'"):
        build_dataset("home", "train", root=tmp_path)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        del file.attrs["classes"]
    with pytest.raises(DataError, match="no attribute 'classes' in it"):
        build_dataset("home", "train", root=tmp_path)
    with pytest.raises(ConfigError, match="home has no variants"):
        build_dataset("home", "train", variant="big")


def test_the_config_names_the_shipped_weights() -> None:
    config = read_config("home")
    assert config.data.name == "home"
    assert config.backbone.weights == "point_mae_tiny"
