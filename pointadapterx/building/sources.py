"""From a package to clouds: one function for each data set."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pointadapterx.building.deb import read_files
from pointadapterx.building.ldraw import Library, part_numbers, with_normals
from pointadapterx.building.lists import Model
from pointadapterx.building.meshes import read_catalogue, read_obj, read_vrml
from pointadapterx.building.packages import CC0, CC_BY_3, CC_BY_3_US
from pointadapterx.building.sampling import GRID, hilbert_order, sample, to_steps, to_unit_sphere
from pointadapterx.errors import DataError, reason_of

FURNITURE = "usr/share/sweethome3d/furniture/"
LIBRARIES = {
    "Scopia": (f"CC BY 3.0, {CC_BY_3}", "Scopia Visual Interfaces Systems, s.l."),
    "BlendSwap-CC-BY": (f"CC BY 3.0, {CC_BY_3}", ""),
    "BlendSwap-CC-0": (f"CC0 1.0, {CC0}", ""),
    "KatorLegaz": (f"CC BY 3.0 US, {CC_BY_3_US}", "Andrew Kator & Jennifer Legaz"),
}
"""Furniture libraries of the package, with licence, and author where it is not each model's own."""
PACKAGES_3D, SUFFIX = "usr/share/kicad/3dmodels/", ".wrl"
Z_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)  # (x, y, z) with z up to y up, without mirroring
Y_DOWN = np.array([1.0, -1.0, 1.0])  # LDraw's y points down
Y_DOWN_TURNED = np.array([1.0, -1.0, -1.0])  # by half a turn about x, without mirroring


@dataclass(frozen=True)
class Cloud:
    """What is written of a model.

    Attributes:
        points: ``(n, 3)``, in the type in which they are kept; int16 are steps of 1/:data:`GRID`.
        pid: ``(n,)`` uint8, the part of each point, or None.
        texts: further entries, such as its author.
    """

    points: np.ndarray
    pid: np.ndarray | None = None
    texts: dict[str, str] = field(default_factory=dict)


Source = Callable[[Path, Sequence[Model]], Iterator[tuple[str, Cloud]]]
"""Gives name and cloud of every model, in any order."""


def ldraw20(package: Path, models: Sequence[Model]) -> Iterator[tuple[str, Cloud]]:
    """Parts, float16."""
    library = Library(package)
    for name in dict.fromkeys(model.name for model in models):
        with of_model(package, name):
            points, _ = sample(library.read(name)[0] * Y_DOWN, name)
        yield name, Cloud(to_unit_sphere(points).astype(np.float16))


def ldraw_parts(package: Path, models: Sequence[Model]) -> Iterator[tuple[str, Cloud]]:
    """Parts with a label for each point."""
    library = Library(package)
    for model in models:
        with of_model(package, model.name):
            triangles, labels = library.read(model.name)
            triangles = triangles * Y_DOWN_TURNED
            points, chosen = sample(triangles, model.name)
        pid = part_numbers(model.label)[with_normals(triangles, labels)[chosen]]
        yield model.name, Cloud(to_steps(_on_grid(points)), pid)


def electronics(package: Path, models: Sequence[Model]) -> Iterator[tuple[str, Cloud]]:
    """KiCad's models, z up in the package."""
    names = {f"{PACKAGES_3D}{model.name.replace('/', '.3dshapes/')}{SUFFIX}": model.name for model in models}
    for path, content in read_files(package, names.__contains__):
        name = names[path]
        with of_model(package, name):
            points, _ = sample(_finite(read_vrml(content)) @ Z_UP.T, f"kicad/{name}")
        yield name, Cloud(to_steps(_on_grid(points)))


def home(package: Path, models: Sequence[Model]) -> Iterator[tuple[str, Cloud]]:
    """Sweet Home 3D's furniture, in its real proportions; points along a Hilbert curve, which makes files smaller."""
    for name, entry, archive, texts in catalogued(package, {model.name for model in models}):
        with of_model(package, name):
            triangles = placed(_finite(read_obj(archive.read(entry["model"].lstrip("/")))), entry)
            points, _ = sample(triangles, f"sh3d/{name}")
            steps = _on_grid(points)
        yield name, Cloud(to_steps(steps[hilbert_order(steps / GRID)]), texts=texts)


Catalogued = tuple[str, dict[str, str], zipfile.ZipFile, dict[str, str]]


def catalogued(package: Path, wanted: Collection[str]) -> Iterator[Catalogued]:
    """Of Sweet Home 3D's models that are wanted: name, entry of the catalogue, library, and whom to thank."""
    for path, content in read_files(package, lambda name: name.startswith(FURNITURE) and name.endswith(".sh3f")):
        library = path.removeprefix(FURNITURE).removesuffix(".sh3f")
        if library not in LIBRARIES:
            continue
        licence, author = LIBRARIES[library]
        with of_model(package, library):
            archive = zipfile.ZipFile(io.BytesIO(content))
            entries = read_catalogue(archive.read("PluginFurnitureCatalog.properties"))
        for entry in entries:
            name = f"{library}/{entry.get('id', '').split('#')[-1]}"
            if name in wanted:
                with of_model(package, name):
                    texts = {
                        "title": entry["name"],
                        "author": author or entry.get("creator", ""),
                        "licence": licence,
                    }
                yield name, entry, archive, texts


def placed(triangles: np.ndarray, entry: dict[str, str]) -> np.ndarray:
    """Turned and scaled as the catalogue says, to its width, height and depth."""
    if "modelRotation" in entry:
        x, y, z = np.array(entry["modelRotation"].split(), float).reshape(3, 3).T
        triangles = triangles[..., :1] * x + triangles[..., 1:2] * y + triangles[..., 2:] * z  # no BLAS: it may round
    low = triangles.min((0, 1))
    extent = triangles.max((0, 1)) - low
    size = np.array([float(entry[key]) for key in ("width", "height", "depth")])
    return (triangles - low) * (size / np.where(extent > 1e-9, extent, 1))


def _finite(triangles: np.ndarray) -> np.ndarray:
    return triangles[np.isfinite(triangles).all((1, 2))]


def _on_grid(points: np.ndarray) -> np.ndarray:
    return np.round(to_unit_sphere(points).astype(np.float32) * GRID)


@contextmanager
def of_model(package: Path, name: str) -> Iterator[None]:
    """Says which model of which package cannot be read.

    Raises:
        DataError: in place of what readers raise for files that are not as the known ones.
    """
    try:
        yield
    except DataError:
        raise
    except (KeyError, IndexError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{package}: {name} cannot be read ({reason_of(error)}); is it the expected package?") from None
