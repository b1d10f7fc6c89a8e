"""Sphinx settings of the site; `docs/site.py` stages its sources and builds it."""

import re

project = "ivon_lora_lite"
author = "The ivon_lora_lite authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # nothing is fetched from elsewhere
]
html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # outputs are committed; `make test` runs the notebooks
nb_merge_streams = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures in prose would be longer than what they say
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copyright = "Apache-2.0"


def _bars_are_bars(app, what, name, obj, options, lines):
    """In docstrings |m| is an absolute value; reStructuredText would look for a substitution."""
    lines[:] = [re.sub(r"``[^`]*``|\|", lambda m: r"\|" if m[0] == "|" else m[0], line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", _bars_are_bars)
