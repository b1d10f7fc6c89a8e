"""Questions and draws → logits ``[S, N, C]``.

One draw serves the whole set of questions, and the same seed gives the same ε for every τ.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checks import check_counts
from ..language import Question, answer_logits, collate, evaluating, format_named, known_exact, tokenizer_of
from ..posterior import Posterior, applied_weights, unwrapped
from .scores import Predictions
from .stacking import can_stack, stacked


class Trained(Protocol):
    """What finetuning hands over: a model, the weights to put into it, perhaps a posterior, and settings."""

    model: nn.Module
    weights: Mapping[str, Tensor]
    posterior: Posterior | None
    config: dict

    def check_adapter(self) -> None: ...


@dataclass(frozen=True)
class Asked:
    """What to evaluate: a model, its mean weights (None: leave it as it is), a posterior or None, an answer format."""

    model: nn.Module
    weights: Mapping[str, Tensor] | None
    posterior: Posterior | None
    format: str

    def at_mean(self) -> AbstractContextManager:
        """Within this context the model has its mean weights."""
        return nullcontext() if self.weights is None else applied_weights(self.model, self.weights)


def asked_of(
    source: Trained | nn.Module, questions: Sequence[Question], posterior: Posterior | None, format: str | None
) -> Asked:
    """Complete what is asked: posterior and format are the run's, unless others are given.

    Raises:
        ValueError: the run is a classifier of other classes than the questions have, or its adapter is not active.
    """
    weights = None
    if not isinstance(source, nn.Module):
        source.check_adapter()
        classes = source.config.get("classes")
        if classes and (odd := [q for q in questions if list(q.choices) != classes]):
            own, others = ", ".join(classes), ", ".join(odd[0].choices)
            raise ValueError(f"This run's classes are {own}, in this order, and a question has {others}.")
        weights, posterior = source.weights, posterior or source.posterior
        source, format = source.model, format or source.config["format"]
    return Asked(source, weights if posterior is None else posterior.mean, posterior, format or "text")


def predict(
    source: Trained | nn.Module,
    questions: Sequence[Question],
    *,
    samples: int = 0,
    tau: float = 1.0,
    seed: int = 0,
    posterior: Posterior | None = None,
    format: str | None = None,
    batch_size: int = 8,
    draws_per_pass: int = 5,
    progress: bool = False,
) -> Predictions:
    """Predict at the mean, or with draws from N(m, τΣ); IVON's Σ is diag v.

    Args:
        source: a finished run, or a model (then with its present weights, or with ``posterior``).
        questions: what to answer.
        samples: number of draws S; 0 predicts at the mean.
        tau: scale of the covariance, τ ≥ 0.
        seed: draw s uses seed + s, for all questions and every τ.
        posterior: anything with ``mean``, ``sample`` and ``applied`` (:class:`Posterior`); default: the run's own.
        format: ``"letter"``, ``"text"`` or ``"class"``; default: the run's, or text.
        batch_size: questions per forward pass.
        draws_per_pass: draws that share a forward pass of the frozen base; 1 needs the least memory.
        progress: show a progress bar.

    Returns:
        :class:`Predictions` with S = max(samples, 1).

    Raises:
        ValueError: there are no questions; draws are asked of something that has no posterior.
    """
    check_counts(0, samples=samples)
    asked = asked_of(source, questions, posterior, format)
    if samples and asked.posterior is None:
        raise ValueError("There is no posterior to draw from: finetune with optimizer='ivon', or use samples=0.")
    batches = Batches(asked.model, questions, asked.format, batch_size)
    if samples:
        seeds = [seed + s for s in range(samples)]
        logits = batches.draws(asked.posterior, seeds, tau, draws_per_pass, progress)
    else:
        logits = batches.logits(asked.at_mean, progress)[None]  # [S, N, C]
    facts = {"samples": samples, "tau": tau if samples else 0.0, "seed": seed, "format": asked.format}
    return Predictions(logits, batches.labels, facts)


class Batches:
    """Questions, tokenised once in order of length, to be run through a model with any weights."""

    def __init__(self, model: nn.Module, questions: Sequence[Question], format: str, batch_size: int):
        if not questions:
            raise ValueError("There are no questions to ask the model.")
        self.model, self.format = model, format
        self.choices = max(len(q.choices) for q in questions)
        self.labels = torch.tensor([q.answer for q in questions])  # [N]
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt))
        self.indices = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        tokenizer = tokenizer_of(model)
        self.batches = [collate([questions[i] for i in index], tokenizer, format) for index in self.indices]
        for batch in self.batches:  # whether an unknown kind may be packed is found out now, before anything is hooked
            format_named(format).shape(model, batch)

    def logits(self, context: Callable[[], AbstractContextManager] = nullcontext, progress: bool = False) -> Tensor:
        """Logits ``[N, C]`` on the CPU, in evaluation mode, within ``context()``."""
        return self._run(context, 1, progress)[0]

    def draws(
        self, posterior: Posterior, seeds: Sequence[int], tau: float, together: int = 5, progress: bool = False
    ) -> Tensor:
        """Logits ``[S, N, C]`` of the draws with these seeds, ``together`` of them in one forward pass."""
        check_counts(draws_per_pass=together)
        if together == 1 or len(seeds) == 1 or not self._stacks(posterior.mean):
            contexts = [lambda s=s: posterior.applied(self.model, s, tau) for s in seeds]
            return torch.stack([self.logits(context, progress) for context in contexts])
        with applied_weights(self.model, posterior.mean):  # refuses a posterior of another shape
            parts = []
            for first in range(0, len(seeds), together):
                chosen = [posterior.sample(s, tau) for s in seeds[first : first + together]]
                parts.append(self._run(lambda d=chosen: stacked(self.model, d), len(chosen), progress))
        return torch.cat(parts)

    def _stacks(self, mean: Mapping[str, Tensor]) -> bool:
        """Whether draws that share a pass give what each alone gives; of an unknown kind of model, found out once."""
        if not can_stack(self.model) or known_exact(self.model):
            return can_stack(self.model)
        store = vars(unwrapped(self.model))
        if "_stacks" not in store:
            generator = torch.Generator().manual_seed(0)
            two = [{n: m + 0.1 * torch.randn(m.shape, generator=generator) for n, m in mean.items()} for _ in range(2)]

            def logits(context: AbstractContextManager, copies: int) -> Tensor:
                with evaluating(self.model), context, torch.no_grad():
                    return answer_logits(self.model, self.batches[0], self.format, copies)

            try:
                alone = torch.cat([logits(applied_weights(self.model, weights), 1) for weights in two])
                store["_stacks"] = torch.allclose(logits(stacked(self.model, two), 2), alone, atol=1e-3)
            except RuntimeError:  # a layer sees something else than the batch's rows
                store["_stacks"] = False
        return store["_stacks"]

    def _run(self, context: Callable[[], AbstractContextManager], copies: int, progress: bool) -> Tensor:
        out = torch.full((copies, len(self.labels), self.choices), -torch.inf)
        with evaluating(self.model), context(), torch.no_grad():
            for index, batch in self.each("predict", progress):
                logits = answer_logits(self.model, batch, self.format, copies).cpu()  # [R, B, C]
                if logits.isnan().any() or (logits == torch.inf).any():
                    raise FloatingPointError(
                        "The model's answer logits are not finite: its weights are broken, or the draws are too wide "
                        "(a smaller tau, or training with a larger ess)."
                    )
                out[:, index, : logits.shape[-1]] = logits
        return out

    def each(self, what: str, progress: bool) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """The questions' indices and tensors, batch by batch."""
        from tqdm.auto import tqdm

        yield from tqdm(list(zip(self.indices, self.batches)), desc=what, leave=False, disable=not progress)
