"""What every optimizer is: settings, and what it keeps beside the weights. No torch at import."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mlrun.config.settings import Hardware, Schedule
from mlrun.errors import mistakes
from mlrun.models.axes import Param, Rule, repeated
from mlrun.models.base import Model
from mlrun.models.parametrization import STANDARD

if TYPE_CHECKING:
    import torch
    from torch import nn

    Declared = Sequence[tuple[Param, nn.Parameter]]

POSITIVE = "a finite number above 0"
SHARE = "a number in [0, 1)"
# One float32 number.
BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """How gradients move weights. The settings here are those that every optimizer has.

    lr: the peak at level 1; `schedule` says what it is at each step.
    clip: the largest norm of the gradient; None measures it only.
    ema: the decay of a moving average of the weights, which is evaluated beside them, reached from below: after t
        steps it is (1 + t) / (10 + t) at most; None is none.

    state: the tensors that it keeps for a weight, by torch's names, each with the rule by which it goes through an
        operator. What is carried between levels, checkpoints and the plan's bytes follow from it.
    counted: the one of them that comes with the number of its steps, torch's `step`; None if none does.
    parametrizations: those of a model whose rates it knows how to apply. A group of parameters that moves at another
        rate than the run's has the factor in `rate` (see the method of this name).
    whole_matrices: how far an element of a matrix moves follows from all of it, and not from its own gradients alone.
    """

    state: ClassVar[Mapping[str, Rule]]
    counted: ClassVar[str | None] = None
    parametrizations: ClassVar[Sequence[str]] = (STANDARD,)
    whole_matrices: ClassVar[bool] = False

    lr: float
    clip: float | None = 1.0
    ema: float | None = None
    schedule: Schedule = field(default_factory=Schedule)

    @abstractmethod
    def build(self, tensors: Declared) -> list[torch.optim.Optimizer]:
        """Return torch's optimizers over a network's tensors and their declared axes; each tensor is in one of them."""

    def kinds(self, param: Param) -> Sequence[str]:
        """Return the state that one tensor has."""
        return tuple(self.state)

    def rate(self, param: Param) -> float:
        """Return the factor on the rate with which one tensor moves."""
        return param.rate

    def problems(self, hardware: Hardware) -> list[str]:
        """Return what is wrong with the settings, one line each; the schedule's are judged by the plan."""
        checks = [
            ("lr", self.lr, 0 < self.lr < math.inf, POSITIVE),
            ("clip", self.clip, self.clip is None or 0 < self.clip < math.inf, f"{POSITIVE}, or null"),
            ("ema", self.ema, self.ema is None or 0 < self.ema < 1, "a number in (0, 1), or null"),
        ]
        return mistakes("optimizer.", checks)

    def update_flops(self, model: Model) -> int:
        """Return the FLOPs of the matrix products of one update: none, as only such products are counted anywhere."""
        return 0

    def state_bytes(self, model: Model) -> int:
        """Return the bytes of a model in training: weights, gradients, state and moving average."""
        copies = 2 + (self.ema is not None)
        tensors = repeated(model.params(), sizes := model.sizes())
        return sum(BYTES * n * param.count(sizes) * (copies + len(self.kinds(param))) for param, n in tensors)
