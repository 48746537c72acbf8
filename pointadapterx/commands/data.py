"""Build a data set: its models are read out of a Debian package, which is downloaded, and their surfaces sampled.

FOLDER gets train.h5 and test.h5 or pictures, checksums.json, and ATTRIBUTION.txt with sources and licences. The sets:

  home          furniture and household objects, 21 classes, 348 / 142 clouds (CC BY 3.0, CC0; package of 120 MB)
  ldraw20       CAD parts, 20 classes, 1662 / 531 clouds, and pretrain.h5 (CC BY 4.0; 47 MB)
  ldraw_parts   CAD parts with a label for each point, 1629 / 488 clouds (CC BY 4.0; the same package)
  electronics   packages of electronic parts, 36 classes, 2451 / 916 clouds (CC BY-SA 4.0; 379 MB)
  rooms         clouds of 100 / 34 rooms composed of furniture, 16 labels of points (from the package of home)
  views         300 / 102 pictures of these rooms with masks and boxes (from the same)

Everybody gets the same points and pictures. The exit status is 1 if the content is another than the known one.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from pointadapterx.commands.options import UsageError
from pointadapterx.registry import unknown_name
from pointadapterx.text import printable

EXAMPLES = """\
  %(prog)s build home data/home                                  download and build
  %(prog)s build electronics data/electronics --packages debs/   from packages on the disk, without network
  %(prog)s build ldraw20 data/ldraw20 --mirror https://mirror.example.org/debian
"""
DIFFERENT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.add_argument("what", choices=["build"], help="what to do")
    parser.add_argument("name", metavar="SET", help="home, ldraw20, ldraw_parts, electronics, rooms or views")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write, a new or empty folder")
    parser.add_argument(
        "--packages",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="the package's .deb file, or a folder that holds it: nothing is downloaded",
    )
    parser.add_argument("--mirror", metavar="URL", help="address of a Debian mirror (default: Debian's own)")
    parser.add_argument(
        "--downloads",
        type=Path,
        metavar="DIR",
        help="where downloaded packages are kept (default: ~/.cache/pointadapterx/packages)",
    )


def run(options: argparse.Namespace) -> int:
    """Builds the set."""
    from pointadapterx.building.build import build
    from pointadapterx.building.packages import MIRROR
    from pointadapterx.building.recipes import RECIPES
    from pointadapterx.building.writing import ATTRIBUTION

    if options.name not in RECIPES:
        raise UsageError(unknown_name(options.name, RECIPES))
    mirror = options.mirror or MIRROR
    if not mirror.startswith(("https://", "http://")):
        raise UsageError(f"--mirror {mirror}: is no address that begins with https:// or http://")
    built = build(
        options.name,
        options.folder,
        packages=options.packages,
        downloads=options.downloads,
        mirror=mirror,
        say=_say,
    )
    recipe, package = built.recipe, built.recipe.package
    files = ", ".join(f"{part}{recipe.suffix} ({count} {recipe.unit})" for part, count in built.counts.items())
    _say(f"written: {files} in {options.folder}")
    _say(f"from {package.name} {package.version}, licence {recipe.licence}")
    for source in package.sources:
        _say(f"  {source}")
    _say(f"who uses or shares them has to name these sources: see {options.folder / ATTRIBUTION}")
    _say(f"use: pointadapterx train --config {recipe.config} data.root={shlex.quote(str(options.folder))}")
    if not built.differing:
        _say("the content is the known one")
        return 0
    differing = ", ".join(f"{part}{recipe.suffix}" for part in built.differing)
    _say(
        f"the content of {differing} is not the known one: this machine rounds or draws in another way, and results on "
        "it may differ; checksums.json has the versions"
    )
    return DIFFERENT


def _say(line: str) -> None:
    print(printable(line), flush=True)
