"""Figures, the τ explorer, and HTML reports: all from predictions, without a model. They need plotly.

* `style.py`: colours and axes; `figures.py`: trade-off and reliability; `tables.py`: scores as HTML;
* `trials.py`: trials of hyperparameters, and differences between settings;
* `toys.py`: maps, bands and searches of toy problems;
* `weights.py`: σ by layer; `asking.py`: a question put to a run;
* `curves.py`: losses and Gaussians over one or two weights;
* `calibration.py`: reliability, the floor of ECE and a slider for the temperature;
* `decisions.py`: handing over with a slider, and doubt over a plane;
* `gates.py`: bits and ranks;
* `matrices.py`: matrices as heat maps;
* `large_models.py`: what fits into a GPU, and published scores;
* `methods.py`: many methods beside one rival;
* `sensitivity.py`: what is predicted against what comes true, and methods over seeds;
* `explorer.py`: the slider in a notebook; `report.py`: the slider as a file.
"""

from .asking import AskForm, answer_figure
from .calibration import TEMPERATURES, TemperatureExplorer, calibration_figure, floor_figure
from .curves import ADAMW_LINE, EXACT, IVON_LINE, LOSS, bell, curves_figure, ellipse, objective_figure, rings
from .decisions import COVERAGES, CoverageExplorer, doubt_maps_figure, risk_figure
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
from .gates import GATES, SHADES, levels_figure, parts_figure, prices_figure, ranks_figure, savings_figure
from .large_models import memory_figure, published_figure
from .matrices import matrix_figure
from .methods import methods_figure
from .report import report_html, sweep_html
from .sensitivity import agreement_figure, dots_figure
from .style import AXIS, COLORS, INK, LAYOUT, TITLES, axis_range, rounded, short
from .tables import draws_html, flips_html, table_html, tokens_html
from .toys import functions_figure, maps_figure, percent, search_figure
from .trials import forest_figure, lines_figure, noise_figure
from .weights import sigma_by_tensor, sigma_figure
