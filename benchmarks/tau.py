"""The whole τ curve by linearisation against one evaluation with 10 draws, in one run; and the explorer's redraw.

    python benchmarks/tau.py [--questions 32] [--json FILE]

Also: what it saves to send several draws through the frozen base in one pass, each with LoRA weights of its own.
The posterior is isotropic around fresh LoRA weights: the cost does not depend on what the weights have learned.
"""

import argparse
import statistics
import time
from pathlib import Path

from ivon_lora_lite import GaussianPosterior, TauExplorer, linearized, load_model, load_task, predict, tau_sweep
from ivon_lora_lite.files import provenance, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="record the result")
    args = parser.parse_args()
    model, questions = load_model(dtype=args.dtype), load_task("everyday").test[: args.questions]
    posterior = GaussianPosterior.isotropic(model, 1e-3)

    def ten(together: int):
        options = {"posterior": posterior, "samples": 10, "draws_per_pass": together}
        return predict(model, questions, **options).logits

    work = {
        "mean": lambda: predict(model, questions, posterior=posterior),
        "10 draws": lambda: ten(5),
        "10 draws, one by one": lambda: ten(1),
        "10 draws, 2 per pass": lambda: ten(2),
        "10 draws in one pass": lambda: ten(10),
        "linearised, every τ": lambda: linearized(model, questions, posterior=posterior),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    work["mean"]()  # warm up
    results = {}
    for _ in range(args.rounds):
        for name, job in work.items():
            started = time.perf_counter()
            results[name] = job()
            times[name].append(time.perf_counter() - started)
    finite = results["10 draws"].isfinite()
    assert (results["10 draws"][0] - results["10 draws"][1])[finite[0]].abs().max() > 0.01  # draws do differ
    apart = float((results["10 draws"] - results["10 draws, one by one"]).nan_to_num(0).abs().max())
    print(f"largest difference of a logit between draws one by one and 5 per pass: {apart:.1e}")
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:24} {value:6.2f} s   {value / median['10 draws']:.2f} × 10 draws")
    line = linearized(model, questions, posterior=posterior)
    sweep = tau_sweep(model, questions, posterior=posterior, samples=2, taus=(0.0, 1.0), linear=line)
    explorer = TauExplorer(sweep, questions)
    explorer.linear = True
    redraws = []
    for k in range(30):
        started = time.perf_counter()
        explorer.tau = k / 30
        redraws.append(time.perf_counter() - started)
    redraw = 1e3 * statistics.median(redraws)
    print(f"redraw of the explorer {redraw:6.1f} ms of kernel time")
    if args.json:
        ratios = {name: value / median["10 draws"] for name, value in median.items()}
        write_json(args.json, {"seconds": median, "ratio_to_10_draws": ratios, "redraw_milliseconds": redraw,
                               "largest_logit_difference": apart, "questions": len(questions), "dtype": args.dtype,
                               "provenance": provenance()})  # fmt: skip


if __name__ == "__main__":
    main()
