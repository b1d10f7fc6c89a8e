"""The whole τ curve by linearisation against one evaluation with 10 draws, in one run; and the explorer's redraw.

    python benchmarks/tau.py [--questions 64]

The posterior is isotropic around fresh LoRA weights: the cost does not depend on what the weights have learned.
"""

import argparse
import statistics
import time

from ivon_lora_lite import GaussianPosterior, TauExplorer, linearized, load_model, load_task, predict, tau_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, questions = load_model(), load_task("everyday").test[: args.questions]
    posterior = GaussianPosterior.isotropic(model, 1e-3)
    work = {
        "mean": lambda: predict(model, questions, posterior=posterior),
        "10 draws": lambda: predict(model, questions, posterior=posterior, samples=10),
        "linearised, every τ": lambda: linearized(model, questions, posterior=posterior),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    work["mean"]()  # warm up
    for _ in range(args.rounds):
        for name, job in work.items():
            started = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:22} {value:6.1f} s   {value / median['10 draws']:.2f} × 10 draws")
    line = linearized(model, questions, posterior=posterior)
    sweep = tau_sweep(model, questions, posterior=posterior, samples=2, taus=(0.0, 1.0), linear=line)
    explorer = TauExplorer(sweep, questions)
    explorer.linear = True
    redraws = []
    for k in range(30):
        started = time.perf_counter()
        explorer.tau = k / 30
        redraws.append(time.perf_counter() - started)
    print(f"redraw of the explorer {1e3 * statistics.median(redraws):6.1f} ms of kernel time")


if __name__ == "__main__":
    main()
