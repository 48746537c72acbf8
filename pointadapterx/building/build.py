"""Builds a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pointadapterx.building.composed import furnishes, write_rooms, write_views
from pointadapterx.building.lists import Model, parts_of, read_list
from pointadapterx.building.packages import MIRROR, Say, find_package
from pointadapterx.building.recipes import RECIPES, Recipe
from pointadapterx.building.writing import write_attribution, write_checksums, write_clouds
from pointadapterx.errors import DataError
from pointadapterx.files import new_folder

STEP = 500  # clouds between two lines of progress
COMPOSED = {"rooms": write_rooms, "views": write_views}
"""Sets that are not a cloud of each model, and what writes a file of them."""


@dataclass(frozen=True)
class Built:
    """A data set that was built.

    Attributes:
        recipe: how.
        counts: what is in each file: clouds, rooms or pictures.
        differing: the files whose content is another than the known one.
    """

    recipe: Recipe
    counts: dict[str, int]
    differing: list[str]


def models_of(name: str) -> Sequence[Model]:
    """The models that a set is built from."""
    models = read_list(RECIPES[name].list or name)
    return [model for model in models if furnishes(model)] if name in COMPOSED else models


def build(
    name: str,
    folder: Path,
    *,
    packages: Sequence[Path] = (),
    downloads: Path | None = None,
    mirror: str = MIRROR,
    say: Say = print,
) -> Built:
    """Writes ``train.h5``, ``test.h5`` (and ``pretrain.h5``) or pictures, checksums and attribution to a new folder.

    Args:
        name: one of :data:`~pointadapterx.building.recipes.RECIPES`.
        folder: where to write; the folder appears when everything is in it.
        packages: files of packages, or folders that hold them; without any, what is needed is downloaded.
        downloads: folder where packages are kept that were downloaded; None: the user's cache.
        mirror: a Debian mirror's address.
        say: is called with a line on what takes long.

    Raises:
        DataError: if the package cannot be had, or is not the expected one.
        CheckpointError: if the folder is not new, or cannot be written.
    """
    recipe, models = RECIPES[name], models_of(name)
    write, parts = COMPOSED.get(name, write_clouds), parts_of(models)
    with new_folder(folder) as temporary:
        package = find_package(recipe.package, packages, downloads, mirror, say)
        clouds, wanted = {}, {model.name for model in models}
        for model, cloud in recipe.source(package, models):
            clouds[model] = cloud
            if len(clouds) % STEP == 0:
                say(f"{len(clouds)} of {len(wanted)} models")
        lacking = sorted(wanted - clouds.keys())
        if lacking:
            raise DataError(f"{package}: {len(lacking)} models are not in it, the first is {lacking[0]}")
        contents = {}
        for part, chosen in parts.items():
            if part in recipe.counts:
                say(f"composing {recipe.counts[part]} {recipe.unit} of {part}")
            contents[part] = write(temporary / f"{part}{recipe.suffix}", recipe, chosen, clouds)
        write_attribution(temporary, recipe, clouds)
        write_checksums(temporary, name, recipe, contents)
    counts = {part: len(chosen) for part, chosen in parts.items()} | dict(recipe.counts)
    return Built(recipe, counts, [part for part, content in contents.items() if content != recipe.known.get(part)])
