"""The receipt of a transfer: what it kept of the function, measured on one batch before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlrun.errors import UserError
from mlrun.plan.stages import Level
from mlrun.train.parallel.placement import REPLICATED, Placement

# Largest relative logit change that float32 rounding explains where the function is kept exactly.
TOLERANCE = 1e-4


@torch.no_grad()
def loss_and_logits(
    level: Level,
    weights: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    device: torch.device,
    placement: Placement = REPLICATED,
) -> tuple[float, Tensor]:
    """Return (loss, logits) of a model on one batch from one forward pass, in float32 without autocast."""
    net = placement.network(level.model, weights, device).eval()
    here = {key: value.to(device) for key, value in batch.items()}
    loss, logits = net.loss_and_logits(here)
    return float(loss), logits.float().cpu()


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return max |after - before| / max |before| over all logits."""
    return float((after - before).abs().max() / before.abs().max())


def receipt(
    operator: str,
    alpha: float | None,
    level: Level,
    measured: tuple[tuple[float, Tensor], tuple[float, Tensor], float],
) -> dict[str, Any]:
    """Return the record of a transfer between `level` and the coarser one.

    `measured` are (loss, logits) before and straight after the operator, and the loss after the interpolation.

    Raises:
        UserError: the operator promises to keep the function and did not.
    """
    assert level.resize is not None
    (before, logits_before), (grown, logits_grown), after = measured
    exact = operator == "decoalesce" and not level.inexact
    change = relative_change(logits_before, logits_grown)
    if exact and not change <= TOLERANCE:
        line = f"decoalesce to level {level.number} changed the logits by {change:.2e} of their largest"
        remedy = "report this as a bug, or say why in `inexact` of a growing method of your own"
        raise UserError(f"{line}; {TOLERANCE:.0e} is allowed where the function is kept exactly: {remedy}")
    return {
        "operator": operator,
        "alpha": alpha,
        "loss_before": before,
        "loss_operator": grown,
        "loss_after": after,
        "relative_logit_change": change,
        "exact": exact,
        "tolerance": TOLERANCE if exact else None,
    }
