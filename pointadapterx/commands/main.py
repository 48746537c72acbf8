"""The command line: ``pointadapterx train|test|…`` and ``python tools/main.py``, one parser for both."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pointadapterx import __version__
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import Interrupted, PointAdapterXError
from pointadapterx.malloc_tuning import keep_freed_memory
from pointadapterx.registry import did_you_mean
from pointadapterx.text import printable

VERBS = ("train", "test", "vote", "count", "probe", "search")
COMMANDS = {
    "compare": "commands.compare:main",
    "doctor": "commands.doctor:main",
    "example": "commands.example:main",
    "export": "export:main",
    "predict": "commands.predict:main",
    "pull": "sharing:pull",
    "push": "sharing:push",
    "report": "commands.report:main",
    "visualize": "commands.visualize:main",
}
"""Verbs with arguments of their own, and the functions that run them."""
WORD = re.compile(r"[^\W\d][\w-]*")  # an override has a =, and a path belongs to an option
EPILOG = """examples:
  %(prog)s --config cfgs/demo.yaml                             train on the embedded data
  %(prog)s --config cfgs/scan_pb_t50_rs.yaml train.lr=1e-3     override any key
  %(prog)s --resume runs/demo/20260101-120000                  continue an interrupted run
  %(prog)s --test RUN_OR_ADAPTER [--vote 10]                   test (and vote with) a trained adapter
  %(prog)s example scans                                       small data to try the other commands on
  %(prog)s doctor scans/                                       what is wrong with one's own data
  %(prog)s predict RUN_OR_ADAPTER scans/                       classes of one's own files; see predict --help
  %(prog)s visualize RUN_OR_ADAPTER                           what an adapter looks at; see visualize --help
  %(prog)s report RUN_OR_ADAPTER                              a run as one web page; see report --help
  %(prog)s compare --config cfgs/study/quick.yaml              methods × seeds × data sets; see compare --help
  %(prog)s export RUN_OR_ADAPTER parts.onnx                    one file that runs without this package
  %(prog)s push RUN_OR_ADAPTER owner/repository                to the Hugging Face hub, with a model card
  %(prog)s pull owner/repository                               from there
"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of every entry point."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Adapt pre-trained point-cloud and image transformers by training a small part of them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pointadapterx {__version__}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides, for example train.lr=1e-3")
    parser.add_argument("--config", metavar="FILE", help="YAML config, or the name of a shipped one (demo)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="run folder (default: runs/<config>/<time>)")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="continue the run in this folder")
    parser.add_argument(
        "--test", metavar="CKPT", help="test an adapter file, the adapter of a run folder, or hf://owner/repository"
    )
    parser.add_argument("--vote", metavar="K", type=int, help="after the test: vote with K augmented copies")
    parser.add_argument(
        "--vote-published",
        action="store_true",
        help="after the test: the maximum of 299 votes, as published tables",
    )
    parser.add_argument(
        "--search", metavar="RUN", type=Path, help="search the NOAH supernet of this run for its best architecture"
    )
    parser.add_argument(
        "--count", action="store_true", help="print parameters, multiply-adds and activations of a config and exit"
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="print the linear-probe accuracy of a pre-training config's backbone.weights, and of random ones",
    )
    return parser


@ends_in_one_line
def main(argv: Sequence[str] | None = None, prog: str = "pointadapterx") -> int:
    """Runs a command.

    Args:
        argv: arguments; the first may be a verb (``train``, ``test CKPT``, ``vote CKPT [K]``, ``search RUN``,
            ``count``, ``probe``), or one of :data:`COMMANDS`, which have arguments of their own.
        prog: name in the help text.

    Returns:
        Exit status: 0, 2 for wrong input, 128 + n after stopping cleanly on signal n.
    """
    if argv is None:  # the process is a command's own
        keep_freed_memory()
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or file that cannot show ü gets \xfc
            sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        module, function = COMMANDS[arguments[0]].split(":")
        run = getattr(importlib.import_module(f"pointadapterx.{module}"), function)
        return int(run(arguments[1:], f"{prog} {arguments[0]}"))
    parser = build_parser(prog)
    if arguments and WORD.fullmatch(arguments[0]) and arguments[0] not in VERBS:
        parser.error(f"unknown command '{arguments[0]}'{did_you_mean(arguments[0], (*VERBS, *COMMANDS))}")
    options = parser.parse_intermixed_args(_expand_verb(arguments, parser))
    jobs = [name for name in ("resume", "test", "search") if getattr(options, name) is not None]
    if len(jobs) > 1 or (options.config is not None and jobs and options.test is None):
        parser.error("choose one of --config, --resume, --test and --search")
    if jobs and (options.count or options.probe):
        parser.error("--count and --probe need --config FILE alone")
    if options.search is not None and options.output is not None:
        parser.error("--search writes into the run's folder; remove --output")
    if not jobs and options.config is None:
        parser.error(
            "give --config FILE (for example --config cfgs/demo.yaml), --resume RUN, --test CKPT or --search RUN"
        )
    if options.vote is not None and options.vote < 1:
        parser.error(f"--vote {options.vote}: at least 1 copy")
    if (options.vote is not None or options.vote_published) and options.test is None:
        parser.error("--vote needs --test CKPT: the adapter to vote with")

    try:
        return _run(options)
    except Interrupted as stop:
        print(printable(stop), file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("stopped before there was anything new to save", file=sys.stderr)
        return 130
    except PointAdapterXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:  # of this function: an exception holds what refers to the group
        from pointadapterx.engine.devices import leave_process_group

        leave_process_group()


def _run(options: argparse.Namespace) -> int:
    from pointadapterx import jobs
    from pointadapterx.config import read_config
    from pointadapterx.engine.console import set_up_logging
    from pointadapterx.engine.devices import make_accelerator

    set_up_logging(main_process=int(os.environ.get("RANK", "0")) == 0)
    if options.test is not None:
        jobs.test(options.test, options.overrides, options.vote, options.vote_published, options.output)
    elif options.resume is not None:
        jobs.resume(options.resume, options.overrides)
    elif options.search is not None:
        jobs.search(options.search, options.overrides)
    else:
        config = read_config(options.config, options.overrides)
        if options.count:
            jobs.count(config)
            return 0
        precision = config.train.precision
        if options.probe:
            jobs.probe(config, make_accelerator(precision))
        else:
            jobs.train(config, Path(options.config).stem, options.output, make_accelerator(precision))
    return 0


def _expand_verb(arguments: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """``test CKPT`` -> ``--test CKPT``, ``vote CKPT K`` -> ``--test CKPT --vote K``; flags are the same for both."""
    if not arguments or arguments[0] not in VERBS:
        return arguments
    verb, rest = arguments[0], arguments[1:]
    if verb in ("count", "probe"):
        return [f"--{verb}", *rest]
    if verb == "train":
        return rest
    if not rest or rest[0].startswith("-"):
        needed = {"search": "the folder of a run: search RUN"}
        parser.error(f"{verb} needs {needed.get(verb, f'an adapter file or a run folder: {verb} CKPT')}")
    if verb in ("test", "search"):
        return [f"--{verb}", *rest]
    copies = rest[1] if len(rest) > 1 and rest[1].isdigit() else "10"
    return ["--test", rest[0], "--vote", copies, *rest[2 if len(rest) > 1 and rest[1].isdigit() else 1 :]]


if __name__ == "__main__":
    sys.exit(main())
