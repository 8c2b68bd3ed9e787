"""What a stage trains on where that is more than the network's own loss."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class StageLoss(nn.Module):
    """Its forward pass turns a batch into the loss. It holds the network, and may freeze parameters of it.

    partial: a step leaves some parameters without a gradient, and not always the same.
    """

    partial: ClassVar[bool] = False

    def at_step(self, step: int) -> None:
        """Prepare a step of the run, before it is taken."""
