"""The accuracy of a classifier of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.evaluate.base import HeldOutMeans, Means
from mlrun.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.evaluate.base import Batch


@dataclass(frozen=True)
class Accuracy(HeldOutMeans):
    """`accuracy`: the share of images whose likeliest class is the label; of soft labels, the likeliest one."""

    def applies(self, model: Model) -> bool:
        return model.objective == "image"

    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        labels = batch["labels"]
        truth = labels.argmax(-1) if labels.is_floating_point() else labels
        return {"accuracy": (float((logits.argmax(-1) == truth).double().mean()), len(labels))}
