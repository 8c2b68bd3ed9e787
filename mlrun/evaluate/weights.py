"""The weights of a network that is measured, whole and apart from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mlrun.models.network import Network

if TYPE_CHECKING:
    from mlrun.evaluate.base import Context


def whole(net: Network, context: Context) -> dict[str, Tensor]:
    """Return copies on the CPU, whole where they are sharded; all processes call it."""
    gather = context.ranks.placement.gather
    return {name: gather(tensor).detach().to("cpu", copy=True) for name, tensor in net.state_dict().items()}


class Whole(nn.Module):
    """A network whose call gives loss and logits."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.net.loss_and_logits(batch)
