"""Draws θ ~ N(m, diag v), put into the parameters themselves; and the random streams that they come from."""

import math
from threading import Thread

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .equations import scale_noise
from .lists import by, joined, parts, views
from .ranks import several_ranks, shared
from .state import follow, mean_of, start

Perturbation = dict[Tensor, Tensor]  # parameter → ε / √(h + δ)
LANES = 2  # streams that a CPU draws side by side; part of what a seed means, so it does not follow the cores


class Draws:
    """Makes draws from an optimizer's groups and state; owns the noise and the memory that it needs."""

    def __init__(self, seed: int | None, per_rank: bool):
        self.noise = NoiseStreams(seed, per_rank)
        self._buffers: dict[tuple, Tensor] = {}  # flat noise and flat saved means, kept between steps

    def draw(self, groups: list[dict], state: dict, stream: str) -> Perturbation:
        """The perturbation ε / √(h + δ) of all parameters; one random draw for all tensors of a device."""
        for group in groups:
            start(state, [p for p in group["params"] if p.requires_grad and not state[p]], group)
            follow(state, [p for p in group["params"] if p.requires_grad])
        params = [p for group in groups for p in group["params"] if p.requires_grad]
        out: Perturbation = {}
        for (device, dtype), members in by(params, lambda p: (p.device, state[p]["hess"].dtype)).items():
            flat = self._buffer((device, dtype, f"noise {stream}"), sum(p.numel() for p in members))
            self.noise.fill(flat, stream)
            out.update(zip(members, views(flat, members)))
        self.noise.draws[stream] += 1
        for group in groups:
            for part in parts([p for p in group["params"] if p in out]):
                h, noise = joined([state[p]["hess"] for p in part], [out[p] for p in part])
                scale_noise(noise, h, group["weight_decay"])
        return out

    def put(self, perturbation: Perturbation, groups: list[dict], state: dict) -> dict[Tensor, Tensor]:
        """θ = m + perturbation / √λ, in place; returns what restores the mean."""
        saved: dict[Tensor, Tensor] = {}
        for (device, dtype), members in by(list(perturbation), lambda p: (p.device, p.dtype)).items():
            flat = self._buffer((device, dtype, "mean"), sum(p.numel() for p in members))
            saved.update(zip(members, views(flat, members)))
        for group in groups:
            alpha = 1 / math.sqrt(group["ess"])
            for part in parts([p for p in group["params"] if p in perturbation]):
                torch._foreach_copy_([saved[p] for p in part], part)
                noise = [perturbation[p] for p in part]
                if all("mean" not in state[p] for p in part):
                    torch._foreach_add_(part, noise, alpha=alpha)
                else:  # 16-bit parameters: add in fp32, round once
                    theta = torch._foreach_add([mean_of(state, p) for p in part], noise, alpha=alpha)
                    torch._foreach_copy_(part, theta)
        torch.clear_autocast_cache()  # else an autocast around several draws goes on with 16-bit copies of the first
        return saved

    def _buffer(self, key: tuple, size: int) -> Tensor:
        """A flat tensor that lives as long as its size fits: allocated once, not at each step."""
        if key not in self._buffers or self._buffers[key].numel() != size:
            self._buffers[key] = torch.empty(size, device=key[0], dtype=key[1])
        return self._buffers[key]


class NoiseStreams:
    """One generator per device, purpose and lane.

    All ranks train with the same noise unless ``per_rank``: the seed is rank 0's. Evaluation has a stream of its own,
    so that evaluating more or less often does not change training. A generator that a checkpoint does not have (it is
    of a device of another kind, or of another rank's own noise) begins anew, with noise that was not used before.
    """

    def __init__(self, seed: int | None, per_rank: bool):
        self.seed, self.per_rank = seed, per_rank
        self.draws = {"train": 0, "eval": 0}  # how many were made
        self._agreed = False  # on the seed, with the other ranks
        self._places: dict[str, list[torch.device]] = {}  # a GPU's number differs between ranks, its place does not
        self._generators: dict[str, torch.Generator] = {}
        self._saved: dict[str, Tensor] = {}  # from a checkpoint, until their device is first used

    def fill(self, flat: Tensor, purpose: str) -> None:
        """Fill a flat tensor with standard normals; a CPU draws two lanes side by side, because it takes longest."""
        if flat.device.type != "cpu":
            flat.normal_(generator=self._generator(flat.device, purpose, 0))
            return
        lanes = [(part, self._generator(flat.device, purpose, k)) for k, part in enumerate(flat.chunk(LANES))]
        threads = [Thread(target=part.normal_, kwargs={"generator": generator}) for part, generator in lanes[1:]]
        for thread in threads:
            thread.start()
        lanes[0][0].normal_(generator=lanes[0][1])
        for thread in threads:
            thread.join()

    def _generator(self, device: torch.device, purpose: str, lane: int) -> torch.Generator:
        places = self._places.setdefault(device.type, [])
        if device not in places:
            places.append(device)
        key = f"{device.type}{places.index(device) or ''}:{purpose}:{lane}"
        if key not in self._generators:
            if self.seed is None or (purpose == "train" and not self._agreed):  # all ranks train, one may evaluate
                self.seed = shared(torch.initial_seed() % 2**48 if self.seed is None else self.seed)
                self._agreed = True
            begun = [made] if (made := self.draws.get(purpose, 0)) else []
            # mixed, because torch's CPU generator heeds the lowest 32 bits of a seed only
            mixed = np.random.SeedSequence([self.seed, self._rank(), purpose == "eval", lane, *begun])
            seed = int(mixed.generate_state(1, np.uint64)[0] >> 1)
            self._generators[key] = torch.Generator(device).manual_seed(seed)
            if key in self._saved:
                self._generators[key].set_state(self._saved.pop(key).cpu())
        return self._generators[key]

    def _rank(self) -> int:
        """1, 2, … of ranks with noise of their own, else 0."""
        return dist.get_rank() + 1 if self.per_rank and several_ranks() else 0

    def state_dict(self) -> dict:
        states = {key: generator.get_state() for key, generator in self._generators.items()}
        facts = {"seed": self.seed, "draws": dict(self.draws), "rank": self._rank()}
        return {**facts, "generators": {**self._saved, **states}}

    def load_state_dict(self, state: dict) -> None:
        self.__init__(state["seed"], self.per_rank)
        self.draws |= state.get("draws", {})
        if state.get("rank", self._rank()) == self._rank():
            self._saved = dict(state["generators"])
