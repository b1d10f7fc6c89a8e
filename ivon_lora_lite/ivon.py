"""IVON, the Improved Variational Online Newton optimizer (Shen et al. 2024, arXiv:2402.17641).

IVON minimises E_q[ℓ(θ)] + KL[q ‖ p] / λ over Gaussians q = N(m, diag v). It looks like Adam, with two differences: the
gradient is taken at a draw θ ~ q, and the scale vector h estimates the Hessian, so v = 1 / (λ (h + δ)) comes for free.

One step, per coordinate (λ = ``ess``, δ = ``weight_decay``, ξ = ``clip_radius``, α = ``lr``, t = the step's number):

    σ = 1 / √(λ (h + δ)),   θ = m + σ ε,  ε ~ N(0, 1),   ĝ = ∇ℓ(θ)                                  (draw)
    ĥ = ĝ ε / σ   (``price``)   or   ĥ = λ ĝ²   (``gradsq``)                                         (Hessian estimate)
    g ← β₁ g + (1 − β₁) ĝ                                                                            (momentum)
    h ← β₂ h + (1 − β₂) ĥ + ½ (1 − β₂)² (h − ĥ)² / (h + δ)                                           (Hessian)
    m ← m − α clip((g / (1 − β₁ᵗ) + δ m) / (h + δ), ±ξ)                                              (mean)

The loop is the familiar one, with the forward and backward pass inside a context:

    optimizer = IVON(model.parameters(), lr=0.1, ess=len(dataset))
    with optimizer.sampled_params(train=True):
        loss(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()

One draw belongs to one optimizer step. Leaving the context restores the mean exactly and keeps the draw; the gradients
stay in ``p.grad`` and ``step()`` pairs them with the draw. So accumulation (enter the context once per micro-batch),
``clip_grad_norm_``, ``GradScaler`` and data-parallel all-reduce act on ``p.grad`` as with any other optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ._checks import check_group, check_options
from ._plumbing import FiniteGuard, NoiseStreams, average_over_ranks, by, joined, parts, views
from ._state import GaussianState

__all__ = ["IVON"]

PER_GROUP = ("lr", "ess", "hess_init", "beta1", "beta2", "weight_decay", "clip_radius")


class IVON(GaussianState):
    """Variational online Newton with a diagonal Gaussian; arguments as in the ``ivon-opt`` package.

    Args:
        params: parameters or parameter groups; a group may set its own ``lr, ess, hess_init, beta1, beta2,
            weight_decay, clip_radius``.
        lr: learning rate α.
        ess: effective sample size λ. The training set's size N targets the posterior; more is a colder posterior.
        hess_init: initial Hessian h₀ > 0, so the first σ is 1/√(λ(h₀ + δ)).
        beta1, beta2: momentum of gradient and Hessian, in [0, 1).
        weight_decay: δ ≥ 0, the precision of the prior N(0, 1/(λδ)); 0 is a flat prior.
        mc_samples: draws per step. With 1, entering the context again before ``step()`` continues the same draw
            (gradient accumulation); with more, every entry is a new draw, and their gradients are averaged.
        hess_approx: ``"price"`` (reparameterisation, unbiased) or ``"gradsq"`` (squared gradients).
        clip_radius: ξ, a bound on each coordinate of the preconditioned update.
        sync: every rank draws its own noise, and ``step()`` averages gradients *and* Hessian estimates over ranks.
            For loops that do not average gradients themselves; under DDP leave it off: there all ranks share one draw.
        debias: divide the momentum by 1 − β₁ᵗ.
        rescale_lr: multiply the learning rate by h₀ + δ.
        seed: of the draws. Default: torch's initial seed (rank 0's, if several processes run).
        max_skipped: so many steps in a row with non-finite gradients raise ``FloatingPointError``.

    Raises:
        ValueError: an argument is outside its range.
        RuntimeError: contexts are nested, or ``step()`` has no draw to pair the gradients with.

    State per parameter: ``step`` (int), ``momentum``, ``hess`` (at least fp32) and, for 16-bit parameters, an fp32
    ``mean``. Steps with a non-finite gradient change nothing and are counted in ``skipped_steps``.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        ess: float,
        hess_init: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99999,
        weight_decay: float = 1e-4,
        mc_samples: int = 1,
        hess_approx: str = "price",
        clip_radius: float = math.inf,
        sync: bool = False,
        debias: bool = True,
        rescale_lr: bool = True,
        *,
        seed: int | None = None,
        max_skipped: int = 20,
    ):
        check_options(mc_samples, hess_approx)
        self.mc_samples, self.hess_approx, self.sync = mc_samples, hess_approx, sync
        self.debias, self.rescale_lr = debias, rescale_lr
        self._noise = NoiseStreams(seed, per_rank=sync)
        self._buffers: dict[tuple, Tensor] = {}  # flat noise and flat saved means, kept between steps
        self._inside: str | None = None  # "train" or "eval" within a context
        self._perturbation: dict[Tensor, Tensor] = {}  # ε / √(h + δ) of the step's draw, per parameter
        self._entries = 0  # contexts entered for this step
        self._samples: dict[Tensor, list[Tensor]] = {}  # with mc_samples > 1: sums of ĝ and of ĝ·perturbation (or ĝ²)
        self._averaged: dict[Tensor, tuple[Tensor, int]] = {}  # … and p.grad as we left it, with its version
        self._finite = FiniteGuard(max_skipped)
        self._checked_sync = False
        super().__init__(params, dict(zip(PER_GROUP, (lr, ess, hess_init, beta1, beta2, weight_decay, clip_radius))))

    def add_param_group(self, param_group: dict) -> None:
        """Add a group; its parameters start at h₀ and take part from the next draw on."""
        if self._inside or self._entries:
            raise RuntimeError("A draw is pending: call step() (or zero_grad()) before add_param_group().")
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    # ---------------------------------------------------------------------------------------------- draws

    @contextmanager
    def sampled_params(self, train: bool = False) -> Iterator[None]:
        """Within the context the parameters are a draw θ ~ N(m, diag v); on leaving, exactly the mean again.

        Args:
            train: keep the draw for ``step()``. Without it (evaluation) every entry is a new draw, from a random
                stream of its own: evaluating more or less often does not change training.

        Raises:
            RuntimeError: contexts are nested, or all ``mc_samples`` draws of this step were made.
        """
        if self._inside:
            raise RuntimeError("sampled_params() contexts cannot be nested: leave the outer one first.")
        if train and self.mc_samples > 1 and self._entries >= self.mc_samples:
            raise RuntimeError(f"All mc_samples={self.mc_samples} draws of this step were made: call step().")
        # buffers and state that are made here must be ordinary tensors even if evaluation runs in inference_mode
        with torch.inference_mode(False), torch.no_grad():
            params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            fresh = not train or self.mc_samples > 1 or not self._entries
            perturbation = self._draw(params, "train" if train else "eval") if fresh else self._perturbation
            saved = self._perturb(perturbation)
        if train:
            self._perturbation = perturbation
            self._entries += 1
            if self.mc_samples > 1:
                for p in params:
                    p.grad = None
        self._inside = "train" if train else "eval"
        complete = False
        try:
            yield
            complete = True
        finally:
            self._inside = None
            with torch.inference_mode(False), torch.no_grad():
                torch._foreach_copy_(list(saved), list(saved.values()))
                if train and self.mc_samples > 1:
                    if complete:
                        self._collect(params)
                    else:
                        self._forget()

    def _draw(self, params: list[Tensor], stream: str) -> dict[Tensor, Tensor]:
        """ε / √(h + δ) per parameter; one random draw for all tensors of a device."""
        for group in self.param_groups:
            new = [p for p in group["params"] if p.requires_grad and not self.state[p]]
            self._init_state(new, group)
        out: dict[Tensor, Tensor] = {}
        for (device, dtype), members in by(params, lambda p: (p.device, self.state[p]["hess"].dtype)).items():
            flat = self._buffer((device, dtype, f"noise {stream}"), sum(p.numel() for p in members))
            self._noise.fill(flat, stream)
            out.update(zip(members, views(flat, members)))
        for group in self.param_groups:
            for part in parts([p for p in group["params"] if p in out]):
                scale, noise = joined([self.state[p]["hess"] for p in part], [out[p] for p in part])
                if group["weight_decay"]:
                    scale = torch._foreach_add(scale, group["weight_decay"])
                torch._foreach_div_(noise, torch._foreach_sqrt(scale))
        return out

    def _perturb(self, perturbation: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """θ = m + perturbation / √λ, in place; returns what restores the mean."""
        saved: dict[Tensor, Tensor] = {}
        for (device, dtype), members in by(list(perturbation), lambda p: (p.device, p.dtype)).items():
            flat = self._buffer((device, dtype, "mean"), sum(p.numel() for p in members))
            saved.update(zip(members, views(flat, members)))
        for group in self.param_groups:
            alpha = 1 / math.sqrt(group["ess"])
            for part in parts([p for p in group["params"] if p in perturbation]):
                torch._foreach_copy_([saved[p] for p in part], part)
                noise = [perturbation[p] for p in part]
                if all("mean" not in self.state[p] for p in part):
                    torch._foreach_add_(part, noise, alpha=alpha)
                else:  # 16-bit parameters: add in fp32, round once
                    theta = torch._foreach_add([self._mean(p) for p in part], noise, alpha=alpha)
                    torch._foreach_copy_(part, theta)
        return saved

    def _collect(self, params: list[Tensor]) -> None:
        """With several draws per step: pair this draw's gradient with its own noise; leave the average in p.grad."""
        for p in params:
            if p.grad is None:
                continue
            g = p.grad.to(self.state[p]["hess"].dtype)
            cross = g * self._perturbation[p] if self.hess_approx == "price" else g.square()
            if p in self._samples:
                torch._foreach_add_(self._samples[p], [g, cross])
            else:
                self._samples[p] = [g.clone(), cross]
            p.grad = None
        if self._entries == self.mc_samples:
            for p, (g, _) in self._samples.items():
                p.grad = (g / self.mc_samples).to(p.dtype)
                self._averaged[p] = (p.grad, p.grad._version)

    # ---------------------------------------------------------------------------------------------- step

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update m and h from ``p.grad`` and the draw at which it was taken. Parameters without gradient stay.

        Args:
            closure: computes the loss and its gradient; it is called once per draw, within the context.

        Returns:
            The mean loss over draws if there is a closure.

        Raises:
            RuntimeError: there is no draw, or gradients of several draws were changed after their context.
            FloatingPointError: ``max_skipped`` steps in a row had non-finite gradients.
        """
        loss = None if closure is None else self._run(closure)
        if self._inside:
            raise RuntimeError("step() was called within sampled_params(): leave the context first.")
        if not self._entries:
            raise RuntimeError(
                "step() has no draw to pair the gradients with: run the forward and backward pass inside "
                "`with optimizer.sampled_params(train=True):` before each step()."
            )
        if self.mc_samples > 1 and self._entries != self.mc_samples:
            raise RuntimeError(f"step() came after {self._entries} of mc_samples={self.mc_samples} draws.")
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        params = [p for p in params if p in self._perturbation]
        moments = {p: self._moments(p) for p in params} if self.mc_samples > 1 or self.sync else None
        if moments and self.sync:
            average_over_ranks(list(moments.values()), check=not self._checked_sync)
            self._checked_sync = True
        grads = [m[0] for m in moments.values()] if moments else [p.grad for p in params]
        if not self._finite.check(grads, [self.state[p] for p in params]):
            self._forget()
            return loss
        keep = self._finite.keep
        for group in self.param_groups:
            mine = [p for p in group["params"] if p in self._perturbation and p.grad is not None]
            for members in by(mine, lambda p: (p.device, self.state[p]["step"])).values():
                for part in parts(members):
                    self._update(group, part, moments, keep)
        self._forget()
        return loss

    def _update(self, group: dict, params: list[Tensor], moments: dict | None, keep: Tensor | None) -> None:
        """The equations at the head of this file, on a list of tensors; ``keep`` (accelerators) is 0.0 to skip."""
        ess, delta, beta1, beta2 = group["ess"], group["weight_decay"], group["beta1"], group["beta2"]
        state = [self.state[p] for p in params]
        h, momentum = [s["hess"] for s in state], [s["momentum"] for s in state]
        m = [self._mean(p) for p in params]
        if moments:
            g, cross = [moments[p][0] for p in params], [moments[p][1] for p in params]
        else:
            g = [p.grad.to(s["hess"].dtype) for p, s in zip(params, state)]
            if self.hess_approx == "price":  # the draw is not needed afterwards: its memory serves for the product
                cross = [self._perturbation[p] for p in params]
                torch._foreach_mul_(cross, g)
            else:
                cross = torch._foreach_mul(g, g)
        if keep is not None:
            keep = keep.to(params[0].device)
            for tensor in {id(t): t for t in (*g, *cross)}.values():
                tensor.masked_fill_(keep == 0, 0)
        # g ← β₁ g + (1 − β₁) ĝ
        if keep is None:
            torch._foreach_lerp_(momentum, g, 1 - beta1)
        else:
            change = torch._foreach_sub(g, momentum)
            torch._foreach_mul_(change, keep.to(change[0].dtype))
            torch._foreach_add_(momentum, change, alpha=1 - beta1)
        # h ← h − (h + δ) (r − ½ r²),   r = (1 − β₂) (h − ĥ) / (h + δ),   ĥ = √λ (h + δ) ĝ·perturbation or λ ĝ²
        h, momentum, r = joined(h, momentum, cross)
        scale = h if delta == 0 else torch._foreach_add(h, delta)
        if self.hess_approx == "price":
            torch._foreach_mul_(r, -(1 - beta2) * math.sqrt(ess))
        else:
            torch._foreach_div_(r, scale)
            torch._foreach_mul_(r, -(1 - beta2) * ess)
        if delta == 0:
            torch._foreach_add_(r, 1 - beta2)
        else:
            torch._foreach_add_(r, torch._foreach_div(h, scale), alpha=1 - beta2)
        torch._foreach_addcmul_(r, r, r, value=-0.5)
        if keep is not None:
            torch._foreach_mul_(r, keep.to(r[0].dtype))
        torch._foreach_addcmul_(h, scale, r, value=-1)
        # m ← m − α clip((g / d + δ m) / (h + δ), ±ξ) = m − α/d clip((g + d δ m) / (h + δ), ±d ξ),   d = 1 − β₁ᵗ
        debias = 1 - beta1 ** (state[0]["step"] + 1) if self.debias else 1.0
        if delta == 0:
            update = torch._foreach_div(momentum, h)
        else:
            flat = m if h[0].shape == m[0].shape else [torch.cat([t.flatten() for t in m])]
            update = torch._foreach_add(momentum, flat, alpha=delta * debias)
            torch._foreach_div_(update, torch._foreach_add(h, delta))
        if math.isfinite(group["clip_radius"]):
            bound = debias * group["clip_radius"]
            for tensor in update:  # usually one flat tensor
                tensor.clamp_(-bound, bound)
        if keep is not None:
            torch._foreach_mul_(update, keep.to(update[0].dtype))
        lr = group["lr"] * (group["hess_init"] + delta if self.rescale_lr else 1.0)
        torch._foreach_add_(m, update if update[0].shape == m[0].shape else views(update[0], m), alpha=-lr / debias)
        for p, s in zip(params, state):
            s["step"] += 1
            if "mean" in s:
                p.copy_(s["mean"])

    def _moments(self, p: Tensor) -> list[Tensor]:
        """Averages over draws of ĝ and of what the Hessian estimate is made of (ĝ·perturbation, or ĝ²)."""
        if self.mc_samples == 1:
            g = p.grad.to(self.state[p]["hess"].dtype, copy=True)
            return [g, g * self._perturbation[p] if self.hess_approx == "price" else g.square()]
        left, version = self._averaged.get(p, (None, None))
        if p.grad is not left or p.grad._version != version:
            raise RuntimeError(
                "With mc_samples > 1 the gradients were changed after their context (clipping, GradScaler, DDP?), so "
                "they no longer fit their Hessian estimates: change them inside the context, or use mc_samples=1."
            )
        return [total / self.mc_samples for total in self._samples[p]]

    def _run(self, closure: Callable[[], Tensor]) -> Tensor:
        losses = []
        for _ in range(self.mc_samples):
            with torch.enable_grad(), self.sampled_params(train=True):
                losses.append(closure())
        return torch.stack([torch.as_tensor(value).detach() for value in losses]).mean()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients. Outside a context this also drops a draw that was not used by ``step()``."""
        if self.mc_samples == 1:
            if self._inside == "train" and self._entries > 1:
                raise RuntimeError(
                    "zero_grad() within the second context of one step would lose the first gradients: to average "
                    "several draws, construct IVON with mc_samples; to accumulate, call zero_grad() after step()."
                )
            if not self._inside:
                self._forget()
        super().zero_grad(set_to_none)

    def _buffer(self, key: tuple, size: int) -> Tensor:
        """A flat tensor that lives as long as its size fits: allocated once, not at each step."""
        if key not in self._buffers or self._buffers[key].numel() != size:
            self._buffers[key] = torch.empty(size, device=key[0], dtype=key[1])
        return self._buffers[key]

    def _forget(self) -> None:
        """Drop the pending draw."""
        self._perturbation, self._entries, self._samples, self._averaged = {}, 0, {}, {}
