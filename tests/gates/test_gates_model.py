"""Gates on a tiny language model: equal to applying the decisions, costs by hand, adapters for plain PEFT, finetune."""

import copy
import json
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file

from ivon_lora_lite import (
    IVON,
    GaussianPosterior,
    LoraSettings,
    answer_logits,
    answer_loss,
    collate,
    finetune,
    load_model,
    load_run,
    lora_parameters,
    predict,
    trainable,
)
from ivon_lora_lite.gates import (
    Decisions,
    GatedPosterior,
    GateSettings,
    LayerDecision,
    add_gates,
    attached,
    bit_operations,
    freeze_gates,
    gate_loss,
    gate_parameters,
    remove_gates,
)
from ivon_lora_lite.posterior import applied_weights, lora_layers, put_weights, read_weights


def decide(gates, choices):
    """Set φ so that layer i has this rank and these widths of A and B (by number of open gates)."""
    with torch.no_grad():
        for layer, (rank, a, b) in zip(gates.layers, choices):
            for gate, opened in ((layer.rank, rank), (layer.a, a), (layer.b, b)):
                gate.phi.fill_(-9.0)
                gate.phi[:opened] = 9.0


def save_gated(model, folder):
    """A plain PEFT adapter of the learned ranks, as the head of `gates/attach.py` shows; the gates come off."""
    return remove_gates(model).save_adapter(model, read_weights(model), folder)


def weights_of(model):
    return {name: p.detach().clone() for name, p in trainable(model).items()}


@pytest.fixture
def batch(questions, tiny_tokenizer):
    return collate(questions[:4], tiny_tokenizer, "text")


def logits(model, batch):
    with torch.no_grad():
        return answer_logits(model, batch)


CHOICES = [(8, 4, 4), (3, 1, 2), (0, 2, 2), (5, 0, 1)]  # q and v of two layers


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma", "gpt_neox", "gpt2"])
def test_fresh_gates_change_nothing_at_test_time_and_come_off_without_a_trace(tiny_model, batch, architecture):
    model = tiny_model(architecture, trained=True)
    before, names, params = logits(model, batch), weights_of(model), lora_parameters(model)
    add_gates(model)
    torch.testing.assert_close(logits(model, batch), before, atol=1e-4, rtol=1e-4)  # 32 bits
    assert [id(p) for p in lora_parameters(model)] == [id(p) for p in params]  # the gates are not among them
    remove_gates(model)
    assert torch.equal(logits(model, batch), before)
    assert weights_of(model).keys() == names.keys() and attached(model) is None
    assert all(torch.equal(w, names[n]) for n, w in weights_of(model).items())
    assert [id(p) for p in lora_parameters(model)] == [id(p) for p in params]


def test_gated_weights_are_the_decisions_applied_and_give_the_same_logits(tiny_model, batch):
    model = tiny_model(trained=True)
    plain = weights_of(model)
    gates = add_gates(model)
    decide(gates, CHOICES)
    seen = logits(model, batch)
    decisions = gates.decisions()
    assert [(d.rank, d.bits_a, d.bits_b) for d in decisions.layers.values()] == [
        (8, 32, 32),
        (3, 4, 8),
        (0, 8, 8),
        (5, 2, 4),
    ]
    assert remove_gates(model) == decisions
    merged = decisions.apply(plain)
    with applied_weights(model, merged):
        torch.testing.assert_close(logits(model, batch), seen, atol=1e-5, rtol=1e-5)
    a = merged["base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"]
    b = merged["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
    assert not a[3:].any() and not b[:, 3:].any() and a[:3].any() and b[:, :3].any()
    assert len((a[:3] / a[:3].abs()[a[:3] != 0].min()).round().unique()) <= 15  # 4 bits


def test_training_draws_gates_and_evaluation_decides(tiny_model, batch):
    model = tiny_model(trained=True)
    gates = add_gates(model, start=1.0, seed=3)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    first, second = logits(model, batch), logits(model, batch)
    assert not torch.equal(first, second)
    freeze_gates(model)
    third = logits(model, batch)
    assert torch.equal(third, logits(model, batch))
    model.eval()
    torch.testing.assert_close(logits(model, batch), third, atol=1e-5, rtol=1e-5)
    # the same seed draws the same gates
    remove_gates(model)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    assert gates.frozen and not add_gates(model, start=1.0, seed=3).frozen
    assert torch.equal(logits(model, batch), first)


def test_the_penalty_by_hand_and_its_gradients(tiny_model):
    model = tiny_model()
    gates = add_gates(model, prior=0.7)
    decide(gates, [(8, 2, 2), (3, 1, 2), (0, 4, 4), (5, 0, 1)])
    reference, cost = 0, 0
    ranks, bits = (8, 3, 0, 5), ((8, 8), (4, 8), (32, 32), (2, 4))
    for pair, rank, (bits_a, bits_b) in zip(lora_layers(model).values(), ranks, bits):
        d_in, d_out, r = pair.shape
        reference += r * (d_in + d_out) * 16
        cost += rank * (d_in * bits_a + d_out * bits_b)
    assert gate_loss(model).item() == pytest.approx(0.7 * cost / reference, rel=1e-3)  # φ is ±9, not infinite
    with torch.no_grad():
        for group in gate_parameters(model):
            for p in group["params"]:
                p.fill_(0.3)
    gate_loss(model).backward()
    phi = gates.layers[1].a.phi
    for i in range(4):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                phi[i] += sign * 1e-2
            sides.append(gate_loss(model).item())
            with torch.no_grad():
                phi[i] -= sign * 1e-2
        assert phi.grad[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=0.02)
    assert all(gate.phi.grad is not None and (gate.phi.grad > 0).all() for gate in gates.gates())


def test_bit_operations_by_hand(tiny_model, batch):
    model = tiny_model(trained=True)
    tokens = batch["input_ids"].numel()
    shapes = [pair.shape for pair in lora_layers(model).values()]
    plain = bit_operations(model, batch)
    assert plain.total == tokens * sum(r * (d_in + d_out) * 16 * 16 for d_in, d_out, r in shapes)
    assert plain.tokens == tokens and bit_operations(model).total * tokens == plain.total
    gates = add_gates(model)
    decide(gates, CHOICES)
    found = bit_operations(model, batch)
    name = "model.layers.0.self_attn.v_proj"
    assert found.matrices[f"{name}.lora_A"] == {
        "macs": tokens * 3 * 32, "weight_bits": 4, "activation_bits": 16, "bops": tokens * 3 * 32 * 4 * 16,
    }  # fmt: skip
    assert found.matrices[f"{name}.lora_B"]["bops"] == tokens * 3 * 16 * 8 * 16
    assert found.matrices["model.layers.1.self_attn.q_proj.lora_A"]["bops"] == 0
    decisions = remove_gates(model)
    assert bit_operations(model, batch, decisions=decisions) == found
    assert bit_operations(model, weight_bits=4, activation_bits=8).total * 8 == bit_operations(model).total


@pytest.mark.parametrize("kinds", [{"bits": False}, {"rank": False}])
def test_either_kind_of_gate_alone(tiny_model, batch, kinds):
    model = tiny_model(trained=True)
    plain = weights_of(model)
    gates = add_gates(model, **kinds)
    with torch.no_grad():
        for gate in gates.gates():
            gate.phi.fill_(-9.0)
            gate.phi[:2] = 9.0
    seen, decisions = logits(model, batch), remove_gates(model)
    own = next(iter(decisions.layers.values()))
    assert (own.rank, own.bits_a) == ((2, None) if "bits" in kinds else (8, 8))
    with applied_weights(model, decisions.apply(plain)):
        torch.testing.assert_close(logits(model, batch), seen, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_the_learned_ranks_reloads_in_plain_peft(tiny_folder, batch, tmp_path):
    model = load_model(str(tiny_folder), lora=LoraSettings(r=8, alpha=24, dropout=0.0), device="cpu", dtype="fp32")
    for p in lora_parameters(model):
        p.data.normal_(0, 0.2)
    gates = add_gates(model)
    decide(gates, CHOICES)
    expected = logits(model, batch)
    save_gated(model, tmp_path / "adapter")
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert not torch.equal(logits(base, batch), expected)
    torch.testing.assert_close(logits(plain, batch), expected, atol=1e-5, rtol=1e-5)
    shapes = {name: tuple(t.shape) for name, t in load_file(tmp_path / "adapter/adapter_model.safetensors").items()}
    assert shapes["base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"] == (3, 32)
    assert not [name for name in shapes if "layers.1.self_attn.q_proj" in name]  # rank 0
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["rank_pattern"] == {"model.layers.0.self_attn.v_proj": 3, "model.layers.1.self_attn.v_proj": 5}
    facts = json.loads((tmp_path / "adapter/gates.json").read_text())
    assert facts["model.layers.0.self_attn.v_proj"]["bits_b"] == 8
    # and in this package
    again = load_model(str(tiny_folder), adapter=tmp_path / "adapter", device="cpu", dtype="fp32")
    torch.testing.assert_close(logits(again, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 64}}, {"rank_pattern": {"q_proj": 4}}, {"lora_bias": True}],
    ids=lambda options: next(iter(options)),
)
def test_an_adapter_of_the_learned_ranks_keeps_the_scale_of_every_layer(tiny_model, batch, tmp_path, options):
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], **options)
    model = peft.get_peft_model(tiny_model(lora=False), config).eval()
    for p in lora_parameters(model):
        p.data.normal_(0, 0.2)
    decide(add_gates(model), CHOICES)
    expected = logits(model, batch)
    save_gated(model, tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(tiny_model(lora=False), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(plain, batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "OLoRA"])
def test_an_adapter_whose_start_changed_the_base_model_is_refused(tiny_model, tmp_path, start):
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    model = peft.get_peft_model(tiny_model(lora=False), config)
    decide(add_gates(model), CHOICES)
    with pytest.raises(ValueError, match="changes the base model"):
        save_gated(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_rank_0_everywhere_is_refused(tiny_model, tmp_path):
    model = tiny_model(trained=True)
    decide(add_gates(model), [(0, 1, 1)] * 4)
    with pytest.raises(ValueError, match="All layers have rank 0"):
        save_gated(model, tmp_path / "adapter")


def test_what_does_not_fit_is_refused(tiny_model):
    model = tiny_model()
    for work in (gate_loss, gate_parameters, freeze_gates, remove_gates):
        with pytest.raises(ValueError, match="no gates"):
            work(model)
    with pytest.raises(ValueError, match="nothing to learn"):
        add_gates(model, bits=False, rank=False)
    with pytest.raises(ValueError, match="prior is -1"):
        add_gates(model, prior=-1)
    add_gates(model)
    with pytest.raises(ValueError, match="gates already"):
        add_gates(model)
    with pytest.raises(ValueError, match="no LoRA"):
        add_gates(tiny_model(lora=False))
    with pytest.raises(ValueError, match="freeze is 2"):
        GateSettings(freeze=2)


@pytest.mark.parametrize("matrix", ["lora_A", "lora_B"])
def test_a_frozen_a_or_b_is_refused_before_anything_is_changed(tiny_model, questions, matrix):
    model = tiny_model()
    for name, p in model.named_parameters():
        if f"layers.1.self_attn.v_proj.{matrix}" in name:
            p.requires_grad_(False)
    for start in (add_gates, lambda model: finetune(model, questions, gates=GateSettings(), **OPTIONS)):
        with pytest.raises(ValueError, match="layers.1.self_attn.v_proj has a frozen A or B"):
            start(model)
        assert attached(model) is None and not [n for n, _ in model.named_parameters() if "parametrizations" in n]


def test_gates_are_on_the_layers_of_the_active_adapter_alone(tiny_model, batch):
    model = peft.get_peft_model(tiny_model(lora=False), peft.LoraConfig(r=8, target_modules=["q_proj"]))
    model.add_adapter("other", peft.LoraConfig(r=4, target_modules=["v_proj"]))
    model.set_adapter("other")
    for p in lora_parameters(model):
        p.data.normal_(0, 0.2)
    names = [f"model.layers.{i}.self_attn.v_proj" for i in range(2)]
    assert list(lora_layers(model)) == names
    plain, gates = weights_of(model), add_gates(model)
    decide(gates, [(2, 1, 2), (3, 2, 1)])
    seen, decisions = logits(model.eval(), batch), remove_gates(model)
    assert list(decisions.layers) == names
    with applied_weights(model, decisions.apply(plain)):
        torch.testing.assert_close(logits(model, batch), seen, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- own loops


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_a_loop_of_ones_own_trains_weights_and_gates(tiny_model, batch, optimizer):
    model = tiny_model(trained=True)
    gates = add_gates(model, prior=1.0, start=0.5)
    before = gates.expected_share().item()
    aside = torch.optim.Adam(gate_parameters(model))
    if optimizer == "ivon":
        main = IVON(lora_parameters(model), lr=0.1, ess=1e6, hess_init=1e-3, clip_radius=1e-3, seed=0)
        draw = main.sampled_params
    else:
        main = torch.optim.AdamW(lora_parameters(model), lr=1e-3)
        draw = lambda train: torch.enable_grad()  # noqa: E731
    model.train()
    start = [p.detach().clone() for p in lora_parameters(model)]
    for _ in range(5):
        with draw(train=True):
            (answer_loss(answer_logits(model, batch), batch["answers"]) + gate_loss(model)).backward()
        for step in (main, aside):
            step.step()
            step.zero_grad()
    assert all(not torch.equal(p, s) for p, s in zip(lora_parameters(model), start))
    assert gates.expected_share().item() < before
    assert all(q.log_scale.item() != 0 for layer in gates.layers for q in (layer.a, layer.b))
    # frozen: the price moves no gate any more, while weights and ranges go on
    decisions = freeze_gates(model)
    frozen = [gate.phi.clone() for gate in gates.gates()]
    scale = gates.layers[0].a.log_scale.item()
    for _ in range(2):
        with draw(train=True):
            (answer_loss(answer_logits(model, batch), batch["answers"]) + gate_loss(model)).backward()
        for step in (main, aside):
            step.step()
            step.zero_grad()
    assert all(torch.equal(gate.phi, phi) for gate, phi in zip(gates.gates(), frozen))
    assert [d.rank for d in gates.decisions().layers.values()] == [d.rank for d in decisions.layers.values()]
    assert gates.layers[0].a.log_scale.item() != scale


def test_a_scaled_loss_trains_the_same_gates_and_a_nan_leaves_them_as_they_are(tiny_model, batch):
    phis, now = [], SimpleNamespace(global_step=0, max_steps=10)
    for scale in (1.0, 4096.0):
        model, scaler = tiny_model(trained=True), SimpleNamespace(get_scale=lambda scale=scale: scale)
        with GateSettings(prior=1.0, start=0.5).attach(model, seed=0) as training:
            phi = training.gates.layers[0].a.phi
            for factor in (1.0, torch.nan, 1.0):
                before = phi.detach().clone()
                loss = answer_loss(answer_logits(model, batch), batch["answers"])
                (loss * scale * factor).backward()
                training.on_pre_optimizer_step(None, now, None, SimpleNamespace(scaler=scaler))
                assert torch.equal(phi, before) == (factor != 1.0)
            phis.append(torch.cat([gate.phi.detach().flatten() for gate in training.gates.gates()]))
    torch.testing.assert_close(*phis, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- finetune

OPTIONS = {"steps": 12, "batch_size": 2, "progress": False, "lr": 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_finetune_with_gates(tiny_model, questions, optimizer):
    model = tiny_model()
    settings = GateSettings(prior=5.0, start=0.5, lr=0.3)
    lr = 1e-2 if optimizer == "adamw" else 5.0
    options = {**OPTIONS, "lr": lr, "optimizer": optimizer, "seed": 1}
    run = finetune(model, questions, gates=settings, **options)
    again = finetune(model, questions, gates=settings, **options)
    assert run.gates == again.gates and all(torch.equal(w, again.weights[n]) for n, w in run.weights.items())
    assert attached(model) is None
    assert bit_operations(model, decisions=run.gates).total < 0.5 * bit_operations(model).total
    for name, w in run.gates.apply(run.weights).items():  # they are gated already: once more changes nothing
        torch.testing.assert_close(w, run.weights[name], atol=1e-6, rtol=0)
    logged = [row for row in run.history if "gate_rank" in row]
    assert logged[0]["gate_share"] > logged[-1]["gate_share"] > 0
    assert set(logged[0]["gate_layers"]) == set(lora_layers(model))
    assert [row["step"] for row in run.history] == sorted(row["step"] for row in run.history)
    assert run.config["gates"]["prior"] == 5.0
    assert Decisions.from_facts(json.loads(json.dumps(run.config["gates"]["decided"]))) == run.gates
    plain = finetune(model, questions, **options)
    assert plain.gates is None and "gates" not in plain.config


def test_ivon_draws_go_through_the_gates_and_survive_a_file(tiny_model, questions, tmp_path):
    model = tiny_model()
    run = finetune(model, questions, gates=GateSettings(prior=2.0), **{**OPTIONS, "lr": 5.0})
    posterior = run.posterior
    assert isinstance(posterior, GatedPosterior)
    draw, base = posterior.sample(3, tau=0.5), posterior.base.sample(3, tau=0.5)
    for name, w in posterior.decisions.apply(base).items():
        assert torch.equal(draw[name], w)
    assert all(torch.equal(posterior.mean[name], w) for name, w in run.weights.items())
    drawn = predict(run, questions[:3], samples=3)
    one_by_one = predict(run, questions[:3], samples=3, draws_per_pass=1)
    torch.testing.assert_close(drawn.logits, one_by_one.logits, atol=1e-5, rtol=1e-5)
    assert not torch.equal(drawn.logits[0], drawn.logits[1])
    posterior.save(tmp_path)
    loaded = GatedPosterior.load(tmp_path)
    assert loaded.decisions == posterior.decisions and loaded.metadata == posterior.metadata
    assert all(torch.equal(w, draw[name]) for name, w in loaded.sample(3, tau=0.5).items())


def test_a_gated_run_is_saved_as_any_run_and_as_an_adapter_of_its_ranks(tiny_folder, questions, tmp_path):
    model = load_model(str(tiny_folder), device="cpu", dtype="fp32")
    run = finetune(model, questions, optimizer="adamw", gates=GateSettings(prior=5.0, start=0.5, lr=0.3), **OPTIONS)
    run.save(tmp_path / "run")
    again = load_run(tmp_path / "run", model)
    expected = predict(run, questions).logits
    assert torch.equal(predict(again, questions).logits, expected)
    if any(own.rank for own in run.gates.layers.values()):
        run.gates.save_adapter(model, run.weights, tmp_path / "adapter")
        small = load_model(str(tiny_folder), adapter=tmp_path / "adapter", device="cpu", dtype="fp32")
        torch.testing.assert_close(predict(small, questions).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_evaluating_does_not_change_a_gated_run(tiny_model, questions):
    model = tiny_model()
    options = {**OPTIONS, "optimizer": "adamw", "gates": GateSettings(prior=1.0)}
    plain = finetune(model, questions, **options)
    watched = finetune(model, questions, validation=questions[:4], eval_every=4, **options)
    assert all(torch.equal(w, watched.weights[n]) for n, w in plain.weights.items())


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"gates": GateSettings(), "save_every": 5, "output_dir": "x"}, "no checkpoints"),
        ({"gates": GateSettings(prior=-1.0)}, "prior is -1"),
    ],
)
def test_wrong_gate_options_are_named(tiny_model, questions, wrong, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        finetune(tiny_model(), questions, **OPTIONS, **wrong)


def test_gates_come_off_when_training_fails(tiny_model, questions, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr("ivon_lora_lite.training.finetuning.answer_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune(model, questions, optimizer="adamw", gates=GateSettings(), **OPTIONS)
    assert attached(model) is None and not [n for n in trainable(model) if "parametrizations" in n]


def test_decisions_of_layers_that_are_not_lora_pass_through():
    weights = {
        "base_model.model.x.lora_A.weight": torch.ones(2, 3),
        "base_model.model.x.lora_B.weight": torch.ones(3, 2),
    }
    other = {"head.weight": torch.randn(2)}
    out = Decisions({"x": LayerDecision(rank=1)}).apply(weights | other)
    assert torch.equal(out["head.weight"], other["head.weight"])
    assert out["base_model.model.x.lora_A.weight"].sum() == 3 and out["base_model.model.x.lora_B.weight"].sum() == 3


def test_a_gated_posterior_has_no_signal_to_noise():
    q = GatedPosterior(GaussianPosterior({"w": torch.ones(2)}, {"w": torch.ones(2)}), Decisions({}))
    with pytest.raises(ValueError, match="GatedPosterior has no variance"):
        q.signal_to_noise()


def test_a_gated_run_is_saved_and_loaded_with_its_posterior(tiny_model, questions, tmp_path):
    model = tiny_model(seed=1)
    run = finetune(model, questions, steps=4, gates=GateSettings(), progress=False)
    again = load_run(run.save(tmp_path / "run"), model)
    assert isinstance(again.posterior, GatedPosterior) and again.gates == run.gates
    draws = run.posterior.sample(3), again.posterior.sample(3)
    assert all(torch.equal(w, draws[1][name]) for name, w in draws[0].items())
    assert all(torch.equal(w, again.weights[name]) for name, w in run.weights.items())


def test_two_forward_passes_may_share_a_backward_pass(tiny_model, batch):
    model = tiny_model(trained=True).train()
    add_gates(model, prior=0.01, seed=0)
    loss = sum(answer_loss(answer_logits(model, batch), batch["answers"]) for _ in range(2)) + gate_loss(model)
    loss.backward()
    assert all(layer.a.log_scale.grad is not None for layer in attached(model).layers)


def test_a_copy_of_a_gated_model_draws_its_own_gates(tiny_model, batch):
    model = tiny_model(trained=True)
    add_gates(model, seed=0)
    noise = [gate.noise.clone() for gate in attached(model).gates()]
    twin = copy.deepcopy(model).train()
    answer_logits(twin, batch)
    assert all(torch.equal(gate.noise, before) for gate, before in zip(attached(model).gates(), noise))
    assert not any(torch.equal(gate.noise, before) for gate, before in zip(attached(twin).gates(), noise))


def test_the_names_of_weights_are_the_same_with_gates(tiny_model):
    model = tiny_model(trained=True)
    before = weights_of(model)
    add_gates(model)
    assert before.keys() <= trainable(model).keys() and not [n for n in trainable(model) if ".default" in n]
    own = {name: w for name, w in read_weights(model).items() if name in before}
    assert all(torch.equal(own[name], w) for name, w in before.items())
    remove_gates(model)
    put_weights(model, own)


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_layers_may_be_computed_again_in_the_backward_pass(tiny_folder, questions, optimizer):
    runs = []
    for again in (False, True):
        model = load_model(tiny_folder, dtype="fp32", device="cpu", gradient_checkpointing=again, progress=False)
        options = {"optimizer": optimizer, "steps": 4, "progress": False, "seed": 1}
        runs.append(finetune(model, questions, gates=GateSettings(prior=0.5), **options))
    for name, w in runs[0].weights.items():
        torch.testing.assert_close(w, runs[1].weights[name], atol=1e-6, rtol=1e-5)


def test_ranges_shrink_once_a_step_and_in_a_loop_of_ones_own_with_every_forward_pass(tiny_model, batch):
    def peaks(gates):
        return [q.peak.item() for layer in gates.layers for q in (layer.a, layer.b)]

    with GateSettings().attach(tiny_model(trained=True), seed=0) as training:
        for pair in training.gates.pairs:
            for module in (pair.a, pair.b):
                module.parametrizations.weight.original.data.zero_()
        before = peaks(training.gates)
        for _ in range(3):
            training.gates.draw()
        assert peaks(training.gates) == before
        training.on_step_end(None, None, None)
        assert peaks(training.gates) == pytest.approx([0.99 * peak for peak in before])
        training.gates.told = False
        training.gates.draw()
        assert peaks(training.gates) == pytest.approx([0.99**2 * peak for peak in before])
