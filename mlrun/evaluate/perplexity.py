"""The perplexity of text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.evaluate.base import HeldOutMeans, Means, Result, Results
from mlrun.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.evaluate.base import Batch

# Beyond it exp() overflows.
LARGEST = math.log(1e300)


@dataclass(frozen=True)
class Perplexity(HeldOutMeans):
    """`perplexity`: exp(held-out loss), per predicted token; of text alone."""

    def applies(self, model: Model) -> bool:
        return model.objective != "image"

    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        return {"perplexity": (float(loss), model.label_count(batch))}

    def of_all(self, means: dict[str, float], count: int) -> Results:
        value = exponential(means["perplexity"])
        return {"perplexity": Result("perplexity", value, n=count, version=self.version)}


def exponential(nats: float) -> float:
    """Return exp(nats); infinity where no float holds it."""
    return math.exp(nats) if nats < LARGEST else math.inf
