"""The losses of stages that learn from a teacher, or in some of their layers only."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from mlrun.models.base import IGNORED
from mlrun.models.network import Network
from mlrun.multilevel.growth import frozen
from mlrun.train.loop import Batch
from mlrun.train.stage_loss import StageLoss


def freeze(net: Network, count: int) -> None:
    """Stop the lowest `count` blocks, and what is in front of them, from learning; 0 lets all learn."""
    fixed = frozen.names(net.model, count)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in fixed)


class Substructures(StageLoss):
    """In turn the lowest k, 2k, ... blocks under the one head; of each only the top k blocks and the head learn."""

    partial = True

    def __init__(self, net: Network, first: int, size: int) -> None:
        super().__init__()
        self.net, self.first, self.size = net, first, size
        self.trunk, _ = frozen.stack(net.model)
        self.depth = size

    def at_step(self, step: int) -> None:
        """Choose the sub-structure of a step of the run."""
        count = len(getattr(self.net, self.trunk)) // self.size
        self.depth = ((step - self.first) % count + 1) * self.size
        freeze(self.net, self.depth - self.size)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of the sub-structure."""
        whole: Any = self.net.get_submodule(self.trunk)
        setattr(self.net, self.trunk, whole[: self.depth])
        try:
            return self.net(batch)
        finally:
            setattr(self.net, self.trunk, whole)


class Distilled(StageLoss):
    """(1 - a) * cross-entropy + a * KL(teacher, student), with a falling linearly from `weight` to 0 over the stage.

    Qin et al. 2022, equations 1 to 4; the temperature divides both logits and its square multiplies the KL term.
    """

    share: Tensor

    def __init__(self, net: Network, teacher: Network, weight: float, temperature: float, span: range) -> None:
        super().__init__()
        self.net, self.weight, self.temperature, self.span = net, weight, temperature, span
        self.teacher = teacher.requires_grad_(False).eval()
        # A tensor, so that a compiled module does not see a new constant every step.
        self.register_buffer("share", torch.tensor(weight), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Set the student's mode; the teacher never drops anything."""
        super().train(mode)
        self.teacher.eval()
        return self

    def at_step(self, step: int) -> None:
        """Set the teacher's share for a step of the run."""
        self.share.fill_(self.weight * (1 - (step - self.span.start) / len(self.span)))

    def forward(self, batch: Batch) -> Tensor:
        """Return the blended loss."""
        with torch.no_grad():
            taught = self.teacher.logits(batch)
        logits = self.net.logits(batch)
        own = self.net.cross_entropy(logits, batch["labels"])
        return (1 - self.share) * own + self.share * divergence(logits, taught, batch["labels"], self.temperature)


def divergence(logits: Tensor, taught: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the mean KL(teacher, student) over the labels, times temperature squared; 0 if every one is ignored."""
    student, teacher = (F.log_softmax(x.float().flatten(0, -2) / temperature, dim=-1) for x in (logits, taught))
    each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    counted = torch.ones_like(each) if labels.is_floating_point() else (labels.flatten() != IGNORED).float()
    return (each * counted).sum() / counted.sum().clamp(min=1) * temperature**2
