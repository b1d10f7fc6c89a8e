"""Gradients that are not finite: a step with one of them changes nothing and is counted."""

import torch
from torch import Tensor

from .lists import by


class FiniteGuard:
    """Decides whether a step may be taken, and counts the steps that were skipped.

    On a CPU the answer is known at once. On an accelerator asking would make the host wait for the device, so the
    answer stays there as ``keep`` (1.0 or 0.0): the step runs with gradients set to 0 and rates multiplied by ``keep``.
    When the answer has arrived, at a later step or when ``total`` is asked for, the skipped step is counted, its number
    is taken back, and too many in a row raise their error.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.keep: Tensor | None = None
        self._total, self._in_a_row = 0, 0
        self._waiting: list[tuple[Tensor, object, list[dict]]] = []

    def check(self, grads: list[Tensor], states: list[dict]) -> bool:
        """False: skip this step. True: do it, with rates multiplied by ``keep`` if that is not None."""
        self._read(wait=False)
        flags = [not_finite(members) for members in by(grads, lambda g: (g.device, g.dtype)).values()]
        if all(flag.device.type == "cpu" for flag in flags):
            self.keep = None
            bad = any(flag.item() for flag in flags)
            self._count(bad)
            return not bad
        self.defer(flags, states)
        return True

    def defer(self, flags: list[Tensor], states: list[dict]) -> None:
        """Leave the answer on the device, and ask for it without waiting."""
        device = next((flag.device for flag in flags if flag.device.type != "cpu"), flags[0].device)
        bad = torch.stack([flag.to(device, non_blocking=True) for flag in flags]).amax()
        self.keep = 1 - bad
        host, event = bad.to("cpu", non_blocking=True), None
        if bad.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(bad.device))
        self._waiting.append((host, event, states))

    def masked(self, tensors: list[Tensor]) -> None:
        """Zero them, in place, if the step must not happen: NaN times a rate of 0 would still be NaN."""
        if self.keep is not None:
            for tensor in {id(t): t for t in tensors}.values():
                tensor.masked_fill_(self.keep.to(tensor.device) == 0, 0)

    def rates(self, device: torch.device, *rates: float) -> tuple[float | Tensor, ...]:
        """The rates as they are; where the answer stays on the device, times ``keep``."""
        return rates if self.keep is None else tuple(rate * self.keep.to(device) for rate in rates)

    @property
    def total(self) -> int:
        """Steps that did not happen."""
        self.settle()
        return self._total

    def settle(self) -> None:
        """Wait for all answers."""
        self._read(wait=True)

    def _read(self, wait: bool) -> None:
        while self._waiting:
            host, event, states = self._waiting[0]
            if event is not None:
                if not (wait or event.query()):
                    return
                event.synchronize()
            self._waiting.pop(0)
            if host.item():
                for state in states:  # the step that did not happen was counted in advance
                    state["step"] -= 1
            self._count(bool(host.item()))

    def _count(self, bad: bool) -> None:
        self._total += bad
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row >= self.limit:
            raise FloatingPointError(
                f"{self._in_a_row} steps in a row had gradients that are not finite. Lower the learning rate, raise "
                "ess or hess_init (less noise), or look for the loss that overflows."
            )

    def state_dict(self) -> dict:
        return {"skipped": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self._waiting = []
        self._total, self._in_a_row = state["skipped"], state["in_a_row"]


def not_finite(grads: list[Tensor]) -> Tensor:
    """1.0 if any gradient holds an infinity or NaN, else 0.0; one pass, no wait."""
    flag = torch.zeros((), dtype=torch.float32, device=grads[0].device)
    one = torch.ones_like(flag)
    # GradScaler's kernel: it multiplies by `one`, which leaves the gradients as they are; CUDA's knows no bf16
    grads = [g.float() if g.is_cuda and g.dtype == torch.bfloat16 else g for g in grads]
    torch._amp_foreach_non_finite_check_and_unscale_(grads, flag, one)
    return flag
