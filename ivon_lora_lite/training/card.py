"""A run's model card: what it is, how good it is, and how to load it with and without this package."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..evaluation import METRICS, Scores
from ..files import write_text
from ..language import EMBEDDED, HUB_ID

CARD = "README.md"
WITH_PEFT = """```python
from peft import AutoPeftModelFor{head}
model = AutoPeftModelFor{head}.from_pretrained({arguments})
```"""
WITH_POSTERIOR = """`posterior.safetensors` holds its Gaussian. With
[ivon_lora_lite](https://github.com/ivon-lora-lite/ivon-lora-lite) one predicts with draws from it, or writes a draw as
an adapter of its own:

```python
from ivon_lora_lite import load_run, load_task, predict, score
run = load_run(FOLDER)
print(score(predict(run, load_task({task}).test, samples=10)))
run.save_draw("draw", seed=0)
```"""


def write_card(
    folder: Path, config: Mapping, scores: Mapping[str, Scores] | None = None, posterior: bool = True
) -> None:
    """Write ``README.md`` with the front matter that PEFT and the Hub read.

    Args:
        folder: of the run.
        config: the run's settings.
        scores: how it predicts → scores on test questions, once they are known.
        posterior: whether the run has one.
    """
    base, method = config["model"].get("name", "unknown"), config.get("method", config["optimizer"])
    base = HUB_ID if base == EMBEDDED else base
    classes = config.get("classes")
    head = "SequenceClassification" if classes else "CausalLM"
    arguments = f"FOLDER, num_labels={len(classes)}" if classes else "FOLDER"
    facts = {"steps": "steps", "batch_size": "questions a step", "train_size": "training questions", "seed": "seed"}
    listed = [f"{words} {config[name]}" for name, words in facts.items() if name in config]
    task = Path(config["task"]).name if "data" in config else config["task"]  # of a file of one's own, not its folder
    listed += [f"{name} {value:g}" for name, value in config.get("settings", {}).items() if _number(value)]
    parts = [
        f"---\nbase_model: {json.dumps(str(base))}\nlibrary_name: peft\n"
        f"tags:\n- lora\n- {method}\n- ivon-lora-lite\n---",
        f"# LoRA for {task}, trained with {method}",
        f"{base} with LoRA; answer format `{config['format']}`; {', '.join(listed)}.",
        _table(scores) if scores else "",
        config["tau"]["why"] if "tau" in config else "",
        _abstaining(config["abstain"]) if "abstain" in config else "",
        "## How to load it",
        "The folder is a PEFT adapter, at the mean of its posterior:" if posterior else "The folder is a PEFT adapter:",
        WITH_PEFT.format(head=head, arguments=arguments),
        WITH_POSTERIOR.format(task=json.dumps(task)) if posterior else "",
    ]
    write_text(folder / CARD, "\n\n".join(part for part in parts if part) + "\n")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(scores: Mapping[str, Scores]) -> str:
    head = "| test questions | " + " | ".join(name.upper() for name in METRICS) + " | ECE's floor |"
    rows = [
        f"| {how} | " + " | ".join(f"{s[name]:.3f}" for name in METRICS) + f" | {s.floor or float('nan'):.3f} |"
        for how, s in scores.items()
    ]
    count = next(iter(scores.values())).questions
    note = (
        f"{count} questions. The floor is the ECE that perfectly calibrated predictions of this confidence would have."
    )
    return "\n".join([head, "|---" * (len(METRICS) + 2) + "|", *rows, "", note])


def _abstaining(facts: Mapping) -> str:
    answered = facts.get("answered", facts["coverage"])
    return (
        f"Below a confidence of {facts['threshold']:.3f} a person should answer: on {facts['questions']} validation "
        f"questions that leaves {answered:.0%}, of which {facts['accuracy']:.3f} are right "
        f"({facts['accuracy_of_all']:.3f} of all)."
    )
