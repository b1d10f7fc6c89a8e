"""How much memory a cell took at its peak."""

from collections.abc import Callable
from pathlib import Path

import torch

REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measure_peak() -> Callable[[], dict[str, float]]:
    """Begin to watch the peak of memory; what it returns tells it, in GB of 10⁹ bytes.

    On a GPU it is what torch held there, else the resident memory of this process, base model included, where the
    system tells it (Linux does; elsewhere the answer is empty).
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return lambda: {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3)}
    try:
        REFS.write_text("5", "ascii")  # the kernel's "forget the peak of this process"
    except OSError:
        return dict
    return lambda: {"peak_gb": round(1024 * int(_line("VmHWM").split()[1]) / 1e9, 3)}


def _line(name: str) -> str:
    return next(line for line in STATUS.read_text("ascii").splitlines() if line.startswith(name))
