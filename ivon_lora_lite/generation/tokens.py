"""How unsure a posterior is about every token of a continuation that is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checks import check_counts
from ..evaluation import Trained, entropy
from ..language import evaluating, precision, tokenizer_of
from ..posterior import unwrapped
from .texts import Prompt, prompt_tokens


@dataclass(frozen=True)
class TokenUncertainty:
    """T tokens of a continuation, each predicted from the prompt and the tokens before it.

    ``plots.tokens_html(tokens, entropy)`` shades the text by one of these numbers.

    Attributes:
        tokens: their texts.
        probability: of each under the average over draws, ``[T]``.
        entropy: of the averaged prediction at each place, ``[T]`` in nats: how many continuations seemed possible.
        mutual_information: of prediction and weights, ``[T]`` in nats: how far the draws disagree.
    """

    tokens: tuple[str, ...]
    probability: Tensor
    entropy: Tensor
    mutual_information: Tensor


def token_uncertainty(
    run: Trained,
    prompt: Prompt,
    continuation: str,
    *,
    samples: int = 10,
    tau: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    progress: bool = False,
) -> TokenUncertainty:
    """Teacher-forced uncertainty of a continuation: H[p̄] and H[p̄] − mean_s H[p_s] at each of its tokens.

    Args:
        run: a finished run with a posterior.
        prompt, chat: as in :func:`generate`.
        continuation: a text, such as one that :func:`generate` wrote.
        samples, tau, seed: draws, as in :func:`predict`.
        progress: show a progress bar.

    Raises:
        ValueError: there is no posterior, or the prompt or the continuation has no tokens.
    """
    if run.posterior is None:
        raise ValueError("This run has no posterior to draw from: finetune with optimizer='ivon'.")
    check_counts(samples=samples)
    run.check_adapter()
    model, tokenizer = unwrapped(run.model), tokenizer_of(run.model)
    start = prompt_tokens(tokenizer, prompt, chat)
    own = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    if not own:
        raise ValueError("The continuation has no tokens.")
    ids = torch.tensor([[*start, *own]], device=model.device)
    average, inside = 0.0, 0.0
    for s in tqdm(range(samples), desc="draws", leave=False, disable=not progress):
        with run.posterior.applied(model, seed + s, tau), evaluating(model), torch.no_grad(), precision(model):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(start) - 1 : -1]  # [T, V]
        probs = logits.double().softmax(-1)
        average, inside = average + probs / samples, inside + entropy(probs) / samples
    total = entropy(average)
    chosen = average.gather(1, ids[0, len(start) :, None]).squeeze(1)
    texts = tuple(tokenizer.decode([token]) for token in own)
    return TokenUncertainty(texts, chosen.cpu(), total.cpu(), (total - inside).clamp(min=0).cpu())
