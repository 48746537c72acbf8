"""Send an adapter with its model card to a repository of the Hugging Face hub."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pointadapterx.commands.options import ADAPTER, ADAPTER_HELP
from pointadapterx.errors import HubError
from pointadapterx.text import printable

if TYPE_CHECKING:
    from pointadapterx.checkpoints.adapter_file import AdapterInfo

EXAMPLES = """\
  %(prog)s runs/demo/<time> owner/repository --license cc-by-4.0
  %(prog)s runs/demo/<time> owner/repository --folder parts    look at the files first; nothing is sent
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.add_argument("adapter", metavar=ADAPTER, help=ADAPTER_HELP)
    parser.add_argument("repository", help="owner/repository; created if it does not exist")
    parser.add_argument("--folder", metavar="DIR", help="write the files there instead, and send nothing")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, created if it does not exist (default: main)")
    parser.add_argument("--license", metavar="ID", help="for the card, such as cc-by-4.0 (default: not stated)")


def run(options: argparse.Namespace) -> int:
    """Prints where the adapter is now."""
    from pointadapterx.checkpoints.adapter_file import read_adapter
    from pointadapterx.sharing import push_adapter

    place = push_adapter(
        options.adapter,
        address(options),
        folder=options.folder,
        private=options.private,
        license=options.license,
    )
    print(printable(f"{'pushed' if options.folder is None else 'written'}: {place}"))
    say_needed_weights(read_adapter(options.adapter))
    return 0


def address(options: argparse.Namespace) -> str:
    """``owner/repository``, with the revision.

    Raises:
        HubError: if the repository names one already.
    """
    if options.revision and "@" in options.repository:
        raise HubError(f"{options.repository}: names a revision already; remove --revision {options.revision}")
    return str(options.repository) + (f"@{options.revision}" if options.revision else "")


def say_needed_weights(info: AdapterInfo) -> None:
    """Which backbone the adapter belongs to."""
    from pointadapterx.model_card import needed_weights

    print(printable(f"weights of the backbone: {needed_weights(info).text}"))
