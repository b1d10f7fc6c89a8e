"""Run notebooks top to bottom and store their outputs as they are committed: `python notebooks/refresh.py [NAMES]`.

Figures get a PNG of few colours beside their plotly JSON, so that viewers without JavaScript show them. A widget needs
a kernel, so the cell that shows it also gets a still of its figures (or, if it has none, of its text) as they are when
it appears. All this needs kaleido, Pillow and a Chromium (`pip install kaleido pillow`); everything else comes with the
extras `notebooks` and `test`.
"""

import base64
import io
import json
import os
import sys
from pathlib import Path

import nbformat
import plotly.io as pio
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
CONTENT_OF = """
def _within(widget):
    return [widget] + [inner for child in getattr(widget, "children", ()) for inner in _within(child)]

def _content(widgets, is_html):
    figures = [w.to_json() for w in widgets if hasattr(w, "to_plotly_json")]
    return {"figures": figures, "html": [w.value for w in widgets if is_html(w)]}

print(__import__("json").dumps((lambda ipywidgets: _content(
    _within(ipywidgets.widgets.widget._instances[MODEL]), lambda w: isinstance(w, ipywidgets.HTML)
))(__import__("ipywidgets"))))
"""


def refresh(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": HERE}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources, coalesce_streams=True)
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # one form of a figure, and not plotly.js beside it
    with client.setup_kernel():
        for index, cell in enumerate(list(notebook.cells)):
            client.execute_cell(cell, index)
            widgets = [o["data"][WIDGET]["model_id"] for o in cell.get("outputs", []) if WIDGET in o.get("data", {})]
            for model in widgets:
                cell.outputs += stills(client, model)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figure = pio.from_json(json.dumps(data[PLOTLY]), skip_invalid=True)
                data["image/png"] = picture(figure)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}  # which knows % and !
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def stills(client: NotebookClient, model: str) -> list:
    """Outputs that show a widget where there is no kernel; asked from the kernel by a cell that leaves no trace."""
    question = nbformat.v4.new_code_cell(CONTENT_OF.replace("MODEL", repr(model)))
    client.nb.cells.append(question)
    client.execute_cell(question, len(client.nb.cells) - 1, store_history=False)
    client.nb.cells.pop()
    content = json.loads(question.outputs[0].text)
    about = "A still of the widget above: run the notebook to move its controls."
    figures = [pio.from_json(text, skip_invalid=True) for text in content["figures"]]
    shown = [{"image/png": picture(figure, 640)} for figure in figures] or [{"text/html": t} for t in content["html"]]
    return [nbformat.v4.new_output("display_data", {**data, "text/plain": about}) for data in shown]


def picture(figure, width: int = 820) -> str:
    """A figure as a PNG with 48 colours, a third of the size of one with all; small bright marks keep theirs."""
    from PIL import Image

    small = io.BytesIO()
    image = Image.open(io.BytesIO(figure.to_image("png", width=width, scale=1))).convert("RGB")
    image.quantize(48, Image.Quantize.FASTOCTREE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(HERE.parent)  # else a kernel without the package would install one
    for name in sys.argv[1:] or sorted(p.name for p in HERE.glob("*.ipynb")):
        refresh(HERE / name)
