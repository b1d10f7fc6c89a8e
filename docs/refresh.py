"""Fill the tables and pictures of README and results.md from data/: `python docs/refresh.py`.

The pictures need kaleido and a Chromium; `--no-picture` leaves them as they are.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from page_tables import DEMO, LEARNED, PASSES, ROOT, TABLES

PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
MARKS = "<!-- {} table, made by docs/refresh.py -->", "<!-- end of {} table -->"


def filled(text: str) -> str:
    """A page with the tables between their marks made anew."""
    for name, table in TABLES.items():
        begin, end = (mark.format(name) for mark in MARKS)
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{table()}\n{end}{rest.split(end)[1]}"
    return text


def lengths_picture(path: Path) -> None:
    """The four metrics against the length of training."""
    from ivon_lora_lite.plots import lengths_figure
    from ivon_lora_lite.studies import by_length

    records = by_length(PASSES)
    scores = {title: {n: [r.scores for r in rs] for n, rs in lengths.items()} for title, lengths in records.items()}
    lengths_figure(scores).write_image(path, width=1000, height=560, scale=2)


def sigma_picture(path: Path) -> None:
    """The learned σ by layer and matrix, of the first recorded seed."""
    from ivon_lora_lite.plots import sigma_figure

    seed = next(iter(json.loads(LEARNED.read_text("utf8"))["sigma"].values()))
    sigma_figure(seed["tensors"], start=seed["start"]).write_image(path, width=1000, height=400, scale=2)


def picture(path: Path) -> None:
    """The τ trade-off over seeds, from the recorded demo."""
    from ivon_lora_lite import TauSweep
    from ivon_lora_lite.plots import seeds_figure

    folders = sorted(DEMO.glob("seed*"))
    sweeps = [TauSweep.load(folder / "predictions" / "tau-sweep.safetensors") for folder in folders]
    adamw = [json.loads((folder / "metrics.json").read_text())["scores"]["AdamW"] for folder in folders]
    figure = seeds_figure({"everyday": sweeps}, {"everyday": adamw})
    figure.write_image(path, width=1000, height=330, scale=2)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text("utf8")), "utf8")
    if "--no-picture" not in sys.argv:
        picture(ROOT / "docs" / "tau.png")
        lengths_picture(ROOT / "docs" / "lengths.png")
        sigma_picture(ROOT / "docs" / "sigma.png")
