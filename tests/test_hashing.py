"""Hashes name runs, caches and backbones on disk, so no version may change one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pointadapterx.hashing import content_hash, derive_seed, hash_bytes, hash_file, hash_json, hash_tensors
from tests.conftest import ROOT

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(2, dtype=torch.float16)}
SHA_OF_AB = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (hash_tensors(TENSORS), "704d0468cec467a814fc947f24192568ef0b857227857ba9c98167f7de835c6c"),
        (hash_json({"b": 1, "a": [1.5, None]}), "ad3879169fd838954e12f9083bdafe348a124e4bbb50a42c97bd80a2847fbc99"),
        (hash_bytes(b"ab"), "3dc9ae220222e2e156b2a5abb60d01c7"),
        (content_hash(torch.arange(3), "x"), "6ebaec5c46abbc9df609d1ee747c983b"),
        (derive_seed(1, "augment", 2), 6581166175405499058),
    ],
)
def test_digests_are_those_of_earlier_versions(found: object, wanted: object) -> None:
    assert found == wanted


def test_files_are_hashed_as_if_they_were_one(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    (tmp_path / "ab").write_text("ab")
    assert hash_file(tmp_path / "a", tmp_path / "b") == hash_file(tmp_path / "ab") == SHA_OF_AB


def test_hashlib_is_used_in_one_place() -> None:
    using = [
        p
        for folder in ("pointadapterx", "datasets")
        for p in (ROOT / folder).rglob("*.py")
        if "hashlib" in p.read_text()
    ]
    assert [path.name for path in using] == ["hashing.py"]
