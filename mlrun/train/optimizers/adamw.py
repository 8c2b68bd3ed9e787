"""AdamW over a network's parameters, and its moments as plain {name: tensor} for the operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlrun.config import Optimizer
from mlrun.train.parallel.placement import like

MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(net: nn.Module, spec: Optimizer) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019), fused; only tensors of two or more dims decay."""
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def moments(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Return ({moment: {parameter name: tensor}}, steps taken); empty before the first step.

    Parameters that never had a gradient are left out. Where some had fewer than others (layers that learn in
    turn) a kind `step` holds each one's count.
    """
    states = {name: optimizer.state[p] for name, p in net.named_parameters() if p in optimizer.state}
    taken = {int(state["step"].item()) for state in states.values()}
    kinds = (*MOMENTS, "step") if len(taken) > 1 else MOMENTS
    tensors = {kind: {name: s[kind] for name, s in states.items()} for kind in kinds} if states else {}
    return tensors, max(taken, default=0)


def load_moments(
    net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Mapping[str, Tensor]], taken: int
) -> None:
    """Give the optimizer the moments of `moments`, copied to where, and as, the parameters are held."""
    for name, p in net.named_parameters():
        if name not in tensors[MOMENTS[0]]:
            continue
        step = float(tensors["step"][name] if "step" in tensors else taken)
        state = {kind: like(p, tensors[kind][name]) for kind in MOMENTS}
        optimizer.state[p] = {"step": torch.tensor(step, device=p.device), **state}
