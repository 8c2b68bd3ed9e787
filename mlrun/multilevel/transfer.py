"""From one level to the next: the operator on weights and moments, and the parity receipt that proves what it kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mlrun.errors import UserError
from mlrun.multilevel import operators
from mlrun.multilevel.operators import Rule
from mlrun.plan.stages import Level
from mlrun.train.parallel.placement import REPLICATED, Placement, local, rewrapped
from mlrun.train.snapshot import Snapshot

Operator = Callable[..., Iterator[tuple[str, Tensor]]]

# How each kind of tensor goes through an operator. EMA weights start anew from the transferred weights.
RULES: Mapping[str, Rule] = {"weights": "weight", "exp_avg": "gradient", "exp_avg_sq": "square"}

# Largest relative logit change that float32 rounding explains where the function is kept exactly.
TOLERANCE = 1e-4


def coalesce(fine: Snapshot, level: Level, carry: bool, placement: Placement = REPLICATED) -> Snapshot:
    """Return the model of the next coarser level; `carry` sends Adam's moments through the operator too.

    Tensor by tensor: a process never holds more than its share of both models and the tensors that make one.
    """
    return _moved(operators.iter_coalesce, fine, level, carry, placement)


def decoalesce(coarse: Snapshot, level: Level, carry: bool, placement: Placement = REPLICATED) -> Snapshot:
    """Return the coarse model on `level`, the next finer one, before any interpolation; as `coalesce` does."""
    return _moved(operators.iter_decoalesce, coarse, level, carry, placement)


def _moved(operator: Operator, start: Snapshot, level: Level, carry: bool, placement: Placement) -> Snapshot:
    assert level.resize is not None
    params, resize = level.model.params(), level.resize
    tensors = {
        kind: placement.shard_all(operator(placement.gathering(start.tensors[kind]), params, resize, rule=RULES[kind]))
        for kind in _kinds(start, carry)
    }
    return Snapshot(tensors, start.adam_steps if carry else 0)


def interpolate(kept: Snapshot, grown: Snapshot, alpha: float) -> Snapshot:
    """Return (1 - alpha) * kept + alpha * grown, for the kinds that both have; of shards, each process its own."""
    kinds = [kind for kind in grown.tensors if kind in kept.tensors]
    return Snapshot(
        {kind: _blended(kept.tensors[kind], grown.tensors[kind], alpha) for kind in kinds}, grown.adam_steps
    )


def _blended(kept: Mapping[str, Tensor], grown: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    was, now = ({name: local(tensor) for name, tensor in tensors.items()} for tensors in (kept, grown))
    return {name: rewrapped(kept[name], t) for name, t in operators.interpolate(was, now, alpha).items()}


def _kinds(snapshot: Snapshot, carry: bool) -> list[str]:
    return [kind for kind in RULES if kind in snapshot.tensors and (carry or kind == "weights")]


@torch.no_grad()
def loss_and_logits(
    level: Level,
    weights: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    device: torch.device,
    placement: Placement = REPLICATED,
) -> tuple[float, Tensor]:
    """Return (loss, logits) of a model on one batch, in float32 without autocast."""
    net = placement.network(level.model, weights, device).eval()
    here = {key: value.to(device) for key, value in batch.items()}
    return float(net(here)), net.logits(here).float().cpu()


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
        raise UserError(f"{line}; {TOLERANCE:.0e} is allowed where the function is kept exactly: report this as a bug")
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
