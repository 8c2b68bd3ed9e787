"""The held-out loss, by which runs are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.evaluate.base import HeldOutMeans, Means
from mlrun.models.base import IGNORED, Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.evaluate.base import Batch


@dataclass(frozen=True)
class HeldOut(HeldOutMeans):
    """`loss`: the mean over the labels of the held-out set.

    `standard_error`: how far it may lie from the loss on all such data, from how far its samples lie apart, as if they
    were independent; one sample does not tell.
    """

    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        each = losses(logits, batch["labels"])
        mean, square = (sum(x**n for x in each) / max(len(each), 1) for n in (1, 2))
        return {
            "loss": (float(loss), model.label_count(batch)),
            "sample": (mean, len(each)),
            "square": (square, len(each)),
        }

    def of_all(self, means: dict[str, float], count: int) -> dict[str, float]:
        found = {"loss": means["loss"]}
        if count > 1 and math.isfinite(means["square"]):
            found["standard_error"] = math.sqrt(max(means["square"] - means["sample"] ** 2, 0.0) / (count - 1))
        return found


def losses(logits: Tensor, labels: Tensor) -> list[float]:
    """Return the mean cross-entropy of each sample that has labels; one at a time, since a vocabulary is wide."""
    from mlrun.models.network import Network

    counted = [True] * len(labels) if labels.is_floating_point() else [bool((x != IGNORED).any()) for x in labels]
    pairs = zip(logits, labels, counted, strict=True)
    return [float(Network.cross_entropy(x[None], y[None])) for x, y, has_labels in pairs if has_labels]
