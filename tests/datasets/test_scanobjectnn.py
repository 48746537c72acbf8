"""ScanObjectNN in its published layout."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pointadapterx.datasets import build_dataset
from pointadapterx.datasets.scanobjectnn import VARIANTS
from pointadapterx.errors import DataError
from tests.synthetic import write_scanobjectnn

PATHS = {  # as published
    "obj_bg": "main_split/training_objectdataset.h5",
    "obj_only": "main_split_nobg/training_objectdataset.h5",
    "pb_t50_rs": "main_split/training_objectdataset_augmentedrot_scale75.h5",
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants_are_read_as_they_are(tmp_path: Path, variant: str) -> None:
    write_scanobjectnn(tmp_path, variant)
    train = build_dataset("scanobjectnn", "train", root=tmp_path, variant=variant)
    test = build_dataset("scanobjectnn", "test", root=tmp_path, variant=variant)
    assert (len(train), len(test)) == (30, 15)
    assert train.points.shape == (30, 2048, 3)
    assert train.points.dtype == torch.float32
    assert train.points.is_contiguous()
    assert train.labels.bincount().tolist() == [2] * 15
    assert train.classes[0] == "bag"
    assert train.classes[14] == "toilet"
    assert train.groups is None
    assert train.source == [tmp_path / PATHS[variant]]
    with h5py.File(tmp_path / PATHS[variant]) as file:
        assert np.array_equal(file["data"][()], train.points.numpy())


def test_obj_bg_is_the_default_and_variants_do_not_mix(tmp_path: Path) -> None:
    write_scanobjectnn(tmp_path, "obj_bg", train_per_class=1)
    write_scanobjectnn(tmp_path, "pb_t50_rs", train_per_class=3)
    assert len(build_dataset("scanobjectnn", "train", root=tmp_path)) == 15
    assert len(build_dataset("scanobjectnn", "train", root=tmp_path, variant="pb_t50_rs")) == 45


def test_archive_folder_is_found(tmp_path: Path) -> None:
    write_scanobjectnn(tmp_path / "h5_files", "obj_only")
    assert len(build_dataset("scanobjectnn", "test", root=str(tmp_path), variant="obj_only")) == 15


def test_normalize(tmp_path: Path) -> None:
    write_scanobjectnn(tmp_path, "obj_bg")
    normalized = build_dataset("scanobjectnn", "test", root=tmp_path, normalize=True)
    assert torch.allclose(normalized.points.norm(dim=2).amax(1), torch.ones(15), atol=1e-5)


def test_a_count_other_than_the_published_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scanobjectnn(tmp_path, "obj_bg")
    with caplog.at_level(logging.WARNING):
        build_dataset("scanobjectnn", "test", root=tmp_path)
    assert "ScanObjectNN obj_bg test holds 15 clouds, published are 581" in caplog.text


def test_missing_files_are_one_message_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        build_dataset("scanobjectnn", "train", root=tmp_path, variant="pb_t50_rs")
    message = str(error.value)
    assert "\n" not in message
    for path in (PATHS["pb_t50_rs"], PATHS["pb_t50_rs"].replace("training", "test")):
        assert f"{tmp_path / path} (missing)" in message
    assert "https://hkust-vgd.github.io/scanobjectnn/" in message
    assert "make demo" in message
    assert "python tools/main.py --config cfgs/demo.yaml" in message


def test_one_split_is_enough_to_read_it(tmp_path: Path) -> None:
    write_scanobjectnn(tmp_path, "obj_bg")
    (tmp_path / PATHS["obj_bg"]).unlink()
    assert len(build_dataset("scanobjectnn", "test", root=tmp_path)) == 15
    with pytest.raises(DataError, match=r"training_objectdataset\.h5 \(missing\), .*test_objectdataset\.h5 \(found\)"):
        build_dataset("scanobjectnn", "train", root=tmp_path)
