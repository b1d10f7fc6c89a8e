"""Jacobians of answer logits in LoRA's weights, question by question.

A LoRA factor W is a linear layer. With its input x_t and the gradient g_ct of logit f_c at its output at token t,
∂f_c/∂W = Σ_t g_ct x_tᵀ. A question's tokens do not attend to another question, so one forward and C backward passes
give the gradients of all questions of a batch. Only inputs and output gradients of LoRA's own layers are needed, so
the frozen base may be 16-bit or quantised.

``laplace-torch`` and ``curvlinops`` are not used: they take the first dimension of a layer's input for the number of
examples, but a packed row (format ``text``) holds many questions, whose C logits come from many positions each.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..language import Question, answer_logits, evaluating, format_named
from ..posterior import applied_weights, lora_linears
from .prediction import Batches

Factors = dict[str, tuple[Tensor, Tensor]]  # name → inputs x [T, in], gradients g [C, T, out]
Visit = Callable[[int, Tensor, Factors], None]


def jacobian(factors: Factors) -> dict[str, Tensor]:
    """∂f/∂W of every factor, name → ``[C, out, in]``."""
    return {name: torch.einsum("cto,ti->coi", g, x) for name, (x, g) in factors.items()}


def pulled_back(residual: Tensor, factors: Factors) -> dict[str, Tensor]:
    """Σ_c r_c ∂f_c/∂W of every factor, name → ``[out, in]``, for r ``[C]``: the chain rule from f to the weights."""
    return {name: torch.einsum("c,cto,ti->oi", residual, g, x) for name, (x, g) in factors.items()}


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
    Σ_t g_ct x_tᵀ. The model is left unchanged.

    Args:
        model: with LoRA, and nothing else trainable.
        weights: name → LoRA weights to be at.
        questions: N questions.
        visit: what to call, in any order of questions.
        format, batch_size, progress: as in :func:`predict`.

    Raises:
        ValueError: there are no questions, something else than LoRA's A and B is trainable, or one of them is applied
            twice, not at all, or not to every token.
    """
    modules, batches = lora_linears(model), Batches(model, questions, format, batch_size)
    with evaluating(model), applied_weights(model, weights), torch.inference_mode(False), torch.enable_grad():
        for index, batch in batches.each("gradients", progress):
            _visit_batch(model, batch, index, modules, visit, format)


def _visit_batch(
    model: nn.Module, batch: dict, index: list[int], modules: dict[str, nn.Linear], visit: Visit, format: str
) -> None:
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def see(module: nn.Module, args: tuple, out: Tensor) -> None:
        if module in seen:
            raise ValueError("A LoRA layer is used twice in one forward pass: its Jacobian is not known, use draws.")
        seen[module] = (args[0].detach(), out)

    hooks = [module.register_forward_hook(see) for module in modules.values()]
    try:
        f = answer_logits(model, batch, format)  # [B, C]
    finally:
        for hook in hooks:
            hook.remove()
    if f.isnan().any() or (f == torch.inf).any():
        raise FloatingPointError("The model's answer logits are not finite: its weights are broken.")
    kind = format_named(format)
    rows, length = kind.shape(model, batch)
    for name, module in modules.items():
        if module not in seen or (x := seen[module][0]).dim() != 3 or len(x) != rows:
            raise ValueError(f"{name} is not applied to every token of a batch: its Jacobian is not known, use draws.")
    outputs = [seen[module][1] for module in modules.values()]
    # a question's tokens do not attend to another question: one backward pass gives the gradients of the whole batch
    grads = [torch.autograd.grad(c[c.isfinite()].sum(), outputs, retain_graph=True) for c in f.unbind(1)]
    kept = kind.kept(model, batch)
    for b, (own_rows, tokens) in enumerate(kind.tokens(model, batch)):
        choices = range(int(f[b].isfinite().sum()))
        factors = {}
        for k, (name, module) in enumerate(modules.items()):
            x, places = seen[module][0], (own_rows, tokens)
            if x.shape[1] != length:  # the output layer, which runs at some positions only
                own, column = (tokens[:, None] == kept.to(tokens.device)).nonzero(as_tuple=True)
                places = (own_rows[own], column)
            g = torch.stack([grads[c][k][places] for c in choices]).float()  # [C, T, out]
            factors[name] = (x[places].float(), g)
        visit(index[b], f[b, : len(choices)].detach(), factors)
