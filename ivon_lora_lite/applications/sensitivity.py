"""The memory-perturbation equation: what removing a training example would do, without training again.

(Nickl et al. 2023.) At a minimum of  E_q[ℓ̄] + KL/λ  with  ℓ̄ = 1/N Σ_i ℓ_i,  leaving out example i moves the mean by
about one natural-gradient step on its loss, and changes the losses of others and its own accordingly:

    Δm_i = (λ/N) v ∘ ∇ℓ_i        Δℓ_j ≈ (λ/N) ∇ℓ_jᵀ diag(v) ∇ℓ_i        Δℓ_i ≈ (λ/N) vᵀ ∇ℓ_i²

With v = 1/(λ(h + δ)) this is 1/N · ∇ℓ_i/(h + δ): λ drops out, and h has to have been learned. The last of the three is
an estimate of how much worse an example would fare had it not been trained on; with it the training loss becomes an
estimate of the test loss that needs no held-out questions. Seen through the linearised model, Δm_i moves the logits of
example i by  (λ/N) J_i diag(v) J_iᵀ r_i  with  r = softmax f − y,  which gives the estimate for predictions at every τ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluation import Factors, Linearized, pulled_back, visit_gradients
from ..language import Question
from ..training import Run


@dataclass(frozen=True)
class Sensitivity:
    """N training examples.

    Attributes:
        loss: ℓ_i at the mean, ``[N]`` in nats.
        change: Δℓ_i ≥ 0, by how much its loss would grow had it been left out, ``[N]`` in nats.
    """

    loss: Tensor
    change: Tensor

    @property
    def leave_one_out(self) -> float:
        """Mean of ℓ_i + Δℓ_i: the estimated loss on examples that were not trained on."""
        return float((self.loss + self.change).mean())


def memory_perturbation(
    gradients: Mapping[str, Tensor], variance: Mapping[str, Tensor], ess: float, examples: int
) -> Tensor:
    """Δℓ_i = (λ/N) vᵀ ∇ℓ_i² for a batch of examples, ``[B]``.

    Args:
        gradients: name → ∇ℓ_i of each, ``[B, *shape]``; names without variance do not count.
        variance: name → v.
        ess: λ.
        examples: N, of the whole training set.
    """
    parts = [(g.square() * variance[name]).flatten(1).sum(1) for name, g in gradients.items() if name in variance]
    return ess / examples * sum(parts)


def sensitivity(run: Run, questions: Sequence[Question], *, batch_size: int = 8, progress: bool = False) -> Sensitivity:
    """How much each training question holds its own loss down.

    It costs C backward passes per question. A large value marks a question that the model would answer worse without
    having seen it: an outlier, a wrong label, or the only one of its kind.

    Args:
        run: an IVON run whose h was learned (β₂ that lets it move).
        questions: its training questions, or some of them; N, which the equation divides by, is that of the run.
        batch_size: questions per forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: the run has no diagonal Gaussian with λ.
    """
    run.check_adapter()
    variance, ess, count = _gaussian(run)
    loss, change = torch.zeros(len(questions)), torch.zeros(len(questions))

    def visit(index: int, f: Tensor, factors: Factors) -> None:
        gradient, loss[index] = loss_gradient(f, factors, questions[index].answer)
        own = {name: g[None].cpu() for name, g in gradient.items()}
        change[index] = memory_perturbation(own, variance, ess, count)[0]

    options = {"format": run.config["format"], "batch_size": batch_size, "progress": progress}
    visit_gradients(run.model, run.posterior.mean, questions, visit, **options)
    return Sensitivity(loss, change)


def leave_one_out(run: Run, line: Linearized) -> Linearized:
    """Logits of the training questions as if each had been left out: to judge or to choose τ without held-out ones.

    ``choose_tau(leave_one_out(run, linearized(run, train)))`` is a τ that no validation question has seen.

    A diagonal takes every weight for a direction of its own. With far more weights than examples, as in LoRA, it
    expects losses that are much too large (`data/runs/left-out`); the order of examples may still be of use.

    Args:
        run: an IVON run whose h was learned.
        line: ``linearized(run, questions)`` of its training questions, or of some of them.

    Raises:
        ValueError: the run has no diagonal Gaussian with λ.
    """
    _, ess, count = _gaussian(run)
    residual = line.mean.softmax(-1)
    residual[torch.arange(len(line.labels)), line.labels] -= 1
    moved = ess / count * torch.einsum("nij,nj->ni", line.covariance, residual)
    return Linearized(line.mean + moved, line.covariance, line.labels, {**line.metadata, "leave_one_out": True})


def influence(
    run: Run, train: Sequence[Question], test: Sequence[Question], *, batch_size: int = 8, progress: bool = False
) -> Tensor:
    """Δℓ_j for every test question j had training question i been left out: ``[train, test]`` in nats.

    Positive means that the training question helps the test question. It keeps the gradients of all training questions:
    4 bytes for each of them and each LoRA weight.

    Args:
        run, batch_size, progress: as in :func:`sensitivity`.
        train: the run's training questions, or some of them.
        test: any questions with known answers.
    """
    run.check_adapter()
    variance, ess, count = _gaussian(run)
    names = sorted(variance)
    scale = torch.cat([variance[name].flatten() for name in names])
    kept = torch.zeros(len(train), len(scale))
    out = torch.zeros(len(train), len(test))
    options = {"format": run.config["format"], "batch_size": batch_size, "progress": progress}

    def flat(f: Tensor, factors: Factors, answer: int) -> Tensor:
        gradient, _ = loss_gradient(f, factors, answer)
        return torch.cat([gradient[name].flatten().cpu() for name in names])

    def keep(index: int, f: Tensor, factors: Factors) -> None:
        kept[index] = flat(f, factors, train[index].answer) * scale

    def compare(index: int, f: Tensor, factors: Factors) -> None:
        out[:, index] = ess / count * (kept @ flat(f, factors, test[index].answer))

    visit_gradients(run.model, run.posterior.mean, train, keep, **options)
    visit_gradients(run.model, run.posterior.mean, test, compare, **options)
    return out


def loss_gradient(f: Tensor, factors: Factors, answer: int) -> tuple[dict[str, Tensor], float]:
    """∇ℓ of one question's cross-entropy, name → ``[out, in]``, and ℓ: the chain rule from the logits' gradients."""
    log_p = f.log_softmax(-1)
    residual = log_p.exp()
    residual[answer] -= 1  # ∂ℓ/∂f
    return pulled_back(residual, factors), -float(log_p[answer])


def _gaussian(run: Run) -> tuple[Mapping[str, Tensor], float, int]:
    """v, the λ that belongs to it (of a posterior with variance τ·v that is λ/τ), and N."""
    facts = getattr(run.posterior, "metadata", {})
    variance, ess = getattr(run.posterior, "variance", None), facts.get("ess")
    if variance is None or not isinstance(ess, int | float):
        raise ValueError("The sensitivity needs an IVON run: a diagonal Gaussian with its λ (ess).")
    return variance, float(ess) / facts.get("tau", 1.0), run.config["train_size"]
