"""LiGO's mapping: Omega_l = sum_j w_lj B_out W_j B_in^T with learned w and B, and how it is learned.

One w per kind of tensor, one B per axis, shared by all layers and tied as in the paper: the matrix that expands
the outputs of an axis also expands the inputs of what consumes it; queries, keys and values have one each, the
attention's output reads the values'. Heads map whole. The input side is divided by the number of copies, so that
the mapping starts at the coarsening's own decoalescing (with a stack coarsening: at stacking).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlrun.models.axes import Merge, Param, at_depth, depth_axis
from mlrun.models.network import Network, build
from mlrun.multilevel.growth.base import Context
from mlrun.plan.stages import Level
from mlrun.train.loop import Batch, autocast, micro_batches
from mlrun.train.memory import fixed


class LearnedMap(nn.Module):
    """Learned w and B over fixed source weights; calling it gives the large model's weights."""

    def __init__(self, level: Level, source: dict[str, Tensor], noise: float, seed: int) -> None:
        super().__init__()
        assert level.resize is not None
        self.params, self.resize = level.model.params(), level.resize
        self.source = source
        self.matrices, self.weights = nn.ParameterDict(), nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        for template, param in self.params.items():
            for axis, _, key in self._steps(template, param):
                self.matrices[key] = nn.Parameter(_copies(self.resize.merges[axis]))
            depth = depth_axis(template)
            if depth is not None and depth in self.resize.merges:
                start = _copies(self.resize.merges[depth])
                jitter = torch.randn(start.shape, generator=generator) * noise
                self.weights[_key(template)] = nn.Parameter(start + jitter)

    def forward(self) -> dict[str, Tensor]:
        """Return {name: tensor} of the large model."""
        return {name: t for template, param in self.params.items() for name, t in self._grown(template, param)}

    def _grown(self, template: str, param: Param) -> list[tuple[str, Tensor]]:
        depth, device = depth_axis(template), next(self.parameters()).device
        layers = [template] if depth is None else [at_depth(template, i) for i in range(self.resize.coarse[depth])]
        x = torch.stack([self.source[name].to(device) for name in layers])
        x = x.reshape(len(layers), *param.factored(self.resize.coarse))
        for place, (axis, role, key) in self._places(template, param):
            merge = self.resize.merges[axis]
            matrix = self.matrices[key]
            if role == "in":
                matrix = matrix / torch.tensor([len(group) for group in merge.groups], device=device)
            x = _along(x, place + 1, matrix)
        shape = param.shape(self.resize.fine)
        if _key(template) in self.weights:
            x = self.weights[_key(template)] @ x.reshape(len(layers), -1)
        names = [template] if depth is None else [at_depth(template, i) for i in range(self.resize.fine[depth])]
        return [(name, tensor.reshape(shape)) for name, tensor in zip(names, x, strict=True)]

    def _places(self, template: str, param: Param) -> list[tuple[int, tuple[str, str, str]]]:
        """Return (factored dim, (axis, role, matrix)) of every axis that grows."""
        return [
            (place, (f.axis, f.role, _matrix(template, f.axis)))
            for place, f in enumerate(param.factors)
            if f.role and f.axis in self.resize.merges
        ]

    def _steps(self, template: str, param: Param) -> list[tuple[str, str, str]]:
        return [step for _, step in self._places(template, param)]


def learn(mapping: LearnedMap, level: Level, context: Context, steps: int, lr: float) -> None:
    """Take AdamW steps on w and B alone. Processes and micro-batches share a batch.

    Without dropout: a few steps on few parameters have nothing to overfit with.
    """
    if steps == 0:
        return
    net = build(level.model, None).to(context.ranks.device).eval()
    optimizer = torch.optim.AdamW(mapping.parameters(), lr=lr, weight_decay=0.0)
    batches = context.batches()
    for done in range(steps):
        context.tell("learning the mapping", done, steps)
        weights = mapping()
        leaves = {name: t.detach().requires_grad_() for name, t in weights.items()}
        _backward(net, leaves, next(batches), context)
        grown = [name for name, t in weights.items() if t.requires_grad]
        grads = [context.ranks.sum(leaves[name].grad) / context.ranks.world for name in grown]
        torch.autograd.backward([weights[name] for name in grown], grads)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _backward(net: Network, leaves: dict[str, Tensor], batch: Batch, context: Context) -> None:
    """Accumulate the gradient of the mean loss over this process's rows."""
    ranks, hardware = context.ranks, context.settings.hardware
    for _, part, weight in micro_batches(net.model, batch, fixed(hardware), ranks):
        context.pause()
        with autocast(hardware, ranks.device):
            loss = functional_call(net, leaves, (part,)) * weight
        loss.backward()


def _copies(merge: Merge) -> Tensor:
    """Return T (fine x coarse), which gives every member its group's value."""
    matrix = torch.zeros(merge.fine, merge.coarse)
    matrix[torch.arange(merge.fine), torch.tensor(merge.coarse_of)] = 1.0
    return matrix


def _along(x: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """Return x with `matrix` (fine x coarse) applied along one dim."""
    moved = x.movedim(dim, 0)
    grown = matrix @ moved.reshape(len(moved), -1)
    return grown.reshape(-1, *moved.shape[1:]).movedim(0, dim)


def _matrix(template: str, axis: str) -> str:
    """Return which B a tensor's axis has."""
    if axis not in ("head", "kv_head"):
        return axis
    module = template.split(".")[-2]
    return f"{axis}_{module}" if module in ("query", "key") else f"{axis}_value"


def _key(template: str) -> str:
    """Return a template as a name that nn.ParameterDict takes."""
    return template.replace(".", "/")
