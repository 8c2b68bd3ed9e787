"""A model at rest, and how far a run has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# The kind under which parameters have their own counts of the optimizer's steps, where these differ.
STEP = "step"


@dataclass
class Snapshot:
    """A model at rest: `tensors[kind][name]` with kinds weights, ema and the optimizer's own; its steps taken.

    The tensors are whole, or what this process keeps of them (see `mlrun.train.parallel.placement`).
    """

    tensors: dict[str, dict[str, Tensor]]
    optimizer_steps: int = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's parameters."""
        return self.tensors["weights"]


@dataclass
class Progress:
    """How far a run has come; `entered` says that the transfer into `stage` was made."""

    stage: int = 0
    step: int = 0
    entered: bool = False
    log_bytes: int = 0
    content: str | None = None  # of the data, where it can be told
    best: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: list[float] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    forks: dict[str, float] = field(default_factory=dict)  # training seconds up to each, by its step
