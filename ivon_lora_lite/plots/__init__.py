"""Figures, the τ explorer, and HTML reports: all from predictions, without a model. They need plotly.

* `style.py`: colours and axes; `figures.py`: trade-off and reliability; `tables.py`: scores as HTML;
* `weights.py`: σ by layer; `asking.py`: a question put to a run;
* `explorer.py`: the slider in a notebook; `report.py`: the slider as a file.
"""

from .asking import AskForm, answer_figure
from .explorer import CAPTION, MEAN, TauExplorer
from .figures import (
    lengths_figure,
    line_taus,
    path_figure,
    reliability_bars,
    reliability_figure,
    seeds_figure,
    tradeoff_figure,
)
from .report import report_html, sweep_html
from .style import AXIS, COLORS, INK, LAYOUT, TITLES, axis_range, rounded
from .tables import draws_html, flips_html, table_html, tokens_html
from .weights import sigma_by_tensor, sigma_figure
