"""An optimizer that works beside the Trainer's, on numbers that the model does not list among its parameters."""

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..ivon import average_over_ranks


class Beside(TrainerCallback):
    """Steps an optimizer of its own with every step of the Trainer, and adds a penalty that the loss does not show.

    The gradients of the cross-entropy come from the Trainer's backward passes; those of the penalty are added here, so
    the logged loss stays the cross-entropy. With several processes (DDP) the gradients are averaged here, because DDP
    does not know these numbers.

    Args:
        optimizer: over leaf tensors that take part in the forward pass.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def penalty(self, step: int, steps: int) -> Tensor | None:
        """What is added to the loss of this step of so many; None: nothing."""
        return None

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        average_over_ranks([p.grad for p in params])
        draws = getattr(getattr(optimizer, "optimizer", optimizer), "mc_samples", 1)  # each with a backward pass
        scaler = getattr(optimizer, "scaler", None)  # of fp16: it has scaled these gradients, and will not unscale them
        for p in params:
            p.grad /= draws * (1.0 if scaler is None else scaler.get_scale())
        if not all(p.grad.isfinite().all() for p in params):  # as IVON and the scaler do: no step
            self.optimizer.zero_grad()
            return
        penalty = self.penalty(state.global_step, state.max_steps)
        if penalty is not None:
            penalty.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
