"""The optimizer: draws weights, pairs gradients with the draw at which they were taken, and takes steps.

IVON minimises E_q[ℓ(θ)] + KL[q ‖ p] / λ over Gaussians q = N(m, diag v). It looks like Adam, with two differences: the
gradient is taken at a draw θ ~ q, and the scale vector h estimates the Hessian, so v = 1 / (λ (h + δ)) comes for free.
The equations are in `equations.py`.

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

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import state as states
from .averages import GradientAverages
from .diagnostics import ivon_diagnostics
from .draws import Draws, Perturbation
from .equations import hessian_product, new_hessian, new_mean, new_momentum
from .finite import FiniteGuard
from .lists import by, joined, parts
from .ranks import average_over_ranks, check_not_averaged
from .watch import GradientWatch

PER_GROUP = ("lr", "ess", "hess_init", "beta1", "beta2", "weight_decay", "clip_radius")


class IVON(Optimizer):
    """Variational online Newton with a diagonal Gaussian; arguments as in the ``ivon-opt`` package.

    Args:
        params: parameters or parameter groups; a group may set its own ``lr, ess, hess_init, beta1, beta2,
            weight_decay, clip_radius``.
        lr: learning rate α.
        ess: effective sample size λ. The training set's size N targets the posterior; more is a colder posterior.
        hess_init: initial Hessian h₀ > 0, so the first σ is 1/√(λ(h₀ + δ)).
        beta1, beta2: momentum of gradient and Hessian, in [0, 1).
        weight_decay: δ ≥ 0, which makes the prior N(0, 1/(λδ)); 0 is a flat prior.
        mc_samples: draws per step. With 1, entering the context again before ``step()`` continues the same draw
            (gradient accumulation); with more, every entry is a new draw, and their gradients are averaged.
        hess_approx: ``"price"`` (reparameterisation, unbiased) or ``"gradsq"`` (squared gradients).
        clip_radius: ξ, a bound on each coordinate of the preconditioned update.
        sync: every rank draws its own noise, and ``step()`` averages gradients *and* Hessian estimates over ranks.
            For loops that do not average gradients themselves; under DDP leave it off: there all ranks share one draw.
        debias: divide the momentum by 1 − β₁ᵗ.
        rescale_lr: multiply the learning rate by h₀ + δ.
        seed: of the draws; two optimizers need two. Default: torch's initial seed (rank 0's, if several processes run).
        max_skipped: this number of steps in a row with non-finite gradients raises ``FloatingPointError``.

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
        states.check_options(hess_approx, mc_samples=mc_samples, max_skipped=max_skipped)
        self.mc_samples, self.hess_approx, self.sync = mc_samples, hess_approx, sync
        self.debias, self.rescale_lr = debias, rescale_lr
        self._draws, self._finite = Draws(seed, per_rank=sync), FiniteGuard(max_skipped)
        self._inside: str | None = None  # "train" or "eval" within a context
        self._checked_sync = False
        self._start_watching()
        self._forget()
        super().__init__(params, dict(zip(PER_GROUP, (lr, ess, hess_init, beta1, beta2, weight_decay, clip_radius))))

    def add_param_group(self, param_group: dict) -> None:
        """Add a group; its parameters start at h₀ and take part from the next draw on."""
        if self._inside or self._entries:
            raise RuntimeError("A draw is pending: call step() before add_param_group().")
        super().add_param_group(param_group)
        try:
            states.check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        self._watch.add(self.param_groups[-1]["params"])

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
            perturbation = self._perturbation
            if train and not self._entries:
                self._watch.check_before(p for group in self.param_groups for p in group["params"])
            if not train or self.mc_samples > 1 or not self._entries:
                perturbation = self._draws.draw(self.param_groups, self.state, "train" if train else "eval")
            saved = self._draws.put(perturbation, self.param_groups, self.state)
        if train:
            self._perturbation = perturbation
            self._entries += 1
            if self.mc_samples > 1:
                for p in perturbation:
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
                torch.clear_autocast_cache()
                if train and not complete and (self.mc_samples > 1 or self._entries == 1):
                    self._forget()
                elif train and self.mc_samples > 1:
                    self._collect()

    def _collect(self) -> None:
        """With several draws per step: pair this draw's gradient with its own noise; leave the average in p.grad."""
        for p in self._perturbation:
            if p.grad is not None:
                self._averages.add(p, *self._moments(p))
                p.grad = None
        if self._entries == self.mc_samples:
            self._averages.finish(self.mc_samples)

    def _forget(self) -> None:
        """Drop the pending draw."""
        self._perturbation: Perturbation = {}  # the step's draw
        self._entries = 0  # contexts entered for this step
        self._averages = GradientAverages()  # with mc_samples > 1

    # ---------------------------------------------------------------------------------------------- step

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float | None] | None = None) -> Tensor | None:
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
        self._check_draw()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        params = [p for p in params if p in self._perturbation]
        moments = self._averaged_moments(params) if self.mc_samples > 1 or self.sync else {}
        grads = [moments[p][0] if moments else p.grad for p in params]
        # a step that did not happen must not count in the debiasing, as long as that is not 1
        steps = [self.state[p]["step"] for p in params]
        if self.debias and steps and max(g["beta1"] for g in self.param_groups) ** min(steps) > 1e-7:
            self._finite.settle()
        if self._finite.check(grads, [self.state[p] for p in params]):
            for group in self.param_groups:
                mine = [p for p in group["params"] if p in self._perturbation and p.grad is not None]
                for members in by(mine, lambda p: (p.device, self.state[p]["step"])).values():
                    for part in parts(members):
                        self._update(part, group, moments)
        self._forget()
        return loss

    def _update(self, params: list[Tensor], group: dict, moments: dict[Tensor, tuple[Tensor, Tensor]]) -> None:
        """One list of parameters through the equations."""
        state, delta = [self.state[p] for p in params], group["weight_decay"]
        h, momentum = [s["hess"] for s in state], [s["momentum"] for s in state]
        m = [states.mean_of(self.state, p) for p in params]
        if moments:
            grad, product = [moments[p][0] for p in params], [moments[p][1] for p in params]
        else:
            grad = [p.grad.to(s["hess"].dtype) for p, s in zip(params, state)]
            product = hessian_product(grad, [self._perturbation[p] for p in params], self.hess_approx)
        self._finite.masked([*grad, *product])
        lr = group["lr"] * (group["hess_init"] + delta if self.rescale_lr else 1.0)
        rates = self._finite.rates(params[0].device, 1 - group["beta1"], 1 - group["beta2"], lr)
        debias = 1 - group["beta1"] ** (state[0]["step"] + 1) if self.debias else 1.0
        new_momentum(momentum, grad, rates[0])
        h, momentum, product = joined(h, momentum, product)
        new_hessian(h, product, rates[1], ess=group["ess"], delta=delta, hess_approx=self.hess_approx)
        new_mean(m, momentum, h, rates[2], delta=delta, clip_radius=group["clip_radius"], debias=debias)
        for p, s in zip(params, state):
            s["step"] += 1
            if "mean" in s:
                p.copy_(s["mean"])

    def _moments(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """A parameter's gradient in the state's dtype, and the product that its Hessian estimate is made of."""
        grad = p.grad.to(self.state[p]["hess"].dtype, copy=True)
        (product,) = hessian_product([grad], [self._perturbation[p].clone()], self.hess_approx)
        return grad, product

    def _averaged_moments(self, params: list[Tensor]) -> dict[Tensor, tuple[Tensor, Tensor]]:
        """Both averaged over the step's draws and, with ``sync``, over ranks."""
        moments = {p: self._averages.of(p) if self.mc_samples > 1 else self._moments(p) for p in params}
        if self.sync:
            if not self._checked_sync:
                check_not_averaged([grad for grad, _ in moments.values()])
                self._checked_sync = True
            average_over_ranks([tensor for pair in moments.values() for tensor in pair])
        return moments

    def _check_draw(self) -> None:
        if self._inside:
            raise RuntimeError("step() was called within sampled_params(): leave the context first.")
        self._watch.check_after()
        if not self._entries:
            raise RuntimeError(
                "step() has no draw to pair the gradients with: run the forward and backward pass inside "
                "`with optimizer.sampled_params(train=True):` before each step()."
            )
        if self.mc_samples > 1 and self._entries != self.mc_samples:
            raise RuntimeError(f"step() came after {self._entries} of mc_samples={self.mc_samples} draws.")

    def __getstate__(self) -> dict:
        """For ``copy.deepcopy`` and pickle: all of it but hooks and watches."""
        self._finite.settle()
        return {n: value for n, value in vars(self).items() if not n.endswith("_hooks") and n not in ("step", "_watch")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._start_watching()
        for group in self.param_groups:
            self._watch.add(group["params"])

    def _start_watching(self) -> None:
        places = {True: "after", False: "before"}
        self._watch = GradientWatch(lambda: None if self._inside == "train" else places[self._entries > 0])

    def _run(self, closure: Callable[[], Tensor | float | None]) -> Tensor | None:
        losses = []
        for _ in range(self.mc_samples):
            with torch.enable_grad(), self.sampled_params(train=True):
                losses.append(closure())
        if any(value is None for value in losses):  # Lightning's manual optimisation has a closure that does nothing
            return None
        return torch.stack([torch.as_tensor(value).detach() for value in losses]).mean()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients; outside a context, drop the draws of a step that did not come (``mc_samples`` of them)."""
        if self.mc_samples == 1 and self._inside == "train" and self._entries > 1:
            if {bool(p.grad.isfinite().all()) for p in self._perturbation if p.grad is not None} == {True}:
                raise RuntimeError(
                    "zero_grad() within the second context of one step would lose the first gradients: to average "
                    "several draws, construct IVON with mc_samples; to accumulate, call zero_grad() after step()."
                )
            self._entries = 1  # a batch or a step was left out, and the draw is still good
        if not self._inside and (self.mc_samples == 1 or self._entries == self.mc_samples):
            self._forget()
        super().zero_grad(set_to_none)

    # ---------------------------------------------------------------------------------------------- state

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing because a gradient was not finite."""
        return self._finite.total

    def mean(self, p: Tensor) -> Tensor:
        """Posterior mean m of a parameter (the fp32 copy if the parameter is 16-bit)."""
        if self._inside:
            raise RuntimeError("The parameters are a draw now: leave sampled_params() first.")
        return states.mean_of(self.state, p)

    def variance(self, p: Tensor) -> Tensor:
        """Posterior variance v = 1 / (λ (h + δ)) of a parameter, in its shape; fp32 or finer."""
        for group in self.param_groups:
            if any(p is q for q in group["params"]):
                if not self.state[p]:
                    states.start(self.state, [p], group)
                return states.variance_of(self.state, p, group)
        raise ValueError("This parameter is not in the optimizer.")

    def diagnostics(self) -> dict[str, float]:
        """What the posterior looks like now; see :func:`ivon_lora_lite.ivon.ivon_diagnostics`."""
        return ivon_diagnostics(self)

    def state_dict(self) -> dict:
        """torch's state dict plus ``"ivon"``: options, generator states and counters, all that a resumed run needs."""
        if self._inside:
            raise RuntimeError("The parameters are a draw now: leave sampled_params() before saving.")
        return super().state_dict() | {
            "ivon": {
                "options": {name: getattr(self, name) for name in states.STRUCTURE},
                "noise": self._draws.noise.state_dict(),
                "finite": self._finite.state_dict(),
            }
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue from ``state_dict()``; refuses one of other shapes or options.

        Raises:
            ValueError: naming the first difference.
        """
        pairs = states.matching_state(
            self.param_groups, {name: getattr(self, name) for name in states.STRUCTURE}, state_dict
        )
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "ivon"})
        for p, saved in pairs:  # torch casts state to the parameter's dtype; ours stays fp32
            self.state[p].update({k: v.detach().clone().to(p.device) for k, v in saved.items() if k != "step"})
        for group in self.param_groups:
            states.lay_out(self.state, [p for p in group["params"] if self.state[p]])
        self._draws.noise.load_state_dict(state_dict["ivon"]["noise"])
        self._finite.load_state_dict(state_dict["ivon"]["finite"])
        self._forget()
