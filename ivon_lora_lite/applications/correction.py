"""A better mean for Laplace's Gaussian: a low-rank variational correction (van Niekerk & Rue 2024).

Laplace puts the mean of N(θ*, Σ) at a point where the loss is low, whatever the loss does around it. The correction
keeps Σ and moves the mean along a few directions d_k to where the variational objective is lowest,

    m = θ* + Σ_k a_k d_k,        min_a  F(a) = Σ_n E_{N(m, Σ)}[ℓ_n] + p/2 ‖m − θ₀‖²,

which is convex in a, for in the linearised model the logits of question n are N(f_n + J_n(m − θ*), J_n Σ J_nᵀ). The
paper takes columns of Σ for directions. Here they are found greedily: each is −v ∘ ∇_m F where the mean is by then,
with v the marginal variance, and all a_k are fitted again.

θ₀ is the prior's mean. For LoRA it is θ* itself: AdamW stops where the gradient of the loss is small, so Laplace's
Gaussian is that of a posterior whose prior pulls nowhere at θ*. A prior around zero would draw a finished adapter back
to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import check_counts
from ..evaluation import Factors, Linearized, linearized, normal_points, pulled_back, visit_gradients
from ..language import Question
from ..training import Run

POINTS = 512  # that integrate a loss over the Gaussian of a question's logits

Weights = dict[str, Tensor]


def correct_mean(
    run: Run, questions: Sequence[Question], rank: int = 2, *, batch_size: int = 8, progress: bool = False
) -> Run:
    """Move the mean of a Laplace posterior to lower the variational objective; its covariance stays.

    Every direction costs two passes of 1 + 2C over the training questions.

    Args:
        run: from :func:`laplace`.
        questions: the N training questions that Laplace was fitted to.
        rank: how many directions.
        batch_size: questions per forward pass.
        progress: show progress bars.

    Returns:
        The run with the moved mean, as its weights and in its posterior. The posterior's metadata have ``correction``:
        for each number of directions from 0 to ``rank`` the objective F in nats.

    Raises:
        ValueError: the posterior has no prior precision; ``rank`` is below 1.
    """
    facts = getattr(run.posterior, "metadata", {})
    if "prior_precision" not in facts:
        raise ValueError("The correction needs a run from laplace(run, task).")
    check_counts(rank=rank)
    p, mean, variance = float(facts["prior_precision"]), run.posterior.mean, run.posterior.variance
    options = {"format": run.config["format"], "batch_size": batch_size, "progress": progress}
    line = linearized(run, questions, batch_size=batch_size, progress=progress)
    origin, directions = {name: torch.zeros_like(m) for name, m in mean.items()}, []
    along, steps, moved = torch.zeros(*line.mean.shape, 0), torch.zeros(0), dict(mean)
    values = [objective(line, along, steps, p, [origin])]
    for _ in range(rank):
        gradient = pull_back(run, questions, expected_residual(line, along, steps), options)
        direction = {name: -variance[name] * (gradient[name] + p * (moved[name] - mean[name])) for name in mean}
        directions.append(direction)
        along = torch.cat([along, push_forward(run, questions, direction, options)[..., None]], -1)
        steps = best_steps(line, along, p, [origin, *directions])
        moved = {name: m + sum(a * d[name] for a, d in zip(steps, directions)) for name, m in mean.items()}
        values.append(objective(line, along, steps, p, [origin, *directions]))
    posterior = replace(run.posterior, mean=moved, metadata={**facts, "correction": values})
    return run.derived(f"{run.config.get('method', 'laplace')}_corrected", weights=moved, posterior=posterior)


def objective(line: Linearized, along: Tensor, steps: Tensor, precision: float, vectors: Sequence[Weights]) -> float:
    """F(a) in nats.

    Args:
        line: Gaussians over the training questions' logits at θ*.
        along: J_n d_k, ``[N, C, K]``.
        steps: a, ``[K]``.
        precision: p.
        vectors: θ* − θ₀, then the K directions.
    """
    return float(_expected_loss(line, along, steps.double()) + _prior(steps.double(), precision, _gram(vectors)))


def best_steps(line: Linearized, along: Tensor, precision: float, vectors: Sequence[Weights]) -> Tensor:
    """The a ``[K]`` at which F is lowest; arguments as of :func:`objective`."""
    gram = _gram(vectors)
    size = gram.diagonal()[1:].sqrt().clamp(min=1e-30)  # to solve for directions of length 1
    a = torch.zeros(len(size), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([a], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = _expected_loss(line, along, a / size) + _prior(a / size, precision, gram)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return (a.detach() / size).float()


def expected_residual(line: Linearized, along: Tensor, steps: Tensor) -> Tensor:
    """E[softmax f] − y at the moved mean, ``[N, C]``: ∂F's first part / ∂ the mean logits."""
    residual = _draws(line, along, steps.double()).softmax(-1).mean(0)
    residual[torch.arange(len(line.labels)), line.labels] -= 1
    return residual.float()


def pull_back(run: Run, questions: Sequence[Question], residual: Tensor, options: Mapping) -> Weights:
    """Σ_n J_nᵀ r_n, name → ``[out, in]``."""
    total = {name: torch.zeros_like(m) for name, m in run.posterior.mean.items()}

    def add(index: int, f: Tensor, factors: Factors) -> None:
        for name, gradient in pulled_back(residual[index, : len(f)].to(f), factors).items():
            total[name] += gradient.cpu()

    visit_gradients(run.model, run.posterior.mean, questions, add, **options)
    return total


def push_forward(run: Run, questions: Sequence[Question], direction: Weights, options: Mapping) -> Tensor:
    """J_n d for every question, ``[N, C]``; 0 where a question has fewer than C choices."""
    out = torch.zeros(len(questions), max(len(q.choices) for q in questions))

    def add(index: int, f: Tensor, factors: Factors) -> None:
        parts = (torch.einsum("cto,oi,ti->c", g, direction[name].to(g), x) for name, (x, g) in factors.items())
        out[index, : len(f)] = sum(parts).cpu()

    visit_gradients(run.model, run.posterior.mean, questions, add, **options)
    return out


def _draws(line: Linearized, along: Tensor, steps: Tensor) -> Tensor:
    """Logits ``[POINTS, N, C]`` at the moved mean."""
    points = normal_points(line.mean.shape[1])[:POINTS].double()
    return (line.mean + along.double() @ steps) + torch.einsum("nij,sj->sni", line.root.double(), points)


def _expected_loss(line: Linearized, along: Tensor, steps: Tensor) -> Tensor:
    log_p = _draws(line, along, steps).log_softmax(-1)
    return -log_p[:, torch.arange(len(line.labels)), line.labels].mean(0).sum()


def _prior(steps: Tensor, precision: float, gram: Tensor) -> Tensor:
    one = torch.cat([torch.ones(1, dtype=torch.float64), steps])
    return precision / 2 * (one @ gram @ one)


def _gram(vectors: Sequence[Weights]) -> Tensor:
    """Inner products, ``[K + 1, K + 1]``."""
    flat = torch.stack([torch.cat([v[name].flatten() for name in sorted(v)]).double() for v in vectors])
    return flat @ flat.T
