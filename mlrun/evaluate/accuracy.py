"""The accuracy of a classifier of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.evaluate.base import HeldOutMeans, Means, Results
from mlrun.evaluate.proportion import proportion
from mlrun.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.evaluate.base import Batch

# What is counted as right: the label is among so many of the likeliest classes.
TOP = 5


@dataclass(frozen=True)
class Accuracy(HeldOutMeans):
    """`accuracy`: the share of images whose likeliest class is the label; of soft labels, the likeliest one.

    `top5`: whose five likeliest hold it; of five classes or fewer it would say nothing, and is left out.
    """

    def applies(self, model: Model) -> bool:
        return model.objective == "image"

    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        labels = batch["labels"]
        truth_B = labels.argmax(-1) if labels.is_floating_point() else labels
        found = {"accuracy": (float((logits.argmax(-1) == truth_B).double().mean()), len(labels))}
        if logits.shape[-1] > TOP:
            hit_B = (logits.topk(TOP).indices == truth_B[:, None]).any(-1)
            found["top5"] = (float(hit_B.double().mean()), len(labels))
        return found

    def of_all(self, means: dict[str, float], count: int) -> Results:
        return {name: proportion(f"{name}_accuracy" if name == "top5" else name, share, count, self.version)
                for name, share in means.items()}  # fmt: skip
