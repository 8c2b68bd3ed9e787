"""Staged training: W becomes diag(W, W), so that the function *and* the next step are kept (Shen et al., ICML 2022).

Biases, norms and embeddings are copied, the final norm is copied and divided by the ratio g. Gradients inside are
then 1/g of what they were, so optimizer state that is a gradient is divided by g, a squared one by g^2. Depth as the
coarsening says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models.axes import Merge, Param, Params, Resize, Rule, depth_axis, expand
from mlrun.models.base import Model
from mlrun.models.parametrization import STANDARD
from mlrun.multilevel.coarsening.base import inexact
from mlrun.multilevel.growth.base import Context, Growth, layers_to_copy, one_stack

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.config.load import Config
    from mlrun.plan.stages import Level
    from mlrun.train.snapshot import Snapshot

WIDTHS = ("embed", "ffn", "head", "kv_head")
# The power of 1/g that a tensor takes, by what it is.
POWERS: Mapping[Rule, int] = {"weight": 0, "gradient": 1, "square": 2}


@dataclass(frozen=True)
class Staged(Growth):
    """All width axes grow by one ratio, or none does."""

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.multilevel import operators, transfer
        from mlrun.train.snapshot import STEP, Snapshot

        assert level.resize is not None
        deep, placement = level.resize.depth_only(), context.ranks.placement
        coarse = transfer.completed(coarse, level.model.params(), context.carried)
        tensors = {}
        for kind, (params, rule) in transfer.moving(coarse, level.model.params(), context.carried).items():
            small = placement.gathering(coarse.tensors[kind])
            wide = placement.shard_all(_widened(small, params, rule, level.model, level.resize))
            grown = operators.iter_decoalesce(placement.gathering(wide), params, deep, rule=rule)
            tensors[kind] = placement.shard_all(grown)
        if context.carried and (counts := transfer.counts_up(coarse, level.model.params(), deep)):
            tensors[STEP] = counts
        return Snapshot(tensors, coarse.optimizer_steps if context.carried else 0)

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        present = [axis for axis in WIDTHS if axis in resize.fine]
        merges = [resize.merges[axis] for axis in present if axis in resize.merges]
        ratios = {len(group) for merge in merges for group in merge.groups}
        found = one_stack(model, "staged") + layers_to_copy(resize, "staged")
        if merges and (len(merges) < len(present) or len(ratios) > 1):
            allowed = f"one ratio for {', '.join(present)}"
            found.append(
                mistake("growth", "staged", allowed, "diag(W, W) needs as many copies of inputs as of outputs")
            )
        return found

    def remarks(self, config: Config, resize: Resize) -> list[str]:
        if not any(axis in resize.merges for axis in WIDTHS):
            return []
        name, given = type(config.optimizer).__name__, config.model.parametrization
        why = [f"{name} moves a matrix as a whole, not each copied block as before"] * config.optimizer.whole_matrices
        why += [f"{given} has other rates at each width"] * (given != STANDARD)
        return [f"staged keeps the function, but not the next step: {line}" for line in why]

    def inexact(self, resize: Resize, post_norm: bool) -> list[str]:
        return inexact(resize, post_norm)


def _widened(
    state: Mapping[str, Tensor], params: Params, rule: Rule, model: Model, resize: Resize
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a kind at the fine width and the coarse depth."""
    merges = resize.width_only().merges
    ratio = len(merges["embed"].groups[0]) if "embed" in merges else 1
    final, coarse = _after_blocks(model), dict(resize.coarse)
    for template, param in params.items():
        scale = ratio ** -POWERS[rule] if template not in final else 1.0
        if template in _final_norm(model) and rule == "weight":
            scale = 1 / ratio
        for name, _ in expand({template: param}, coarse if depth_axis(template) else resize.fine):
            yield name, _diagonal(state[name], param, resize, merges) * scale


def _final_norm(model: Model) -> set[str]:
    """Return the tensors of the norm in front of the head."""
    part = "transform.norm" if "transform" in model.parts() else "norm"
    return {f"{part}.weight", f"{part}.bias"} & set(model.params())


def _after_blocks(model: Model) -> set[str]:
    """Return the tensors whose gradients growing leaves as they were: the final norm, and biases of the outputs.

    A tied table or an untied head reads the halved norm, so its gradient is 1/g as those inside are.
    """
    return _final_norm(model) | {n for n, p in model.params().items() if not any(f.role for f in p.factors)}


def _diagonal(tensor: Tensor, param: Param, resize: Resize, merges: Mapping[str, Merge]) -> Tensor:
    """Return the tensor copied along every merged axis, and zero where its output and input copies differ."""
    import torch

    x = tensor.reshape(param.factored(resize.coarse))
    copies = []
    for dim, factor in enumerate(param.factors):
        if factor.role and factor.axis in merges:
            merge = merges[factor.axis]
            x = x.index_select(dim, torch.tensor(merge.coarse_of, device=x.device))
            place = [merge.groups[merge.coarse_of[unit]].index(unit) for unit in range(merge.fine)]
            shape = [-1 if d == dim else 1 for d in range(x.ndim)]
            copies.append(torch.tensor(place, device=x.device).reshape(shape))
    if len(copies) == 2:
        x = x * (copies[0] == copies[1])
    return x.reshape(param.shape({**resize.coarse, **{axis: m.fine for axis, m in merges.items()}})).clone()
