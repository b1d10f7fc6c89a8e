"""Pictures of toy problems: a search over two settings, probabilities over a plane, functions over a line."""

from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from .style import AXIS, COLORS, INK, LAYOUT, short

CLASSES = ("#6b4fa0", "#2e8b57")  # purple and green, which stand for no optimizer
SHADES = [[0, "#bcaedd"], [0.5, "#fbfbfb"], [1, "#9fd4b5"]]
LINES = {"start": 10, "end": 90, "size": 40, "coloring": "fill"}
HALF = {"start": 50, "end": 50, "size": 1, "coloring": "none"}


def percent(probabilities: Tensor):
    """Probabilities in whole percent, as an array of bytes: what the maps of a figure hold."""
    return (100 * probabilities).round().to(torch.uint8).numpy()


def search_figure(searches: Mapping[str, tuple[Mapping, str, str]], worst: float) -> go.Figure:
    """A panel for each search over two settings: scores in boxes, the lowest one framed.

    Args:
        searches: title → (scores, rows, columns): scores by pairs (row, column), and what rows and columns are called.
        worst: the score from which on a box is as dark as it gets.
    """
    titles = [f"<b>{title}</b>" for title in searches]
    figure = make_subplots(1, len(searches), subplot_titles=titles, horizontal_spacing=0.14)
    look = {"colorscale": [[0, "#ffffff"], [1, "#9a9fa8"]], "zmax": worst, "showscale": False, "xgap": 2, "ygap": 2}
    for col, (scores, row_name, column_name) in enumerate(searches.values(), start=1):
        place, best = {"row": 1, "col": col}, min(scores, key=scores.get)
        rows, columns = (list(dict.fromkeys(pair[k] for pair in scores)) for k in (0, 1))
        names = {"x": [f"{c:,g}" for c in columns], "y": [f"{r:g}" for r in rows], "texttemplate": "%{z:.2f}"}
        z = [[round(scores[r, c], 3) for c in columns] for r in rows]
        figure.add_heatmap(z=z, zmin=min(scores.values()), **names, **look, **place)
        i, j = rows.index(best[0]), columns.index(best[1])
        frame = {"x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5}
        figure.add_shape(type="rect", **frame, line={"color": COLORS["now"], "width": 3}, **place)
        figure.update_xaxes(type="category", title={"text": column_name, **AXIS}, col=col)
        figure.update_yaxes(type="category", title={"text": row_name, **AXIS}, col=col)
    return figure.update_layout(**LAYOUT, height=260)


def maps_figure(
    maps: Mapping[str, Tensor], x: Tensor, y: Tensor, points: Tensor, labels: Tensor, borders: Mapping = {}
) -> go.Figure:
    """Panels of P(class 1) over a plane in four steps, with lines at 10 %, 50 % and 90 %, and the data.

    Args:
        maps: title → probabilities ``[H, W]``.
        x, y: the grid, ``[W]`` and ``[H]``, evenly spaced.
        points, labels: the data ``[N, 2]`` and their classes 0 and 1 ``[N]``.
        borders: title → probabilities of single draws ``[S, H, W]``; their 50 % lines are drawn thin and blue.

    Returns:
        In each panel the map, then its S borders, then the points of class 0 and of class 1.

    Raises:
        ValueError: a map does not have the shape of the grid.
    """
    titles = [f"<b>{title}</b>" for title in maps]
    figure = make_subplots(1, len(maps), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    grid = {"x0": float(x[0]), "dx": float(x[-1] - x[0]) / (len(x) - 1), "showscale": False, "showlegend": False}
    grid |= {"y0": float(y[0]), "dy": float(y[-1] - y[0]) / (len(y) - 1)}
    for col, (title, p) in enumerate(maps.items(), start=1):
        if p.shape != (len(y), len(x)):
            raise ValueError(f"{title}: the map is {tuple(p.shape)}, the grid {(len(y), len(x))}.")
        place = {"row": 1, "col": col}
        look = {"colorscale": SHADES, "zmin": 0, "zmax": 100, "line": {"width": 1, "color": "#555"}, "name": "%"}
        figure.add_contour(z=percent(p), contours=LINES, **grid, **look, **place)
        for draw in borders.get(title, ()):
            thin = {"line": {"width": 1, "color": COLORS["ivon"]}, "hoverinfo": "skip"}
            figure.add_contour(z=percent(draw), contours=HALF, **grid, **thin, **place)
        for c, color in enumerate(CLASSES):
            dots, style = points[labels == c], {"color": color, "size": 5, "line": {"color": "white", "width": 1}}
            dots = {"x": short(dots[:, 0]), "y": short(dots[:, 1]), "marker": style, "hoverinfo": "skip"}
            figure.add_scatter(mode="markers", showlegend=False, **dots, **place)
    figure.update_xaxes(title={"text": "x₁", **AXIS}, range=[float(x[0]), float(x[-1])], zeroline=False)
    figure.update_yaxes(range=[float(y[0]), float(y[-1])], zeroline=False)
    return figure.update_yaxes(title={"text": "x₂", **AXIS}, col=1).update_layout(**LAYOUT, height=300)


def functions_figure(runs: Mapping, draws: Mapping, x: Tensor, truth: Tensor, data: tuple[Tensor, Tensor]) -> go.Figure:
    """Panels of functions of one input: of separate runs every function, of draws the mean and a band.

    Args:
        runs: title → the functions ``[K, X]`` of K networks; a panel with an orange line for each.
        draws: title → the functions ``[S, X]`` of S draws; a panel with mean − 2 and mean + 2 standard deviations (the
            edges of a band) and the mean, in blue. The truth and the data come last in every panel.
        x, truth: evenly spaced inputs and the true function there, ``[X]``.
        data: inputs and targets, ``[N]`` each.
    """
    titles = [f"<b>{title}</b>" for title in (*runs, *draws)]
    figure = make_subplots(1, len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    grid = {"x0": round(float(x[0]), 4), "dx": round(float(x[1] - x[0]), 4)}
    orange, blue = {"color": COLORS["adamw"], "width": 1.5}, {"color": COLORS["ivon"], "width": 2}
    for col, (title, f) in enumerate({**runs, **draws}.items(), start=1):
        lines = [(row, orange, None) for row in f]
        if title in draws:
            mean, width, edge = f.mean(0), 2 * f.std(0, correction=0), {"width": 0}
            lines = [(mean - width, edge, None), (mean + width, edge, "tonexty"), (mean, blue, None)]
        for values, line, fill in [*lines, (truth, {"color": INK, "width": 1.5, "dash": "dash"}, None)]:
            shown = {"name": "truth", "showlegend": "dash" in line and col == 1, "mode": "lines", "line": line}
            area = {"fill": fill, "fillcolor": "rgba(31, 95, 191, 0.25)"}
            figure.add_scatter(**grid, y=short(values), **shown, **area, row=1, col=col)
        dots = {"x": short(data[0]), "y": short(data[1]), "marker": {"color": INK, "size": 5}, "name": "data"}
        figure.add_scatter(mode="markers", showlegend=col == 1, **dots, row=1, col=col)
    figure.update_xaxes(title={"text": "input x", **AXIS}, zeroline=False)
    figure.update_yaxes(zeroline=False, range=[-1.9, 1.9]).update_yaxes(title={"text": "output f(x)", **AXIS}, col=1)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.2, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=330, legend=legend)
