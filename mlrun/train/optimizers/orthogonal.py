"""Steps along the orthogonalised momentum of matrices (Jordan et al. 2024), matrices of one shape at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

# The polynomial that brings singular values near 1 soonest, not closest (Jordan et al. 2024).
A, B, C = 3.4445, -4.7750, 2.0315
# Numbers orthogonalised at a time: small matrices do not wait for one another, and what is held beside them is little.
# A processor is slower at a batch of matrices than at one after the other where they are large.
MOST_AT_A_TIME = {"cpu": 2**17, "cuda": 2**24}
# No norm is divided by less.
SMALLEST = 1e-7


class Orthogonal(torch.optim.Optimizer):
    """What torch.optim.Muon (from torch 2.9) computes with `adjust_lr_fn="match_rms_adamw"`, many matrices at once.

    `matrices` may be groups with settings of their own, as torch's optimizers take them.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor] | Sequence[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
    ) -> None:
        given = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, given | {"nesterov": nesterov, "ns_steps": ns_steps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            updates = self._momentum(moved, group["momentum"], group["nesterov"])
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            for alike in _alike(moved):
                found = _together([updates[i] for i in alike], group["ns_steps"])
                size = group["lr"] * rms_of_adamw(found[0].shape)
                torch._foreach_add_([moved[i] for i in alike], found, alpha=-size)

    def _momentum(self, moved: Sequence[Tensor], momentum: float, nesterov: bool) -> Sequence[Tensor]:
        """Return the averaged gradients, with a look ahead where asked for."""
        for p in moved:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        kept = [self.state[p]["momentum_buffer"] for p in moved]
        gradients = [p.grad for p in moved if p.grad is not None]
        torch._foreach_lerp_(kept, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, kept, momentum) if nesterov else kept


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Return about U V^T of an n x m matrix U S V^T, in bfloat16, by so many iterations of Newton and Schulz.

    Of many, over a dimension before these two.
    """
    product = torch.addmm if matrices.dim() == 2 else torch.baddbmm
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST)
    for _ in range(steps):
        gram = x @ x.mT
        x = product(x, product(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


def _together(updates: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Return each update's orthogonal matrix, in the update's own precision."""
    if len(updates) == 1:
        return [orthogonal(updates[0], steps).to(updates[0].dtype)]
    return list(orthogonal(torch.stack(list(updates)), steps).to(updates[0].dtype))


def rms_of_adamw(shape: Iterable[int]) -> float:
    """Return what makes a step of an orthogonal matrix as large as AdamW's (Liu et al. 2025, arXiv 2502.16982)."""
    return 0.2 * math.sqrt(max(shape))


def _alike(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield positions of matrices of one shape, dtype and device, as many as are moved at a time."""

    def kind(i: int) -> tuple[str, str, tuple[int, ...]]:
        return matrices[i].device.type, str(matrices[i].dtype), tuple(matrices[i].shape)

    for (device, *_), found in groupby(sorted(range(len(matrices)), key=kind), key=kind):
        alike = list(found)
        most = max(1, MOST_AT_A_TIME.get(device, 0) // matrices[alike[0]].numel())
        yield from (alike[i : i + most] for i in range(0, len(alike), most))
