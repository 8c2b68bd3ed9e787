"""From one level to the next: the operator on weights and optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, takewhile

import torch
from torch import Tensor

from mlrun import own
from mlrun.errors import UserError, mistake
from mlrun.models.axes import Params, Resize, Rule, at_depth, depth_axis, expand
from mlrun.models.base import Model
from mlrun.multilevel import operators
from mlrun.plan.stages import Level
from mlrun.train.parallel.placement import REPLICATED, Placement, local, rewrapped
from mlrun.train.snapshot import STEP, Snapshot

Operator = Callable[..., Iterator[tuple[str, Tensor]]]


def coalesce(fine: Snapshot, level: Level, carried: Mapping[str, Rule], placement: Placement = REPLICATED) -> Snapshot:
    """Return the model of the next coarser level; `carried` is the optimizer state that goes along, with its rules.

    A moving average starts anew from the weights. Tensor by tensor: a process never holds more than its share of both
    models and the tensors that make one.
    """
    return _moved(operators.iter_coalesce, counts_down, fine, level, carried, placement)


def decoalesce(
    coarse: Snapshot, level: Level, carried: Mapping[str, Rule], placement: Placement = REPLICATED
) -> Snapshot:
    """Return the coarse model on `level`, the next finer one, before any interpolation; as `coalesce` does."""
    return _moved(operators.iter_decoalesce, counts_up, coarse, level, carried, placement)


def _moved(
    operator: Operator,
    counts: Callable[[Snapshot, Params, Resize], dict[str, Tensor]],
    start: Snapshot,
    level: Level,
    carried: Mapping[str, Rule],
    placement: Placement,
) -> Snapshot:
    assert level.resize is not None
    start = completed(start, level.model.params(), carried)
    tensors = {
        kind: placement.shard_all(operator(placement.gathering(start.tensors[kind]), params, level.resize, rule=rule))
        for kind, (params, rule) in moving(start, level.model.params(), carried).items()
    }
    if carried and (counted := counts(start, level.model.params(), level.resize)):
        tensors[STEP] = counted
    return Snapshot(tensors, start.optimizer_steps if carried else 0)


def counts_down(fine: Snapshot, params: Params, resize: Resize) -> dict[str, Tensor]:
    """Return the counts of steps of the coarse tensors; empty where those of the fine ones are alike.

    A count says how much of an average over steps is there yet. The averages of merged layers become their mean, so
    the count does too, in whole steps: the largest would take a new layer's small averages for grown ones, the least
    the grown ones for small. A layer that is kept as it is keeps its own; so does one to which others add what they
    did beside it (depth_scale "identity").
    """
    counts, made = fine.tensors.get(STEP, {}), {}
    for template in _counted(params, counts):
        merge = operators.depth_merge(template, resize)
        for unit, group in enumerate(merge.groups):
            members = group[:1] if merge.keep == "first" or resize.depth_scale == "identity" else group
            merged = [float(counts[at_depth(template, member)]) for member in members]
            made[at_depth(template, unit)] = torch.tensor(float(round(sum(merged) / len(merged))))
    return made


def counts_up(coarse: Snapshot, params: Params, resize: Resize) -> dict[str, Tensor]:
    """Return the counts of steps of the fine tensors; empty where they are those of all.

    Each copy has that of its layer. One whose averages begin as zeros (depth_scale "identity") begins at step 0.
    """
    counts, anew = coarse.tensors.get(STEP, {}), resize.depth_scale == "identity"
    if anew and not counts:
        counts = {name: torch.tensor(float(steps)) for name, steps in _counts(coarse).items()}
    merges = {template: operators.depth_merge(template, resize) for template in _counted(params, counts)}
    return {
        at_depth(template, unit): counts[at_depth(template, c)] * (not anew or unit == merge.groups[c][0])
        for template, merge in merges.items()
        for unit, c in enumerate(merge.coarse_of)
    }


def _counted(params: Params, counts: Mapping[str, Tensor]) -> list[str]:
    return [template for template in params if at_depth(template, 0) in counts]


def completed(snapshot: Snapshot, params: Params, carried: Mapping[str, Rule]) -> Snapshot:
    """Return the snapshot with zeros, at step 0, for the state that new layers lack after a stage without steps."""
    zeros: dict[str, dict[str, Tensor]] = {}
    for kind in (kind for kind in carried if kind in snapshot.tensors):
        there = snapshot.tensors[kind]
        for names in (_layers(template, snapshot.weights) for template in params):
            if not there.keys().isdisjoint(names):
                new = {name: torch.zeros_like(snapshot.weights[name]) for name in names if name not in there}
                zeros.setdefault(kind, {}).update(new)
    anew = dict.fromkeys((name for named in zeros.values() for name in named), 0)
    if not anew:
        return snapshot
    counts = {name: torch.tensor(float(steps)) for name, steps in (_counts(snapshot) | anew).items()}
    filled = {kind: named | zeros.get(kind, {}) for kind, named in snapshot.tensors.items()}
    return Snapshot(filled | {STEP: counts}, snapshot.optimizer_steps)


def _layers(template: str, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a template's tensors, one where it has no depth."""
    if depth_axis(template) is None:
        return [template]
    return list(takewhile(weights.__contains__, (at_depth(template, layer) for layer in count())))


def moving(snapshot: Snapshot, params: Params, carried: Mapping[str, Rule]) -> dict[str, tuple[Params, Rule]]:
    """Return what goes through an operator: by kind the parameters that have a tensor of it, and the rule."""
    found: dict[str, tuple[Params, Rule]] = {"weights": (params, "weight")}
    for kind in carried:
        if kind in snapshot.tensors:
            having = {t: p for t, p in params.items() if at_depth(t, 0) in snapshot.tensors[kind]}
            found[kind] = having, carried[kind]
    return found


def whole(grown: Snapshot, model: Model, method: str) -> None:
    """Raise UserError unless what a growing method returned has the tensors of the model, in their shapes, alone."""
    sizes, wrong = model.sizes(), []
    shapes = {name: param.shape(sizes) for name, param in expand(model.params(), sizes)}
    for kind, named in grown.tensors.items():
        for name in sorted({*named, *(shapes if kind == "weights" else ())}):
            if name not in named or name not in shapes:
                wrong.append(f"{kind} {'with' if name in named else 'without'} {name}")
            elif not isinstance(named[name], Tensor):
                wrong.append(f"{kind} whose {name} is {own.kind(named[name])}")
            elif kind != STEP and tuple(named[name].shape) != shapes[name]:
                wrong.append(f"{kind} whose {name} is {list(named[name].shape)} and not {list(shapes[name])}")
    if wrong:
        given, more = f"a Snapshot from {method}.grow", f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        allowed = f"the tensors of {type(model).__name__} at the finer level"
        raise UserError(mistake("growth", given, allowed, f"it has {wrong[0]}{more}: correct what it returns"))


def interpolate(kept: Snapshot, grown: Snapshot, alpha: float) -> Snapshot:
    """Return (1 - alpha) * kept + alpha * grown, for what both have; of shards, each process its own.

    State that only the grown model has stays as it is: none is there yet of a new layer, or of a level that took no
    step.
    """
    tensors = {
        kind: named | _blended({n: t for n, t in kept.tensors.get(kind, {}).items() if n in named}, named, alpha)
        for kind, named in grown.tensors.items()
        if kind != STEP
    }
    counts = _blended_counts(kept, grown, alpha)
    if len({*counts.values()}) <= 1:
        return Snapshot(tensors, max(counts.values(), default=grown.optimizer_steps))
    return Snapshot(tensors | {STEP: {n: torch.tensor(float(c)) for n, c in counts.items()}}, max(counts.values()))


def _blended_counts(kept: Snapshot, grown: Snapshot, alpha: float) -> dict[str, int]:
    """Return the count of steps of each tensor's state: of a blend of averages it is their mean (see `counts_down`)."""
    before = _counts(kept)
    return {
        name: steps if name not in before else round((1 - alpha) * before[name] + alpha * steps)
        for name, steps in _counts(grown).items()
    }


def _counts(snapshot: Snapshot) -> dict[str, int]:
    """Return the count of steps of each tensor that the optimizer has state of."""
    counted = snapshot.tensors.get(STEP, {})
    kinds = (named for kind, named in snapshot.tensors.items() if kind not in ("weights", "ema", STEP))
    return {n: int(counted[n]) if n in counted else snapshot.optimizer_steps for named in kinds for n in named}


def _blended(kept: Mapping[str, Tensor], grown: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    was, now = ({name: local(tensors[name]) for name in kept} for tensors in (kept, grown))
    return {name: rewrapped(kept[name], t) for name, t in operators.interpolate(was, now, alpha).items()}
