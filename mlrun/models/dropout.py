"""Dropout and stochastic depth as torch modules, and the masks that they draw.

Masks come from torch's own generator, so that fused kernels, compiled code and recomputed activations know them. It is
set anew for every micro-batch from what the run knows anyway: a resumed run needs no state of a generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlrun.models import layers
from mlrun.models.axes import Sizes
from mlrun.models.seeds import seed_of


def seed_masks(seed: int, step: int, rank: int, first: int) -> None:
    """Make the next masks a function of the run's seed, the step, the process and the micro-batch's first row."""
    number = seed_of("dropout", seed, step, rank, first)
    # `torch.manual_seed` looks for every kind of device, which takes milliseconds; this takes one or two microseconds.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)  # of this process's device


class Dropout(nn.Module):
    """Drop single values."""

    def __init__(self, layer: layers.Dropout, sizes: Sizes) -> None:
        super().__init__()
        self.rate = layer.rate

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, self.training)


class DropPath(nn.Module):
    """Drop whole samples, the rows of the first dim."""

    def __init__(self, layer: layers.DropPath, sizes: Sizes) -> None:
        super().__init__()
        self.drops = layer.rate > 0
        if self.drops:
            # A tensor, so that blocks of different rates share one compiled graph; a constant, so no buffer: a single
            # number on the processor goes with tensors of any device, whatever is done to the module's own.
            self.kept = torch.tensor(1 - layer.rate, dtype=torch.float64, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if not (self.drops and self.training):
            return x
        rows = torch.rand(len(x), *(1,) * (x.dim() - 1), device=x.device) < self.kept
        return x * (rows / self.kept).to(x.dtype)
