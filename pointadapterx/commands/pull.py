"""Fetch an adapter, with its model card and config, from a repository of the Hugging Face hub."""

from __future__ import annotations

import argparse

from pointadapterx.commands.push import address, say_needed_weights
from pointadapterx.text import printable

EXAMPLES = """\
  %(prog)s owner/repository
  %(prog)s owner/repository parts --revision v2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.add_argument("repository", help="owner/repository")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="for its files (default: named like the repository)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: main)")


def run(options: argparse.Namespace) -> int:
    """Prints where the files are now."""
    from pointadapterx.sharing import pull_adapter

    info = pull_adapter(address(options), options.folder)
    print(printable(f"pulled: {info.path.parent}"))
    say_needed_weights(info)
    return 0
