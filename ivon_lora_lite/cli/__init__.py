"""The command line: `python -m ivon_lora_lite COMMAND`."""

import argparse
import contextlib
import os
import sys
import warnings

from . import ask, demo, evaluate, finetune, lists, table1

FIRST = """Variational learning for LoRA finetuning. Three things that people do:

  python -m ivon_lora_lite demo                                          AdamW against IVON, in minutes on a CPU
  python -m ivon_lora_lite finetune --data quiz.csv --out outputs/quiz   train on your own questions
  python -m ivon_lora_lite ask outputs/quiz "Which one melts ice?" salt sand wood

`--help` after any command teaches it.
"""
EXAMPLES = """more:
  python -m ivon_lora_lite finetune --task arc_easy --steps 100          IVON on another task
  python -m ivon_lora_lite evaluate outputs/quiz --abstain 0.8           score a run; what should go to a person?
  python -m ivon_lora_lite table1 --seeds 21 42 --jobs 2                 every method of Table 1, resumable
  python -m ivon_lora_lite finetune --model meta-llama/Llama-2-7b-hf --quantize 8bit --task winogrande_s \\
      --preset paper --optimizer ivon                                    the paper's setting, on a GPU
"""


def build_parser() -> argparse.ArgumentParser:
    """One command a file; each adds its own options."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("ivon_lora_lite", description=FIRST, epilog=EXAMPLES, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, finetune, ask, evaluate, table1, lists):
        command.add(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; a mistake of the user is one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a Windows pipe may have no τ
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    if left and (args.command != "ask" or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:  # argparse does not take up the list of choices again after an option
        args.question, *args.choice = [*([args.question] if args.question else []), *args.choice, *left]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        args.function(args)
    except KeyboardInterrupt:
        print("\nInterrupted; nothing half-written was left.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, went away
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"ivon_lora_lite: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, known without importing torch
            raise
        hint = "use a smaller --batch-size with --accumulation, or --quantize 8bit"
        print(f"ivon_lora_lite: the GPU's memory is not enough: {hint}.", file=sys.stderr)
        return 2
    return 0
