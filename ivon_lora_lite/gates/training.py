"""Gates in ``transformers.Trainer``: drawn per forward pass, trained by an Adam of their own, frozen near the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..training import Beside, Run
from .attach import LR, PRICE, RANGE_LR, START, Gates, add_gates, remove_gates
from .decisions import Decisions, GatedPosterior


@dataclass(frozen=True)
class GateSettings:
    """How gates are trained.

    Attributes:
        prior: μ in nats, see :func:`add_gates`.
        bits: learn bit widths.
        rank: learn ranks.
        lr: Adam's learning rate of φ, constant.
        range_lr: … of the ranges' ρ.
        start: φ at the start.
        freeze: the share of the steps after which decisions replace draws; the weights get used to them in the rest.
    """

    rewrites: ClassVar[bool] = True  # the model computes with gated weights

    prior: float = PRICE
    bits: bool = True
    rank: bool = True
    lr: float = LR
    range_lr: float = RANGE_LR
    start: float = START
    freeze: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.freeze <= 1:
            raise ValueError(f"freeze is {self.freeze}; expected a share of the steps between 0 and 1.")

    @contextmanager
    def attach(self, model: nn.Module, seed: int) -> Iterator[GateTraining]:
        """Within the context the model has gates; it yields what trains them, and leaves ungated weights."""
        options = {"bits": self.bits, "rank": self.rank, "prior": self.prior, "start": self.start}
        training = GateTraining(add_gates(model, seed=seed, **options), self)
        try:
            yield training
        finally:
            training.decisions = remove_gates(model)


class GateTraining(Beside):
    """Steps the gates beside the Trainer's optimizer, and logs what they are expected to become.

    With IVON the gates' gradients of the cross-entropy are those at the draw. With several processes (DDP) all draw the
    same gates.

    Attributes:
        history: one dict per log: expected rank, bits and share of the bit operations, over all and per layer.
        decisions: what was decided; set when the gates come off.
    """

    def __init__(self, gates: Gates, settings: GateSettings):
        super().__init__(torch.optim.Adam(gates.parameter_groups(settings.lr, settings.range_lr)))
        self.gates, self.settings = gates, settings
        gates.told = True
        self.history: list[dict] = []
        self.decisions: Decisions | None = None

    def penalty(self, step: int, steps: int) -> Tensor | None:
        if step < self.settings.freeze * steps:
            return self.gates.loss()
        self.gates.freeze()
        return None

    def on_step_end(self, args, state, control, **kwargs):
        self.gates.decay()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        with torch.no_grad():
            layers = {
                n: [round(float(x), 3) for x in g.expected()] for n, g in zip(self.gates.names, self.gates.layers)
            }
            share = float(self.gates.expected_share())
        rank, bits_a, bits_b = (sum(column) / len(layers) for column in zip(*layers.values()))
        now = {"gate_rank": rank, "gate_bits": (bits_a + bits_b) / 2, "gate_share": share, "gate_layers": layers}
        self.history.append({"step": state.global_step, **now})

    def finish(self, run: Run) -> Run:
        """The run with gated weights and draws, and what was decided."""
        config = {**run.config, "gates": {**asdict(self.settings), "decided": self.decisions.facts()}}
        history = sorted([*run.history, *self.history], key=lambda record: record["step"])
        posterior = run.posterior and GatedPosterior(run.posterior, self.decisions)
        weights = self.decisions.apply(run.weights)
        return replace(run, weights=weights, posterior=posterior, config=config, history=history, gates=self.decisions)
