"""What every architecture is: axis sizes, declared parts, and how the parts make logits and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from mlrun.axes import Param, Sizes
from mlrun.errors import mistake
from mlrun.layers import Flops, Layer

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.network import Network

    Batch = Mapping[str, Tensor]

Objective = Literal["causal", "mlm", "image", "span"]

# A matmul has one product going forward and two coming back: for its input and for its weight.
TRAIN = 3
# The first projection's input is data and needs no gradient.
TRAIN_ON_DATA = 2

# Above any axis of any model; listing the units of a longer one would take all memory.
LARGEST = 2**22


@dataclass(frozen=True)
class Model(ABC):
    """An architecture at one size. Its fields are settings; those named in `axes` are axis sizes.

    No torch at import: `forward` uses the built parts and the methods of their tensors.
    """

    axes: ClassVar[tuple[str, ...]]
    objective: ClassVar[Objective]

    @abstractmethod
    def parts(self) -> Mapping[str, Layer]:
        """Return the declared top-level parts by attribute name."""

    @abstractmethod
    def forward(self, net: Network, batch: Batch) -> Tensor:
        """Return the logits of a batch, computed with the built parts in `net`."""

    @abstractmethod
    def flops(self, sequence: int, targets: int) -> Flops:
        """Return the matmul and attention FLOPs of one sample's forward and backward pass.

        `sequence` tokens are read and the head runs on `targets` of them (span: the decoder's length).
        Equal to `FlopCounterMode` with the math attention.
        """

    def head_flops(self, rows: int, outputs: int) -> int:
        """Return the training FLOPs of projecting `rows` hidden states onto `outputs` words or classes."""
        return TRAIN * 2 * rows * self.sizes()["embed"] * outputs

    def sizes(self) -> dict[str, int]:
        """Return the size of every axis."""
        return {axis: getattr(self, axis) for axis in self.axes}

    def resize(self, sizes: Sizes) -> Self:
        """Return the same architecture with other axis sizes; KeyError for an axis that it has not."""
        unknown = set(sizes) - set(self.sizes())
        if unknown:
            raise KeyError(f"{type(self).__name__} has no axis {', '.join(sorted(unknown))}")
        resized = replace(self, **{axis: sizes[axis] for axis in self.axes if axis in sizes})
        assert self.sizes() | dict(sizes) == resized.sizes(), "an axis that follows from others was resized"
        return resized

    def params(self) -> dict[str, Param]:
        """Return every learned tensor by its name in the state dict, depth as `{layer}`."""
        parts = self.parts().items()
        return {f"{part}.{name}": param for part, layer in parts for name, param in layer.params().items()}

    def tokens(self, sequence: int) -> int:
        """Return the tokens that one sample of `sequence` positions counts for."""
        return sequence

    def loss(self, net: Network, batch: Batch) -> Tensor:
        """Return the mean loss over the batch's targets, a scalar."""
        return net.cross_entropy(self.forward(net, batch), batch["labels"])

    def problems(self) -> list[str]:
        """Return what is wrong with the sizes, one line each."""
        allowed = f"an integer from 1 to {LARGEST}"
        return [
            mistake(f"model.{axis}", size, allowed, f"correct {axis} or the ratio that made it")
            for axis, size in ((axis, getattr(self, axis)) for axis in self.axes)
            if type(size) is not int or not 1 <= size <= LARGEST
        ]
