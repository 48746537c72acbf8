"""The command ``pointadapterx visualize``: pictures of trained adapters, and of pre-training."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pointadapterx.endings import ends_in_one_line
from pointadapterx.engine.console import set_up_logging
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.optional import missing
from pointadapterx.text import printable
from pointadapterx.visualize import open3d_view
from pointadapterx.visualize.drawing import DrawCloud, Sheet, paint, save
from pointadapterx.visualize.loaded_run import Chosen, Subject
from pointadapterx.visualize.pictures import PICTURES
from pointadapterx.visualize.pretraining import is_pretraining, reconstruction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECONSTRUCTION = "reconstruction"
EXTRAS = ("umap",)  # drawn when they are asked for
HUB = "hf://"
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=.*")

log = logging.getLogger(__name__)

EPILOG = """examples:
  %(prog)s runs/demo/<time>                                    every picture, into runs/demo/<time>/pictures
  %(prog)s runs/demo/<time> --picture routing attention --samples 3
  %(prog)s adapter.safetensors --files scan.ply --picture saliency
  %(prog)s runs/linear/<time> runs/demo/<time> --picture tsne confusion    side by side
  %(prog)s runs/pretrain/<time> --picture reconstruction       of a pre-training run
"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Its arguments."""
    about = "\n".join(f"  {name:15}{picture.about}" for name, picture in PICTURES.items())
    about += f"\n  {RECONSTRUCTION:15}hidden groups and what was predicted, of a pre-training run"
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{__doc__}\n\npictures:\n{about}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or adapter files, and key=value overrides")
    parser.add_argument("--picture", nargs="+", default=[], metavar="NAME", help="default: all that suit the first RUN")
    parser.add_argument("--files", nargs="+", default=[], metavar="FILE", help="look at these instead of test samples")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="test samples to look at (default: as suits the picture)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: pictures beside the first adapter")
    parser.add_argument("--format", choices=["png", "svg"], nargs="+", default=["png"])
    parser.add_argument("--dpi", type=int, default=150)
    parser.add_argument(
        "--renderer",
        choices=["auto", "open3d", "matplotlib"],
        default="auto",
        help="of clouds (default: Open3D where it can draw)",
    )
    parser.add_argument("--window", action="store_true", help="show clouds in a window instead of writing files")
    return parser


@ends_in_one_line
def main(argv: Sequence[str], prog: str = "pointadapterx visualize") -> int:
    """Runs the command.

    Returns:
        0, or 2 for wrong input.
    """
    parser = build_parser(prog)
    options = parser.parse_intermixed_args(argv)
    if (options.samples is not None and options.samples < 1) or options.dpi < 1:
        parser.error("--samples and --dpi are at least 1")
    set_up_logging(main_process=True)
    try:
        _run(options)
    except PointAdapterXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError:
        reason = missing("matplotlib.figure", "viz")
        if reason is None:
            raise
        print(f"error: pictures need matplotlib, which {reason}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
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
    files = subjects[0].read_files(options.files) if options.files else None
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
    """What is done with a picture by name: a window, or files."""
    if options.window:
        return lambda name, sheet: open3d_view.show(sheet) if isinstance(sheet, Sheet) else None
    if options.output is None and run.startswith(HUB):
        raise ConfigError(f"{run}: lies on the hub; add --output DIR for the pictures")
    folder = options.output or (Path(run) if Path(run).is_dir() else Path(run).parent) / "pictures"

    def write(name: str, sheet: Sheet | Figure) -> None:
        figure = paint(sheet, choose_renderer(options.renderer)) if isinstance(sheet, Sheet) else sheet
        for kind in options.format:
            save(figure, folder / f"{name}.{kind}", options.dpi)
            print(printable(f"written: {folder / name}.{kind}"), flush=True)

    return write


def split_overrides(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Runs, and overrides of their configs.

    Raises:
        ConfigError: if there is no run.
    """
    overrides = [text for text in texts if OVERRIDE.fullmatch(text) and not Path(text).exists()]
    runs = [text for text in texts if text not in overrides]
    if not runs:
        raise ConfigError("give a run's folder or an adapter file")
    return runs, overrides


def _wanted(options: argparse.Namespace, subjects: Sequence[Subject]) -> list[str]:
    """Pictures asked for, or all that can be made of the first subject."""
    first = subjects[0]
    for name in options.picture if options.window else ():
        if name in PICTURES and not PICTURES[name].samples:
            raise ConfigError(f"--window shows clouds, which picture {name} has none of; choose others with --picture")
    if options.picture:
        if RECONSTRUCTION in options.picture:
            raise ConfigError(f"{first.path}: was not pre-trained; {RECONSTRUCTION} is of the folder of such a run")
        for name in options.picture:
            reason = PICTURES[name].suits(first)
            if reason is not None:
                raise ConfigError(f"picture {name}: {reason}")
            if options.files and not PICTURES[name].samples:
                raise ConfigError(f"picture {name}: is of a whole test split; leave --files out")
        return list(dict.fromkeys(options.picture))
    names = [name for name, picture in PICTURES.items() if picture.suits(first) is None and name not in EXTRAS]
    return [name for name in names if PICTURES[name].samples or not (options.files or options.window)]


def name_apart(subjects: Sequence[Subject]) -> None:
    """Subjects of one method take the names of their folders or files as well, and numbers where these are the same."""
    names = [subject.name for subject in subjects]
    for subject in subjects:
        if names.count(subject.name) > 1:
            path = subject.path.resolve()
            subject.name += f" ({printable(path.parent.name if path.stem == 'adapter' else path.stem)})"
    names = [subject.name for subject in subjects]
    for number, subject in enumerate(subjects, 1):
        if names.count(subject.name) > 1:
            subject.name += f" {number}"


def choose_renderer(name: str) -> DrawCloud | None:
    """How clouds are drawn: by Open3D, or None for matplotlib.

    Args:
        name: ``open3d``, ``matplotlib``, or ``auto`` for Open3D where it can.

    Raises:
        PointAdapterXError: if Open3D is asked for and cannot draw.
    """
    if name == "matplotlib" or (name == "auto" and open3d_view.problem() is not None):
        return None
    return open3d_view.off_screen()
