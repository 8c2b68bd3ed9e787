"""The held-out loss, by which runs are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.evaluate.base import HeldOutMeans, Means
from mlrun.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.evaluate.base import Batch


@dataclass(frozen=True)
class HeldOut(HeldOutMeans):
    """`loss`: the mean over the labels of the held-out set.

    `standard_error`: how far it may lie from the loss on all such data, from how far its batches lie apart; a set of
    one batch does not tell.
    """

    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        count = model.label_count(batch)
        return {"loss": (float(loss), count), "square": (float(loss) ** 2, count)}

    def of_all(self, means: dict[str, float], batches: int) -> dict[str, float]:
        found = {"loss": means["loss"]}
        if batches > 1 and math.isfinite(means["loss"]):
            found["standard_error"] = math.sqrt(max(means["square"] - means["loss"] ** 2, 0.0) / (batches - 1))
        return found
