"""Test a trained adapter on its test set, and vote if asked to."""

from __future__ import annotations

import argparse

from pointadapterx.commands.options import (
    add_adapter,
    add_output_folder,
    add_overrides,
    log_to_terminal,
    require_positive,
)

EXAMPLES = """\
  %(prog)s runs/demo/20260101-120000
  %(prog)s adapter.safetensors data.root=/mnt/scans        the same test set, at another place
  %(prog)s hf://owner/repository data.root=/mnt/scans
  %(prog)s runs/demo/20260101-120000 --vote-published      the maximum of 299 votes, as published tables print
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_adapter(parser)
    parser.add_argument("--vote", metavar="K", type=int, help="after the test: vote with K augmented copies")
    add_arguments_of_votes(parser)


def add_arguments_of_votes(parser: argparse.ArgumentParser) -> None:
    """Those that the command ``vote`` has as well."""
    parser.add_argument(
        "--vote-published", action="store_true", help="after the test: the maximum of 299 votes, as published tables"
    )
    add_output_folder(parser, "test-<time> beside the adapter")
    add_overrides(parser, "overrides that leave the model as it is: data.*, eval.*, backbone.weights, train.precision")


def run(options: argparse.Namespace) -> int:
    """Writes ``test.json`` and the predictions."""
    require_positive(options, "vote", what=" copy")
    from pointadapterx import jobs

    log_to_terminal()
    jobs.test(options.adapter, options.overrides, options.vote, options.vote_published, options.output)
    return 0
