"""The Debian packages that data sets are built from: found on the disk, or downloaded and checked."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pointadapterx.errors import DataError, reason_of
from pointadapterx.hashing import hash_file
from pointadapterx.locks import alone

MIRROR = "https://deb.debian.org/debian"
SNAPSHOT = "https://snapshot.debian.org/file"  # keeps every file that Debian ever published, by its SHA-1
TIMEOUT = 60  # seconds without an answer
BLOCK = 2**20  # bytes
AGENT = {"User-Agent": "pointadapterx"}
LOCAL = "without network, give the file with --packages"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A package of one version.

    Attributes:
        name: of the package.
        version: its Debian version.
        pool: folder on a mirror.
        size: bytes of the file.
        sha256: of the file, as Debian's signed index has it.
        sha1: of the file, its address among the snapshots.
        sources: who made what is in it, and under which licence, a line each.
    """

    name: str
    version: str
    pool: str
    size: int
    sha256: str
    sha1: str
    sources: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}_{self.version}_all.deb"

    def addresses(self, mirror: str) -> list[str]:
        """Where it can be downloaded, the mirror first; mirrors drop old versions, the snapshots none."""
        return [f"{mirror.rstrip('/')}/{self.pool}/{urllib.parse.quote(self.file)}", f"{SNAPSHOT}/{self.sha1}"]


CC_BY_4 = "https://creativecommons.org/licenses/by/4.0/"
CC_BY_3 = "https://creativecommons.org/licenses/by/3.0/"
CC_BY_3_US = "https://creativecommons.org/licenses/by/3.0/us/"
CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
CC_BY_SA_4 = "https://creativecommons.org/licenses/by-sa/4.0/"

LDRAW = Package(
    "ldraw-parts-free",
    "2502+dfsg-2",
    "pool/main/l/ldraw-parts-free",
    47150140,
    "da276e526ea7eea3ec8776712286c21d65465c6a320e1c1256e5e0e81a37e4bf",
    "8b24522d27e4f1396690ddd26a3ba84e5f4f3899",
    (f"LDraw.org Parts Library, (c) 2012-2025 the LDraw.org contributors, www.ldraw.org: CC BY 4.0, {CC_BY_4}",),
)
FURNITURE = Package(
    "sweethome3d-furniture",
    "1.8-1",
    "pool/main/s/sweethome3d-furniture",
    119782356,
    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
    "42471d8a20b3d10fa551b8bac359cf83c8ed7178",
    (
        f"Scopia Visual Interfaces Systems, s.l., http://www.scopia.es (library Scopia): CC BY 3.0, {CC_BY_3}",
        f"the BlendSwap contributors (library BlendSwap-CC-BY, each model's author is named): CC BY 3.0, {CC_BY_3}",
        f"Andrew Kator & Jennifer Legaz (library KatorLegaz): CC BY 3.0 US, {CC_BY_3_US}",
        f"Emmanuel Puybaret, eTeks, and other contributors (library BlendSwap-CC-0): CC0 1.0, {CC0}",
    ),
)
ELECTRONICS = Package(
    "kicad-packages3d",
    "6.0.10-1",
    "pool/main/k/kicad-packages3d",
    379092288,
    "e4ee3179c3935885a262e41543a675208ad5b3077d348728cac46f534d01109a",
    "1383a2e242c47bcd4481801d621afff78ae396ee",
    (
        "the KiCad community and the models' authors, https://www.kicad.org/libraries/: CC BY-SA 4.0 with the KiCad "
        f"exception, which does not cover a collection, so what is built is under CC BY-SA 4.0, {CC_BY_SA_4}",
    ),
)


def downloads_folder() -> Path:
    """Where packages are kept that were downloaded, unless another folder is given.

    Raises:
        DataError: if the user has no home folder, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pointadapterx" / "packages"
    except RuntimeError as error:
        raise DataError(f"{reason_of(error)} Choose a folder for downloads with --downloads") from None


def find_package(package: Package, given: Sequence[Path], downloads: Path | None, mirror: str, say: Say) -> Path:
    """The package's file, whose checksum is right: one of those given, or downloaded.

    Args:
        package: what is needed.
        given: files, and folders that hold them; if there are some, nothing is downloaded.
        downloads: folder where downloads are kept, or None for :func:`downloads_folder`. What is there already is not
            downloaded again.
        mirror: a Debian mirror's address.
        say: is called with a line on what takes long.

    Raises:
        DataError: if it is not among those given, cannot be read or downloaded, or is not what it should be.
        InUseError: if another process is downloading it.
    """
    if not given:
        return download(package, downloads or downloads_folder(), mirror, say)
    for path in given:
        file = path / package.file if path.is_dir() else path
        try:
            if _is_right(package, file):
                return file
            if file.name == package.file and file.is_file():
                raise DataError(f"{file}: {_other(package, file)}; obtain it again")
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({reason_of(error)}); copy it to another place") from None
    listed = ", ".join(map(str, given[:3]))
    raise DataError(f"{listed}: no {package.file} (sha256 {package.sha256}) there; {_where(package)}")


def download(package: Package, folder: Path, mirror: str, say: Say) -> Path:
    """The package's file in ``folder``; a download that was interrupted goes on where it ended.

    Raises:
        DataError: with the reason and a way out.
        InUseError: if another process is downloading it.
    """
    file = folder / package.file
    try:
        if _is_right(package, file):
            return file
        folder.mkdir(parents=True, exist_ok=True)
        with alone(
            file.with_name(f".{file.name}.lock"), file, "wait for it, or choose another folder with --downloads"
        ):
            return _download(package, file, mirror, say)
    except OSError as error:
        raise DataError(f"{folder}: {reason_of(error)}; choose another folder with --downloads") from None


def _download(package: Package, file: Path, mirror: str, say: Say) -> Path:
    if _is_right(package, file):  # another process has just downloaded it
        return file
    folder, part = file.parent, file.with_name(f"{file.name}.{package.sha256[:8]}.part")
    there, free = part.stat().st_size if part.is_file() else 0, shutil.disk_usage(folder).free
    if free < package.size - there:
        need = (package.size - there) / 1e6
        raise DataError(f"{folder}: {need:.0f} MB are needed and {free / 1e6:.0f} MB are free; see --downloads")
    say(f"downloading {package.file}, {package.size / 1e6:.0f} MB, to {folder}")
    failures = []
    for address in package.addresses(mirror):
        try:
            _transfer(address, part, package.size)
        except _Unavailable as error:
            failures.append(f"{address}: {error}")
            continue
        if hash_file(part) != package.sha256:
            failures.append(f"{address}: {_other(package, part)}")
            part.unlink()
            continue
        part.replace(file)
        return file
    raise DataError(f"{'; '.join(failures)}; try later, another --mirror, or {LOCAL}")


def _is_right(package: Package, file: Path) -> bool:
    return file.is_file() and file.stat().st_size == package.size and hash_file(file) == package.sha256


class _Unavailable(Exception):
    """Why an address does not give the file."""


def _transfer(address: str, part: Path, size: int) -> None:
    """Downloads what is missing at the end of ``part``.

    Raises:
        _Unavailable: if the address does not give all of it; what came is kept.
        DataError: if it cannot be written.
    """
    there = part.stat().st_size if part.is_file() else 0
    if there > size:
        part.unlink()
        there = 0
    if there == size:
        return
    headers = AGENT | ({"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT) as answer:
            goes_on = answer.status == http.client.PARTIAL_CONTENT
            _check_length(answer, size - there if goes_on else size)
            _save(answer, part, append=goes_on, size=size)
    except urllib.error.HTTPError as error:
        gone = " (it has this version no longer)" if error.code == http.client.NOT_FOUND else ""
        raise _Unavailable(f"answers {error.code} {error.reason}{gone}") from None
    except urllib.error.URLError as error:
        raise _Unavailable(f"cannot be reached ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        raise _Unavailable(f"the connection failed ({reason_of(error)})") from None
    if part.stat().st_size < size:
        raise _Unavailable(f"ended after {part.stat().st_size} of {size} bytes; run the command again to go on")


def _check_length(answer: http.client.HTTPResponse, expected: int) -> None:
    """Refuses another file, such as the page of a hotel's network, before it replaces what was downloaded.

    Raises:
        _Unavailable: naming both lengths.
    """
    length = answer.headers.get("Content-Length")
    if length is not None and int(length) != expected:
        raise _Unavailable(f"gives {length} bytes where {expected} are expected, so it is another file")


def _save(answer: http.client.HTTPResponse, part: Path, append: bool, size: int) -> None:
    """Writes what comes, as far as it comes.

    Raises:
        DataError: if it cannot be written.
    """
    try:
        with part.open("ab" if append else "wb") as file:
            while file.tell() <= size and (block := _next_block(answer)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{part}: {reason_of(error)}; free space, or choose another folder with --downloads") from None


def _next_block(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Unavailable(f"the connection failed ({reason_of(error)}); run the command again to go on") from None


def _other(package: Package, file: Path) -> str:
    size = file.stat().st_size
    if size != package.size:
        return f"has {size} bytes, and {package.name} {package.version} has {package.size}"
    return f"has another sha256 than {package.name} {package.version}, which has {package.sha256}"


def _where(package: Package) -> str:
    return f"download it from {' or '.join(package.addresses(MIRROR))}"
