"""Refusals that are the same in every room: of a name that is not known, and of a number that is no count."""

from collections.abc import Iterable
from numbers import Integral


def check_known(what: str, value: object, known: Iterable[str]) -> None:
    """Refuse ``value`` if it is not among the known ones.

    Raises:
        ValueError: it is not; the message lists them.
    """
    if value not in (known := list(known)):
        raise ValueError(f"There is no {what} {value!r}. Known: {', '.join(known)}.")


def check_counts(least: int = 1, **counts: int) -> None:
    """Refuse a number that is not whole or is below ``least``; NumPy's whole numbers are taken.

    Raises:
        ValueError: it is; the message names it.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}.")
