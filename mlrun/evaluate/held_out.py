"""The held-out loss, by which runs are compared, and the same in bits per byte, by which tokenizers are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.evaluate.base import HELD_OUT, LOSS, HeldOutMeans, Means, Result, Results
from mlrun.models.base import IGNORED, Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.evaluate.base import Batch


@dataclass(frozen=True)
class HeldOut(HeldOutMeans):
    """`held_out`: the mean loss in nats over the labels of the held-out set. `bits_per_byte`: the same over its bytes.

    Its standard error says how far it may lie from the loss on all such data, from how far its samples lie apart, as
    if they were independent; one sample does not tell.

    Bits per byte are the bits that all labels cost over the bytes of text that they stand for (Gao et al. 2020, the
    Pile, section 3.1), so that runs whose tokenizers differ compare. A token at the end of a document costs, and stands
    for no byte. They are those of causal models whose tokenizer tells its bytes (see `Words.widths`): a masked model
    predicts some tokens from all others, which is no code for the text, so it has none.
    """

    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        each = losses(logits, batch["labels"])
        mean, square = (sum(x**n for x in each) / max(len(each), 1) for n in (1, 2))
        found: dict[str, tuple[float, int]] = {
            "loss": (float(loss), model.label_count(batch)),
            "sample": (mean, len(each)),
            "square": (square, len(each)),
        }
        if model.objective == "causal" and "bytes" in batch:
            found |= _bytes(batch, each)
        return found

    def of_all(self, means: dict[str, float], count: int) -> Results:
        error = None
        if count > 1 and math.isfinite(means["square"]):
            error = math.sqrt(max(means["square"] - means["sample"] ** 2, 0.0) / (count - 1))
        found = {HELD_OUT: Result(LOSS, means["loss"], error, count, self.version)}
        if means.get("bytes"):
            found["bits_per_byte"] = _bits(means, count, self.version)
        return found


def _bytes(batch: Batch, each: list[float]) -> Means:
    """Return the means over samples that bits per byte and their standard error need, in nats and bytes."""
    labels, rows = batch["labels"], batch["bytes"].tolist()
    counts = [int(n) for n in (labels != IGNORED).sum(-1).tolist()]
    left = iter(each)
    nats = [next(left) * count if count else 0.0 for count in counts]
    number = len(rows)
    products = {"bytes": (1, 0), "nats": (0, 1), "bytes_bytes": (2, 0), "nats_nats": (0, 2), "bytes_nats": (1, 1)}
    pairs = list(zip(rows, nats, strict=True))
    return {name: (sum(b**i * x**j for b, x in pairs) / number, number) for name, (i, j) in products.items()}


def _bits(means: Mapping[str, float], count: int, version: int) -> Result:
    """Return bits per byte: a ratio of two sums over samples, whose error is that of what it leaves unexplained."""
    ratio = means["nats"] / means["bytes"]
    left = means["nats_nats"] - 2 * ratio * means["bytes_nats"] + ratio**2 * means["bytes_bytes"]
    bits = ratio / math.log(2)
    error = None
    if count > 1 and math.isfinite(left):
        error = math.sqrt(max(left, 0.0) / (count - 1)) / means["bytes"] / math.log(2)
    return Result("bits_per_byte", bits, error, round(means["bytes"] * count), version)


def losses(logits: Tensor, labels: Tensor) -> list[float]:
    """Return the mean cross-entropy of each sample that has labels; one at a time, since a vocabulary is wide."""
    from mlrun.models.network import Network

    counted = [True] * len(labels) if labels.is_floating_point() else [bool((x != IGNORED).any()) for x in labels]
    pairs = zip(logits, labels, counted, strict=True)
    return [float(Network.cross_entropy(x[None], y[None])) for x, y, has_labels in pairs if has_labels]
