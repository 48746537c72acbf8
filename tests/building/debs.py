"""Tiny packages in Debian's form, and recipes for them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pointadapterx.building import build as building
from pointadapterx.building.lists import Model
from pointadapterx.building.packages import Package
from pointadapterx.building.recipes import RECIPES

TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 2 0\nv 0 0 3\nf 1/1 3 2\nf 1 2 -1\nf 2 3 4\nf 1 4 3\n"
LIBRARY = "usr/share/sweethome3d/furniture/Scopia.sh3f"


def tar(files: Mapping[str, bytes], compression: str = "xz") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("./usr/share/link.dat")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return content.getvalue()


def ar(members: Sequence[tuple[str, bytes]]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, content in members:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        parts += [header, content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def deb(files: Mapping[str, bytes], compression: str = "xz") -> bytes:
    data = tar(files, compression)
    suffix = f".{compression}" if compression else ""
    return ar([("debian-binary", b"2.0\n"), ("control.tar.xz", tar({}) + b"x"), (f"data.tar{suffix}", data)])


def furniture(models: Sequence[str] = ("chair_1", "chair_2", "bed_1", "bed_2")) -> bytes:
    """A package with a furniture library of a few boxes with one corner."""
    catalogue = "id=SweetHome3D#Models\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, name in enumerate(models, 1):
            entry = {"id": f"Scopia#{name}", "name": name.title(), "model": f"/models/{name}.obj", "creator": "Élise"}
            entry |= {"width": str(number), "height": "2", "depth": "3", "modelRotation": "1 0 0 0 0 -1 0 1 0"}
            catalogue += "".join(f"{key}#{number}={value}\n" for key, value in entry.items())
            archive.writestr(f"models/{name}.obj", TETRAHEDRON)
        archive.writestr("PluginFurnitureCatalog.properties", catalogue.encode("latin1"))
    return deb({LIBRARY: content.getvalue()})


def small_home(monkeypatch: pytest.MonkeyPatch, content: bytes) -> Package:
    """Lets ``build("home", ...)`` take four models of a package that has this content."""
    package = dataclasses.replace(
        RECIPES["home"].package, size=len(content), sha256=hashlib.sha256(content).hexdigest(), sha1="0" * 40
    )
    recipe = dataclasses.replace(RECIPES["home"], package=package, known={})
    rows = [("train", "chair", "0", "chair_1"), ("train", "bed", "1", "bed_1")]
    rows += [("test", "chair", "2", "chair_2"), ("test", "bed", "3", "bed_2")]
    models = tuple(Model(part, label, group, f"Scopia/{name}") for part, label, group, name in rows)
    monkeypatch.setitem(RECIPES, "home", recipe)
    monkeypatch.setattr(building, "read_list", lambda name: models)
    return package


def save(folder: Path, package: Package, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.file
    path.write_bytes(content)
    return path
