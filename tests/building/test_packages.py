"""Packages are found on the disk, or downloaded, continued and checked; the mirror is a server on this machine."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pointadapterx.building import packages
from pointadapterx.building.packages import Package, find_package
from pointadapterx.building.recipes import RECIPES
from pointadapterx.commands.main import main
from pointadapterx.errors import DataError, InUseError
from pointadapterx.locks import try_hold
from tests.building.debs import furniture, save, small_home

CONTENT = furniture()


class Mirror:
    """Serves one file, and remembers the ranges that were asked for."""

    def __init__(self, package: Package) -> None:
        self.content, self.until, self.ranges = CONTENT, len(CONTENT), list[str | None]()
        self.length: int | None = None
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != f"/{package.pool}/{package.file}":
                    self.send_error(404)
                    return
                wanted = self.headers["Range"]
                mirror.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                self.send_response(206 if wanted else 200)
                if mirror.length is not None:
                    self.send_header("Content-Length", str(mirror.length))
                self.end_headers()
                self.wfile.write(mirror.content[start : mirror.until])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    return small_home(monkeypatch, CONTENT)


@pytest.fixture
def mirror(package: Package, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    mirror = Mirror(package)
    monkeypatch.setattr(packages, "SNAPSHOT", f"{mirror.address}/snapshot")
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


def test_a_download_is_checked_kept_and_not_repeated(tmp_path: Path, package: Package, mirror: Mirror) -> None:
    said: list[str] = []
    for _ in range(2):
        file = find_package(package, [], tmp_path, mirror.address, said.append)
        assert file.read_bytes() == CONTENT
    assert mirror.ranges == [None]
    assert [path.name for path in tmp_path.iterdir()] == [package.file]
    assert len(said) == 1


def test_a_download_that_was_interrupted_goes_on(tmp_path: Path, package: Package, mirror: Mirror) -> None:
    mirror.until = 100
    with pytest.raises(DataError, match=rf"ended after 100 of {package.size} bytes; run the command again"):
        find_package(package, [], tmp_path, mirror.address, print)
    mirror.until = len(CONTENT)
    assert find_package(package, [], tmp_path, mirror.address, print).read_bytes() == CONTENT
    assert mirror.ranges == [None, "bytes=100-"]


def test_a_connection_that_breaks(tmp_path: Path, package: Package, mirror: Mirror) -> None:
    mirror.length = len(CONTENT) + 1  # announced, and never sent
    with pytest.raises(DataError, match=rf"ended after {package.size} of|connection failed"):
        find_package(dataclasses.replace(package, size=package.size + 1), [], tmp_path, mirror.address, print)
    (part,) = tmp_path.iterdir()
    assert part.read_bytes() == CONTENT


def test_another_file_does_not_replace_what_was_downloaded(tmp_path: Path, package: Package, mirror: Mirror) -> None:
    mirror.until = 100
    with pytest.raises(DataError, match="ended after 100"):
        find_package(package, [], tmp_path, mirror.address, print)
    mirror.content, mirror.length = b"<html>Please log in</html>" * 9, 134
    with pytest.raises(DataError, match=rf"gives 134 bytes where {package.size - 100} are expected"):
        find_package(package, [], tmp_path, mirror.address, print)
    (part,) = tmp_path.iterdir()
    assert part.read_bytes() == CONTENT[:100]


def test_two_processes_do_not_download_into_one_file(tmp_path: Path, package: Package, mirror: Mirror) -> None:
    hold = try_hold(tmp_path / f".{package.file}.lock")
    assert hold is not None
    with pytest.raises(InUseError, match=r"_all\.deb: is in use by process \d+ .*; wait for it"):
        find_package(package, [], tmp_path, mirror.address, print)
    hold.release()
    assert find_package(package, [], tmp_path, mirror.address, print).read_bytes() == CONTENT


def test_a_given_package_that_cannot_be_read(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path / "debs", package, CONTENT)

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(packages, "hash_file", refuse)
    assert main(["data", "build", "home", str(tmp_path / "home"), "--packages", str(file)]) == 2
    assert f"error: {file}: cannot be read (Permission denied)" in capsys.readouterr().err


def test_a_user_without_a_home_folder(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    file = save(tmp_path / "debs", package, CONTENT)
    assert main(["data", "build", "home", str(tmp_path / "one"), "--packages", str(file)]) == 1  # not the known content
    assert main(["data", "build", "home", str(tmp_path / "two")]) == 2
    assert "error: Could not determine home directory. Choose a folder for downloads with --downloads" in (
        capsys.readouterr().err
    )


def test_a_folder_that_is_a_file(tmp_path: Path, package: Package) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file: .*; choose another folder with --downloads"):
        find_package(package, [], tmp_path / "file", "http://127.0.0.1:1", print)


def test_a_wrong_file_is_not_kept(tmp_path: Path, package: Package, mirror: Mirror) -> None:
    mirror.content = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=r"has another sha256 than sweethome3d-furniture 1\.8-1"):
        find_package(package, [], tmp_path, mirror.address, print)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_left_the_mirror(tmp_path: Path, package: Package, mirror: Mirror) -> None:
    with pytest.raises(DataError) as error:
        find_package(package, [], tmp_path, f"{mirror.address}/other", print)
    assert "answers 404 Not Found (it has this version no longer)" in str(error.value)
    assert "without network, give the file with --packages" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_network(tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "SNAPSHOT", "http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"cannot be reached \(.*refused\).*give the file with --packages"):
        find_package(package, [], tmp_path, "http://127.0.0.1:1", print)


def test_too_little_space(tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DataError, match=r"MB are needed and 0 MB are free; see --downloads"):
        find_package(package, [], tmp_path, "http://127.0.0.1:1", print)


def test_a_given_package(tmp_path: Path, package: Package) -> None:
    file = save(tmp_path / "debs", package, CONTENT)
    renamed = file.with_name("other.deb")
    shutil.copy(file, renamed)
    for given in ([file], [file.parent], [tmp_path, renamed]):
        assert find_package(package, given, tmp_path / "none", "http://127.0.0.1:1", print) == (
            renamed if renamed in given else file
        )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CONTENT[:-1], r"has \d+ bytes, and sweethome3d-furniture 1.8-1 has \d+; obtain it again"),
        (CONTENT[:-1] + b"?", "has another sha256 than sweethome3d-furniture 1.8-1"),
        (None, r"no sweethome3d-furniture_1\.8-1_all\.deb \(sha256 \w+\) there; download it from https://"),
    ],
)
def test_a_given_package_that_is_another(tmp_path: Path, package: Package, content: bytes | None, words: str) -> None:
    if content is not None:
        save(tmp_path, package, content)
    with pytest.raises(DataError, match=words):
        find_package(package, [tmp_path], tmp_path, "http://127.0.0.1:1", print)


def test_every_package_names_addresses_and_licences() -> None:
    for recipe in RECIPES.values():
        package = recipe.package
        assert len(package.sha256) == 64
        assert len(package.sha1) == 40
        mirror, snapshot = package.addresses("https://example.org/debian/")
        assert mirror.startswith(f"https://example.org/debian/pool/main/{package.name[0]}/{package.name}/")
        assert "+" not in mirror.rpartition("/")[2]
        assert snapshot.endswith(package.sha1)
        assert all("CC" in source for source in package.sources)
