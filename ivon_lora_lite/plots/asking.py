"""A form in JupyterLab that puts a question to a run, and bars of what its draws say."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from torch import Tensor

from .style import COLORS, LAYOUT, rounded

WIDTH = 0.34  # of a bar


def answer_figure(choices: Sequence[str], mean: Tensor, draws: Tensor, right: int | None = None) -> go.Figure:
    """Probabilities of one question's choices: at the mean, and the average over draws with a dot for each draw.

    Args:
        choices: C texts.
        mean: probabilities at the mean ``[C]``.
        draws: probabilities of each draw ``[S, C]``.
        right: index of the right choice, if it is known; it is marked.
    """
    figure = go.Figure()
    places = list(range(len(choices)))
    figure.add_bar(
        x=[p - WIDTH / 2 for p in places], y=rounded(mean), width=WIDTH, name="at the mean",
        marker={"color": "rgba(31, 95, 191, 0.4)"}, hovertemplate="at the mean %{y:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        x=[p + WIDTH / 2 for p in places], y=rounded(draws.mean(0)), width=WIDTH, name=f"average of {len(draws)}",
        marker={"color": COLORS["ivon"]}, hovertemplate="average %{y:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[c + WIDTH / 2 for _ in draws for c in places], y=rounded(draws.flatten()), mode="markers", name="draws",
        marker={"color": COLORS["now"], "size": 7, "opacity": 0.8, "line": {"color": "white", "width": 1}},
        hovertemplate="draw %{y:.3f}<extra></extra>",
    )  # fmt: skip
    texts = [f"<b>✓ {choice}</b>" if place == right else choice for place, choice in zip(places, choices)]
    figure.update_xaxes(tickvals=places, ticktext=texts)
    figure.update_yaxes(range=[0, 1.02], title="probability")
    return figure.update_layout(**LAYOUT, height=320, bargap=0, legend={"orientation": "h", "y": -0.2})


class AskForm:
    """A question, its choices (a line each), and a button; below, what the run says.

    Args:
        run: a finished run; its method ``ask`` is called.
        stem, choices: what stands there at first.
        samples: draws; default: as :func:`ivon_lora_lite.training.ask` has it.

    In a notebook, make it the last line of a cell. ``form.ask()`` does what the button does, and ``form.answer`` is the
    last answer.
    """

    def __init__(self, run, stem: str = "", choices: Sequence[str] = (), samples: int | None = None):
        import ipywidgets as widgets

        self.run, self.samples, self.answer = run, samples, None
        wide = {"width": "600px"}
        self.stem = widgets.Text(stem, description="question", layout=wide)
        self.choices = widgets.Textarea("\n".join(choices), description="choices", layout={**wide, "height": "90px"})
        self.button = widgets.Button(description="ask", button_style="primary")
        self.said = widgets.HTML()
        self.figure = go.FigureWidget(layout={**LAYOUT, "height": 320, "width": 600})
        self.button.on_click(lambda _: self.ask())
        self.widget = widgets.VBox([self.stem, self.choices, self.button, self.said, self.figure])

    def ask(self) -> None:
        """Put the question to the run and show what it says."""
        words = [line.strip() for line in self.choices.value.splitlines() if line.strip()]
        try:
            self.answer = self.run.ask(self.stem.value, words or None, samples=self.samples)
        except ValueError as error:
            self.said.value = f"<p>{html.escape(str(error))}</p>"
            return
        made = answer_figure(self.answer.choices, self.answer.mean, self.answer.draws)
        with self.figure.batch_update():
            self.figure.data = []
            self.figure.add_traces(made.data)
            self.figure.update_layout(made.layout, width=600)
        self.said.value = f"<p>{html.escape(' '.join(self.answer.verdict))}</p>"

    def _repr_mimebundle_(self, **kwargs):
        return self.widget._repr_mimebundle_(**kwargs)
