"""Draw what trained adapters look at and get wrong, and what pre-training reconstructs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pointadapterx.commands.conditions import add_condition, condition_of
from pointadapterx.commands.options import (
    UsageError,
    add_output_folder,
    add_runs,
    log_to_terminal,
    require_positive,
    split_overrides,
)
from pointadapterx.errors import ConfigError
from pointadapterx.hub import HUB
from pointadapterx.optional import missing
from pointadapterx.text import printable
from pointadapterx.visualize import open3d_view
from pointadapterx.visualize.drawing import Sheet, paint, save
from pointadapterx.visualize.loaded_run import Chosen, Subject, name_apart
from pointadapterx.visualize.pictures import PICTURES, unsuited
from pointadapterx.visualize.pretraining import is_pretraining, reconstruction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECONSTRUCTION = "reconstruction"
EXTRAS = ("umap",)  # only drawn when named

log = logging.getLogger(__name__)

EXAMPLES = """\
  %(prog)s runs/demo/<time>    every picture, into runs/demo/<time>/pictures
  %(prog)s runs/demo/<time> --picture routing attention --samples 3
  %(prog)s adapter.safetensors --files scan.ply --picture saliency
  %(prog)s runs/a runs/b --picture tsne confusion              side by side
  %(prog)s runs/pretrain/<time> --picture reconstruction       of a pre-training run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    about = "\n".join(f"  {name:15}{picture.about}" for name, picture in PICTURES.items())
    about += f"\n  {RECONSTRUCTION:15}hidden groups and what was predicted, of a pre-training run"
    parser.description = f"{__doc__}\n\npictures:\n{about}"
    add_runs(parser)
    what = parser.add_argument_group("what to draw")
    what.add_argument("--picture", nargs="+", default=[], metavar="NAME", help="default: all that suit the first RUN")
    what.add_argument("--files", nargs="+", default=[], metavar="FILE", help="look at these instead of test samples")
    add_condition(what)
    what.add_argument(
        "--samples", type=int, metavar="N", help="test samples to look at (default: as suits the picture)"
    )
    how = parser.add_argument_group("how")
    add_output_folder(how, "pictures beside the first adapter")
    how.add_argument("--format", choices=["png", "svg"], nargs="+", default=["png"])
    how.add_argument("--dpi", type=int, default=150)
    how.add_argument(
        "--renderer",
        choices=["auto", "open3d", "matplotlib"],
        default="auto",
        help="of clouds (default: Open3D where it can draw)",
    )
    how.add_argument("--window", action="store_true", help="show clouds in a window instead of writing files")


def run(options: argparse.Namespace) -> int:
    """Writes pictures, or opens windows."""
    require_positive(options, "samples", "dpi")
    if condition_of(options) is not None and not options.files:
        raise UsageError("--condition and --condition-from are of --files; test samples have theirs")
    log_to_terminal()
    try:
        draw(options)
    except ImportError:
        reason = missing("matplotlib.figure", "viz")
        if reason is None:
            raise
        raise ConfigError(f"pictures need matplotlib, which {reason}") from None
    return 0


def draw(options: argparse.Namespace) -> None:
    """Every picture that is wanted and can be drawn."""
    runs, overrides = split_overrides(options.runs)
    if options.window:
        open3d_view.require_display()
    known = [*PICTURES, RECONSTRUCTION]
    for name in options.picture:
        if name not in known:
            raise ConfigError(f"picture '{name}' is not known; choose from {', '.join(known)}")
    show = _shower(options, runs[0])
    if is_pretraining(runs[0]):
        if options.files or set(options.picture) - {RECONSTRUCTION} or len(runs) > 1:
            raise ConfigError(f"{runs[0]}: is a pre-training run, of which there is the picture {RECONSTRUCTION} alone")
        show(RECONSTRUCTION, reconstruction(Path(runs[0]), overrides, options.samples or 3))
        return
    subjects = [Subject(run, overrides) for run in runs]
    name_apart(subjects)
    wanted = _wanted(options, subjects)
    files = subjects[0].read_files(options.files, condition_of(options)) if options.files else None
    for name in wanted:
        picture, first = PICTURES[name], subjects[0]
        chosen: Chosen | None = None
        if picture.samples:
            chosen = files or first.choose(first.spread(options.samples or picture.samples))
        try:
            sheet = picture.make(subjects, chosen)
        except ConfigError as error:
            if options.picture:
                raise
            log.warning("picture %s left out: %s", name, error)  # of all that there are, some may show nothing
            continue
        show(name, sheet)


def _shower(options: argparse.Namespace, run: str) -> Callable[[str, Sheet | Figure], None]:
    """Returns the function that shows or saves a picture: in a window, or as files."""
    if options.window:
        return lambda name, sheet: open3d_view.show(sheet) if isinstance(sheet, Sheet) else None
    if options.output is None and run.startswith(HUB):
        raise ConfigError(f"{run}: lies on the hub; add --output DIR for the pictures")
    folder = options.output or (Path(run) if Path(run).is_dir() else Path(run).parent) / "pictures"

    def write(name: str, sheet: Sheet | Figure) -> None:
        figure = paint(sheet, open3d_view.choose_renderer(options.renderer)) if isinstance(sheet, Sheet) else sheet
        for kind in options.format:
            save(figure, folder / f"{name}.{kind}", options.dpi)
            print(printable(f"written: {folder / name}.{kind}"), flush=True)

    return write


def _wanted(options: argparse.Namespace, subjects: Sequence[Subject]) -> list[str]:
    """The pictures that were named, or all that suit the first subject."""
    first = subjects[0]
    for name in options.picture if options.window else ():
        if name in PICTURES and not PICTURES[name].samples:
            raise ConfigError(f"--window shows clouds, which picture {name} has none of; choose others with --picture")
    if options.picture:
        if RECONSTRUCTION in options.picture:
            raise ConfigError(f"{first.path}: was not pre-trained; {RECONSTRUCTION} is of the folder of such a run")
        for name in options.picture:
            reason = unsuited(name, first)
            if reason is not None:
                raise ConfigError(f"picture {name}: {reason}")
            if options.files and not PICTURES[name].samples:
                raise ConfigError(f"picture {name}: is of a whole test split; leave --files out")
        return list(dict.fromkeys(options.picture))
    names = [name for name in PICTURES if unsuited(name, first) is None and name not in EXTRAS]
    return [name for name in names if PICTURES[name].samples or not (options.files or options.window)]
