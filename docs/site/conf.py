"""Sphinx's settings; `make docs` (scripts/docs.sh) says where things are through the environment."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from prose import to_rst  # noqa: E402

import xformers  # noqa: E402

project = "xformers"
author = "the authors of xformers"
release = version = xformers.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "breathe"]

html_theme = "furo"
html_title = f"xformers {release}"
html_static_path = []
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"
highlight_language = "none"
master_doc = "index"

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = [
    "myst.header",  # a page may go from its title to ###
    "duplicate_declaration.cpp",  # every header opens the namespaces anew
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True

breathe_projects = {"xformers": os.environ.get("XFORMERS_DOXYGEN_XML", "")}
breathe_default_project = "xformers"
breathe_default_members = ("members",)
cpp_id_attributes = ["XFORMERS_INLINE"]

# Links of ours must lead somewhere; names of torch and of the languages have their pages elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!xformers\b).*"),
    (r"py:.*", r"xformers\.(.*\.)?(_.*|Self|DeferredInit)"),
    (r"cpp:.*", r".*"),  # types in signatures: links where the reference has them
]


def _docstring(app, what, name, obj, options, lines):
    lines[:] = to_rst("\n".join(lines))


def _no_bases(app, name, obj, options, bases):
    bases[:] = [base for base in bases if not base.__name__.startswith("_")] or [object]


def setup(app):
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-bases", _no_bases)
