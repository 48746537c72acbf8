"""The command line: ``pointadapterx COMMAND …``; ``python tools/main.py`` takes the same arguments."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pointadapterx.commands.flags import translate
from pointadapterx.commands.options import UsageError
from pointadapterx.endings import run_to_status
from pointadapterx.process_tuning import keep_freed_memory, limit_spinning
from pointadapterx.registry import did_you_mean
from pointadapterx.version import __version__


class Command(NamedTuple):
    """What the list of commands says of one; its module ``pointadapterx.commands.<name>`` is imported when it runs.

    Attributes:
        about: in a line.
        stopped: what is printed when Ctrl-C ends it at once.
    """

    about: str
    stopped: str = "stopped"


class Module(Protocol):
    """A command: its docstring is the description in ``--help``."""

    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments, in the order in which the help lists them."""

    def run(self, options: argparse.Namespace) -> int:
        """Runs the command and returns its exit status.

        Raises:
            UsageError: for arguments that do not go together.
            PointAdapterXError: printed as one line, with exit status 2.
        """


NOTHING_NEW = "stopped before there was anything new to save"
GROUPS = {
    "train and evaluate": {
        "train": Command("adapt a model to your own files, or do what a config says", NOTHING_NEW),
        "resume": Command("continue an interrupted run", NOTHING_NEW),
        "test": Command("test a trained adapter", NOTHING_NEW),
        "vote": Command("test it and vote over augmented copies", NOTHING_NEW),
        "compare": Command(
            "methods × seeds × data sets, with statistics",
            "stopped at once: runs in progress save their state on their own",
        ),
    },
    "your own data": {
        "data": Command("build data sets out of Debian packages"),
        "example": Command("small data to try the other commands on"),
        "doctor": Command("what is wrong with your data, before training"),
        "predict": Command("classes of your own files"),
        "serve": Command("adapters over HTTP, with a page to try them"),
    },
    "look": {
        "report": Command("a run as one web page"),
        "visualize": Command("what an adapter looks at"),
        "count": Command("parameters and multiply-adds of a config or a run", NOTHING_NEW),
        "probe": Command("linear-probe accuracy of pre-trained weights", NOTHING_NEW),
        "search": Command("the best architecture of a NOAH supernet", NOTHING_NEW),
    },
    "share": {
        "export": Command("one file that runs without this package"),
        "push": Command("to the Hugging Face hub, with a model card"),
        "pull": Command("from the Hugging Face hub"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
WORD = re.compile(r"[^\W\d][\w-]*")  # an override has a =, and a path belongs to an option
EXAMPLES = """\
  %(prog)s train scans/                         train on your own files, a folder for each class
  %(prog)s train --config demo                  train on the embedded data
  %(prog)s train --config demo train.lr=1e-3    with another value of any key
  %(prog)s resume runs/demo/20260101-120000     continue an interrupted run
  %(prog)s vote RUN_OR_ADAPTER 10               test, and vote
  %(prog)s example scans                        small data to try the other commands on
  %(prog)s doctor scans/                        what is wrong with it
  %(prog)s predict RUN_OR_ADAPTER scans/        classes of files
  %(prog)s report RUN_OR_ADAPTER                a run as one web page
  %(prog)s compare --config study/quick         methods × seeds × data sets

Flags instead of a command do the same:
  %(prog)s --config cfgs/demo.yaml [key=value ...] [--output DIR] [--count | --probe]
  %(prog)s --resume RUN
  %(prog)s --test RUN_OR_ADAPTER [--vote K] [--vote-published] [--output DIR]
  %(prog)s --search RUN
"""


def main(argv: Sequence[str] | None = None, prog: str = "pointadapterx", command: str | None = None) -> int:
    """Runs a command.

    Args:
        argv: arguments, those of the process by default. The first is one of :data:`COMMANDS`, or they are flags; see
            :mod:`pointadapterx.commands.flags`.
        prog: name in the help text.
        command: that of an entry point which has no other.

    Returns:
        Exit status: 0, 2 for wrong input, 128 + n after stopping cleanly on signal n; others as the commands say.
    """
    if argv is None:  # the process is a command's own
        limit_spinning()
        keep_freed_memory()
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or file that cannot show ü gets \xfc
            sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if command is None:
        command, *arguments = _choose(arguments, prog)
        prog = f"{prog} {command}"
    try:
        return _run(command, arguments, prog)
    finally:  # out here: an exception within holds what refers to the group
        if "accelerate" in sys.modules:
            from pointadapterx.engine.devices import leave_process_group

            leave_process_group()


def _choose(arguments: list[str], prog: str) -> list[str]:
    """The command and its arguments."""
    if arguments and arguments[0] in COMMANDS:
        return arguments
    parser = build_overview(prog)
    if arguments and WORD.fullmatch(arguments[0]):
        parser.error(f"unknown command '{arguments[0]}'{did_you_mean(arguments[0], COMMANDS)}")
    parser.parse_known_args(arguments)  # --help and --version end the process
    return translate(arguments, prog)


def build_overview(prog: str) -> argparse.ArgumentParser:
    """Says which commands there are; imports none of them."""
    groups = (
        "\n".join([f"{title}:", *(f"  {name:11}{command.about}" for name, command in group.items())])
        for title, group in GROUPS.items()
    )
    about = "Adapt pre-trained point-cloud and image transformers by training a small part of them."
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s COMMAND …\n       %(prog)s COMMAND --help",
        description="\n\n".join([about, *groups]),
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pointadapterx {__version__}")
    return parser


def build_parser(name: str, prog: str) -> tuple[argparse.ArgumentParser, Module]:
    """The parser of a command, and its module."""
    module: Module = importlib.import_module(f"pointadapterx.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=module.__doc__,
        epilog=f"examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser, module


def _run(name: str, arguments: Sequence[str], prog: str) -> int:
    def run() -> int:
        parser, module = build_parser(name, prog)  # within, as Ctrl-C may come while modules are imported
        options = parser.parse_intermixed_args(arguments)
        try:
            return module.run(options)
        except UsageError as error:
            parser.error(str(error))

    return run_to_status(run, COMMANDS[name].stopped)


if __name__ == "__main__":
    sys.exit(main())
