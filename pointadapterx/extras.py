"""How to install the packages that not everyone needs."""

from __future__ import annotations

import shlex

REQUIREMENTS = {"laspy": "laspy[lazrs]", "umap": "umap-learn"}
"""What to install for a module, where it is not the module's own name."""


def install_command(*modules: str) -> str:
    """The command that installs what these modules come from, for messages.

    It names the packages and no extra of this project: that is right from a checkout and from a wheel, while
    ``pip install 'pointadapterx[…]'`` would ask an index, and none has the project.
    """
    return shlex.join(["pip", "install", *(REQUIREMENTS.get(module, module) for module in modules)])
