"""benchmarks/gates.py on a tiny model: every method, its costs by hand, and that finished trials are not repeated."""

import json

import pytest
from conftest import load_script


@pytest.fixture
def benchmark():
    return load_script("benchmarks/gates.py")


@pytest.mark.slow
def test_every_method_is_recorded_once(benchmark, tiny_folder, tmp_path, monkeypatch):
    options = ["--out", str(tmp_path), "--model", str(tiny_folder), "--steps", "12", "--test-size", "6"]
    options += ["--train-size", "12", "--mu", "5", "--ranks", "2", "8", "--gate-lr", "1.0", "--seeds", "1"]
    benchmark.main(options)
    trials = {
        json.loads(f.read_text())["config"]["method"]: json.loads(f.read_text()) for f in tmp_path.glob("*seed*.json")
    }
    assert set(trials) == {"lora-r2", "lora-r8", "gated-mu5", "adalora"}
    full = sum(8 * (32 + d_out) * 256 for d_out in (32, 16)) * 2  # q and v of two layers, per token
    assert trials["lora-r8"]["bops"] == full and trials["lora-r8"]["share"] == 1
    assert trials["lora-r2"]["share"] == 0.25
    assert {bits: row["share"] for bits, row in trials["lora-r8"]["rounded"].items()} == {
        "8": 0.5,
        "4": 0.25,
        "2": 0.125,
    }
    gated, adalora = trials["gated-mu5"], trials["adalora"]
    layers = gated["gates"].items()
    cost = [
        own["rank"] * (32 * own["bits_a"] + (32 if "q_proj" in n else 16) * own["bits_b"]) * 16 for n, own in layers
    ]
    assert gated["bops"] == sum(cost) and gated["share"] < 0.5  # it learned something
    assert sum(adalora["ranks"].values()) == 4 * 4 and len(adalora["ranks"]) == 4
    summary = json.loads((tmp_path / "everyday@2-summary.json").read_text())
    assert summary["methods"]["lora-r8-4bit"]["share"]["values"] == [0.25]
    assert summary["methods"]["adalora"]["acc"]["se"] is None

    for name in ("adalora-ivon", "adalora-ivon-signal"):  # only if they are named
        benchmark.main([*options, "--methods", name, "--target-rank", "2", "--split", "validation"])
        trial = json.loads((tmp_path / f"everyday@2-{name}-seed1.json").read_text())
        assert sum(trial["ranks"].values()) == 2 * 4 and trial["settings"]["hess_init"] > 0

    differences = json.loads((tmp_path / "everyday@2-summary.json").read_text())["differences"]
    pair = [json.loads((tmp_path / f"everyday@2-adalora-ivon{end}-seed1.json").read_text()) for end in ("", "-signal")]
    expected = pair[1]["scores"]["nll"] - pair[0]["scores"]["nll"]
    assert differences["adalora-ivon-signal - adalora-ivon"]["nll"]["difference"] == pytest.approx(expected, abs=1e-5)

    benchmark.main([*options, "--methods", "ivon-r8", "ivon-gated-mu5", "--samples", "2"])
    plain, gated = (
        json.loads((tmp_path / f"everyday@2-{n}-seed1.json").read_text()) for n in ("ivon-r8", "ivon-gated-mu5")
    )
    assert plain["share"] == 1 and gated["share"] < 0.5 and plain["scores"]["nll"] != plain["at_mean"]["nll"]
    summary = json.loads((tmp_path / "everyday@2-summary.json").read_text())
    assert summary["methods"]["ivon-r8@mean"]["nll"]["values"] == [plain["at_mean"]["nll"]]
    expected = gated["scores"]["acc"] - plain["scores"]["acc"]
    assert summary["differences"]["ivon-gated-mu5 - ivon-r8"]["acc"]["difference"] == pytest.approx(expected)

    monkeypatch.setattr(benchmark, "lora_trial", lambda *_: 1 / 0)
    benchmark.main(options)  # nothing is repeated
    for other in (["--steps", "13"], ["--adalora-lr", "0.5"], ["--split", "validation"]):
        with pytest.raises(ValueError, match="is asked for: choose another --out"):
            benchmark.main([*options, *other])
    with pytest.raises(SystemExit):
        benchmark.main([*options, "--methods", "lora-r3"])
