"""Where the recorded results lie: `data/runs` of a clone of the repository."""

from __future__ import annotations

from pathlib import Path


def recorded(name: str = "") -> Path:
    """The folder of recorded results, or one folder or file in it.

    Looks in the clone that the package is imported from, in the working directory and the folders above it, and in a
    clone that was put beside the notebook under the name ``repository``, as on Colab.

    Raises:
        FileNotFoundError: none of them has it; a wheel brings no recorded results.
    """
    here = Path.cwd()
    for clone in (*Path(__file__).parents[2:3], here, *here.parents, here / "repository"):
        if (found := clone / "data" / "runs" / name).exists():
            return found
    raise FileNotFoundError(
        f"There is no data/runs/{name} here: clone the repository, whose folder data/runs has the recorded results."
    )
