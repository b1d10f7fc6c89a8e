"""Laplace: a Gaussian around AdamW's weights whose width is the curvature of the loss there."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import check_known
from ..evaluation import Linearized, linearized, linearized_together, nll
from ..language import Question, Task
from ..posterior import GaussianPosterior, KroneckerPosterior
from ..training import Run, started_from
from .base import Bench, Method, Result, numbers_per_weight, options_of
from .curvature import diagonal_ggn, kronecker_ggn

STRUCTURES = ("kfac", "diag")
CENTRES, CHOSEN_BY = ("zero", "start"), ("evidence", "validation")
PRECISIONS = [10 ** (k / 2) for k in range(13)]  # among which validation chooses: prior sd of 1 down to 0.001
STARTS = torch.logspace(-6, 12, 37, dtype=torch.float64)  # Adam's 100 steps of 0.1 cross a factor of e¹⁰ at most


def laplace(
    run: Run,
    task: Task | Sequence[Question],
    structure: str = "kfac",
    *,
    centre: str = "zero",
    precision: str = "evidence",
    batch_size: int = 8,
    progress: bool = False,
) -> Run:
    """Put a Gaussian N(θ*, (H + p I)⁻¹) around a run's weights θ* (MacKay 1992; for LoRA: Yang et al. 2024).

    H is the generalised Gauss-Newton matrix of the C-way answer head over the training questions, and p the precision
    of the prior N(θ₀, I/p). Predict with :func:`linearized_laplace`: H is the curvature of the *linearised* model, and
    draws put into the real one (:func:`predict` does that) often do worse.

    Args:
        run: a finished AdamW run.
        task: its task, or its training questions. Of a task, those that the run was trained on.
        structure: of H: ``"diag"``, its diagonal; ``"kfac"``, Kronecker factors per LoRA factor.
        centre: the prior's mean θ₀: ``"zero"``, or ``"start"``, LoRA's weights before training. It matters for the
            evidence alone, and there it does: most of ‖θ*‖² is the random A that training started from.
        precision: what chooses p: ``"evidence"`` (:func:`prior_precision`), or ``"validation"``, the NLL of the
            linearised predictions on the task's validation questions, among ``PRECISIONS``.
        batch_size: questions per forward pass.
        progress: show a progress bar.

    Returns:
        The run with a :class:`GaussianPosterior` (diag) or a :class:`KroneckerPosterior`.

    Raises:
        ValueError: an unknown option; no questions; something else than LoRA's A and B is trainable; the start is not
            known any more.
    """
    for name, value, known in (
        ("structure", structure, STRUCTURES),
        ("centre", centre, CENTRES),
        ("precision", precision, CHOSEN_BY),
    ):
        check_known(name, value, known)
    if precision == "validation" and not isinstance(task, Task):
        raise ValueError("precision='validation' needs a task with validation questions.")
    questions = task.train[: run.config["train_size"]] if isinstance(task, Task) else task
    options = {"format": run.config["format"], "batch_size": batch_size, "progress": progress}
    eigenvalues, made = _curvature(run, questions, structure, options)
    start = started_from(run) if centre == "start" else {}
    norm = sum(float((w.double() - start.get(n, torch.zeros(())).to(w)).square().sum()) for n, w in run.weights.items())
    p, effective = prior_precision(eigenvalues, norm)
    if precision == "validation":
        lines = linearized_together(run.model, [made(p, {}) for p in PRECISIONS], task.validation, **options)
        losses = [float(nll(line.probabilities(), line.labels)) for line in lines]
        p = PRECISIONS[losses.index(min(losses))]
        effective = sum(float((h / (h + p)).sum()) for h in eigenvalues.values())
    method = f"laplace_{structure}" + "_validation" * (precision == "validation")
    facts = {"method": method, "questions": len(questions), "task": run.config["task"], "prior_mean": centre}
    posterior = made(p, facts | {"effective_parameters": effective})
    return run.derived(method, posterior=posterior)


def _curvature(run: Run, questions: Sequence[Question], structure: str, options: dict):
    """Eigenvalues of H, name → tensor, and what makes a posterior of a prior precision p and facts."""
    if structure == "diag":
        h = {name: t.cpu() for name, t in diagonal_ggn(run.model, run.weights, questions, **options).items()}

        def diagonal(p: float, facts: dict) -> GaussianPosterior:
            variance = {name: 1 / (t + p) for name, t in h.items()}
            return GaussianPosterior(dict(run.weights), variance, {**facts, "prior_precision": p})

        return h, diagonal
    factors = kronecker_ggn(run.model, run.weights, questions, **options)
    base = KroneckerPosterior.from_factors(dict(run.weights), factors, 1.0)
    eigenvalues = {name: base.eigenvalues(name) for name in factors}
    return eigenvalues, lambda p, facts: replace(base, metadata={**facts, "prior_precision": p})


def prior_precision(eigenvalues: Mapping[str, Tensor], square_norm: float) -> tuple[float, float]:
    """The p that maximises Laplace's evidence, and the effective number of parameters Σ κ/(κ+p) there.

        log evidence(p) = LL(θ*) − ½ (log|H + pI| − log|pI| + p ‖θ*‖²) = LL(θ*) − ½ (Σ_i log(1 + κ_i/p) + p ‖θ*‖²)

    Adam on log p, learning rate 0.1, 100 steps, as in laplace-torch; it starts at the best of a coarse grid, because
    from a start far away it would not arrive.

    Args:
        eigenvalues: name → eigenvalues κ ≥ 0 of H.
        square_norm: ‖θ*‖².
    """
    flat = torch.cat([values.flatten() for values in eigenvalues.values()]).double()
    flat = flat[flat > 0]

    def cost(p: Tensor) -> Tensor:
        return 0.5 * (torch.log1p(flat / p).sum() + p * square_norm)

    start = min(STARTS, key=lambda p: float(cost(p)))
    log_p = start.log().requires_grad_()
    optimizer = torch.optim.Adam([log_p], lr=0.1)
    best = (math.inf, float(start))
    with torch.enable_grad():
        for _ in range(100):
            optimizer.zero_grad()
            loss = cost(log_p.exp())
            best = min(best, (loss.item(), log_p.exp().item()))
            loss.backward()
            optimizer.step()
    precision = best[1]
    return precision, float((flat / (flat + precision)).sum())


def linearized_laplace(
    run: Run, questions: Sequence[Question], *, batch_size: int = 8, progress: bool = False
) -> Linearized:
    """Gaussians over answer logits, f ~ N(f(x; θ*), τ J Σ Jᵀ); ``.predictions(tau)`` goes to :func:`score`.

    Args:
        run: from :func:`laplace`.
        questions: N questions.
        batch_size: questions per forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: the run has no posterior of Laplace's; there are no questions.
    """
    if run.posterior is None:
        raise ValueError("This run has no Laplace posterior: make one with laplace(run, task).")
    line = linearized(run, questions, batch_size=batch_size, progress=progress)
    return replace(line, metadata={**line.metadata, "method": run.config.get("method", "laplace")})


def _make(bench: Bench, structure: str, precision: str = "evidence") -> Result:
    started, task = time.perf_counter(), replace(bench.task, validation=bench.validation)
    run = laplace(bench.run, task, structure, precision=precision, progress=bench.progress, **bench.chosen)
    seconds = {"fit": time.perf_counter() - started}
    line = linearized_laplace(run, bench.questions, progress=bench.progress)
    facts = {"prior_precision": run.posterior.metadata["prior_precision"], "integration_error": line.error()}
    passes = 1 + 2 * line.mean.shape[1]
    return Result(line.predictions(), run, seconds, numbers_per_weight(run.posterior, run), passes, facts)


OPTIONS = options_of(laplace, "structure", "precision")
LAPLACE_KFAC = Method(
    "laplace_kfac",
    "+ Laplace (KFAC)",
    "Laplace, KFAC: Gaussian around AdamW's weights from Kronecker-factored curvature, linearised",
    lambda bench: _make(bench, "kfac"),
    stands_on="adamw",
    settings=OPTIONS,
)
LAPLACE_DIAG = Method(
    "laplace_diag",
    "+ Laplace (diag)",
    "Laplace, diagonal: the same from the diagonal of the curvature",
    lambda bench: _make(bench, "diag"),
    stands_on="adamw",
    settings=OPTIONS,
)
LAPLACE_DIAG_VALIDATION = Method(
    "laplace_diag_validation",
    "+ Laplace (diag, p on validation)",
    "Laplace, diagonal, with the prior precision p that has the smallest NLL on validation questions",
    lambda bench: _make(bench, "diag", "validation"),
    stands_on="adamw",
    settings=OPTIONS,
)
LAPLACE_VALIDATION = Method(
    "laplace_kfac_validation",
    "+ Laplace (KFAC, p on validation)",
    "Laplace, KFAC, with the prior precision p that has the smallest NLL on validation questions",
    lambda bench: _make(bench, "kfac", "validation"),
    stands_on="adamw",
    settings=OPTIONS,
)
