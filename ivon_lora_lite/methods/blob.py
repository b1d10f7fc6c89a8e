"""BLoB: Bayes by backpropagation on LoRA's A, whose variances are parameters of their own (Wang et al. 2024).

    q(A) = N(M, diag Ω²),  Ω = G ∘ G;  B is a point.   Loss per question:  E_q[−log p(y|x)] + β/N · KL[q ‖ N(0, σ_p² I)]

IVON gets its variances from a curvature that it estimates on the way; here they are trained like weights, which doubles
the number of trained values in A. β = 1 is the ELBO. The paper trains G by gradients of the whole loss; its public
scripts give the KL to an SGD of its own, so what its weight is there depends on that optimizer. Here M and B belong to
AdamW, G to an Adam with a learning rate of its own, and β is a setting to be chosen.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..evaluation import predict
from ..language import Question, Task, format_named
from ..posterior import GaussianPosterior, lora_layers, trainable
from ..training import Beside, Run, finetune
from .base import Bench, Method, Result, numbers_per_weight


class Owners:
    """Which question of a batch every token belongs to, so that questions can have noise of their own."""

    def __init__(self):
        self.places: list[tuple[Tensor, Tensor]] = []
        self.kept: Tensor | None = None
        self.shape: tuple[int, int] = (0, 0)

    def see(self, model: nn.Module, batch: dict, format: str) -> None:
        """Take over a batch before the forward pass."""
        kind = format_named(format)
        self.places, self.kept, self.shape = (
            kind.tokens(model, batch),
            kind.kept(model, batch),
            kind.shape(model, batch),
        )

    def of(self, x: Tensor) -> tuple[Tensor, int]:
        """The number of the question, for all tokens of a layer's input ``[rows, L, d]``, and how many there are."""
        owner = torch.zeros(self.shape, dtype=torch.long)
        for number, (rows, tokens) in enumerate(self.places):
            owner[rows.cpu(), tokens.cpu()] = number
        if x.shape[1] != owner.shape[1]:  # a layer that runs at some positions only, as the output layer does
            owner = owner[:, self.kept.cpu()]
        return owner.to(x.device), len(self.places)


def flipout(x: Tensor, noise: Tensor, owner: Tensor, signs_in: Tensor, signs_out: Tensor) -> Tensor:
    """x (E ∘ r sᵀ)ᵀ with signs of their own for every question: noise that is shared, and yet decorrelated.

    (Wen et al. 2018.) E has independent symmetric entries, so E ∘ r sᵀ has the same distribution for all signs.

    Args:
        x: ``[rows, L, d_in]``.
        noise: E ``[d_out, d_in]``.
        owner: ``[rows, L]``, the question of every token.
        signs_in, signs_out: s ``[B, d_in]`` and r ``[B, d_out]``, ±1.

    Returns:
        ``[rows, L, d_out]``.
    """
    return functional.linear(x * signs_in[owner], noise) * signs_out[owner]


def gaussian_kl(mean: Tensor, sigma: Tensor, prior_sigma: float) -> Tensor:
    """KL[N(m, diag σ²) ‖ N(0, σ_p² I)] in nats; differentiable."""
    ratio = sigma / prior_sigma
    return (0.5 * ((mean / prior_sigma).square() + ratio.square() - 1) - ratio.log()).sum()


@dataclass(frozen=True)
class BlobSettings:
    """How BLoB's variances are trained.

    Attributes:
        prior_sigma: σ_p of the prior over A.
        start: ε; G starts uniform in [ε/√2, ε], so Ω in [ε²/2, ε²].
        kl_weight: β; 1 is the ELBO.
        noise_lr: Adam's learning rate of G, decaying linearly to 0.
    """

    prior_sigma: float = 0.2
    start: float = 0.2
    kl_weight: float = 1e-3
    noise_lr: float = 2e-3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected a finite number above 0.")

    @contextmanager
    def attach(self, model: nn.Module, seed: int) -> Iterator["BlobTraining"]:
        """Within the context every forward pass of training has A's noise; it yields what trains the variances."""
        training = BlobTraining(model, self, seed)
        hooks = training.hook()
        try:
            yield training
        finally:
            for hook in hooks:
                hook.remove()


class BlobTraining(Beside):
    """A's noise in the forward passes of training, and the Adam of its size.

    Attributes:
        g: name of A → G.
        history: one dict per log, with the mean σ and the KL.
    """

    def __init__(self, model: nn.Module, settings: BlobSettings, seed: int):
        self.settings, self.owners = settings, Owners()
        self.generator = torch.Generator().manual_seed(seed)
        names = {id(p): name for name, p in trainable(model).items()}
        self.modules = {names[id(pair.a.weight)]: pair.a for pair in lora_layers(model).values()}
        self.g = {name: self._start(module.weight) for name, module in self.modules.items()}
        self.noise: dict[str, tuple[Tensor, ...]] = {}
        self.history: list[dict] = []
        self.questions = 1
        super().__init__(torch.optim.Adam(self.g.values(), lr=settings.noise_lr))

    def _start(self, weight: Tensor) -> Tensor:
        uniform = torch.rand(weight.shape, generator=self.generator)
        start = self.settings.start * (2**-0.5 + (1 - 2**-0.5) * uniform)
        return start.to(weight.device).requires_grad_()

    def see(self, model: nn.Module, batch: dict, format: str) -> None:
        """A new batch gets new noise; a second pass over it (gradient checkpointing) meets the same."""
        self.owners.see(model, batch, format)
        self.noise = {}

    def hook(self) -> list:
        def perturb(name: str, module: nn.Linear, args: tuple, out: Tensor) -> Tensor:
            return out + self.perturbation(name, args[0]).to(out.dtype) if module.training else out

        return [
            module.register_forward_hook(lambda m, args, out, name=name: perturb(name, m, args, out))
            for name, module in self.modules.items()
        ]

    def perturbation(self, name: str, x: Tensor) -> Tensor:
        """What a draw of A adds to A x, with Flipout: ``[rows, L, r]``."""
        g = self.g[name]
        owner, count = self.owners.of(x)
        if name not in self.noise:
            epsilon = torch.randn(g.shape, generator=self.generator)
            signs = (torch.randint(2, (count, n), generator=self.generator) * 2.0 - 1 for n in (g.shape[1], g.shape[0]))
            self.noise[name] = tuple(t.to(g.device) for t in (epsilon, *signs))
        epsilon, signs_in, signs_out = self.noise[name]
        return flipout(x, g.square() * epsilon, owner, signs_in, signs_out)

    def kl(self) -> Tensor:
        """KL[q(A) ‖ prior] in nats, over all layers."""
        pairs = ((module.weight, self.g[name].square()) for name, module in self.modules.items())
        return sum(gaussian_kl(mean, sigma, self.settings.prior_sigma) for mean, sigma in pairs)

    def penalty(self, step: int, steps: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.noise_lr * (1 - step / steps)
        return self.settings.kl_weight / self.questions * self.kl()

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.questions = len(train_dataloader.dataset)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            with torch.no_grad():
                sigma = torch.cat([g.square().flatten() for g in self.g.values()]).mean()
                self.history.append(
                    {"step": state.global_step, "blob_sigma": float(sigma), "blob_kl": float(self.kl())}
                )

    def finish(self, run: Run) -> Run:
        """The run with its Gaussian over A."""
        variance = {name: g.detach().square().square().float().cpu() for name, g in self.g.items()}
        points = sorted(run.weights.keys() - variance.keys())
        facts = {"method": "blob", "points": points, "task": run.config["task"], "seed": run.config["seed"]}
        posterior = GaussianPosterior(dict(run.weights), variance, facts)
        history = sorted([*run.history, *self.history], key=lambda record: record["step"])
        config = {**run.config, "method": "blob", "blob": asdict(self.settings)}
        return replace(run, posterior=posterior, config=config, history=history)


def blob(model: nn.Module, task: Task | Sequence[Question], **options) -> Run:
    """Finetune with BLoB: a Gaussian over A trained by backpropagation, with B a point.

    Args:
        model: with plain LoRA on linear layers.
        task: a task, or training questions.
        options: of :class:`BlobSettings` and of :func:`finetune`.

    Returns:
        A :class:`Run` whose :class:`GaussianPosterior` has no variance for B.

    Raises:
        ValueError: a setting is out of its range; the model's LoRA is not plain pairs of matrices.
    """
    names = {f.name for f in fields(BlobSettings)}
    settings = BlobSettings(**{name: value for name, value in options.items() if name in names})
    options = {name: value for name, value in options.items() if name not in names}
    return finetune(model, task, optimizer="adamw", attachments=[settings], **options)


def _make(bench: Bench) -> Result:
    run = blob(bench.model, bench.task, **bench.training())
    predictions = predict(run, bench.questions, samples=bench.settings.samples, progress=bench.progress)
    floats = numbers_per_weight(run.posterior, run)
    return Result(predictions, run, {"train": run.seconds}, floats, bench.settings.samples)


def _mean(bench: Bench) -> Result:
    return Result(predict(bench.run, bench.questions, progress=bench.progress))


BLOB = Method("blob", "BLoB", "BLoB: draws from a Gaussian over A that backpropagation trained", _make)
BLOB_MEAN = Method("blob@mean", "BLoB@mean", "BLoB at the mean of its posterior", _mean, stands_on="blob")
