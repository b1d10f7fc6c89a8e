"""Gates on a model: parametrisations on PEFT's A and B, trained beside them.

    gates = add_gates(model, prior=0.01)
    optimizer = torch.optim.AdamW([{"params": lora_parameters(model), "lr": 2e-4}, *gate_parameters(model)])
    (loss(model, batch) + gate_loss(model)).backward()          # every forward pass in training draws the gates
    freeze_gates(model)                                         # decisions instead of draws, from now on
    decisions = remove_gates(model)
    decisions.save_adapter(model, read_weights(model), "adapter")   # plain PEFT, of the learned ranks

The gates are no parameters of the model: ``model.parameters()`` stays A and B. So IVON puts its Gaussian on these
alone, and the gates are trained by an optimizer (or a group) of their own. Save an adapter after ``remove_gates``: with
gates on, PEFT's ``save_pretrained`` would write names that it does not find again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..posterior import LoraPair, lora_layers
from .decisions import FULL_BITS, Decisions, LayerDecision
from .quantizer import BayesianBits
from .rank import RankGate

START = 2.0  # φ: a fresh gate is 0 in 3 % of the draws and 1 in 60 %, so the directions are put in order early
LR, RANGE_LR = 0.1, 0.01
PRICE = 0.01  # μ: of the recorded ones the cheapest that keeps the accuracy of full rank (AdamW)


class LayerGates(nn.Module):
    """Rank gates and quantisers of one pair A, B."""

    def __init__(self, pair: LoraPair, bits: bool, rank: bool, start: float):
        super().__init__()
        self.d_in, self.d_out, self.r = pair.shape
        a, b = pair.a.weight, pair.b.weight
        self.rank = RankGate(self.r, start, a.device) if rank else None
        self.a = BayesianBits(a, start) if bits else None
        self.b = BayesianBits(b, start) if bits else None

    def expected(self) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """Expected rank, and expected bits of A and of B."""
        rank = self.rank.expected_rank() if self.rank else self.r
        return rank, *(m.expected_bits() if m else FULL_BITS for m in (self.a, self.b))

    def relative_cost(self) -> Tensor:
        """E[MACs · b_w] per token; rank and widths are independent, so the expectation is a product."""
        rank, bits_a, bits_b = self.expected()
        return rank * (self.d_in * bits_a + self.d_out * bits_b)

    def decision(self) -> LayerDecision:
        rank = self.rank.rank() if self.rank else self.r
        if self.a is None:
            return LayerDecision(rank)
        ranges = (float(m.half_range.detach()) for m in (self.a, self.b))
        return LayerDecision(rank, self.a.bits(), self.b.bits(), *ranges)


class Gated(nn.Module):
    """The parametrisation of one A or B; it refers to its gates without owning them."""

    def __init__(self, gates: Gates, layer: LayerGates, matrix: str):
        super().__init__()
        self._refer = (gates, layer)  # a tuple hides them from model.parameters()
        self.matrix = matrix

    def forward(self, weight: Tensor) -> Tensor:
        gates, layer = self._refer
        soft = self.training and not gates.frozen
        quantizer = layer.a if self.matrix == "a" else layer.b
        if quantizer is not None:
            weight = quantizer(weight, soft)
        if (
            self.matrix == "a" and layer.rank is not None
        ):  # once is enough: where A's row is zero, B's column has no effect
            weight = layer.rank(weight, soft)
        return weight


class Gates(nn.Module):
    """All gates of a model; made by :func:`add_gates`.

    Attributes:
        names: the base model's names of the layers.
        layers: their gates, in the same order.
        prior: μ, in nats.
        frozen: whether decisions have taken the place of draws.
    """

    def __init__(self, pairs: dict[str, LoraPair], bits: bool, rank: bool, prior: float, start: float, seed: int):
        super().__init__()
        self.names, self.pairs = tuple(pairs), tuple(pairs.values())
        self.layers = nn.ModuleList(LayerGates(pair, bits, rank, start) for pair in self.pairs)
        self.prior, self.frozen = prior, False
        self.told = False  # whether decay() is called after every step; else a forward pass in training counts as one
        # LoRA of full rank in 16 bits; the bits of the activations cancel
        self.reference = sum(layer.r * (layer.d_in + layer.d_out) * FULL_BITS for layer in self.layers)
        self.generator = torch.Generator().manual_seed(seed)

    def gates(self) -> list[BayesianBits | RankGate]:
        return [m for layer in self.layers for m in (layer.rank, layer.a, layer.b) if m is not None]

    def draw(self) -> None:
        """New noise for all gates, and ranges that follow the weights: at the start of a forward pass in training."""
        if not self.frozen:
            for gate in self.gates():
                gate.noise.copy_(torch.rand(gate.noise.shape, generator=self.generator))
        if not self.told:
            self.decay()
        for layer, pair in zip(self.layers, self.pairs):
            for quantizer, module in ((layer.a, pair.a), (layer.b, pair.b)):
                if quantizer is not None:
                    quantizer.observe(module.parametrizations.weight.original)

    def decay(self) -> None:
        """Let all ranges shrink a little: after a training step."""
        for quantizer in (q for layer in self.layers for q in (layer.a, layer.b) if q is not None):
            quantizer.decay()

    def freeze(self) -> None:
        """Decisions instead of draws from now on, and φ is trained no more; ranges may be."""
        self.frozen = True
        for gate in self.gates():
            gate.phi.requires_grad_(False).grad = None

    def expected_share(self) -> Tensor:
        """E[BOPs] over the BOPs of the same LoRA at full rank in 16 bits; differentiable."""
        return torch.stack([torch.as_tensor(layer.relative_cost()) for layer in self.layers]).sum() / self.reference

    def loss(self) -> Tensor:
        """μ · E[BOPs]/BOPs₁₆, the expected-gate penalty Σ_b c_b Π_{j ≤ b} q_j with c_b from bit operations."""
        return self.prior * self.expected_share()

    def decisions(self) -> Decisions:
        return Decisions({name: layer.decision() for name, layer in zip(self.names, self.layers)})

    def parameter_groups(self, lr: float = LR, range_lr: float = RANGE_LR) -> list[dict]:
        """Two groups for a torch optimizer: the gates' φ, and the ranges' ρ."""
        groups = [{"params": [gate.phi for gate in self.gates()], "lr": lr, "weight_decay": 0.0}]
        scales = [gate.log_scale for gate in self.gates() if isinstance(gate, BayesianBits)]
        return [*groups, {"params": scales, "lr": range_lr, "weight_decay": 0.0}] if scales else groups


def add_gates(
    model: nn.Module, *, bits: bool = True, rank: bool = True, prior: float = PRICE, start: float = START, seed: int = 0
) -> Gates:
    """Put gates on all LoRA matrices of a PEFT model.

    In training mode every forward pass draws them; in evaluation mode they are decisions.

    Args:
        model: with plain LoRA on linear layers, on its device already: the gates stay where A and B are now.
        bits: learn the bit width of every A and B.
        rank: learn the rank of every pair.
        prior: μ ≥ 0 in nats: what the loss pays for the bit operations of LoRA at full rank in 16 bits, so for the
            expected share p of them it pays μ·p.
        start: φ of all gates at the start.
        seed: of the gates' noise.

    Raises:
        ValueError: no LoRA, gates already, nothing to learn, or an A or B that is frozen.
    """
    if attached(model) is not None:
        raise ValueError("The model has gates already: remove_gates(model) first.")
    if not (bits or rank):
        raise ValueError("There is nothing to learn: set bits or rank.")
    if not 0 <= prior < float("inf"):
        raise ValueError(f"prior is {prior}; expected a finite number of at least 0.")
    pairs = lora_layers(model)
    frozen = [name for name, pair in pairs.items() for m in (pair.a, pair.b) if not m.weight.requires_grad]
    if frozen:
        raise ValueError(f"{frozen[0]} has a frozen A or B ({len(frozen)} in all): gates need both to be trainable.")
    gates = Gates(pairs, bits, rank, prior, start, seed)
    for layer, pair in zip(gates.layers, pairs.values()):
        for matrix, module in (("a", pair.a), ("b", pair.b)):
            if bits or matrix == "a":
                gated = Gated(gates, layer, matrix).train(module.training)
                parametrize.register_parametrization(module, "weight", gated)
    vars(model)["_gates"] = gates  # not registered: see above
    vars(model)["_gates_hook"] = model.register_forward_pre_hook(
        lambda m, _: attached(m).draw() if m.training else None
    )
    return gates


def attached(model: nn.Module) -> Gates | None:
    """The model's gates, if it has any."""
    return vars(model).get("_gates")


def gates_of(model: nn.Module) -> Gates:
    gates = attached(model)
    if gates is None:
        raise ValueError("The model has no gates: add_gates(model) first.")
    return gates


def gate_parameters(model: nn.Module, lr: float = LR, range_lr: float = RANGE_LR) -> list[dict]:
    """Parameter groups for an optimizer: φ of all gates with ``lr``, ρ of all ranges with ``range_lr``."""
    return gates_of(model).parameter_groups(lr, range_lr)


def gate_loss(model: nn.Module) -> Tensor:
    """The penalty to add to the loss: μ times the expected share of bit operations."""
    return gates_of(model).loss()


def freeze_gates(model: nn.Module) -> Decisions:
    """From now on gates are decisions in training too, and stay as they are; weights and ranges may be trained on."""
    gates = gates_of(model)
    gates.freeze()
    return gates.decisions()


def remove_gates(model: nn.Module) -> Decisions:
    """Take the gates off. The weights are the ungated ones, in the same Parameter objects as before."""
    gates = gates_of(model)
    decisions = gates.decisions()
    for pair in gates.pairs:
        for module in (pair.a, pair.b):
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    vars(model).pop("_gates_hook").remove()
    del vars(model)["_gates"]
    return decisions
