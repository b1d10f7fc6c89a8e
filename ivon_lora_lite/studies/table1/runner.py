"""Fills the cells of a table that are missing: in this process, in several, or on a Ray cluster.

Cells of one (task, seed) that stand on each other are one *chain*, made in order by one process; chains are
independent. An ensemble stands on the AdamW runs of all seeds, so ensembles come last.
"""

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from numbers import Number
from pathlib import Path

from ...checks import check_counts, check_known
from ...files import read_json
from ...language import full_name, is_own
from ...methods import METHODS, METRICS_FILE, Settings
from .cells import Cell, Context, in_a_name
from .records import fill, load_record

ENGINES = ("local", "ray")
LOOK = 1.0  # seconds between two looks at what other processes have finished
COUNTS = ("accumulation", "batch_size", "every", "halvings", "max_skipped", "mc_samples", "rank", "samples", "seed",
          "steps")  # fmt: skip
SWITCHES = ("debias", "rescale_lr", "sync")
WORDS = ("centre", "criterion", "ess", "hess_approx", "labels", "prior", "schedule")  # settings that may be words


def lineage(method: str) -> list[str]:
    """The method, the one whose run it starts from, and so on to one that trains a run of its own."""
    base = METHODS[method].stands_on
    return [method, *(lineage(base) if base else [])]


def order(method: str) -> tuple:
    """What others stand on comes first; SWA comes last, because it takes SWAG's mean if there is one."""
    return len(lineage(method)), method == "swa", list(METHODS).index(method)


def known(methods: Iterable[str]) -> None:
    """Refuse the name of a method that there is not."""
    for method in methods:
        check_known("method", method, METHODS)


def check_chosen(chosen: Mapping) -> None:
    """Refuse what is not task → method → name → value, and settings that a method does not have."""
    for task, by_method in _named(chosen, "what is chosen").items():
        full_name(task)
        known(_named(by_method, f"what is chosen for {task}"))
        for method, values in by_method.items():
            settings = METHODS[method].settings
            for name, value in _named(values, f"what is chosen for {method} on {task}").items():
                if not settings:
                    raise ValueError(f"{method} has no settings to choose: leave it out of those for {task}.")
                if name not in settings:
                    there = ", ".join(sorted(settings))
                    raise ValueError(f"{method} has no setting {name!r}, which is chosen for {task}. It has {there}.")
                expected = "a number or a word" if name in WORDS else "a whole number" if name in COUNTS else "a number"
                fits = isinstance(value, int) if name in COUNTS else isinstance(value, Number)
                fits = fits and (name in SWITCHES or not isinstance(value, bool))
                if not fits and not (isinstance(value, str) and name in WORDS):
                    raise ValueError(f"{name} of {method} on {task} is {value!r}; expected {expected}.")


def _named(value: object, what: str) -> Mapping:
    if not isinstance(value, Mapping):
        raise ValueError(f"Settings are chosen as task → method → name → value; {what} is {value!r}.")
    return value


def plan(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[list[Cell]]:
    """All cells of a table as chains, the ensembles last.

    Raises:
        ValueError: unknown method, nothing to do, or an ensemble of one seed.
    """
    known(methods)
    if not (tasks and methods and seeds):
        raise ValueError("A table needs at least one task, one method and one seed.")
    if "ensemble" in methods and len(set(seeds)) < 2:
        raise ValueError("An ensemble needs the AdamW runs of at least two seeds: give more --seeds.")
    seeds = tuple(dict.fromkeys(seeds))
    wanted = sorted((m for m in dict.fromkeys(methods) if m != "ensemble"), key=order)
    chains = []
    for seed in seeds:  # seeds are the outer loop: an interrupted table has whole seeds
        for task in dict.fromkeys(tasks):
            for root in dict.fromkeys(lineage(m)[-1] for m in wanted):
                chains.append([Cell(task, m, (seed,)) for m in wanted if lineage(m)[-1] == root])
    if "ensemble" in methods:
        chains += [[Cell(task, "ensemble", seeds)] for task in dict.fromkeys(tasks)]
    return chains


def run_table(
    out: str | os.PathLike,
    tasks: Sequence[str],
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (21, 42, 87),
    settings: Settings | None = None,
    *,
    hub: str | None = None,
    jobs: int = 1,
    engine: str = "local",
    keep_weights: bool = True,
    say: Callable = print,
) -> None:
    """Make all cells of a table that are not finished yet; finished ones are never repeated.

    Every cell appears in one move when it is whole, so the command may be stopped (or killed) at any time and given
    again.

    Args:
        out: the table's folder, ``OUT/TASK/METHOD/seedS/``.
        tasks, methods, seeds: what to make.
        settings: what all cells share.
        hub: folder laid out like the Hub.
        jobs: processes that work side by side (``local``); each holds a model of its own.
        engine: ``"local"``, or ``"ray"``: chains become tasks of the Ray cluster that is connected (or of a new local
            one). All its machines must see ``out``.
        keep_weights: keep the weights and posteriors of methods on which no other stands.
        say: gets a line per finished cell.

    Raises:
        ValueError: unknown names; the folder holds cells of other settings; a method lacks the run it stands on, or
            a setting that is chosen.
        ModuleNotFoundError: Ray is not installed.
    """
    out, settings = Path(out), settings or Settings()
    check_known("engine", engine, ENGINES)
    check_counts(jobs=jobs)
    tasks = [full_name(task) for task in tasks]
    _check_names(names := [*tasks, *map(full_name, settings.shift)])
    if settings.columns and not any(map(is_own, names)):
        raise ValueError(f"Columns are named ({', '.join(settings.columns)}), and no task is a file of your own.")
    check_chosen(settings.chosen)
    chains = plan(tasks, methods, seeds)
    _check_bases(out, chains)
    everything = [cell for chain in chains for cell in chain]
    for task in dict.fromkeys(tasks):
        context = Context(out, task, settings, hub)
        for cell in dict.fromkeys(each for one in everything for each in (one, *one.base())):
            if cell.task == task and _finished(out, cell):
                _check_settings(context, cell)
    todo = [[cell for cell in chain if not _finished(out, cell)] for chain in chains]
    todo = [chain for chain in todo if chain]
    ready = len(everything) - sum(map(len, todo))
    say(f"{len(everything)} cells, {ready} of them finished already; {len(todo)} chains to work on", flush=True)
    first = [chain for chain in todo if chain[0].method != "ensemble"]
    unsaid = [cell for chain in todo for cell in chain]
    for chains in (first, [chain for chain in todo if chain[0].method == "ensemble"]):
        arguments = [(out, chain, settings, hub, keep_weights) for chain in chains]
        if engine == "ray" and arguments:
            moments = _with_ray(arguments)
        elif jobs > 1 and len(arguments) > 1:
            moments = _with_processes(arguments, jobs)
        else:
            moments = (moment for argument in arguments for moment in _work(*argument))
        for _ in moments:  # whoever made a cell, it is finished where it lies
            for cell in [cell for cell in unsaid if _finished(out, cell)]:
                unsaid.remove(cell)
                say(f"{_progress(out, everything, jobs)} {_line(out, cell)}", flush=True)


def _work(out: Path, chain: list[Cell], settings: Settings, hub: str | None, keep_weights: bool) -> Iterator[None]:
    """Make the cells of one chain, one after the other; a moment after each."""
    context = Context(out, chain[0].task, settings, hub)
    for cell in chain:
        fill(context, cell, keep_weights)
        yield


def _whole(*argument) -> None:
    """A chain, made in another process."""
    for _ in _work(*argument):
        pass


def _line(out: Path, cell: Cell) -> str:
    """What is said of a finished cell."""
    record = load_record(cell.folder(out))
    scores = "  ".join(f"{name.upper()} {value:.3f}" for name, value in record.scores.items())
    return f"{cell.label}: {scores}  ({record.content['seconds']['all']:.0f} s)"


def _progress(out: Path, everything: list[Cell], jobs: int) -> str:
    """``[cells done/all, time left]``, from how long the finished cells of each method took."""
    took: dict[str, list[float]] = {}
    left = []
    for cell in everything:
        if _finished(out, cell):
            took.setdefault(cell.method, []).append(read_json(cell.folder(out) / METRICS_FILE)["seconds"]["all"])
        else:
            left.append(cell.method)
    known = {method: statistics.mean(values) for method, values in took.items()}
    typical = statistics.mean(known.values()) if known else 0.0
    seconds = sum(known.get(method, typical) for method in left) / min(jobs, max(len(left), 1))
    when = f", about {seconds / 60:.0f} min left" if left else ""
    return f"[{len(everything) - len(left)}/{len(everything)}{when}]"


def _with_processes(arguments: list[tuple], jobs: int) -> Iterator[None]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_whole, *argument) for argument in arguments]
        try:
            while waiting:
                done, waiting = wait(waiting, LOOK, FIRST_COMPLETED)
                yield
                for future in done:
                    future.result()
        finally:  # after a failure
            for future in waiting:
                future.cancel()


def _with_ray(arguments: list[tuple]) -> Iterator[None]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--engine ray needs Ray: pip install 'ivon-lora-lite[ray]'.") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=True, include_dashboard=False)
    work = ray.remote(_whole)
    waiting = [work.remote(*argument) for argument in arguments]
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=LOOK)
            yield
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from error
    finally:  # after a failure
        for task in waiting:
            ray.cancel(task)


def _finished(out: Path, cell: Cell) -> bool:
    return (cell.folder(out) / METRICS_FILE).exists()


def _check_names(tasks: Iterable[str]) -> None:
    """Two tasks in one folder, or one outside of the table's, would not be found again."""
    by_name: dict[str, str] = {}
    for task in tasks:
        if Path(task).name in ("", ".."):
            raise ValueError(
                f"{task!r} gives a table no name for its folder: write the name of the folder with the files."
            )
        other = by_name.setdefault(in_a_name(task), task)
        if other != task:
            raise ValueError(f"{other} and {task} would have the same folder in a table: rename one.")


def _check_bases(out: Path, chains: list[list[Cell]]) -> None:
    """A method that stands on a run needs it, finished or asked for."""
    asked = dict.fromkeys(cell for chain in chains for cell in chain)
    for cell in asked:
        for base in cell.base():
            if base not in asked and not _finished(out, base) and not _finished(out, cell):
                raise ValueError(
                    f"{cell.label} stands on the {base.method} run of seed {base.seed}, and {out} has none: add "
                    f"{base.method} to --methods."
                )


def _check_settings(context: Context, cell: Cell) -> None:
    """A finished cell must have been made with the settings that are asked for now."""
    record = load_record(cell.folder(context.out))
    asked = context.config(cell)
    for name in (*asked, "chosen"):
        was, now = record.config.get(name), asked.get(name)
        if name == "splits" and was != now and was.keys() == now.keys() and "questions" in now:
            raise ValueError(
                f"{record.folder} was made with other questions than {cell.task} holds now: choose another --out, or "
                "restore the file."
            )
        if was != now:
            raise ValueError(
                f"{record.folder} was made with {name}={was}, and now {name}={now} is asked for: choose another --out, "
                "or the same settings."
            )
