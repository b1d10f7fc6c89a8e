"""Run notebooks top to bottom and store their outputs as they are committed: `python notebooks/refresh.py [NAMES]`.

Figures get a PNG of few colours beside their plotly JSON, so that viewers without JavaScript show them. That needs
kaleido, Pillow and a Chromium (`pip install kaleido pillow`); everything else comes with the extras `notebooks` and
`test`.
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


def refresh(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figure = pio.from_json(json.dumps(data[PLOTLY]), skip_invalid=True)
                data["image/png"] = picture(figure)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def picture(figure) -> str:
    """A figure as a PNG with 64 colours, a third of the size of one with all."""
    from PIL import Image

    small = io.BytesIO()
    image = Image.open(io.BytesIO(figure.to_image("png", width=820, scale=1))).convert("RGB")
    image.quantize(64).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(HERE.parent)  # else a kernel without the package would install one
    for name in sys.argv[1:] or sorted(p.name for p in HERE.glob("*.ipynb")):
        refresh(HERE / name)
