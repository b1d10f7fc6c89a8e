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

from .asking import AskForm as AskForm, answer_figure as answer_figure
from .calibration import (
    TEMPERATURES as TEMPERATURES,
    TemperatureExplorer as TemperatureExplorer,
    calibration_figure as calibration_figure,
    floor_figure as floor_figure,
)
from .curves import (
    ADAMW_LINE as ADAMW_LINE,
    EXACT as EXACT,
    IVON_LINE as IVON_LINE,
    LOSS as LOSS,
    bell as bell,
    curves_figure as curves_figure,
    ellipse as ellipse,
    objective_figure as objective_figure,
    rings as rings,
)
from .decisions import (
    COVERAGES as COVERAGES,
    CoverageExplorer as CoverageExplorer,
    doubt_maps_figure as doubt_maps_figure,
    risk_figure as risk_figure,
)
from .explorer import CAPTION as CAPTION, MEAN as MEAN, TauExplorer as TauExplorer
from .figures import (
    lengths_figure as lengths_figure,
    line_taus as line_taus,
    path_figure as path_figure,
    reliability_bars as reliability_bars,
    reliability_figure as reliability_figure,
    seeds_figure as seeds_figure,
    tradeoff_figure as tradeoff_figure,
)
from .gates import (
    GATES as GATES,
    SHADES as SHADES,
    levels_figure as levels_figure,
    parts_figure as parts_figure,
    prices_figure as prices_figure,
    ranks_figure as ranks_figure,
    savings_figure as savings_figure,
)
from .large_models import memory_figure as memory_figure, published_figure as published_figure
from .matrices import matrix_figure as matrix_figure
from .methods import methods_figure as methods_figure
from .report import report_html as report_html, sweep_html as sweep_html
from .sensitivity import agreement_figure as agreement_figure, dots_figure as dots_figure
from .style import (
    AXIS as AXIS,
    COLORS as COLORS,
    INK as INK,
    LAYOUT as LAYOUT,
    TITLES as TITLES,
    axis_range as axis_range,
    rounded as rounded,
    short as short,
)
from .tables import (
    draws_html as draws_html,
    flips_html as flips_html,
    table_html as table_html,
    tokens_html as tokens_html,
)
from .toys import (
    functions_figure as functions_figure,
    maps_figure as maps_figure,
    percent as percent,
    search_figure as search_figure,
)
from .trials import forest_figure as forest_figure, lines_figure as lines_figure, noise_figure as noise_figure
from .weights import sigma_by_tensor as sigma_by_tensor, sigma_figure as sigma_figure
