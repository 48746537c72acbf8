"""The flags ``--config``, ``--resume``, ``--test``, … without a command, translated to commands.

They are how the published code was called: ``python tools/main.py --config cfgs/scan_pb_t50_rs.yaml``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the flags."""
    parser = argparse.ArgumentParser(prog=prog, add_help=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--output", metavar="DIR")
    parser.add_argument("--resume", metavar="RUN")
    parser.add_argument("--test", metavar="CKPT")
    parser.add_argument("--vote", metavar="K", type=int)
    parser.add_argument("--vote-published", action="store_true")
    parser.add_argument("--search", metavar="RUN")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--probe", action="store_true")
    return parser


def translate(arguments: Sequence[str], prog: str) -> list[str]:
    """A command with its arguments: ``--test CKPT --vote 3`` becomes ``test CKPT --vote=3``.

    Exits with a usage error where the flags do not go together.
    """
    parser = build_parser(prog)
    given = parser.parse_intermixed_args(arguments)
    jobs = [name for name in ("resume", "test", "search") if getattr(given, name) is not None]
    if len(jobs) > 1 or (given.config is not None and jobs and given.test is None):
        parser.error("choose one of --config, --resume, --test and --search")
    if (given.count or given.probe) and (jobs or given.output is not None or (given.count and given.probe)):
        parser.error("--count and --probe need --config FILE alone")
    for name in ("search", "resume"):
        if getattr(given, name) is not None and given.output is not None:
            parser.error(f"--{name} writes into the run's folder; remove --output")
    if not jobs and given.config is None:
        parser.error(
            "give --config FILE (for example --config cfgs/demo.yaml), --resume RUN, --test CKPT or --search RUN, "
            "or a command; --help lists them"
        )
    if (given.vote is not None or given.vote_published) and given.test is None:
        parser.error("--vote needs --test CKPT: the adapter to vote with")
    if given.test is not None:
        votes = [f"--vote={given.vote}"] * (given.vote is not None) + ["--vote-published"] * given.vote_published
        return ["test", given.test, *votes, *_output(given), *given.overrides]
    if given.search is not None:
        return ["search", given.search, *given.overrides]
    if given.resume is not None:
        return ["resume", given.resume, *given.overrides]
    if given.count or given.probe:
        return ["count" if given.count else "probe", f"--config={given.config}", *given.overrides]
    return ["train", f"--config={given.config}", *_output(given), *given.overrides]


def _output(given: argparse.Namespace) -> list[str]:
    return [] if given.output is None else [f"--output={given.output}"]
