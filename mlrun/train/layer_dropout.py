"""Which samples compute which block in a step with layer dropout, drawn from seed and step alone.

The draw is of the whole batch: processes and micro-batches take their rows of it, so that neither changes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlrun.models.modules import Computed
from mlrun.models.network import Network, blocks
from mlrun.models.seeds import seed_of
from mlrun.plan.stages import Stage


class LayerDropout:
    """Tells the blocks of a network, one micro-batch after the other, which rows they compute."""

    def __init__(self, net: Network, stage: Stage, seed: int) -> None:
        assert stage.fade is not None
        self.blocks, self.stage, self.fade, self.seed = blocks(net), stage, stage.fade, seed

    def at_step(self, step: int) -> None:
        """Draw the samples of a step that leave each block out: as many as the plan charges."""
        place = self.stage.place(step)
        left_out = torch.tensor(self.fade.counts(place))
        draw = torch.Generator().manual_seed(seed_of("left out", self.seed, place))
        # The rank of each of B samples in a random order, for each of L blocks.
        rank_LB = torch.rand(len(self.blocks), self.fade.batch, generator=draw).argsort(dim=1).argsort(dim=1)
        self.kept_LB = rank_LB >= left_out[:, None]
        self.scales = [1 / (1 - self.fade.rate(block, place)) for block in range(len(self.blocks))]

    def take(self, first: int, size: int, device: torch.device) -> None:
        """Tell the blocks about the rows of the coming micro-batch, by the global batch."""
        for block, kept_B, scale in zip(self.blocks, self.kept_LB[:, first : first + size], self.scales, strict=True):
            block.computed = Computed(_rows(kept_B, device), scale) if scale > 1 else None


def _rows(kept_B: Tensor, device: torch.device) -> Tensor | None:
    """Return the rows that are kept, None for all."""
    return None if kept_B.all() else kept_B.nonzero().flatten().to(device, non_blocking=True)
