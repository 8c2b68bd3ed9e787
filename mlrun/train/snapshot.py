"""A model at rest, and how far a run has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mlrun.train.optimizers import adamw
from mlrun.train.parallel.placement import Placement

if TYPE_CHECKING:
    from mlrun.train.loop import Trainee


@dataclass
class Snapshot:
    """A model at rest: `tensors[kind][name]` with kinds weights, exp_avg, exp_avg_sq, ema; Adam's steps taken.

    The tensors are whole, or what this process keeps of them (see `mlrun.train.parallel.placement`).
    """

    tensors: dict[str, dict[str, Tensor]]
    adam_steps: int = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's parameters."""
        return self.tensors["weights"]


@dataclass
class Progress:
    """How far a run has come.

    `entered` says that the transfer into `stage` was made, `unevaluated` that the evaluation at `step` is still due.
    """

    stage: int = 0
    step: int = 0
    entered: bool = False
    unevaluated: bool = False
    log_bytes: int = 0
    content: str | None = None  # of the data, where it can be told
    best: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: list[float] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    forks: dict[str, float] = field(default_factory=dict)  # training seconds up to each, by its step


def at_rest(trainee: Trainee, placement: Placement) -> Snapshot:
    """Return copies on the CPU of everything that a stage trains, as this process holds it."""
    moments, taken = adamw.moments(trainee.net, trainee.optimizer)
    kinds: dict[str, Any] = {"weights": trainee.net.state_dict(), **moments}
    if trainee.ema is not None:
        kinds["ema"] = trainee.ema
    return Snapshot({kind: {n: placement.to_cpu(t) for n, t in ts.items()} for kind, ts in kinds.items()}, taken)
