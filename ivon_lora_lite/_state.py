"""What an IVON optimizer holds: mean and Hessian of every parameter, and how they are saved and read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._checks import STRUCTURE, matching_state
from ._plumbing import lay_side_by_side
from .diagnostics import ivon_diagnostics


class GaussianState(Optimizer):
    """The Gaussian N(m, diag v) in a torch optimizer's ``state``: the part of :class:`IVON` that does not move it."""

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing because a gradient was not finite."""
        return self._finite.total

    def variance(self, p: Tensor) -> Tensor:
        """Posterior variance v = 1 / (λ (h + δ)) of a parameter, in its shape; fp32 or finer."""
        for group in self.param_groups:
            if any(p is q for q in group["params"]):
                if not self.state[p]:
                    self._init_state([p], group)
                return 1 / (group["ess"] * (self.state[p]["hess"] + group["weight_decay"]))
        raise ValueError("This parameter is not in the optimizer.")

    def mean(self, p: Tensor) -> Tensor:
        """Posterior mean m of a parameter (the fp32 copy if the parameter is 16-bit)."""
        if self._inside:
            raise RuntimeError("The parameters are a draw now: leave sampled_params() first.")
        return self._mean(p)

    def diagnostics(self) -> dict[str, float]:
        """What the posterior looks like now; see :func:`ivon_lora_lite.diagnostics.ivon_diagnostics`."""
        return ivon_diagnostics(self)

    def state_dict(self) -> dict:
        """torch's state dict plus ``"ivon"``: options, generator states and counters, all that a resumed run needs."""
        if self._inside:
            raise RuntimeError("The parameters are a draw now: leave sampled_params() before saving.")
        return super().state_dict() | {
            "ivon": {
                "options": {name: getattr(self, name) for name in STRUCTURE},
                "noise": self._noise.state_dict(),
                "finite": self._finite.state_dict(),
            }
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue from ``state_dict()``; refuses one of other shapes or options.

        Raises:
            ValueError: naming the first difference.
        """
        pairs = matching_state(self, state_dict)
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "ivon"})
        for p, saved in pairs:  # torch casts state to the parameter's dtype; ours stays fp32
            self.state[p].update({k: v.detach().clone().to(p.device) for k, v in saved.items() if k != "step"})
        for group in self.param_groups:
            self._lay_out([p for p in group["params"] if self.state[p]])
        self._noise.load_state_dict(state_dict["ivon"]["noise"])
        self._finite.load_state_dict(state_dict["ivon"]["finite"])
        self._forget()

    def _init_state(self, params: list[Tensor], group: dict) -> None:
        """Start parameters at h₀."""
        for p in params:
            dtype = torch.promote_types(p.dtype, torch.float32)
            self.state[p] = {
                "step": 0,
                "momentum": torch.zeros_like(p, dtype=dtype, memory_format=torch.contiguous_format),
                "hess": torch.full_like(p, group["hess_init"], dtype=dtype, memory_format=torch.contiguous_format),
            }
            if p.dtype != dtype:
                self.state[p]["mean"] = p.detach().to(dtype)
        self._lay_out(params)

    def _lay_out(self, params: list[Tensor]) -> None:
        for name in ("momentum", "hess"):
            lay_side_by_side([self.state[p] for p in params], name)

    def _mean(self, p: Tensor) -> Tensor:
        return self.state[p].get("mean", p.detach()) if p in self.state else p.detach()
