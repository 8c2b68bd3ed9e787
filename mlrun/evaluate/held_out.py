"""The held-out loss, by which runs are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.evaluate.base import HeldOutMeans, Means
from mlrun.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.evaluate.base import Batch


@dataclass(frozen=True)
class HeldOut(HeldOutMeans):
    """`loss`: the mean over the labels of the held-out set."""

    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        return {"loss": (float(loss), model.label_count(batch))}
