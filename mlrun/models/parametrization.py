"""How a tensor's start and its optimizer's settings follow from the sizes of named axes. No torch here.

CompleteP (Dey et al. 2025, arXiv 2505.01618, table 1 with alpha = 1; in width it is muP, Tensor Programs V, arXiv
2203.03466, table 8) makes one learning rate right at every width and depth. With m the ratio of a size to its base, of
what a tensor reads (m_in), of what it makes (m_out), of the depth (m_L) and of head_dim (m_d):

                              start (std)     rate        eps
    tables, vectors           1               1           1 / m_out
    matrices inside           1 / sqrt(m_in)  1 / m_in    1 / m_out
    of a block                                            1 / m_L, beside the above
    weight decay                              1 over the factor of the rate

and three factors in the forward pass: 1 / m_L on what a residual branch adds, 1 / m_in on what a head reads, and 1 / d
in place of 1 / sqrt(d) on the scores (so 1 / sqrt(m_d)). A factor c in front of a weight is the same, for Adam, as none
with its start and rate c times and its eps 1 / c times as large (Tensor Programs V, lemma J.1). So nothing stands in
the forward pass here: a branch's last projection, a head (or the norm in front of a tied one) and what makes queries
have their factor in start, rate and eps. What a model computes with given weights is then the same under every
parametrisation: operators keep what they promise, and exported folders need nothing.

Under Muon a matrix inside has another rate. Its steps are orthogonal, times the root of the larger side to be as large
as Adam's, so their largest singular value grows with that; it should grow as sqrt(m_out / m_in) does (Yang, Simon and
Bernstein 2023, arXiv 2310.17813; with depth: Qiu et al. 2025, arXiv 2512.05620). So the rate's factor is the root of
m_out / m_in / m_max, with m_max the ratio of the larger side. Factors in front are folded as for Adam: the size of a
gradient does not matter to an orthogonal step either.

A T5 has no scale on its scores, so its queries have 1 / m_d. Its decoder reads the encoder's last norm in every layer;
as each layer's branch has 1 / m_L of the decoder's depth, so has what flows back into the encoder. That is ours, and
held by the coordinate check alone.

Two things are not the paper's. The gradient's norm, as clipping sees it, is that of the weights with their factors in
them. And in a post-norm model, which the paper does not have, the norms that the whole residual stream goes through
have the rate 1 / m_L, since their moves add up over the depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlrun.models.axes import Param, Params, Sizes, depth_axis, expand, factors

STANDARD, COMPLETEP = "standard", "completep"


def completep(at_base: Params, sizes: Sizes, base: Sizes) -> dict[str, Param]:
    """Return the parameters of a model of these sizes; `at_base` are those at the base sizes, as declared."""
    return {template: _scaled(template, param, sizes, base) for template, param in at_base.items()}


def _scaled(template: str, param: Param, sizes: Sizes, base: Sizes) -> Param:
    read, made = (_ratio(param, role, sizes, base) for role in ("in", "out"))
    depth = depth_axis(template)
    layers = 1.0 if depth is None else max(sizes[depth], 1) / base[depth]
    matrix = _has(param, "in") and _has(param, "out")
    forward = _forward(param, read, layers, sizes, base)
    start = forward / math.sqrt(read) if matrix else forward
    rate = forward / read if matrix else forward
    orthogonal = forward * math.sqrt(made / read / _larger(param, sizes, base)) if matrix else rate
    stream = param.place == "stream"
    # A head's gradient follows from what it reads alone, and that has the factor 1 / m_in in front.
    eps = 1 / (made if _has(param, "out") or not _has(param, "in") else read) / (1 if stream else layers)
    return replace(
        param,
        mean=param.mean * start,
        std=param.std * start,
        rate=rate / layers if stream else rate,
        eps=eps / forward,
        orthogonal=orthogonal,
    )


def _forward(param: Param, read: float, layers: float, sizes: Sizes, base: Sizes) -> float:
    """Return the factor that the paper has in front of a tensor in the forward pass."""
    if param.residual:
        return 1 / layers
    if param.place.endswith("scores"):
        ratio = base["head_dim"] / sizes["head_dim"]
        return math.sqrt(ratio) if param.place == "scores" else ratio
    return 1 / read if _has(param, "in") and not _has(param, "out") else 1.0


def _larger(param: Param, sizes: Sizes, base: Sizes) -> float:
    """Return how much larger than at the base the larger side of a matrix is."""
    return max(param.shape(sizes)) / max(param.shape(base))


def _has(param: Param, role: str) -> bool:
    return any(factor.role == role for factor in param.factors)


def _ratio(param: Param, role: str, sizes: Sizes, base: Sizes) -> float:
    """Return how much larger than at the base the dims are that have this role."""
    dims = [dim for dim in param.dims if any(factor.role == role for factor in factors(dim))]
    return Param(tuple(dims)).count(sizes) / Param(tuple(dims)).count(base)


def scaled_axes(params: Params) -> tuple[str, ...]:
    """Return the axes whose size a parametrisation looks at: depths, and those of dims that read or make one."""
    found = [depth_axis(template) for template in params]
    for param in params.values():
        for dim in param.dims:
            parts = factors(dim)
            found += [part.axis for part in parts if any(other.role for other in parts)]
    return tuple(sorted({axis for axis in found if axis is not None}))


def rates(params: Params, sizes: Sizes, factor: Callable[[Param], float]) -> list[dict[str, Any]]:
    """Return, for each kind of tensor and each factor on its rate, {kind, rate, parameters}."""
    found: dict[tuple[str, float], int] = {}
    for _, param in expand(params, sizes):
        key = _kind(param), factor(param)
        found[key] = found.get(key, 0) + param.count(sizes)
    return [{"kind": kind, "rate": rate, "parameters": count} for (kind, rate), count in sorted(found.items())]


def _kind(param: Param) -> str:
    """Return what a tensor is, in words for the plan."""
    bias = "" if len(param.dims) > 1 else ", biases"
    if param.residual:
        return f"ends of branches{bias}"
    if param.place:
        return "norms of the stream" if param.place == "stream" else f"queries{bias}"
    if _has(param, "in"):
        return "hidden matrices" if _has(param, "out") else "head"
    return "tables and vectors"
