"""Debian's packages are read without unpacking them, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointadapterx.building import deb as reader
from pointadapterx.building.deb import read_files
from pointadapterx.errors import DataError
from tests.building.debs import ar, deb, tar

FILES = {"usr/share/a.dat": b"one", "usr/share/b.txt": b"two", "../../outside.dat": b"three", "/root.dat": b"four"}


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_wanted_files_are_read_and_none_is_written(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "in" / "a.deb"
    path.parent.mkdir()
    path.write_bytes(deb(FILES, compression))
    found = dict(read_files(path, lambda name: name.endswith(".dat")))
    assert found == {name: content for name, content in FILES.items() if name.endswith(".dat")}  # no link
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


WHOLE = deb({"a.dat": bytes(range(256)) * 40})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin as a Debian package does"),
        (b"<html>404</html>" * 9, "does not begin as a Debian package does"),
        (WHOLE[:90], "holds no data.tar"),
        (WHOLE[:-200], "not a readable Debian package"),
        (WHOLE[:-300] + b"?" * 300, "not a readable Debian package"),
        (ar([("debian-binary", b"2.0\n"), ("data.tar.zst", b"...")]), "holds data.tar.zst, whose compression is not"),
        (ar([("data.tar.xz", tar({"a.dat": b""})[:20])]), "not a readable Debian package"),
        (b"!<arch>\n" + b"data.tar.xz     " + b"?" * 44, "holds no data.tar"),
    ],
)
def test_damaged_packages(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_files(path, lambda name: True))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGEST", 2)
    path = tmp_path / "a.deb"
    path.write_bytes(deb(FILES))
    with pytest.raises(DataError, match=r"usr/share/a\.dat has 3 bytes"):
        list(read_files(path, lambda name: True))
