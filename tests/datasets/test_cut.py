"""Text that is cut within its last number: the count of rows is right, and the value is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointadapterx.datasets.point_files import load_cloud
from tests.datasets.odd_files import ply

ROWS = np.random.default_rng(0).normal(size=(3000, 3))
HEADS = {
    "xyz": "",
    "pts": "{}\n",
    "off": "OFF\n{} 0 0\n",
    "obj": "",
    "pcd": "FIELDS x y z\nPOINTS {}\nDATA ascii\n",
    "ply": ply("", vertex=4).decode().replace("vertex 4", "vertex {}"),
}


def text(suffix: str, rows: np.ndarray, form: str) -> str:
    before = "v " if suffix == "obj" else ""
    lines = [before + " ".join(format(value, form) for value in row) for row in rows]
    return HEADS[suffix].format(len(rows)) + "\n".join(lines)


@pytest.mark.parametrize("suffix", HEADS)
@pytest.mark.parametrize("count", [200, 3000])
def test_a_shortened_last_number_is_doubted(suffix: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / f"cloud.{suffix}"
    whole = text(suffix, ROWS[:count], ".6f")
    path.write_text(whole, encoding="utf-8")
    assert load_cloud(path, 1, 0).doubts == ()
    path.write_text(whole[:-3], encoding="utf-8")
    cloud = load_cloud(path, 1, 0)
    (doubt,) = cloud.doubts
    assert len(cloud.points) == count
    assert f"no line end, and its last number, {whole.split()[-1][:-3]}, fewer digits than all" in doubt.text


@pytest.mark.parametrize(
    "content",
    [
        text("xyz", ROWS[:200], ".6f")[:-3] + "\n",
        text("xyz", ROWS[:200], ".6f")[:-3] + " ",
        text("xyz", ROWS[:50], ".6f")[:-3],
        text("xyz", ROWS[:200].round(2), "g"),
        text("xyz", ROWS, ".6f").replace("\n", "\r")[:-3],
        text("xyz", (1000 * ROWS[:200]).round(), "g"),
    ],
    ids=["line end", "space", "few rows", "digits of any number", "old line ends", "whole numbers"],
)
def test_files_without_a_line_end_are_no_news(content: str, tmp_path: Path) -> None:
    (tmp_path / "cloud.xyz").write_text(content, encoding="utf-8")
    assert load_cloud(tmp_path / "cloud.xyz", 1, 0).doubts == ()
