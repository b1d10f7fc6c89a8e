"""Matrices as pictures: what a product of two thin matrices looks like, and what noise on them does."""

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from .style import AXIS, LAYOUT

SCALE = "BrBG"  # brown below 0, white at 0, green above: none of the colours that stand for a method
GAP, NARROWEST = 0.05, 0.12  # between panels, and a thin matrix's panel, as shares of the figure's width


def matrix_figure(matrices: Mapping[str, Tensor], limit: float | None = None, height: int = 300) -> go.Figure:
    """Matrices side by side as heat maps with one colour scale and one colour bar.

    Args:
        matrices: title → matrix, [rows, columns]. A panel is as wide as its matrix has columns; row 0 is on top.
        limit: the absolute value at which colours end; larger entries are drawn with the last colour. Default: the
            largest absolute value of all entries.
        height: of the figure, in pixels.

    Raises:
        ValueError: there is no matrix, or one that has not two dimensions.
    """
    odd = [title for title, matrix in matrices.items() if matrix.dim() != 2]
    if odd or not matrices:
        raise ValueError(f"{odd[0]!r} is not a matrix." if odd else "There is no matrix to draw.")
    limit = limit or max(float(matrix.detach().abs().max()) for matrix in matrices.values()) or 1.0
    widest = max(matrix.shape[1] for matrix in matrices.values())
    widths = [max(matrix.shape[1] / widest, NARROWEST * len(matrices)) for matrix in matrices.values()]
    titles = [f"<b>{title}</b>" for title in matrices]
    shares = [width / sum(widths) for width in widths]
    figure = make_subplots(1, len(matrices), subplot_titles=titles, column_widths=shares, horizontal_spacing=GAP)
    for col, matrix in enumerate(matrices.values(), start=1):
        z, hover = matrix.detach().float().numpy(), "row %{y}, column %{x}<br>%{z:.3f}<extra></extra>"
        figure.add_heatmap(z=z, coloraxis="coloraxis", hovertemplate=hover, row=1, col=col)
        for update, count in ((figure.update_yaxes, z.shape[0]), (figure.update_xaxes, z.shape[1])):
            update(dtick=1 if count < 6 else 10, row=1, col=col)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    figure.update_xaxes(title={"text": "column", **AXIS}, showgrid=False, zeroline=False)
    figure.update_yaxes(title={"text": "row", **AXIS}, col=1)
    figure.update_annotations(font_size=14)
    bar = {"thickness": 12, "outlinewidth": 0, "nticks": 5}
    colors = {"colorscale": SCALE, "cmin": -round(limit, 3), "cmax": round(limit, 3), "colorbar": bar}
    return figure.update_layout(**LAYOUT, height=height, coloraxis=colors)
