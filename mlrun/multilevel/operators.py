"""Coalesce, decoalesce and interpolate: pure functions from {name: tensor} to new tensors.

The units of an axis merge in groups of any size g (arXiv 2404.07999, section 3, has g = 2 throughout):

    going up       copy    every member gets the coarse value
                   split   every member gets the coarse value / g
                   once    the first member gets the coarse value, the others are zero
                   first   as once
    going down     of copy the mean of the members (`Merge.keep == "first"`: the first member)
                   of split and once the sum of the members
                   of first the first member

so that coalesce(decoalesce(x)) == x always. A dim that produces an axis (`.out`) copies, one that consumes
it (`.in`) splits: a consumer of g equal units then computes what it did, so width keeps the function
exactly. `keep="first"` changes only what a coarse unit *is*; its consumers still sum, as if all members
were the first.

Depth is a merge too. Layers copy. With depth_scale "ode" the `residual` parameters (the step of the ODE)
split; with "identity" they go up once, so that the other copies of a layer add nothing at first.

Optimizer state that is a gradient (a momentum, Adam's `exp_avg`) obeys the dual rule. With u = D w (decoalesce)
and f(D w) = f_coarse(w), the chain rule says grad_w = D^T grad_u, and grad_u is equal on equal units. So what
copies in the weights splits in the gradients and the reverse: for width exactly, for "ode" to first order in the
step. "identity" is dual alike: a layer whose residual projection is zero has no gradient inside. What the gradient
of that projection is nobody knows, as it reads what the layers below it do: its state starts at zero. Depth "copy"
does not keep the function; each copy sits on the residual stream where the coarse layer sat, so its gradients
copy as well. Of a squared gradient (Adam's `exp_avg_sq`) the rule is applied to the root, then squared.

Every step is a gather, a sum over groups or a repeat: the cost is proportional to the parameters. Half
precision is computed in float32 and rounded once. Inputs never change, and no output shares memory with an
input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mlrun.errors import UserError, mistake, nearest
from mlrun.models.axes import Group, Merge, Param, Params, Resize, Rule, Sizes, at_depth, depth_axis, expand
from mlrun.models.seeds import seed_of
from mlrun.plan.stages import alpha_problems

State = Mapping[str, Tensor]
Kind = Literal["copy", "split", "once", "first"]


# The operators


def coalesce(state: State, params: Params, resize: Resize, *, rule: Rule = "weight") -> dict[str, Tensor]:
    """Return the tensors of the next coarser level; raises UserError as `check` does."""
    check(state, params, resize.fine)
    return dict(iter_coalesce(state, params, resize, rule=rule))


def decoalesce(state: State, params: Params, resize: Resize, *, rule: Rule = "weight") -> dict[str, Tensor]:
    """Return the tensors of the next finer level; raises UserError as `check` does."""
    check(state, params, resize.coarse)
    return dict(iter_decoalesce(state, params, resize, rule=rule))


def interpolate(kept: State, grown: State, alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) * kept + alpha * grown; 0 and 1 give the one and the other bit by bit.

    Raises UserError if alpha is outside [0, 1] or names, shapes or dtypes differ.
    """
    return dict(iter_interpolate(kept, grown, alpha))


def iter_coalesce(
    state: State, params: Params, resize: Resize, *, rule: Rule = "weight"
) -> Iterator[tuple[str, Tensor]]:
    """Check all names, then return an iterator of (name, tensor), which reads each tensor when it is needed.

    A wrong shape raises UserError when that tensor is reached.
    """
    _raise(_name_problems(state, params, resize.fine))
    return _coalesce(state, params, resize, rule)


def iter_decoalesce(
    state: State, params: Params, resize: Resize, *, rule: Rule = "weight"
) -> Iterator[tuple[str, Tensor]]:
    """Do as `iter_coalesce`, upwards; the tensor of a layer is read once per copy."""
    _raise(_name_problems(state, params, resize.coarse))
    return _decoalesce(state, params, resize, rule)


def iter_interpolate(kept: State, grown: State, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """Check alpha and the names, then return an iterator of (name, tensor); see `interpolate`."""
    _raise(alpha_problems("alpha", alpha))
    _raise([f"tensor {name}: not in the grown model" for name in kept if name not in grown])
    _raise([f"tensor {name}: not in the kept model" for name in grown if name not in kept])
    return ((name, _blend(name, kept[name], grown[name], alpha)) for name in kept)


def check(state: State, params: Params, sizes: Sizes) -> None:
    """Raise UserError, a line for each tensor that is missing, unknown or of a wrong shape or dtype."""
    problems = _name_problems(state, params, sizes)
    for name, param in expand(params, sizes):
        if name in state:
            problems += _shape_problems(name, state[name], param, sizes)
    _raise(problems)


# Breaking and measuring the symmetry between copies


def noise(state: State, params: Params, resize: Resize, scale: float, seed: int) -> dict[str, Tensor]:
    """Return a decoalesced state with noise that keeps the function (as HyperCloning, arXiv 2409.12903).

    A matrix that consumes a merged width axis gets normal noise that sums to zero over the members of each
    group (+N and -N for pairs). The members have one value, so the noise cancels, but their gradients differ.
    `scale` is the noise's standard deviation over that of the tensor. Vectors, tables and producers stay as
    they are. The state must come straight from `decoalesce`: between copies that differ nothing cancels.
    """
    return dict(iter_noise(state, params, resize, scale, seed))


def iter_noise(state: State, params: Params, resize: Resize, scale: float, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Check scale and names, then return an iterator of (name, tensor), as `iter_coalesce` does; see `noise`."""
    if not scale >= 0:
        raise UserError(mistake("noise", scale, "a number of at least 0", "0 means none"))
    _raise(_name_problems(state, params, resize.fine))
    tensors = ((name, _read(name, state, param, resize.fine), param) for name, param in expand(params, resize.fine))
    return ((name, _noised(name, tensor, param, resize, scale, seed)) for name, tensor, param in tensors)


def similarity(state: State, params: Params, resize: Resize) -> dict[str, float]:
    """Return {tensor: mean cosine between the units of a group} of a fine state; 1 means equal copies.

    A unit's vector is its slice of the tensor along the merged `.out` axis. Tensors whose units are single
    numbers have no angle and are left out, as are groups with a zero vector.
    """
    _raise(_name_problems(state, params, resize.fine))
    tensors = ((name, _read(name, state, param, resize.fine), param) for name, param in expand(params, resize.fine))
    found = ((name, _cosine(tensor, param, resize)) for name, tensor, param in tensors)
    return {name: cosine for name, cosine in found if cosine is not None}


# Depth


def _coalesce(state: State, params: Params, resize: Resize, rule: Rule) -> Iterator[tuple[str, Tensor]]:
    for template, param in params.items():
        merge = depth_merge(template, resize)
        for unit, group in enumerate(merge.groups):
            names, kind = [at_depth(template, member) for member in group], _depth_kind(param, resize, rule)
            if kind == "first" or (kind == "copy" and merge.keep == "first"):
                names = names[:1]
            yield at_depth(template, unit), _merged(names, state, param, resize, rule)


def _decoalesce(state: State, params: Params, resize: Resize, rule: Rule) -> Iterator[tuple[str, Tensor]]:
    for template, param in params.items():
        merge = depth_merge(template, resize)
        for unit in range(merge.fine):
            source = at_depth(template, merge.coarse_of[unit])
            group = merge.groups[merge.coarse_of[unit]]
            yield at_depth(template, unit), _grown(source, unit, group, state, param, resize, rule)


def depth_merge(template: str, resize: Resize) -> Merge:
    """Return how the layers of a template merge; a parameter without depth is one layer."""
    axis = depth_axis(template)
    if axis is not None and axis in resize.merges:
        return resize.merges[axis]
    return Merge(tuple((unit,) for unit in range(1 if axis is None else resize.fine[axis])))


def _depth_kind(param: Param, resize: Resize, rule: Rule) -> Kind:
    if resize.depth_scale == "identity" and rule != "weight":
        return "first" if param.residual else "once"
    if resize.depth_scale == "copy" or param.residual != (rule == "weight"):
        return "copy"
    return "split" if resize.depth_scale == "ode" else "once"


@torch.no_grad()
def _merged(names: Sequence[str], state: State, param: Param, resize: Resize, rule: Rule) -> Tensor:
    """Return the mean or the sum over the named layers, each narrowed to the coarse width."""
    total, dtype = _narrowed(names[0], state, param, resize, rule)
    for name in names[1:]:
        total.add_(_narrowed(name, state, param, resize, rule)[0])
    if _depth_kind(param, resize, rule) == "copy" and len(names) > 1:
        total.div_(len(names))
    return (total.square() if rule == "square" else total).to(dtype)


@torch.no_grad()
def _grown(source: str, unit: int, group: Group, state: State, param: Param, resize: Resize, rule: Rule) -> Tensor:
    """Return layer `unit` of the fine model from the coarse layer `source`, widened."""
    tensor, kind = _read(source, state, param, resize.coarse), _depth_kind(param, resize, rule)
    if kind in ("once", "first") and unit != group[0]:
        return tensor.new_zeros(param.shape(resize.fine))
    x = _work(tensor, rule).reshape(param.factored(resize.coarse))
    if kind == "split" and len(group) > 1:
        x = x / len(group)
    # The last dim first: it is the slow one to gather along, and the tensor is still small.
    for dim, merge, wide in reversed(list(_steps(param, resize, rule))):
        if wide == "split":
            x = x / _counts(x, dim, merge)
        x = x.index_select(dim, torch.tensor(merge.coarse_of, device=x.device))
    x = _own(x.reshape(param.shape(resize.fine)), tensor)
    return (x.square() if rule == "square" else x).to(tensor.dtype)


# Width


def _narrowed(name: str, state: State, param: Param, resize: Resize, rule: Rule) -> tuple[Tensor, torch.dtype]:
    """Return one fine tensor narrowed to the coarse width, in the working dtype, and its own dtype."""
    tensor = _read(name, state, param, resize.fine)
    x = _work(tensor, rule).reshape(param.factored(resize.fine))
    for dim, merge, kind in _steps(param, resize, rule):
        x = _down(x, dim, merge, kind)
    return _own(x.reshape(param.shape(resize.coarse)), tensor), tensor.dtype


def _steps(param: Param, resize: Resize, rule: Rule) -> Iterator[tuple[int, Merge, Kind]]:
    """Yield (factored dim, merge, kind) for each merged width axis of a parameter."""
    for dim, factor in enumerate(param.factors):
        if factor.role and factor.axis in resize.merges:
            copies = (factor.role == "out") == (rule == "weight")
            yield dim, resize.merges[factor.axis], "copy" if copies else "split"


def _down(x: Tensor, dim: int, merge: Merge, kind: Kind) -> Tensor:
    if kind == "copy" and merge.keep == "first":
        return _take(x, dim, [group[0] for group in merge.groups])
    total = _sum(x, dim, merge)
    return total.div_(_counts(x, dim, merge)) if kind == "copy" else total


def _sum(x: Tensor, dim: int, merge: Merge) -> Tensor:
    """Return the sum over each group along `dim`, one member at a time, as a new tensor."""
    total = _take(x, dim, [group[0] for group in merge.groups]).clone()
    for member in range(1, max(map(len, merge.groups))):
        units = [unit for unit, group in enumerate(merge.groups) if len(group) > member]
        part = _take(x, dim, [merge.groups[unit][member] for unit in units])
        if len(units) == merge.coarse:
            total.add_(part)
        else:
            total.index_add_(dim, torch.tensor(units, device=x.device), part)
    return total


def _take(x: Tensor, dim: int, index: Sequence[int]) -> Tensor:
    """Return x at `index` along `dim`: a view (faster) when the index is evenly spaced, else a copy."""
    step = index[1] - index[0] if len(index) > 1 else 1
    if step > 0 and list(index) == list(range(index[0], index[0] + step * len(index), step)):
        return x[(slice(None),) * dim + (slice(index[0], index[-1] + 1, step),)]
    return x.index_select(dim, torch.tensor(index, device=x.device))


def _counts(x: Tensor, dim: int, merge: Merge) -> Tensor | int:
    """Return the group sizes: a number if all are equal, else a tensor that broadcasts along `dim`."""
    if merge.equal_groups:
        return len(merge.groups[0])
    counts = torch.tensor([len(group) for group in merge.groups], dtype=x.dtype, device=x.device)
    return counts.reshape([-1 if d == dim else 1 for d in range(x.dim())])


# One tensor


def _read(name: str, state: State, param: Param, sizes: Sizes) -> Tensor:
    tensor = state[name]
    _raise(_shape_problems(name, tensor, param, sizes))
    return tensor.detach()


def _work(tensor: Tensor, rule: Rule) -> Tensor:
    """Return the tensor in the dtype of the arithmetic; of squares, the root."""
    x = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return x.sqrt() if rule == "square" else x


def _own(x: Tensor, source: Tensor) -> Tensor:
    """Return x contiguous, with memory of its own."""
    x = x.contiguous()
    return x.clone() if x.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() else x


@torch.no_grad()
def _blend(name: str, kept: Tensor, grown: Tensor, alpha: float) -> Tensor:
    if (kept.shape, kept.dtype) != (grown.shape, grown.dtype):
        was, now = (f"{tuple(t.shape)} {t.dtype}" for t in (kept, grown))
        raise UserError(f"tensor {name}: {was} in the kept model, {now} in the grown one; they must agree")
    if alpha in (0, 1):
        return (grown if alpha == 1 else kept).detach().clone()
    return (_work(kept, "weight") * (1 - alpha) + _work(grown, "weight") * alpha).to(kept.dtype)


@torch.no_grad()
def _noised(name: str, tensor: Tensor, param: Param, resize: Resize, scale: float, seed: int) -> Tensor:
    """Return the tensor plus noise that cancels; the noise depends on the seed and the name alone."""
    steps = [(dim, merge) for dim, merge, kind in _steps(param, resize, "weight") if kind == "split"]
    consumed = [(dim, merge) for dim, merge in steps if merge.coarse < merge.fine]
    if scale == 0 or len(param.dims) < 2 or not consumed:
        return tensor.detach().clone()
    dim, merge = consumed[0]
    x = _work(tensor.detach(), "weight").reshape(param.factored(resize.fine))
    generator = torch.Generator().manual_seed(seed_of(f"{seed}:{name}"))
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    means = _down(z, dim, Merge(merge.groups), "copy")
    z = z - means.index_select(dim, torch.tensor(merge.coarse_of, device=z.device))
    z = z * (scale * float(x.std()) / z.std().clamp_min(torch.finfo(z.dtype).tiny))
    return (x + z).reshape(tensor.shape).to(tensor.dtype)


@torch.no_grad()
def _cosine(tensor: Tensor, param: Param, resize: Resize) -> float | None:
    """Return the mean cosine over the pairs of each group and over the merged `.out` axes, or None.

    With unit vectors u_i and their sum s over a group, the cosines of all ordered pairs sum to |s|^2 - g.
    """
    found = []
    x = _work(tensor.detach(), "weight").reshape(param.factored(resize.fine))
    for dim, merge, kind in _steps(param, resize, "weight"):
        rows = x.movedim(dim, 0).flatten(1) if x.dim() > 1 else x[:, None]
        if kind == "split" or rows.shape[1] < 2:
            continue
        norms = rows.norm(dim=1, keepdim=True)
        total = _sum(rows / norms, 0, merge).square().sum(1)
        sizes = torch.tensor([len(group) for group in merge.groups], device=x.device)
        cosines = (total - sizes) / (sizes * (sizes - 1))
        found.append(cosines[cosines.isfinite()])
    values = torch.cat(found) if found else x.new_zeros(0)
    return float(values.mean()) if len(values) else None


# Problems


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise UserError(problems)


def _name_problems(state: State, params: Params, sizes: Sizes) -> list[str]:
    names = {name for name, _ in expand(params, sizes)}
    missing = [f"tensor {name}: missing; the model needs it" for name in sorted(names - set(state))]
    unknown = [
        f"tensor {name}: the model has no such tensor{nearest(name, sorted(names))}"
        for name in sorted(set(state) - names)
    ]
    return missing + unknown


def _shape_problems(name: str, tensor: Tensor, param: Param, sizes: Sizes) -> list[str]:
    shape = param.shape(sizes)
    if tuple(tensor.shape) != shape:
        given = tuple(tensor.shape)
        return [f"tensor {name}: shape {given}, but the model has {shape} ({', '.join(param.dims)})"]
    if not tensor.is_floating_point():
        return [f"tensor {name}: dtype {tensor.dtype}, but weights are floating point"]
    return []
