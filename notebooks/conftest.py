"""Figures are compared in the form in which `refresh.py` stored them."""

import os

os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
