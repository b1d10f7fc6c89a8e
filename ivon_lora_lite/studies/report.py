"""The demo's report, and what its paired intervals allow to say, in words."""

from collections.abc import Sequence
from pathlib import Path

from ..evaluation import METRICS, Predictions, TauSweep, accuracy
from ..language import Question

RIVAL = "AdamW"  # whom the verdict compares with
NAMES = {"acc": "accuracy", "ece": "ECE above its floor", "nll": "NLL", "brier": "Brier score"}


def verdict(paired: dict, a: str, b: str, metrics: Sequence[str] = METRICS) -> list[str]:
    """What :func:`paired_differences` allows to say, a sentence for each metric.

    Args:
        paired: its return value.
        a, b: the names of the two methods, in its order.
        metrics: on which to say something.

    >>> verdict({"nll": {"difference": -0.12, "interval": [-0.18, -0.06]}}, "AdamW", "IVON", ["nll"])
    ['IVON has a lower NLL than AdamW (−0.120 [−0.180, −0.060]).']
    """
    out = []
    for name in metrics:
        difference, (low, high) = paired[name]["difference"], paired[name]["interval"]
        numbers = f"({_signed(difference)} [{_signed(low)}, {_signed(high)}])"
        if low <= 0 <= high:
            out.append(f"{b} and {a} cannot be told apart in {NAMES[name]} {numbers}.")
        else:
            out.append(f"{b} has a {'higher' if difference > 0 else 'lower'} {NAMES[name]} than {a} {numbers}.")
    return out


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def report_function():
    """The function that writes a page; a sentence if it cannot be had."""
    try:
        from ..plots import report_html
    except ModuleNotFoundError as error:
        if error.name != "plotly":
            raise
        raise ModuleNotFoundError(
            "The report needs plotly: pip install 'ivon-lora-lite[notebooks]', or pass --no-report."
        ) from error
    return report_html


def write_report(
    write, path: Path, scores: dict, results: dict, sweep: TauSweep, record: dict, questions: list[Question]
) -> None:
    """Write the demo's page: ``write`` is what :func:`report_function` gave."""
    config, made = record["config"], record["provenance"]
    note = (
        f"{config['model']} on {config['task']} ({config['train_size']} training questions, {config['steps']} steps of "
        f"{config['batch_size']}, {config['questions']} test questions), seed {config['seed']}; {made['device']}, "
        f"{sum(record['seconds'].values()):.0f} s; {made['date']}, commit {made['commit']}, torch "
        f"{made['versions']['torch']}, transformers {made['versions']['transformers']}."
    )
    shown = (RIVAL, "IVON@mean", "IVON")
    diagrams = {m: (results[m].ensemble(), results[m].labels) for m in shown}
    right = {m: float(accuracy(p, y)) for m, (p, y) in diagrams.items()}
    titles = {f"{m} (accuracy {right[m]:.2f})": pair for m, pair in diagrams.items()}
    title, example = "IVON-LoRA demo: AdamW against IVON", _example(results, questions)
    write(path, title, scores, titles, sweep, note, verdicts(record), example)


def verdicts(record: dict) -> list[str]:
    """What the demo's paired intervals allow to say of IVON with draws and at its mean, against AdamW."""
    draws = verdict(record["paired"]["IVON"], RIVAL, "IVON with draws")
    return draws + verdict(record["paired"]["IVON@mean"], RIVAL, "IVON at its mean", ("acc", "nll"))


def _example(results: dict[str, Predictions], questions: list[Question]) -> str:
    """The question on which IVON's draws disagree most, draw by draw."""
    from ..plots import draws_html

    chosen = int(results["IVON"].mutual_information().argmax())
    columns = {"before training": "before training", RIVAL: RIVAL, "IVON's mean": "IVON@mean"}
    others = {title: results[method].ensemble()[chosen] for title, method in columns.items()}
    about = (
        "<p>Of all test questions this is the one on which IVON's draws disagree most (largest mutual information).</p>"
    )
    return about + draws_html(questions[chosen], results["IVON"].probabilities[:, chosen], others)
