"""Questions without a known answer: what a run says, how far its draws disagree, and whether it abstains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from ..evaluation import COVERAGE, Trained, abstain, choose_tau, mutual_information, predict, tau_sweep
from ..language import LETTERS, OWN_FORM, Question, letter_prompt

SAMPLES = 10
AnyRun = TypeVar("AnyRun", bound=Trained)
TAUS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)  # among which a run chooses its own


@dataclass(frozen=True)
class Answer:
    """What a run says to one question.

    Attributes:
        stem: the question.
        choices: C texts.
        mean: probabilities at the mean ``[C]``.
        draws: probabilities of each draw ``[S, C]``; of a run without posterior, the one row of its point.
        threshold: the confidence below which the run abstains, or None if none was chosen.
    """

    stem: str
    choices: tuple[str, ...]
    mean: Tensor
    draws: Tensor
    threshold: float | None = None

    @property
    def average(self) -> Tensor:
        """Average of the draws' probabilities ``[C]``."""
        return self.draws.mean(0)

    @property
    def lowest(self) -> Tensor:
        """Each choice's smallest probability among the draws ``[C]``."""
        return self.draws.min(0).values

    @property
    def highest(self) -> Tensor:
        """… and its largest."""
        return self.draws.max(0).values

    @property
    def best(self) -> str:
        """The choice with the highest average probability."""
        return self.choices[int(self.average.argmax())]

    @property
    def confidence(self) -> float:
        """Its average probability."""
        return float(self.average.max())

    @property
    def disagreement(self) -> float:
        """Mutual information of answer and weights in nats: 0 if all draws say the same."""
        return max(0.0, float(mutual_information(self.draws.double())))

    @property
    def abstains(self) -> bool | None:
        """Whether a person should answer; None if no threshold was chosen."""
        return None if self.threshold is None else self.confidence < self.threshold

    def facts(self) -> dict:
        """All of it as JSON-able values."""
        columns = {"at_mean": self.mean, "average": self.average, "lowest": self.lowest, "highest": self.highest}
        return {
            "question": self.stem,
            "choices": [
                {"text": text, **{name: round(float(p[c]), 4) for name, p in columns.items()}}
                for c, text in enumerate(self.choices)
            ],
            "best": self.best,
            "confidence": round(self.confidence, 4),
            "draws": len(self.draws),
            "disagreement": round(self.disagreement, 4),
            "abstains": self.abstains,
            "threshold": self.threshold,
        }

    @property
    def verdict(self) -> list[str]:
        """What it says in words, and if the run has a threshold, whether a person should answer."""
        said = [
            f"{self.best!r} with confidence {self.confidence:.3f}; the draws disagree by {self.disagreement:.3f} nats."
        ]
        if self.threshold is not None:
            word = "below" if self.abstains else "not below"
            advice = "ask a person" if self.abstains else "no need to ask a person"
            said.append(f"The confidence is {word} this run's threshold of {self.threshold:.3f}: {advice}.")
        return said

    def __str__(self) -> str:
        width = max(map(len, self.choices))
        lines = [self.stem, f"  {'':{width}}  at the mean  average of {len(self.draws)}   lowest – highest draw"]
        for c, text in enumerate(self.choices):
            mean, average, low, high = (float(p[c]) for p in (self.mean, self.average, self.lowest, self.highest))
            lines.append(f"  {text:{width}}  {mean:11.3f}  {average:12.3f}   {low:6.3f} – {high:.3f}")
        return "\n".join([*lines, *(f"  {sentence}" for sentence in self.verdict)])


def ask(
    run: Trained,
    questions: Sequence[Question],
    *,
    samples: int | None = None,
    tau: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[Answer]:
    """Answer questions at the mean and with draws; their ``answer`` is not looked at.

    The run's threshold (:func:`with_threshold`) is for the draws with which it was chosen. With another number of them,
    or another τ, the answers have none.

    Args:
        run: a finished run.
        questions: from :func:`question_for`, or of a task.
        samples: number of draws. Default: with how many the threshold was chosen, else 10.
        tau: scale of the posterior's covariance. Default: what the run chose (:func:`with_tau`), else 1.
        seed, progress: as in :func:`predict`.
    """
    abstaining = run.config.get("abstain", {})
    samples = abstaining.get("samples", SAMPLES) if samples is None else samples
    tau = tau_of(run) if tau is None else tau
    at_mean = predict(run, questions, progress=progress).probabilities[0]
    drawn = at_mean[None]
    if run.posterior is not None:
        drawn = predict(run, questions, samples=samples, tau=tau, seed=seed, progress=progress).probabilities
    chosen = {"samples": samples, "tau": tau} if run.posterior is not None else {}
    other = any({"tau": 1.0, **abstaining}.get(name) != value for name, value in chosen.items())
    threshold = None if other else abstaining.get("threshold")
    return [
        Answer(q.stem, q.choices, at_mean[n, : len(q.choices)], drawn[:, n, : len(q.choices)], threshold)
        for n, q in enumerate(questions)
    ]


def question_for(run: Trained, stem: str, choices: Sequence[str] | None = None) -> Question:
    """A question as the run was trained on them, without an answer (its index is 0 and means nothing).

    Args:
        run: a finished run.
        stem: the question, or the text to classify.
        choices: two to eight; a run on classes of its own has them already.

    Raises:
        ValueError: the question is empty, or there are not two to eight different choices, none of them empty; it
            is no text.
    """
    data = run.config.get("data", {})
    classes = run.config.get("classes") or (data.get("labels") if not data.get("choices") else None)
    own = tuple(classes or ())
    words = tuple(word.strip() for word in choices or own)
    if len(words) < 2 or len(set(words)) < len(words) or "" in words:
        raise ValueError(f"The choices are {', '.join(words) or 'none'}; expected at least two different ones.")
    if words == tuple(word.strip() for word in own):
        words = own
    elif len(words) > len(LETTERS):
        raise ValueError(f"There are {len(words)} choices; expected at most {len(LETTERS)}.")
    if not stem.strip():
        raise ValueError("The question is empty.")
    try:
        "".join((stem, *words)).encode()
    except UnicodeEncodeError:
        raise ValueError(f"The question {stem[:60]!r} or one of its choices is no text in UTF-8.") from None
    task = str(run.config.get("task", ""))
    if run.config.get("format") == "letter" and not own and task.startswith(OWN_FORM):
        raise ValueError(f"In the format letter {task} asks in a form of its own: make a Question and predict it.")
    if own and words == own:
        return Question(f"{stem} Answer:", words, 0, stem, words)
    return Question(letter_prompt(stem, words), words, 0, stem, tuple(LETTERS[: len(words)]))


def with_threshold(
    run: AnyRun,
    questions: Sequence[Question],
    coverage: float = COVERAGE,
    *,
    samples: int = SAMPLES,
    progress: bool = False,
) -> AnyRun:
    """A run that knows below which confidence it abstains, chosen so that it answers a share of labelled questions.

    Its draws have the τ that it chose (:func:`with_tau`), else 1.

    Args:
        run: a finished run.
        questions: validation questions.
        coverage: the share of them that it answers.

    Returns:
        The run with ``config["abstain"]``: coverage, threshold, number of draws and τ, the share that is answered (with
        few questions, or equally confident ones, it is more than the coverage), and accuracy there.
    """
    count = samples if run.posterior is not None else 0
    drawn = predict(run, questions, samples=count, tau=tau_of(run), progress=progress)
    decision = abstain(drawn, coverage)
    threshold = math.floor(1e6 * (1 - decision.threshold)) / 1e6  # down, so that the last one that is answered stays so
    facts = {"coverage": coverage, "threshold": threshold, "questions": len(questions)}
    facts |= {"samples": count, "tau": tau_of(run)} if run.posterior is not None else {}
    facts |= {"answered": 1 - float(decision.handed_over.double().mean())}
    facts |= {"accuracy": decision.accuracy, "accuracy_of_all": decision.accuracy_of_all}
    return replace(run, config={**run.config, "abstain": facts})


def tau_of(run: Trained) -> float:
    """The τ that a run chose, else 1."""
    return run.config.get("tau", {}).get("value", 1.0)


def with_tau(
    run: AnyRun,
    questions: Sequence[Question],
    objective: str = "nll",
    *,
    samples: int = SAMPLES,
    progress: bool = False,
) -> AnyRun:
    """A run that knows at which τ its draws predict best, chosen on labelled questions among 0, ¼, ½, 1, 1½ and 2.

    Choose it before the threshold of :func:`with_threshold`, which depends on it.

    Args:
        run: a finished run with a posterior.
        questions: validation questions.
        objective: ``"nll"``, ``"ece"``, ``"brier"`` or ``"acc"``.
        samples: draws at each τ.

    Returns:
        The run with ``config["tau"]``: its value, the objective, the number of questions, and a sentence about the
        trade-off.
    """
    sweep = tau_sweep(run, questions, taus=TAUS, samples=samples, progress=progress)
    value, why = choose_tau(sweep, objective)
    facts = {"value": value, "objective": objective, "questions": len(questions), "why": why}
    return replace(run, config={**run.config, "tau": facts})
