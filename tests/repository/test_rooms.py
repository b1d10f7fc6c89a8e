"""The house: every room of the library stands only on the rooms before it, and private names stay where they are."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "ivon_lora_lite"
# a module may import from its own room and from those before it
ROOMS = [
    "checks", "locks", "files", "ivon", "posterior", "language", "evaluation", "generation", "plots",
    "training", "applications", "methods", "gates", "studies", "cli", "__main__", "__init__",
]  # fmt: skip
SMALL_LIBRARY = ("ivon", "posterior", "evaluation")
MODULES = {
    tuple(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted([*PACKAGE.rglob("*.py"), PACKAGE / "__init__.pyi"])
    if not (path.name == "__init__.py" and path.parent == PACKAGE)
}


def room(module: tuple[str, ...]) -> str:
    return module[0]


def resolve(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The module that a dotted name within the package means: a file, or a package's `__init__`."""
    for module in (names, (*names, "__init__")):
        if module in MODULES:
            return module
    return None


def imports(module: tuple[str, ...], path) -> list[tuple[tuple[str, ...], str | None, bool]]:
    """(module, name or None, whether within a function) of all imports from the package, wherever they stand."""
    tree, found = ast.parse(path.read_text("utf8")), []
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        lazy = id(node) in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE.name:
                    found.append((tuple(alias.name.split(".")[1:]) or ("__init__",), None, lazy))
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:  # from . of a package's own __init__ is the package itself
            base = module[: len(module) - node.level]
        elif node.module and node.module.split(".")[0] == PACKAGE.name:
            base, node.module = (), ".".join(node.module.split(".")[1:])
        else:
            continue
        target = (*base, *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            whole = resolve((*target, alias.name))
            found.append((whole, None, lazy) if whole else (resolve(target) or target, alias.name, lazy))
    return found


EDGES = [(module, *edge) for module, path in MODULES.items() for edge in imports(module, path)]


def said(module: tuple[str, ...], target: tuple[str, ...], name: str | None = None) -> str:
    return f"{'.'.join(module)} imports {'.'.join(target)}" + (f".{name}" if name else "")


def test_every_module_is_in_a_known_room():
    assert {room(module) for module in MODULES} == set(ROOMS)
    assert len(EDGES) > 200  # else the tests below would look at nothing


def test_no_room_imports_from_one_above_it():
    upwards = [
        said(module, target, name)
        for module, target, name, _ in EDGES
        if target and ROOMS.index(room(target)) > ROOMS.index(room(module))
    ]
    assert upwards == []


def test_modules_import_each_other_in_no_circle():
    above: dict[tuple, set[tuple]] = {module: set() for module in MODULES}
    for module, target, _, _ in EDGES:
        above[module].add(target)
    done, path = set(), []

    def visit(module):
        if module in path:
            raise AssertionError(" → ".join(".".join(m) for m in [*path[path.index(module) :], module]))
        if module not in done:
            path.append(module)
            for target in sorted(above.get(module, ())):
                visit(target)
            path.pop()
            done.add(module)

    for module in MODULES:
        visit(module)


def test_no_private_name_crosses_modules():
    crossing = [
        said(module, target, name)
        for module, target, name, _ in EDGES
        if any(part.startswith("_") and not part.startswith("__") for part in (*target, name or ""))
    ]
    assert crossing == []


def test_only_the_command_line_and_what_needs_plotly_import_when_they_are_called():
    """A command imports what it runs, so that --help is quick; plotly is optional."""
    lazy = {
        (module, target) for module, target, _, within in EDGES if within and room(module) not in ("cli", "__main__")
    }
    assert lazy <= {(("studies", "report"), ("plots", "__init__"))}


@pytest.mark.parametrize("module", ["ivon", "posterior", "evaluation.metrics"])
def test_the_small_library_does_without_transformers(module):
    code = f"import sys, ivon_lora_lite.{module}; sys.exit('transformers' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_small_library_can_be_read_in_an_hour():
    lines = {name: 0 for name in SMALL_LIBRARY}
    for module, path in MODULES.items():
        if room(module) in lines and path.name != "__init__.py":  # lists of names
            lines[room(module)] += sum(bool(line.strip()) for line in path.read_text("utf8").splitlines())
    assert sum(lines.values()) <= 2800, lines  # without blank ones


def test_files_and_functions_are_of_a_size_that_can_be_held_in_mind():
    one_idea = {"optimizer.py": 350}  # one class, with the methods that torch asks for
    sizes = {path: len(path.read_text("utf8").splitlines()) for path in MODULES.values()}
    long = [f"{path.name}: {n} lines" for path, n in sizes.items() if n > one_idea.get(path.name, 300)]
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                if (n := node.end_lineno - first.lineno + 1) > 60:
                    long.append(f"{'.'.join(module)}.{node.name}: {n} lines without its docstring")
    assert long == []
