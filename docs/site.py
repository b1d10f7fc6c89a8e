"""Build the site: `python docs/site.py outputs/site` (or `make docs`); it needs the extra `docs`.

Pages are the repository's own: README, docs, notebooks with their outputs, and the docstrings of every subpackage. They
are staged beside the target, with three changes: links to files that are no pages lead to the repository; a figure of a
notebook is live; and `tau.html`, the τ explorer of the recorded demo, works without a kernel. Warnings are errors.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import plotly.io as pio
from plotly.offline import get_plotlyjs

from ivon_lora_lite import TauSweep, sweep_html

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/ivon-lora-lite/ivon-lora-lite"
ROOMS = (
    "ivon", "posterior", "language", "evaluation", "generation", "plots", "training", "applications", "methods",
    "gates", "studies",
)  # fmt: skip
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "data").glob("*/README.md")), *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "notebooks" / "solutions").glob("*.md")),
]  # fmt: skip
# [text](path#anchor), and [text]: path#anchor on a line of its own
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: *)(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(\)?)", re.M)
BADGE = re.compile(r"!\[([^\]]*)\]\(https?://[^)]*\)")  # a picture from elsewhere becomes its words
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPT = "_static/plotly.min.js"
TAU = ROOT / "data" / "runs" / "demo" / "seed21" / "predictions" / "tau-sweep.safetensors"


def staged(page: Path) -> Path:
    """Where a page lies among the staged sources; README is the start page."""
    path = page.relative_to(ROOT)
    return Path("index.md") if path == Path("README.md") else path


def linked(text: str, page: Path, source: Path) -> str:
    """Markdown whose links lead to pages, to pictures that are copied, or to the repository."""

    def lead(match: re.Match) -> str:
        target, anchor = (page.parent / match[2]).resolve(), match[3] or ""
        if target in PAGES:
            away = Path(os.path.relpath(staged(target), staged(page).parent)).as_posix()
        elif target.suffix == ".png":
            copy = source / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, copy)
            away = Path(os.path.relpath(target.relative_to(ROOT), staged(page).parent)).as_posix()
        else:
            kind = "tree" if target.is_dir() else "blob"
            away = f"{REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}"
        return f"{match[1]}{away}{anchor}{match[4]}"

    return LINK.sub(lead, BADGE.sub(r"\1", text))


def notebook(page: Path, source: Path) -> str:
    """A notebook with live figures, and of each widget the still."""
    content = json.loads(page.read_text("utf8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked("".join(cell["source"]), page, source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figure = {name: data[PLOTLY][name] for name in ("data", "layout")}
                script = f"../{SCRIPT}"  # where the figure is, because the theme loads scripts last
                shown = pio.to_html(figure, full_html=False, include_plotlyjs=script, config={"displayModeBar": False})
                output["data"] = {"text/html": shown}
            if WIDGET in data:
                output["data"] = {kind: value for kind, value in data.items() if kind in ("image/png", "text/html")}
        cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("data", True) != {}]
        if cell["cell_type"] != "code":
            del cell["outputs"]
    return json.dumps(content, ensure_ascii=False)


def stage(source: Path) -> None:
    """Write all sources of the site to a new folder."""
    shutil.rmtree(source, ignore_errors=True)
    for page in PAGES:
        to = source / staged(page)
        to.parent.mkdir(parents=True, exist_ok=True)
        text = notebook(page, source) if page.suffix == ".ipynb" else linked(page.read_text("utf8"), page, source)
        to.write_text(text + (menu() if to.name == "index.md" else ""), "utf8")
    (source / "docs" / "api.md").write_text(api(), "utf8")
    shutil.copyfile(ROOT / "docs" / "conf.py", source / "conf.py")
    static = source / "static"
    static.mkdir()
    (static / Path(SCRIPT).name).write_text(get_plotlyjs(), "utf8")
    (static / "site.css").write_text("div.output.text_html { overflow-x: auto }\n", "utf8")
    sweep_html(TauSweep.load(TAU), static / "tau.html", "Between the mean and the posterior: τ")


def menu() -> str:
    """The tables of contents at the side."""
    names = {
        "Notebooks": [p for p in PAGES if p.suffix == ".ipynb"],
        "Pages": [p for p in PAGES if p.parent == ROOT / "docs"],
        "Solutions": [p for p in PAGES if p.parent.name == "solutions"],
        "Project": [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(p for p in PAGES if ROOT / "data" in p.parents)],
    }
    listed = {title: [staged(p).with_suffix("").as_posix() for p in pages] for title, pages in names.items()}
    listed["Pages"] = ["docs/api", *listed["Pages"]]
    blocks = [
        f"```{{toctree}}\n:hidden:\n:caption: {t}\n\n" + "\n".join(pages) + "\n```" for t, pages in listed.items()
    ]
    live = "<p><a href='_static/tau.html'>The τ explorer of the recorded demo</a> works in the browser alone.</p>"
    return f"\n\n{live}\n\n" + "\n\n".join(blocks) + "\n"


def api() -> str:
    """A section per subpackage, in the order in which they stand on each other."""
    parts = ["# Reference, by subpackage\n"]
    for room in ROOMS:
        directive = f".. automodule:: ivon_lora_lite.{room}\n   :members:\n   :imported-members:"
        parts.append(f"## `ivon_lora_lite.{room}`\n\n```{{eval-rst}}\n{directive}\n```\n")
    return "\n".join(parts)


def main(target: Path) -> int:
    source = target.with_name(f"{target.name}-source")
    stage(source)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(source), str(target)]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/site").resolve()))
