"""Is the posterior healthy? A few numbers from the optimizer's state, computed only when asked for."""

from typing import Protocol

import torch
from torch import Tensor

MOVED = 0.01  # h counts as moved when it left h₀ by 1 %
DRIFT = 2.0  # mean variance that changes by this factor early on: the start was wrong (Cong et al. 2024, appendix)
NOISY = 4.0  # σ of this many times the typical weight drowns it


class GaussianOptimizer(Protocol):
    """An optimizer that holds a Gaussian, such as :class:`ivon_lora_lite.IVON`."""

    param_groups: list[dict]
    state: dict
    debias: bool
    skipped_steps: int

    def mean(self, p: Tensor) -> Tensor: ...

    def variance(self, p: Tensor) -> Tensor: ...


def ivon_diagnostics(optimizer: GaussianOptimizer) -> dict[str, float]:
    """Summary of an IVON optimizer's posterior; one pass over its state, which waits for an accelerator.

    Returns:
        ``sigma_mean``: mean posterior standard deviation σ; ``variance_drift``: mean v now / at the start;
        ``snr_p10, snr_p50, snr_p90``: quantiles of |m|/σ; ``clipped``: share of coordinates whose update hits the clip
        radius; ``update_p10, update_p50, update_p90``: quantiles of |ḡ + δm|/(h + δ), the update before it is clipped:
        a clip radius of ``update_p90`` clips a tenth; ``hess_p10, hess_p50, hess_p90``: quantiles of h;
        ``hess_moved``: share of h that left h₀ by 1 %;
        ``kl``: KL[q ‖ N(0, v₀)] in nats, with v₀ = 1/(λδ), or mean(m² + v) per group where δ = 0 (flat prior);
        ``noise_to_weight``: root-mean-square σ / root-mean-square m over all coordinates;
        ``skipped_steps``.
    """
    sigma, snr, hess, updates, clipped, moved, drift, kl = [], [], [], [], [], [], [], 0.0
    power = torch.zeros(2, dtype=torch.float64)  # Σ v, Σ m²
    for group in optimizer.param_groups:
        delta, members = group["weight_decay"], [p for p in group["params"] if p.requires_grad]
        if not members:
            continue
        v = torch.cat([optimizer.variance(p).flatten() for p in members])
        m = torch.cat([optimizer.mean(p).flatten() for p in members]).to(v.dtype)
        states = [optimizer.state[p] for p in members]
        h = torch.cat([s["hess"].flatten() for s in states])
        update = torch.cat([_update(s, group, optimizer.debias).flatten() for s in states]) + delta * m
        update = (update / (h + delta)).abs()
        sigma.append(v.sqrt())
        snr.append(m.abs() / v.sqrt())
        hess.append(h)
        updates.append(update)
        clipped.append(update >= group["clip_radius"])
        moved.append((h / group["hess_init"] - 1).abs() > MOVED)
        drift.append(v * group["ess"] * (group["hess_init"] + delta))
        power += torch.stack([v.sum(), m.square().sum()]).double().cpu()
        prior = 1 / (group["ess"] * delta) if delta else float((m.square() + v).mean())
        kl += float(0.5 * ((m.square() + v) / prior - 1 - (v / prior).log()).sum())
    if not sigma:
        return {"skipped_steps": float(optimizer.skipped_steps)}
    return {
        "sigma_mean": _mean(sigma),
        "variance_drift": _mean(drift),
        **_quantiles("snr", snr),
        "clipped": _mean(clipped),
        **_quantiles("update", updates),
        **_quantiles("hess", hess),
        "hess_moved": _mean(moved),
        "kl": kl,
        "noise_to_weight": float((power[0] / power[1]).sqrt()),
        "skipped_steps": float(optimizer.skipped_steps),
    }


def advice(diagnostics: dict[str, float]) -> list[str]:
    """Sentences on what the heuristics of Cong et al. (2024) say about λ and h₀; empty if nothing is amiss.

    Meant for the first steps of a run: the mean variance should stay near its start, and the noise should not drown
    the weights that it perturbs.
    """
    return list(advice_by_topic(diagnostics).values())


def advice_by_topic(diagnostics: dict[str, float]) -> dict[str, str]:
    """The same by topic, for those who want to say each thing once."""
    out = {}
    drift = diagnostics.get("variance_drift", 1.0)
    if not 1 / DRIFT < drift < DRIFT:
        better = "smaller" if drift > 1 else "larger"
        out["drift"] = (
            f"The mean posterior variance is {drift:.2g} times its start: hess_init is far from the Hessian. "
            f"Try a {better} hess_init."
        )
    if diagnostics.get("noise_to_weight", 0.0) > NOISY:
        out["noise"] = (
            f"The noise σ is {diagnostics['noise_to_weight']:.1f} times as large as the weights: "
            "training may not learn through it. Try a larger ess or hess_init."
        )
    if diagnostics.get("skipped_steps", 0.0):
        out["skipped"] = f"{diagnostics['skipped_steps']:.0f} steps were skipped for gradients that were not finite."
    return out


def _update(state: dict, group: dict, debias: bool) -> Tensor:
    steps = max(state["step"], 1)
    return state["momentum"] / (1 - group["beta1"] ** steps if debias else 1.0)


def _flat(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """One tensor, on the GPU if there is one: a CPU takes about a second to sort millions of numbers."""
    place = tensors[0].device if tensors[0].is_cuda else "cpu"
    return torch.cat([t.to(place, dtype) for t in tensors])


def _mean(tensors: list[Tensor]) -> float:
    return float(_flat(tensors, torch.float64).mean())


def _quantiles(name: str, tensors: list[Tensor]) -> dict[str, float]:
    values = _flat(tensors, torch.float32).sort().values  # torch.quantile stops at 2**24
    return {f"{name}_p{q}": float(values[min(int(q / 100 * len(values)), len(values) - 1)]) for q in (10, 50, 90)}
