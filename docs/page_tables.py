"""The tables of README and results.md as Markdown, from data/; `refresh.py` puts them into the pages."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "data" / "runs" / "demo"
PASSES = ROOT / "data" / "runs" / "passes"
LEARNED = ROOT / "data" / "runs" / "learned" / "everyday@2-20-passes.json"
SHORT, LONG = 5, 20  # passes: the lengths that the text speaks of
TABLE1 = ROOT / "data" / "runs" / "table1"
FIRST_TABLE1 = ROOT / "data" / "runs" / "table1-5-passes"
METRICS = ("acc", "ece", "nll", "brier")


def demo_table() -> str:
    """The recorded demo as Markdown: mean and standard error over seeds, and what the paired intervals allow to say."""
    from ivon_lora_lite import TauSweep
    from ivon_lora_lite.studies.demo import summarize
    from ivon_lora_lite.studies.report import verdicts

    summary = summarize(sorted(DEMO.glob("seed*")))
    lines = ["| | ACC ↑ | ECE ↓ | its floor | NLL ↓ | Brier ↓ |", "|---|---|---|---|---|---|"]
    for method, row in summary["scores"].items():
        cells = [f"{row[name]['mean']:.3f} ± {row[name]['se']:.3f}" for name in METRICS]
        cells.insert(2, f"{summary['floor'][method]:.3f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    gaps = summary["ivon_minus_adamw"]
    listed = "; ".join(f"{n.upper()} {', '.join(f'{v:+.3f}' for v in gaps[n]['values'])}" for n in METRICS)
    lines += ["", "Differences with 95 % intervals over questions, paired and pooled over seeds:", ""]
    lines += [f"- {sentence}" for sentence in verdicts(summary)]
    config, made, settings = summary["config"], summary["provenance"], summary["settings"]
    minutes = [sum(s.values()) / 60 for s in summary["seconds"]]
    sweep = TauSweep.load(DEMO / f"seed{summary['seeds'][0]}" / "predictions" / "tau-sweep.safetensors")
    taus = " ".join(f"{tau:g}" for tau in sweep.taus)
    lines += [
        "",
        f"IVON − AdamW, seed by seed: {listed}.",
        "",
        f"Provenance: {config['model']} ({config['format']} format), {config['train_size']} training questions of "
        f"`{config['task']}`, {config['steps']} steps of {config['batch_size']}, {config['questions']} test questions; "
        f"mean ± standard error over seeds {', '.join(map(str, summary['seeds']))}; ECE with 10 bins; AdamW lr "
        f"{settings['adamw']['lr']:g}, IVON lr {settings['ivon']['lr']:g}, λ {settings['ivon']['ess']:g}, h₀ "
        f"{settings['ivon']['hess_init']:g}, β₂ {settings['ivon']['beta2']:g}, ξ "
        f"{settings['ivon']['clip_radius']:g}; {made['device']}, {min(minutes):.0f}–{max(minutes):.0f} minutes a seed "
        f"(on a busy machine), {made['date']}. `python -m ivon_lora_lite demo --seeds "
        f"{' '.join(map(str, summary['seeds']))} --taus {taus} --out data/runs/demo --no-weights --no-report` "
        "makes it.",
    ]
    return "\n".join(lines)


def passes_table() -> str:
    """What the paired intervals allow to say of the recorded runs of two lengths, and how all lengths were made."""
    from ivon_lora_lite import paired_differences
    from ivon_lora_lite.evaluation import METRICS
    from ivon_lora_lite.studies import by_length, verdict

    records = by_length(PASSES)
    pooled = {(title, n): [r.predictions for r in rs] for title, lines in records.items() for n, rs in lines.items()}
    some, every = ("acc", "nll"), METRICS
    lines = []
    for heading, comparisons in (
        (
            f"After {LONG} passes, with 95 % intervals over questions, paired and pooled over seeds:",
            [
                (("AdamW", LONG), ("IVON", LONG), every),
                (("AdamW", LONG), ("IVON@mean", LONG), some),
                (("AdamW + temperature", LONG), ("IVON", LONG), every),
                (("AdamW + temperature", LONG), ("IVON@mean + temperature", LONG), some),
                (("IVON@mean + temperature", LONG), ("IVON", LONG), every),
            ],
        ),
        (
            f"Between {SHORT} and {LONG} passes, and after {SHORT}:",
            [
                (("AdamW", SHORT), ("AdamW", LONG), some),
                (("IVON", SHORT), ("IVON", LONG), some),
                (("AdamW", SHORT), ("IVON", LONG), some),
                (("AdamW + temperature", SHORT), ("IVON", LONG), ("nll",)),
                (("AdamW", SHORT), ("IVON", SHORT), some),
                (("AdamW + temperature", SHORT), ("IVON", SHORT), ("nll",)),
            ],
        ),
    ):
        lines += [heading, ""]
        for a, b, metrics in comparisons:
            names = [title if a[1] == b[1] else f"{title} after {n} passes" for title, n in (a, b)]
            lines += [f"- {said}" for said in verdict(paired_differences(pooled[a], pooled[b]), *names, metrics)]
        lines.append("")
    lengths, one = records["AdamW"], records["AdamW"][LONG][0]
    seeds = "; ".join(f"{n}: {', '.join(str(r.cell.seeds[0]) for r in rs)}" for n, rs in lengths.items())
    rates = {
        name: ", ".join(f"{rs[0].content['settings']['lr']:.2g}" for rs in records[name].values())
        for name in ("AdamW", "IVON")
    }
    made, config = one.content["provenance"], one.config
    return "\n".join(
        [
            *lines,
            f"Provenance: {config['model']} ({config['format']} format), {config['train_size']} training questions of "
            f"`{one.cell.task}`, steps of {config['batch_size']}, {len(one.predictions.labels)} test questions, "
            f"{config['samples']} draws; passes and seeds {seeds}; ECE with 10 bins; learning rates by length "
            f"{rates['AdamW']} (AdamW) and {rates['IVON']} (IVON); {made['device']}, {made['date']}. "
            "`python benchmarks/passes.py --work outputs/passes --out data/runs/passes --tasks everyday` makes them.",
        ]
    )


def learned_table() -> str:
    """What the learned variance adds to draws, against other variances around the mean, in words."""
    from ivon_lora_lite.evaluation import METRICS
    from ivon_lora_lite.studies import verdict

    record = json.loads(LEARNED.read_text("utf8"))
    names = {
        "one size": "the same mean with one σ for all weights",
        "one size a tensor": "the same mean with one σ a matrix",
        "h stays": "training with an h that stays",
    }
    lines = []
    for kind, name in names.items():
        said = verdict(record["learned_minus"][kind], name, "The learned variance", METRICS)
        lines += [f"- {sentence}" for sentence in said]
    drift = ", ".join(f"{s['variance_drift']:.2f}" for s in record["sigma"].values())
    note = (
        f"Seeds {', '.join(record['seeds'])}, {record['passes']} passes, ten draws; the mean of v ended at {drift} "
        f"times its start; {record['provenance']['date']}. `python benchmarks/learned.py --work outputs/passes "
        "--out data/runs/learned` makes it."
    )
    return "\n".join([*lines, "", note])


def optimizer_table() -> str:
    """The recorded optimizer benchmark as Markdown."""
    record = json.loads((ROOT / "data" / "runs" / "optimizer-cpu.json").read_text())
    lines = ["| one step's own work | ms | relative to IVON | range |", "|---|---|---|---|"]
    for name, value in record["milliseconds"].items():
        few, many = record["range_of_ratio"][name]
        lines.append(f"| {name} | {value:.1f} | {record['ratio_to_ivon'][name]:.2f} | {few:.2f} – {many:.2f} |")
    made = record["provenance"]
    how = f"medians over {record['processes']} fresh processes of {record['rounds']} rounds each, and the range of each"
    return "\n".join([*lines, "", f"Measured on {made['device']}, {made['date']}: {how} ratio."])


def differences(rows: dict[str, tuple[list, list]]) -> list[str]:
    """Markdown: name → (predictions of A, of B), one a seed; B − A with paired intervals, bold where 0 is outside."""
    from ivon_lora_lite import paired_differences

    lines = ["| | seeds | accuracy | NLL | ECE above its floor | Brier score |", "|---|---|---|---|---|---|"]
    for name, (a, b) in rows.items():
        cells = []
        for metric in ("acc", "nll", "ece", "brier"):
            found = paired_differences(a, b)[metric]
            low, high = found["interval"]
            numbers = f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
            cells.append(numbers if low <= 0 <= high else f"**{numbers}**")
        lines.append(f"| {name} | {len(a)} | {' | '.join(cells)} |")
    return lines


def short_table(task: str = "everyday", passes: int = LONG) -> str:
    """The comparisons that matter most, after so many passes."""
    from ivon_lora_lite.studies import by_length

    pooled = {title: [r.predictions for r in lengths[passes]] for title, lengths in by_length(PASSES, task).items()}
    pairs = {
        "IVON, draws − AdamW": ("AdamW", "IVON"),
        "IVON@mean − AdamW": ("AdamW", "IVON@mean"),
        "IVON, draws − (AdamW + temperature)": ("AdamW + temperature", "IVON"),
        "(IVON@mean + temperature) − (AdamW + temperature)": ("AdamW + temperature", "IVON@mean + temperature"),
        "IVON, draws − (IVON@mean + temperature)": ("IVON@mean + temperature", "IVON"),
    }
    return "\n".join(differences({name: (pooled[a], pooled[b]) for name, (a, b) in pairs.items()}))


def exam_table(task: str, title: str, passes: int = LONG) -> str:
    """The same comparisons on a task that chose no setting, with its scores and how they were made."""
    from ivon_lora_lite.studies import by_length

    records = {method: lengths[passes] for method, lengths in by_length(PASSES, task).items()}
    lines = ["| mean over seeds | ACC ↑ | ECE ↓ | NLL ↓ | Brier ↓ |", "|---|---|---|---|---|"]
    for method, rows in records.items():
        means = [sum(r.scores[name] for r in rows) / len(rows) for name in METRICS]
        lines.append(f"| {method} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    one, seeds = records["AdamW"][0], ", ".join(str(r.cell.seeds[0]) for r in records["AdamW"])
    made, rates = one.content["provenance"], [records[name][0].content["settings"]["lr"] for name in ("AdamW", "IVON")]
    note = (
        f"{one.config['model']} ({one.config['format']} format), {one.config['train_size']} training questions of "
        f"{title}, {passes} passes, {len(one.predictions.labels):,} test questions, seeds {seeds}; learning rates "
        f"{rates[0]:.2g} (AdamW) and {rates[1]:.2g} (IVON), as for `everyday`; {made['device']}, {made['date']}. "
        f"`python benchmarks/passes.py --work outputs/passes --out data/runs/passes --tasks {task} --lengths {passes} "
        "--hub DIR` makes it."
    )
    return "\n".join([*lines, "", short_table(task, passes), "", note])


def rivals_table() -> str:
    """Every method of the table against AdamW of the same seeds."""
    from ivon_lora_lite.methods import METHODS
    from ivon_lora_lite.studies import load_records

    by_method: dict[str, dict[tuple, list]] = {}
    for record in load_records(TABLE1):
        by_method.setdefault(record.cell.method, {})[record.cell.seeds] = record.predictions
    adamw = by_method.pop("adamw")
    rows = {}
    for method, found in by_method.items():
        pairs = [(adamw[seed,], made) for seeds, made in found.items() for seed in seeds]  # an ensemble has several
        rows[METHODS[method].title] = tuple(map(list, zip(*pairs)))
    return "\n".join(differences(rows))


def _facts(records: list, command: str) -> str:
    """How the cells of a table were made."""
    config, made = records[0].config, records[-1].content["provenance"]
    hours = sum(r.content["seconds"]["all"] for r in records) / 3600
    tasks = sorted({r.cell.task for r in records})
    return (
        f"{config['model']} ({config['format']} format), {config['train_size']} training questions of "
        f"{', '.join(f'`{task}`' for task in tasks)}, {config['steps']} steps of {config['batch_size']}, "
        f"{len(records[0].predictions.labels)} test questions; mean ± standard error over seeds where there are "
        f"several (one ensemble of all); in brackets the difference to AdamW, bold where it is an improvement; "
        f"{hours:.1f} process hours on a busy machine ({made['device']} each), {made['date']}. Command: `{command}`."
    )


def methods_table() -> str:
    """Table 1 after 20 passes, from the recorded cells."""
    from ivon_lora_lite import Table
    from ivon_lora_lite.studies import load_records

    records = load_records(TABLE1)
    command = (
        "python -m ivon_lora_lite table1 --tasks everyday --steps 800 --train-size 160 --validation-size all "
        "--evaluations 10 --chosen data/runs/choice/chosen.json --methods METHOD … --seeds SEED … "
        "--export data/runs/table1"
    )
    return f"{Table.from_records(records, partial=True).compact()}\n\n{_facts(records, command)}"


def costs_table() -> str:
    """What every method of the table costs, and its ECE with 15 bins; means over seeds."""
    from statistics import mean

    from ivon_lora_lite.methods import METHODS
    from ivon_lora_lite.studies import load_records

    by_method: dict[str, list] = {}
    for record in load_records(TABLE1, 15):
        by_method.setdefault(record.cell.method, []).append(record)
    lines = [
        "| | training, s | on top, s | passes a question | numbers a weight | memory, GB | ECE, 15 bins | its floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, records in by_method.items():
        seconds = [r.content["seconds"] for r in records]
        train, fit = (mean(s.get(name, 0.0) for s in seconds) for name in ("train", "fit"))
        cost = {name: mean(r.content["cost"][name] for r in records) for name in records[0].content["cost"]}
        ece, floor = mean(r.scores["ece"] for r in records), mean(r.floor for r in records)
        times = [f"{value:.0f}" if value else "–" for value in (train, fit)]
        numbers = f"{cost['passes_per_question']:g} | {cost['floats_per_weight']:.3g} | {cost['peak_gb']:.1f}"
        lines.append(f"| {METHODS[method].title} | {' | '.join(times)} | {numbers} | {ece:.3f} | {floor:.3f} |")
    return "\n".join(lines)


def earlier_table() -> str:
    """Table 1 on three tasks after 5 passes, from the recorded cells."""
    from ivon_lora_lite import Table
    from ivon_lora_lite.studies import load_records

    records = load_records(FIRST_TABLE1)
    table, config = Table.from_records(records), records[0].config
    tasks = " ".join({"everyday": "everyday@1"}.get(task, task) for task in table.tasks)  # of that edition
    flags = ("train_size", "test_size", "validation_size", "evaluations", "samples", "further_steps", "collect_every")
    options = " ".join(f"--{name.replace('_', '-')} {config[name]}" for name in flags)
    command = f"python -m ivon_lora_lite table1 --tasks {tasks} {options} --no-weights --jobs 2"
    return "\n\n".join([*(table.compact(task) for task in table.tasks), _facts(records, command)])


TABLES = {
    "short": short_table,
    "exam": lambda: exam_table("arc_easy", "ARC-Easy"),
    "short exam": lambda: exam_table("arc_easy", "ARC-Easy", SHORT),
    "open book": lambda: exam_table("openbookqa", "OpenBookQA"),
    "passes": passes_table,
    "learned": learned_table,
    "demo": demo_table,
    "rivals": rivals_table,
    "methods": methods_table,
    "costs": costs_table,
    "earlier": earlier_table,
    "optimizer": optimizer_table,
}
