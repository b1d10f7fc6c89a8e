"""The examples run, learn, and leave what they promise."""

import pytest
import torch
from conftest import load_script

from ivon_lora_lite import GaussianPosterior


@pytest.mark.slow
def test_sequence_classification(tmp_path):
    result = load_script("examples/sequence_classification.py").main(str(tmp_path))
    assert result["eval_accuracy"] > 0.85
    assert GaussianPosterior.load(tmp_path / "checkpoint-300").metadata["step"] == 300


def test_causal_language_model(tmp_path, tiny_model, tiny_tokenizer):
    folder = tmp_path / "base"
    tiny_model("llama", lora=False).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    losses = load_script("examples/causal_lm.py").main(str(tmp_path / "out"), str(folder), steps=30)
    assert sum(losses[-5:]) < sum(losses[:5])
    posterior = GaussianPosterior.load(tmp_path / "out")
    assert posterior.metadata["step"] == 30
    assert all(torch.isfinite(v).all() for v in posterior.variance.values())


@pytest.fixture
def base(tmp_path, tiny_model, tiny_tokenizer):
    folder = tmp_path / "base"
    tiny_model("llama", lora=False).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def with_larger_steps(path):
    """An example whose IVON has larger steps and less noise: a tiny random model learns nothing through the noise."""
    script = load_script(path)
    make = script.IVON
    script.IVON = lambda params, **options: make(params, **{**options, "lr": 5.0, "ess": 2e8})
    return script


def test_an_accelerate_loop_accumulates_and_learns(tmp_path, base):
    losses = with_larger_steps("examples/accelerate_loop.py").main(str(tmp_path / "out"), base, epochs=6)
    assert len(losses) == 120 and sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert GaussianPosterior.load(tmp_path / "out").metadata["step"] == 60


def test_a_lightning_module_learns(tmp_path, base):
    pytest.importorskip("lightning")
    losses = with_larger_steps("examples/lightning_module.py").main(str(tmp_path / "out"), base, steps=60)
    assert len(losses) == 60 and sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert GaussianPosterior.load(tmp_path / "out").metadata["step"] == 60


def test_trls_own_trainer_learns_a_chat(tmp_path, base, tiny_tokenizer, capsys):
    pytest.importorskip("trl")
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (tmp_path / "base" / "chat_template.jinja").write_text(template)
    history = load_script("examples/sft_chat.py").main(str(tmp_path / "out"), base, steps=30, dtype="fp32")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] and "ivon_sigma_mean" in history[0]
    assert GaussianPosterior.load(tmp_path / "out").metadata["step"] == 30
    assert capsys.readouterr().out.count("a draw:") == 4
