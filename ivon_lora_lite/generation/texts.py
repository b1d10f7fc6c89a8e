"""One text per draw, by transformers' own ``generate``, and the text that the others agree with most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checks import check_counts
from ..evaluation import Trained
from ..language import evaluating, known_exact, precision, token_ids, tokenizer_of
from ..posterior import applied_weights, unwrapped

Prompt = str | Sequence[dict]  # a text, or messages of a chat


@dataclass(frozen=True)
class Generated:
    """What a run says to one prompt.

    Attributes:
        prompt: as it was given.
        at_mean: the text at the mean.
        texts: one text per draw; of a run without posterior, none.
        chosen: index of the consensus among the texts.
        agreement: its average utility for the other texts, 1 if all are the same.
    """

    prompt: Prompt
    at_mean: str
    texts: tuple[str, ...]
    chosen: int = 0
    agreement: float = 1.0

    @property
    def consensus(self) -> str:
        """The text that the others agree with most."""
        return self.texts[self.chosen] if self.texts else self.at_mean


def word_f1(a: str, b: str) -> float:
    """F1 of the two texts' words, as SQuAD scores answers: 1 if they have the same words as often, 0 if none in common.

    >>> word_f1("the red car", "a red car")
    0.6666666666666666
    """
    one, other = Counter(a.lower().split()), Counter(b.lower().split())
    if not one or not other:
        return float(one == other)
    return 2 * (one & other).total() / (one.total() + other.total())


def consensus(texts: Sequence[str], utility: Callable[[str, str], float] = word_f1) -> tuple[int, float]:
    """Minimum Bayes risk: the text with the highest average utility for the others, as its index and that average.

        argmax_i  1/(S−1) Σ_{j≠i} u(y_i, y_j),   y_j ~ p(y | x, θ_j),  θ_j ~ q      (the first of equals)

    Args:
        texts: S ≥ 1 texts.
        utility: u, larger is better.
    """
    if not texts:
        raise ValueError("There are no texts to agree on.")
    if len(texts) == 1:
        return 0, 1.0
    values = [sum(utility(a, b) for j, b in enumerate(texts) if j != i) / (len(texts) - 1) for i, a in enumerate(texts)]
    best = max(range(len(texts)), key=values.__getitem__)
    return best, values[best]


def generate(
    run: Trained,
    prompts: Sequence[Prompt],
    *,
    samples: int = 10,
    tau: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    utility: Callable[[str, str], float] = word_f1,
    batch_size: int = 8,
    progress: bool = False,
    **options,
) -> list[Generated]:
    """Continue prompts at the mean and once per draw; one draw writes a whole text, for all prompts.

    Args:
        run: a finished run on a causal language model.
        prompts: texts, or chats (lists of ``{"role": …, "content": …}``).
        samples: draws S; a run without posterior has none.
        tau: scale of the covariance.
        seed: draw s uses seed + s; it also seeds ``do_sample=True``.
        chat: put a text into the tokenizer's chat template as the user's message; default: if it has one.
        utility: by which texts agree (:func:`consensus`).
        batch_size: prompts side by side.
        progress: show a progress bar.
        options: of transformers' ``generate``; by default greedy, with at most 64 new tokens.

    Raises:
        ValueError: there are no prompts, or one that is in no list or has no tokens; several texts a draw are asked
            for; ``samples`` or ``batch_size`` is too small; ``chat=True`` with a tokenizer that has no chat template.
    """
    if not prompts or isinstance(prompts, str) or isinstance(prompts[0], Mapping):
        raise ValueError(f"prompts is {prompts!r}; expected a list of prompts (a chat is a list in it).")
    check_counts(0, samples=samples)
    check_counts(batch_size=batch_size)
    several = getattr(options.get("generation_config"), "num_return_sequences", None)
    if (options.get("num_return_sequences") or several or 1) != 1:
        raise ValueError("A draw writes one text: leave num_return_sequences out, and set samples.")
    run.check_adapter()
    model, tokenizer = unwrapped(run.model), tokenizer_of(run.model)
    if run.config.get("format") == "class":
        raise ValueError("This run is a classifier, which writes no texts.")
    rows = [prompt_tokens(tokenizer, prompt, chat) for prompt in prompts]
    usual = {} if "generation_config" in options else {"max_new_tokens": 64, "do_sample": False}
    settings = {**usual, "pad_token_id": pad_of(tokenizer), **options}
    count = samples if run.posterior is not None else 0
    together = batch_size if known_exact(model) else 1  # else padding might change a text (a recurrence)
    contexts = [(seed, applied_weights(model, run.weights))]
    contexts += [(seed + s, run.posterior.applied(model, seed + s, tau)) for s in range(count)]
    written = []  # [1 + S][prompts]
    for number, context in tqdm(contexts, desc="generate", leave=False, disable=not progress):
        with context, evaluating(model), torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(number)
            written.append(
                [t for i in range(0, len(rows), together) for t in _written(model, rows[i : i + together], settings)]
            )
    out = []
    for prompt, (at_mean, *texts) in zip(prompts, zip(*written), strict=True):
        chosen, agreement = consensus(texts, utility) if texts else (0, 1.0)
        out.append(Generated(prompt, at_mean, tuple(texts), chosen, agreement))
    return out


def prompt_tokens(tokenizer, prompt: Prompt, chat: bool | None = None) -> list[int]:
    """A prompt's token ids, in the tokenizer's chat template where that is asked for."""
    has = tokenizer.chat_template is not None
    if isinstance(prompt, str):
        if not (has if chat is None else chat):
            if not (ids := token_ids(tokenizer, prompt)):
                raise ValueError(f"The prompt {prompt!r} has no tokens: there is nothing to continue.")
            return ids
        prompt = [{"role": "user", "content": prompt}]
    if not has:
        raise ValueError("This tokenizer has no chat template: give the prompt as a text, with chat=False.")
    if not prompt:
        raise ValueError("A chat without messages is no prompt.")
    return tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=True, return_dict=False)


def pad_of(tokenizer) -> int:
    """A token to pad with."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _written(model: nn.Module, rows: list[list[int]], settings: dict) -> list[str]:
    """The texts that the model writes after some prompts, with its weights as they are."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), settings["pad_token_id"])
    mask = torch.zeros_like(ids)
    for r, own in enumerate(rows):  # padding on the left: a text begins where its prompt ends
        ids[r, length - len(own) :] = torch.tensor(own)
        mask[r, length - len(own) :] = 1
    with precision(model):
        out: Tensor = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **settings
        )  # [rows, length + new]
    # a space in front belongs to the first token
    return [text.rstrip() for text in tokenizer_of(model).batch_decode(out[:, length:], skip_special_tokens=True)]
