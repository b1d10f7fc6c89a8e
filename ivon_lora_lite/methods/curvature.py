"""The generalised Gauss-Newton matrix of the answer head over LoRA's weights: its diagonal, or Kronecker factors of it.

A question's loss is the cross-entropy of its C answer logits f. With the Jacobian J = ∂f/∂θ and p = softmax f,

    H = Σ_n J_nᵀ Λ_n J_n,   Λ = diag p − p pᵀ = L Lᵀ,   L = diag √p − p √pᵀ

which is the Fisher information too. A LoRA factor W (a linear layer with input x_t and output gradient g_t at token t)
has ∂(Lᵀf)_k/∂W = Σ_t g_kt x_tᵀ =: M_k.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..evaluation import Factors, visit_gradients
from ..language import Question


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
    model: nn.Module, weights: Mapping[str, Tensor], questions: Sequence[Question], **options
) -> dict[str, tuple[Tensor, Tensor]]:
    """H_l ≈ B_l ⊗ A_l for every LoRA factor: name → (A ``[in, in]``, B ``[out, out]``).

    This is KFAC with every token an example of its own (Martens & Grosse 2015; "expand" of Eschenhagen et al. 2023):
    A = Σ x xᵀ, B = Σ g gᵀ / number of tokens. Arguments as of :func:`visit_gradients`.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}  # a layer may run at the answers' positions only

    def add(_: int, f: Tensor, factors: Factors) -> None:
        root = _root(f)
        for name, (x, g) in factors.items():
            g = _mix(root, g).flatten(0, 1)
            a, b = x.T @ x, g.T @ g
            inputs[name] = inputs[name] + a if name in inputs else a
            outputs[name] = outputs[name] + b if name in outputs else b
            tokens[name] = tokens.get(name, 0) + len(x)

    visit_gradients(model, weights, questions, add, **options)
    return {name: (a, outputs[name] / tokens[name]) for name, a in inputs.items()}


def _root(f: Tensor) -> Tensor:
    """L ``[C, C]`` with L Lᵀ = diag p − p pᵀ at p = softmax f."""
    p = f.softmax(-1)
    return p.sqrt().diag() - torch.outer(p, p.sqrt())


def _mix(root: Tensor, g: Tensor) -> Tensor:
    """Gradients of Lᵀf out of those of f: ``[C, T, out]``."""
    return torch.einsum("ck,cto->kto", root, g)
