"""Debian's package files, read in Python: an ar archive with a compressed tar archive in it."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pointadapterx.errors import DataError, reason_of

MAGIC = b"!<arch>\n"
HEADER = 60  # bytes before a member of an ar archive
SIZE = slice(48, 58)
LARGEST = 2**28  # bytes of a file that is taken into memory
READABLE = ("data.tar", "data.tar.gz", "data.tar.bz2", "data.tar.xz")


class _Section(io.RawIOBase):
    """A part of a file, from where the file is to ``size`` bytes after it."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self.file, self.left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(min(len(buffer), self.left))
        self.left -= len(content)
        buffer[: len(content)] = content
        return len(content)


def read_files(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files of a package for which ``is_wanted(name)``, in the archive's order.

    Nothing is written to the disk, so no name can lead anywhere. Links and devices are left out.

    Args:
        path: a ``.deb`` file.
        is_wanted: gets names such as ``usr/share/ldraw/parts/3001.dat``.

    Raises:
        DataError: if it is no such file, or damaged.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=_find_data(path, file), mode="r|*") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isreg() and is_wanted(name):
                    yield name, _content(path, archive, member)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: not a readable Debian package ({reason_of(error)}); obtain it again") from None


def _find_data(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    """The archive of the package's files within ``file``."""
    if file.read(len(MAGIC)) != MAGIC:
        raise DataError(f"{path}: does not begin as a Debian package does; obtain it again")
    while len(header := file.read(HEADER)) == HEADER:
        name = header[:16].decode("latin1").strip().rstrip("/")
        if not header[SIZE].strip().isdigit():
            break
        size = int(header[SIZE])
        if name in READABLE:
            return io.BufferedReader(_Section(file, size), 2**20)
        if name.startswith("data.tar"):
            raise DataError(f"{path}: holds {name}, whose compression is not read here; take the package from Debian")
        file.seek(size + size % 2, io.SEEK_CUR)
    raise DataError(f"{path}: holds no data.tar, so it is truncated or no Debian package; obtain it again")


def _content(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > LARGEST:
        raise DataError(f"{path}: {member.name} has {member.size} bytes, which no file of a known package has")
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) != member.size:
        raise DataError(f"{path}: {member.name} ends after {len(content)} of {member.size} bytes; obtain it again")
    return content
