"""The files of a data set: clouds, checksums, and whom to thank."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from pointadapterx.building.lists import Model
from pointadapterx.building.recipes import Recipe
from pointadapterx.building.sampling import GRID, NEGATIVE_ZERO
from pointadapterx.building.sources import Cloud
from pointadapterx.datasets.hdf5 import STEPS
from pointadapterx.files import write_json, write_text
from pointadapterx.hashing import content_hash, hash_file
from pointadapterx.version import __version__

CHUNK = 256  # clouds
CHECKSUMS, ATTRIBUTION = "checksums.json", "ATTRIBUTION.txt"


def write_clouds(path: Path, recipe: Recipe, models: Sequence[Model], clouds: Mapping[str, Cloud]) -> str:
    """Writes a file of clouds in the order of ``models``, and returns the hash of its content.

    Equal content gives equal bytes, as long as the libraries that compress are the same; the hash does not depend on
    them.
    """
    chosen = [clouds[model.name] for model in models]
    data = np.stack([cloud.points for cloud in chosen])
    entries = entries_of(recipe, models, chosen)
    packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    with new_h5(path) as file:
        rows = min(CHUNK, len(data))
        entry = file.create_dataset("data", data=data, chunks=(rows, data.shape[1], 1), **packed)
        if data.dtype == np.int16:
            entry.attrs[STEPS] = GRID
        for key, values in entries.items():
            file.create_dataset(key, data=values, **(packed if values.dtype.kind == "S" or values.ndim > 1 else {}))
        if "label" in entries:
            file.attrs["classes"] = np.array(classes_of(recipe, models), dtype="S")
        for key, text in story_of(recipe).items():
            file.attrs[key] = np.bytes_(text.encode())
    return hash_of(data, entries)


@contextmanager
def new_h5(path: Path) -> Iterator[h5py.File]:
    """A file that is put together in memory and then written: HDF5 prints tracebacks, and may crash, on a full disk."""
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        path.write_bytes(file.id.get_file_image())


def hash_of(data: np.ndarray, entries: Mapping[str, np.ndarray]) -> str:
    """Hash of what a file holds. -0 counts as 0: which of them noise of 1e-17 is rounded to depends on the machine."""
    zero = NEGATIVE_ZERO if data.dtype == np.int16 else 0
    points = np.where(data == zero, data.dtype.type(0), data)
    return content_hash(points, *(part for key, values in entries.items() for part in (key, _plain(values))))


def classes_of(recipe: Recipe, models: Sequence[Model]) -> list[str]:
    """Names of the classes in the order of the labels."""
    return list(recipe.classes) or sorted({model.label for model in models})


def entries_of(recipe: Recipe, models: Sequence[Model], clouds: Sequence[Cloud]) -> dict[str, np.ndarray]:
    """What is written beside the points, for each cloud."""
    entries = {"name": _texts([model.name for model in models])}
    if models[0].label:
        classes = classes_of(recipe, models)
        entries["label"] = np.array([classes.index(model.label) for model in models], np.int64)
    if models[0].group:
        entries["group"] = np.array([int(model.group) for model in models], np.int64)
    pids = [cloud.pid for cloud in clouds if cloud.pid is not None]
    if pids:
        entries["pid"] = np.stack(pids)
    for key in clouds[0].texts:
        entries[key] = _texts([cloud.texts[key] for cloud in clouds])
    return entries


def _texts(values: Sequence[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype="S")  # of fixed length: equal content, equal bytes


def _plain(values: np.ndarray) -> np.ndarray | str:
    return "\n".join(value.decode() for value in values.tolist()) if values.dtype.kind == "S" else values


def story_of(recipe: Recipe) -> dict[str, str]:
    """What files say of themselves."""
    package, made = recipe.package, "Rooms composed" if recipe.counts else "Surface samples"
    return {
        "title": recipe.title,
        "source": f"{made} of models in the Debian package {package.name} {package.version}",
        "attribution": "; ".join(package.sources),
        "licence": recipe.licence,
        "changes": recipe.changes,
    }


def write_attribution(folder: Path, recipe: Recipe, clouds: Mapping[str, Cloud]) -> None:
    """Writes sources, licences and changes, and authors with their models' titles where they are named."""
    package = recipe.package
    lines = [
        f"{recipe.title}: {recipe.about}",
        f"Built from the Debian package {package.name} {package.version} (sha256 {package.sha256}).",
        "",
        "Sources:",
        *(f"- {source}" for source in package.sources),
        "",
        f"Licence of these files: {recipe.licence}",
        f"Changes: {recipe.changes}.",
    ]
    titles: dict[str, set[str]] = {}
    for cloud in clouds.values():
        if cloud.texts:
            titles.setdefault(f"{cloud.texts['author']} ({cloud.texts['licence']})", set()).add(cloud.texts["title"])
    if titles:
        lines += ["", "Authors and their models:"]
        lines += [f"- {author}: {', '.join(sorted(titles[author]))}" for author in sorted(titles)]
    write_text(folder / ATTRIBUTION, "\n".join(lines) + "\n")


def write_checksums(folder: Path, name: str, recipe: Recipe, contents: Mapping[str, str]) -> None:
    """Writes what the files hold and were built with."""
    package = recipe.package
    files = {
        f"{part}{recipe.suffix}": {
            "content": content,
            "known": recipe.known.get(part),
            "sha256": hash_file(folder / f"{part}{recipe.suffix}"),
        }
        for part, content in contents.items()
    }
    versions = {
        "pointadapterx": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
    }
    source = {"name": package.name, "version": package.version, "sha256": package.sha256}
    write_json(folder / CHECKSUMS, {"set": name, "package": source, "files": files, "versions": versions})
