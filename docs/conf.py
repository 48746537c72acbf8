"""The documentation as web pages: ``make docs`` writes them to ``build/docs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pointadapterx

project = "PointAdapterX"
author = "the PointAdapterX contributors"
project_copyright = author
release = version = pointadapterx.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without the network
]
exclude_patterns = ["notebooks"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = project
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Names of this project must resolve. Others are ignored, since resolving them needs the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!pointadapterx\.).*"), ("py:.*", r"pointadapterx\..*\.(T|SamplesT|AnswerT)")]

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SHOWN_AS = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/embedded/README.md": "weights/ldraw20.md",
    "pointadapterx/weights/point_mae_tiny.md": "weights/point_mae_tiny.md",
    "pointadapterx/weights/vit_tiny.md": "weights/vit_tiny.md",
    "tools/weights_package/pointadapterx_weights/point_mae_small.md": "weights/point_mae_small.md",
}
"""Files outside docs/, and the page of the site that includes each."""


def redirect_links(app: Any, docname: str, source: list[str]) -> None:
    """Turns links to files outside docs/ into links to the pages that include these files."""
    here = (DOCS / docname).parent

    def page(match: re.Match[str]) -> str:
        target = (here / match[1]).resolve()
        name = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
        if name not in SHOWN_AS:
            return match[0]
        return f"](/{SHOWN_AS[name]}{match[2] or ''})"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)", page, source[0])


def setup(app: Any) -> None:
    """Registers :func:`redirect_links`; Sphinx calls this when it loads the file."""
    app.connect("source-read", redirect_links)
