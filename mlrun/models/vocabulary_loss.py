"""Cross-entropy of a wide head without all of its logits: a chunk of the rows at a time, its gradients at once.

As in "Liger Kernel: Efficient Triton Kernels for LLM Training" (Hsu et al. 2024, arXiv 2410.10989), section 3.2: no
product is computed twice, so the FLOPs are those of the plain loss. Shapes as in `mlrun.models.modules`; N is rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mlrun.models.base import IGNORED

# Logits beyond which the plain loss is left: 128 MiB in float32.
WHOLE = 2**25
# Logits of one chunk, at least: 16 MiB in float32.
CHUNK = 2**22
# The same for a processor. From 32 MiB on its memory is asked for, and zeroed, anew in each step; chunks below that
# are not, which takes 10 to 40% less time for the head (docs/performance.md).
PAGED = 2**23


def is_wide(x_NE: Tensor, weight_VE: Tensor) -> bool:
    """Return whether the logits of a training step are better not held at once."""
    logits = len(x_NE) * len(weight_VE)
    paged = x_NE.device.type == "cpu" and logits >= PAGED and not torch.compiler.is_compiling()
    return torch.is_grad_enabled() and (logits > WHOLE or paged)


@torch.compiler.disable
def total(x_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
    """Return the sum of the cross-entropies over the labels, a scalar, at least in float32.

    A compiler would unroll the chunks into one long graph; their products are single calls anyway.
    """
    return _Chunked.apply(x_NE, weight_VE, bias_V, labels_N)


class _Chunked(torch.autograd.Function):
    """The gradients of the sum are made going forward, and multiplied by the incoming one going back."""

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
        """Sum over chunks; keep the gradients of what needs one."""
        given, needed = (x_NE, weight_VE, bias_V), ctx.needs_input_grad[:3]
        grads = [torch.zeros_like(t) if need and t is not None else None for t, need in zip(given, needed, strict=True)]
        grad_x, *of_head = grads
        # Cast once, not once a chunk.
        x_NE, weight_VE = (t.to(_precision(t)) for t in (x_NE, weight_VE))
        rows = rows_of_a_chunk(x_NE, weight_VE)
        parts = [slice(first, first + rows) for first in range(0, len(x_NE), rows)]
        # One tensor for all: small ones that live between chunks would break up the memory that chunks leave free.
        sums = x_NE.new_empty(len(parts), dtype=torch.promote_types(x_NE.dtype, torch.float32))
        for number, part in enumerate(parts):
            own = [None if grad_x is None else grad_x[part], *of_head]
            sums[number] = _chunk(x_NE[part], weight_VE, bias_V, labels_N[part], own)
        ctx.save_for_backward(*grads)
        return sums.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients; labels have none."""
        return *(None if kept is None else kept * grad.to(kept.dtype) for kept in ctx.saved_tensors), None


def rows_of_a_chunk(x_NE: Tensor, weight_VE: Tensor) -> int:
    """Return how many rows are taken at a time: as many logits as there are hidden values, as Liger does, or `CHUNK`.

    Each chunk goes once through the whole gradient of the weight, so many small ones would only move memory.
    """
    return max(1, max(CHUNK, x_NE.numel()) // len(weight_VE))


def _chunk(
    x_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, labels_N: Tensor, grads: list[Tensor | None]
) -> Tensor:
    """Return the sum of a chunk; write the gradient of its rows, and add to those of weight and bias."""
    grad_x, grad_weight, grad_bias = grads
    loss, delta_NV = _loss_and_delta(F.linear(x_NE, weight_VE), bias_V, labels_N)
    if grad_bias is not None:
        grad_bias += delta_NV.sum(0)
    # The products in the precision of the forward one; their sums in the weight's own.
    delta_NV = delta_NV.to(x_NE.dtype)
    if grad_x is not None:
        grad_x.copy_(delta_NV @ weight_VE)
    if grad_weight is not None and grad_weight.dtype == delta_NV.dtype:
        # In place; the method that is in place escapes FlopCounterMode.
        torch.addmm(grad_weight, delta_NV.T, x_NE, out=grad_weight)
    elif grad_weight is not None:
        grad_weight += delta_NV.T @ x_NE
    return loss


def _loss_and_delta(product_NV: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropies and its gradient by the logits, softmax - one in the rows with a label."""
    logits_NV = product_NV if bias_V is None else product_NV + bias_V
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    counted_N1, word_N1 = (labels_N != IGNORED)[:, None], labels_N[:, None].clamp(min=0)
    most_N1, own_N1 = logits_NV.amax(-1, keepdim=True), logits_NV.gather(1, word_N1)
    # In place, and one exponential for both: beside the products, passes over all logits are what the loss costs.
    delta_NV = logits_NV.sub_(most_N1).exp_()
    sum_N1 = delta_NV.sum(-1, keepdim=True)
    loss = (sum_N1.log() + most_N1 - own_N1).masked_fill(~counted_N1, 0).sum()
    delta_NV *= counted_N1 / sum_N1
    return loss, delta_NV.scatter_add_(1, word_N1, -counted_N1.to(delta_NV.dtype))


def _precision(tensor: Tensor) -> torch.dtype:
    """Return what products of a tensor are computed in here."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
