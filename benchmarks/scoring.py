"""Packed `text` scoring against a padded, full-vocabulary loop: questions per second, both measured in one run.

    python benchmarks/scoring.py

The peer is what one writes first: every (question, choice) is a padded row of the batch, the output layer runs at every
position, and log-probabilities are gathered afterwards. Both train the same LoRA weights with AdamW.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from ivon_lora_lite import answer_logits, answer_loss, collate, load_model, load_task, lora_parameters


def padded_logits(model: nn.Module, questions: list) -> torch.Tensor:
    """Mean answer log-likelihoods [B, C] from one padded row per choice and the whole vocabulary at every position."""
    tokenizer = model.tokenizer
    rows, spans = [], []
    for q in questions:
        start = tokenizer(f"Question: {q.stem}\nAnswer:")["input_ids"]
        for choice in q.choices:
            whole = tokenizer(f"Question: {q.stem}\nAnswer: {choice}")["input_ids"]
            rows.append(torch.tensor(whole))
            spans.append((len(start), len(whole)))
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    dtype = next(model.parameters()).dtype
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    log_probs = logits.float().log_softmax(-1)
    scores = [log_probs[i, torch.arange(a - 1, b - 1), ids[i, a:b]].mean() for i, (a, b) in enumerate(spans)]
    return torch.stack(scores).view(len(questions), -1)


def packed_logits(model: nn.Module, questions: list) -> torch.Tensor:
    return answer_logits(model, collate(questions, model.tokenizer, "text"))


def seconds(model, questions, logits_of, optimizer) -> float:
    answers = torch.tensor([q.answer for q in questions])
    started = time.perf_counter()
    if optimizer is None:
        with torch.no_grad():
            logits_of(model, questions)
    else:
        answer_loss(logits_of(model, questions), answers).backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="everyday")
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    model, task = load_model(dtype=args.dtype, device="cpu"), load_task(args.task, hub=args.hub)
    size = args.batch_size
    batches = [task.train[i * size : (i + 1) * size] for i in range(args.batches)]
    with torch.no_grad():
        apart = (padded_logits(model, batches[0]) - packed_logits(model, batches[0])).abs().max()
    print(f"{args.task}, batches of {size}, {model.description['dtype']}, {torch.get_num_threads()} threads")
    print(f"largest difference of the logits: {apart:.1e}")
    for what in ("training", "inference"):
        optimizer = torch.optim.AdamW(lora_parameters(model), lr=1e-5) if what == "training" else None
        times: dict[str, list[float]] = {"padded": [], "packed": []}
        for index, batch in enumerate(batches):  # in turns, so that both see the same machine
            for name, logits_of in (("padded", padded_logits), ("packed", packed_logits)):
                took = seconds(model, batch, logits_of, optimizer)
                if index:  # the first one warms up
                    times[name].append(took)
        rate = {name: size / statistics.median(values) for name, values in times.items()}
        print(
            f"{what:10} padded {rate['padded']:6.1f}  packed {rate['packed']:6.1f} questions/s  "
            f"ratio {rate['packed'] / rate['padded']:.2f}"
        )


if __name__ == "__main__":
    main()
