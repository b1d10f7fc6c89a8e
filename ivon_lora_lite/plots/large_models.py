"""What a large model needs of a GPU's memory, and published scores from one method to the next."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from .style import COLORS, LAYOUT

GPUS = {"T4": 15, "L4, RTX 4090": 22, "A100": 39}  # GiB that are free on such cards, roughly
PARTS = {"frozen weights": COLORS["before"], "LoRA": COLORS["linear"], "IVON": COLORS["ivon"]}


def memory_figure(memory: Mapping[str, Sequence[float]], gpus: Mapping[str, float] = GPUS) -> go.Figure:
    """A bar for each number format, and a line for each GPU.

    Args:
        memory: format → GiB of the frozen weights, of LoRA, and of the optimizer's state.
        gpus: name → GiB that are free on it.

    Raises:
        ValueError: a format has not three numbers.
    """
    wrong = [name for name, parts in memory.items() if len(parts) != len(PARTS)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} has {len(memory[wrong[0]])} numbers; expected {', '.join(PARTS)}.")
    figure = go.Figure()
    for k, (title, color) in enumerate(PARTS.items()):
        values = [round(parts[k], 3) for parts in memory.values()]
        figure.add_bar(x=values, y=list(memory), orientation="h", name=title, marker_color=color, width=0.6)
    for name, parts in memory.items():
        figure.add_annotation(
            x=sum(parts), y=name, xanchor="left", xshift=4, showarrow=False, bgcolor="rgba(255, 255, 255, 0.9)",
            text=f"{sum(parts):.1f} GiB, of which {sum(parts[1:]):.2f} are LoRA and IVON",
        )  # fmt: skip
    for name, gib in gpus.items():
        figure.add_vline(x=gib, line_dash="dot", line_color="#666")
        figure.add_annotation(x=gib, y=1.12, yref="paper", text=name, showarrow=False)
    figure.update_xaxes(title="GiB that are needed before any activation", range=[0, 1.08 * max(gpus.values())])
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(**{**LAYOUT, "margin": {"l": 60, "r": 15, "t": 45, "b": 80}}, barmode="stack", height=320)
    return figure.update_layout(legend={"orientation": "h", "y": -0.42, "traceorder": "normal"})


def published_figure(paths: Mapping[str, Mapping[str, tuple[float, float]]]) -> go.Figure:
    """Accuracy against ECE, a path for each task: AdamW, then IVON's mean, then the average over draws.

    Args:
        paths: task → method (``"AdamW"``, ``"IVON@mean"``, ``"IVON"``) → (ECE, accuracy).
    """
    figure = go.Figure()
    for points in paths.values():
        x, y = zip(*points.values())
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": COLORS["linear"], "width": 2}, showlegend=False, hoverinfo="skip"
        )
    symbols = {"AdamW": "circle", "IVON@mean": "circle-open", "IVON": "circle"}
    for method, symbol in symbols.items():
        x, y = zip(*(points[method] for points in paths.values()))
        color = COLORS["adamw" if method == "AdamW" else "ivon"]
        figure.add_scatter(
            x=x, y=y, text=list(paths), mode="markers", name=method, hovertemplate="%{text}: ECE %{x}, accuracy %{y}",
            marker={"color": color, "size": 11, "symbol": symbol, "line": {"width": 2, "color": color}},
        )  # fmt: skip
    for task, points in paths.items():
        x, y = points["IVON@mean"]
        figure.add_annotation(x=x, y=y, text=task, showarrow=False, xanchor="left", xshift=2, yshift=13)
    x, y = zip(*(point for points in paths.values() for point in points.values()))
    figure.update_xaxes(title="ECE × 100 (calibrated is 0)", range=[0, round(1.2 * max(x), 1)])
    figure.update_yaxes(title="accuracy in percent", range=[round(min(y) - 2, 1), round(max(y) + 2, 1)])
    return figure.update_layout(**LAYOUT, height=420, legend={"orientation": "h", "y": 1.1})
