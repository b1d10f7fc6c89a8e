"""Options that commands share, and the kinds of numbers that they take."""

import argparse

HUB = "folder laid out like the Hub to read datasets from (default: $IVON_LORA_HUB)"


def bins_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--bins", type=positive, default=10, help="of ECE (default: 10)")


def data_options() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--task", help="one of those that `tasks` lists (default: everyday)", default="everyday")
    p.add_argument("--hub", help=HUB)
    return p


def own_data_options(file: bool = True) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    where = "instead of --task" if file else "a file named by --tasks"
    own = p.add_argument_group("your own data", f"{where}; columns are found by their usual names")
    if file:
        own.add_argument("--data", metavar="FILE", help="csv, jsonl, json or parquet, a folder of them, or a Hub id")
    own.add_argument("--question", metavar="COLUMN", help="the question, or the text to classify")
    own.add_argument("--choices", nargs="+", metavar="COLUMN", help="a list of choices, or one column each")
    own.add_argument("--answer", metavar="COLUMN", help="the right choice, or the class")
    own.add_argument("--answer-as", metavar="KIND", help="letter, text, index0 or index1, if it is not clear")
    own.add_argument("--labels", nargs="+", metavar="WORD", help="the words of the classes, in order of their numbers")
    return p


def own_columns(args: argparse.Namespace) -> dict:
    """What was said of the columns of one's own data."""
    columns = {name: getattr(args, name) for name in ("question", "choices", "answer", "answer_as", "labels")}
    return {name: value for name, value in columns.items() if value is not None}


def task_of(args: argparse.Namespace):
    """The task that --task names, or the questions that --data and its columns name."""
    from ..language import load_task

    columns = own_columns(args)
    if args.data is None:
        if columns:
            raise ValueError(
                f"--{next(iter(columns)).replace('_', '-')} describes your own data: name the file with --data."
            )
        return load_task(args.task, hub=args.hub)
    return load_task(args.data, hub=args.hub, **columns)


def model_options(by_preset: bool = False) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--model", default="smollm2-135m", help="embedded default, Hub id, or local folder")
    p.add_argument("--dtype", default="auto", help="of the frozen base: auto, fp32, bf16, fp16")
    default, said = (None, " (default: the preset's)") if by_preset else ("text", "")
    more = " or class (a classifier, for GLUE)" if by_preset else ""
    p.add_argument("--format", default=default, help=f"text (small models), letter (the paper's){more}{said}")
    return p


def training_options(by_preset: bool = False, steps: int = 200) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    steps, said = (None, "the preset's: 200, or the paper's 10000") if by_preset else (steps, steps)
    p.add_argument("--steps", type=positive, default=steps, help=f"optimizer steps (default: {said})")
    p.add_argument("--batch-size", type=positive, default=4, help="questions per forward pass and process (default: 4)")
    p.add_argument("--seed", type=int, default=21)
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def positive(text: str) -> int:
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def some_or_all(text: str) -> int | None:
    """A number, or ``all``, which is None."""
    return None if text == "all" else positive(text)


def count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return value
