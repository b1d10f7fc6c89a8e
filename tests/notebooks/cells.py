"""Code out of committed notebooks, so that tests can run what a notebook shows beside what the library does."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def defined_in(notebook: str, *names: str, **given: object) -> dict[str, object]:
    """The functions and classes that a notebook defines at top level, executed with nothing else of the notebook.

    Args:
        notebook: file name without folder.
        names: what to define, in this order.
        given: what their code expects to find, such as ``torch=torch``.

    Raises:
        LookupError: no cell defines one of them.
    """
    content = json.loads((NOTEBOOKS / notebook).read_text("utf8"))
    found = {}
    for cell in content["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = re.sub(r"(?m)^( *)[%!].*", r"\1pass", "".join(cell["source"]))  # IPython's own lines are no Python
        for node in ast.parse(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[node.name] = ast.get_source_segment(source, node)
    namespace = dict(given)
    for name in names:
        if name not in found:
            raise LookupError(f"No cell of {notebook} defines {name}.")
        exec(found[name], namespace)
    return namespace
