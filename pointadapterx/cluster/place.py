"""What the nodes of a cluster must have in common with the machine of the command."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from pointadapterx.version import __version__


@dataclass(frozen=True)
class Place:
    """Where a command runs; it goes to the nodes with each task.

    Attributes:
        folder: that relative paths start from.
        version: of this package.
    """

    folder: str = field(default_factory=os.getcwd)
    version: str = __version__

    def problem(self) -> str | None:
        """What this node lacks, in a line."""
        if self.version != __version__:
            return f"{node()}: has pointadapterx {__version__}, and the command {self.version}; install the same"
        if not os.path.isdir(self.folder):
            return f"{node()}: has no folder {self.folder}; start the command in a folder that every node sees"
        return None


def node() -> str:
    """The name of this machine, for messages."""
    return f"node {socket.gethostname()}"
