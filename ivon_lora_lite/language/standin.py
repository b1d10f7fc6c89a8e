"""Llamas with random weights, where a real one cannot be had: for smoke tests and for measuring time and memory.

Nothing about quality can be learned from them. They are folders that :func:`ivon_lora_lite.load_model` reads, so what
runs on them is the code that runs on a downloaded model.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .locating import quiet
from .questions import Question

LLAMA_2_7B = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
TINY = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,  # with the usual 0.02 all answers would look alike
}


def random_llama(
    folder: str | os.PathLike,
    questions: Sequence[Question],
    sizes: dict = TINY,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Write a Llama with random weights, and a tokenizer with one token per word or punctuation mark.

    Args:
        folder: where to; :func:`ivon_lora_lite.load_model` takes it as a name.
        questions: their words become the vocabulary, the most frequent first.
        sizes: of the model: ``TINY`` (two layers) or ``LLAMA_2_7B`` (6.7 billion weights), or others.
        dtype: of the weights on disk.
        device: where the weights are drawn.
        seed: of the weights.
    """
    import transformers

    folder = Path(folder)
    tokenizer = _words(questions, sizes["vocab_size"])
    config = transformers.LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with quiet(gguf=False):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _words(questions: Sequence[Question], size: int):
    """A tokenizer that splits at spaces and punctuation and puts <s> in front, as Llama's does."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], show_progress=False
    )
    # the answers too: else a letter would be a token of its own only by chance
    texts = [text for q in questions for text in (q.prompt, q.stem, *q.choices, *q.labels)]
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
