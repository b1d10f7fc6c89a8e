"""Names of a package that are loaded when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def lazy(namespace: dict, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``.

    Args:
        namespace: its ``globals()``, with ``__all__``.
        modules: name → the submodule that it is in.
    """
    package = namespace["__name__"]

    def __getattr__(name: str):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = getattr(import_module(f".{modules[name]}", package), name)
        return namespace[name]

    return __getattr__, lambda: namespace["__all__"]
