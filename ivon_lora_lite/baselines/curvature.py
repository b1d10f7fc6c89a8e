"""The generalised Gauss-Newton matrix of the answer head over LoRA's weights: its diagonal, or Kronecker factors of it.

A question's loss is the cross-entropy of its C answer logits f. With the Jacobian J = ∂f/∂θ and p = softmax f,

    H = Σ_n J_nᵀ Λ_n J_n,   Λ = diag p − p pᵀ = L Lᵀ,   L = diag √p − p √pᵀ

which is the Fisher information too. A LoRA factor W (a linear layer with input x_t and output gradient g_t at token t)
has ∂(Lᵀf)_k/∂W = Σ_t g_kt x_tᵀ =: M_k. Only inputs and output gradients of LoRA's own linear layers are needed, so the
frozen base may be 16-bit or quantised.

``laplace-torch`` and ``curvlinops`` are not used: they take the first dimension of a layer's input for the number of
examples, but a packed row (format ``text``) holds many questions, whose C logits come from many positions each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..linearization import _spans
from ..posterior import applied_weights, trainable
from ..prediction import Batches
from ..scoring import answer_logits
from ..stacking import _layers
from ..tasks import Question

__all__ = ["diagonal_ggn", "kronecker_ggn", "lora_linears", "visit_gradients"]

Factors = dict[str, tuple[Tensor, Tensor]]  # name → inputs x [T, in], gradients g [C, T, out]
Visit = Callable[[int, Tensor, Factors], None]


def diagonal_ggn(
    model: nn.Module, weights: Mapping[str, Tensor], questions: Sequence[Question], **options
) -> dict[str, Tensor]:
    """diag H = Σ_n Σ_k M_k², name → ``[out, in]``; arguments as of :func:`visit_gradients`."""
    total: dict[str, Tensor] = {}

    def add(_: int, f: Tensor, factors: Factors) -> None:
        root = _root(f)
        for name, (x, g) in factors.items():
            square = torch.einsum("kto,ti->koi", _mix(root, g), x).square().sum(0)
            total[name] = total[name] + square if name in total else square

    visit_gradients(model, weights, questions, add, **options)
    return total


def kronecker_ggn(
    model: nn.Module, weights: Mapping[str, Tensor], questions: Sequence[Question], per: str = "token", **options
) -> dict[str, tuple[Tensor, Tensor]]:
    """H_l ≈ B_l ⊗ A_l for every LoRA factor: name → (A ``[in, in]``, B ``[out, out]``).

    Args:
        model, weights, questions, options: as of :func:`visit_gradients`.
        per: ``"token"`` is KFAC as usual, with every token an example of its own (Martens & Grosse 2015; "expand" of
            Eschenhagen et al. 2023):  A = Σ x xᵀ, B = Σ g gᵀ / number of tokens. ``"question"`` takes the gradients
            of whole questions:  A = Σ MᵀM, B = Σ M Mᵀ / tr A, the factors of Shampoo, one power iteration from the
            nearest Kronecker product (Morwani et al. 2024). Its trace is that of H, and it is H wherever H is a
            Kronecker product.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    tokens = 0

    def add(_: int, f: Tensor, factors: Factors) -> None:
        nonlocal tokens
        root = _root(f)
        for name, (x, g) in factors.items():
            g = _mix(root, g)
            if per == "question":
                m = torch.einsum("kto,ti->koi", g, x)
                a, b = m.flatten(0, 1).T @ m.flatten(0, 1), torch.einsum("koi,kpi->op", m, m)
            else:
                a, b = x.T @ x, g.flatten(0, 1).T @ g.flatten(0, 1)
            inputs[name] = inputs[name] + a if name in inputs else a
            outputs[name] = outputs[name] + b if name in outputs else b
        tokens += len(x)

    visit_gradients(model, weights, questions, add, **options)
    if per == "question":
        counts = {name: a.trace().clamp(min=torch.finfo(a.dtype).tiny) for name, a in inputs.items()}
    else:
        counts = dict.fromkeys(inputs, tokens)
    return {name: (a, outputs[name] / counts[name]) for name, a in inputs.items()}


def visit_gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    questions: Sequence[Question],
    visit: Visit,
    *,
    format: str = "text",
    batch_size: int = 8,
    progress: bool = False,
) -> None:
    """Call ``visit(index, f, factors)`` once per question: one forward and C backward passes per batch.

    ``f`` are its answer logits ``[C]``; ``factors`` has, for every LoRA factor, the inputs ``[T, in]`` at the
    question's own tokens and the gradients ``[C, T, out]`` of every logit at the outputs, in fp32. ∂f_c/∂W is then
    Σ_t g_ct x_tᵀ. The model is as it was afterwards.

    Args:
        model: with LoRA, and nothing else trainable.
        weights: name → LoRA weights to be at.
        questions: N questions.
        visit: what to call, in any order of questions.
        format, batch_size, progress: as in :func:`predict`.

    Raises:
        ValueError: there are no questions, or something else than LoRA's A and B is trainable.
    """
    from tqdm.auto import tqdm

    if not questions:
        raise ValueError("There are no questions to take the curvature at.")
    batches, modules = Batches(model, questions, format, batch_size), lora_linears(model)
    training = model.training
    model.eval()
    try:
        with applied_weights(model, weights), torch.inference_mode(False), torch.enable_grad():
            pairs = list(zip(batches.indices, batches.batches))
            for index, batch in tqdm(pairs, desc="gradients", leave=False, disable=not progress):
                _visit_batch(model, batch, index, modules, visit)
    finally:
        model.train(training)


def lora_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """LoRA's A and B as modules, under the names of :func:`trainable`.

    Raises:
        ValueError: something else is trainable too.
    """
    found = _layers(model)
    odd = sorted(name for name in trainable(model) if name not in found or ".lora_" not in name)
    if odd or not found:
        raise ValueError(
            f"Only LoRA's A and B of linear layers may be trainable here, not {odd[0] if odd else 'none'}."
        )
    return found


def _visit_batch(model: nn.Module, batch: dict, index: list[int], modules: dict[str, nn.Linear], visit: Visit) -> None:
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.__setitem__(module, (args[0].detach(), out)))
        for module in modules.values()
    ]
    try:
        f = answer_logits(model, batch)  # [B, C]
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [seen[module][1] for module in modules.values()]
    # a question's tokens do not attend to another question: one backward pass gives the gradients of the whole batch
    grads = [
        torch.autograd.grad(f[:, c][f[:, c].isfinite()].sum(), outputs, retain_graph=True) for c in range(len(f[0]))
    ]
    for b, (row, tokens) in enumerate(_own_tokens(batch, len(f))):
        choices = range(int(f[b].isfinite().sum()))
        factors = {}
        for k, (name, module) in enumerate(modules.items()):
            g = torch.stack([grads[c][k][row, tokens] for c in choices]).float()  # [C, T, out]
            factors[name] = (seen[module][0][row, tokens].float(), g)
        visit(index[b], f[b, : len(choices)].detach(), factors)


def _own_tokens(batch: dict, questions: int) -> list[tuple[int, slice]]:
    """Where the tokens of each question are, padding left out: (row, slice)."""
    if "owner" in batch:
        return _spans(batch, questions)
    padding = (batch["attention_mask"] == 0).sum(1).tolist()  # on the left
    return [(b, slice(start, None)) for b, start in enumerate(padding)]


def _root(f: Tensor) -> Tensor:
    """L ``[C, C]`` with L Lᵀ = diag p − p pᵀ at p = softmax f."""
    p = f.softmax(-1)
    return p.sqrt().diag() - torch.outer(p, p.sqrt())


def _mix(root: Tensor, g: Tensor) -> Tensor:
    """Gradients of Lᵀf out of those of f: ``[C, T, out]``."""
    return torch.einsum("ck,cto->kto", root, g)
