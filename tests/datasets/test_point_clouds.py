"""The base class, the builder and the hashes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pointadapterx.datasets import DATASETS, PointClouds, build_dataset, content_hash, derive_seed
from pointadapterx.errors import ConfigError


def make(n: int = 6) -> PointClouds:
    points = torch.arange(n * 4 * 3, dtype=torch.float32).view(n, 4, 3)
    return PointClouds(
        points,
        torch.arange(n) % 3,
        ["a", "b", "c"],
        "train",
        names=[f"cloud{i}" for i in range(n)],
        groups=torch.arange(n) // 2,
        source=[Path("x.h5")],
    )


def test_items_collate_into_batches() -> None:
    batch = next(iter(DataLoader(make(), batch_size=4)))
    assert batch["points"].shape == (4, 4, 3)
    assert batch["label"].tolist() == [0, 1, 2, 0]
    assert batch["index"].tolist() == [0, 1, 2, 3]


def test_subset_keeps_everything_in_step() -> None:
    data = make()
    part = data.subset(torch.tensor([4, 1]))
    assert len(part) == 2
    assert torch.equal(part.points, data.points[[4, 1]])
    assert part.points.is_contiguous()
    assert part.labels.tolist() == [1, 1]
    assert part.names == ["cloud4", "cloud1"]
    assert part.groups is not None
    assert part.groups.tolist() == [2, 0]
    assert (part.classes, part.split, part.source) == (data.classes, data.split, data.source)


def test_subset_refuses_an_index_beyond_the_end() -> None:
    with pytest.raises(IndexError):
        make().subset([6])


def test_checksum_is_of_the_content() -> None:
    assert make().checksum == make().checksum
    assert make().checksum == make(8).subset(range(6)).checksum
    moved, relabelled, renamed = make(), make(), make()
    moved.points[0, 0, 0] += 1e-3
    relabelled.labels[0] = 2
    renamed.classes[0] = "z"
    assert len({data.checksum for data in (make(), moved, relabelled, renamed, make(5))}) == 5


def test_normalize_puts_every_cloud_into_the_unit_sphere() -> None:
    data = PointClouds(
        torch.randn(300, 16, 3) * 5 + 3, torch.zeros(300, dtype=torch.int64), ["a"], "test", normalize=True
    )
    assert torch.allclose(data.points.norm(dim=2).amax(1), torch.ones(300), atol=1e-5)
    assert torch.allclose(data.points.mean(1), torch.zeros(300, 3), atol=1e-5)


SCENES = ("labelled_folder", "rooms", "s3dis")  # whose clouds have no classes
PICTURES = ("ade20k", "coco", "coco_masks", "digit_scenes", "mask_folder", "views", "voc", "voc_masks")  # nor these


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_classes_declare_what_a_configuration_is_checked_against(name: str) -> None:
    kind = DATASETS[name]
    counts = [kind.count_classes(variant) for variant in kind.variants or (None,)]
    told_by_files = ("folder", "h5", "imagefolder", *SCENES, *PICTURES)
    assert all((count is not None) == (name not in told_by_files) for count in counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scanobjectn", "train"), "unknown data set 'scanobjectn'; did you mean 'scanobjectnn'?"),
        (("ldraw20", "tset"), "split 'tset' is unknown; did you mean 'test'? Known: train, test."),
        (("ldraw20", "val"), "cut from 'train' by stratified_split"),
    ],
)
def test_unknown_names(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_dataset(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ldraw20", {"normalise": True}, "data.normalise is not an option of ldraw20; did you mean 'normalize'?"),
        ("ldraw20", {"variant": "full"}, "ldraw20 has no variants; remove data.variant"),
        (
            "scanobjectnn",
            {"variant": "pb_t50"},
            "'pb_t50' is unknown; did you mean 'pb_t50_rs'? Known: obj_bg, obj_only",
        ),
        ("modelnet40", {"variant": "hdf5"}, "'hdf5' is unknown. Known: normal_resampled, ply_hdf5_2048"),
    ],
)
def test_unknown_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_dataset(name, "train", **options)
    assert message in str(error.value)


def test_derive_seed_does_not_change() -> None:
    """The values are part of the format: with others, old runs could not be repeated."""
    assert derive_seed(0, "batches", 1) == 1139024024299555699
    command = "from pointadapterx.datasets import derive_seed; print(derive_seed(7, 'vote', 3))"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed(7, "vote", 3)


PART = st.integers() | st.text()


@given(st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_derive_seed_is_in_range_and_tells_parts_apart(a: list[int | str], b: list[int | str]) -> None:
    assert 0 <= derive_seed(*a) < 2**63
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b)


@pytest.mark.parametrize(("a", "b"), [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), ((1, 2), (12,)), (("",), ())])
def test_derive_seed_keeps_boundaries_and_types(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> None:
    assert derive_seed(*a) != derive_seed(*b)


def test_derive_seed_refuses_other_types() -> None:
    with pytest.raises(TypeError, match=r"not 0\.5 \(float\)"):
        derive_seed(0.5)  # type: ignore[arg-type]


def test_content_hash_tells_shape_type_and_boundaries_apart() -> None:
    x = torch.arange(6.0)
    hashes = {content_hash(x), content_hash(x.view(2, 3)), content_hash(x.double()), content_hash(x[:3], x[3:])}
    assert len(hashes) == 4
    assert content_hash(x.view(2, 3).T) == content_hash(x.view(2, 3).T.contiguous())
