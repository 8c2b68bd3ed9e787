"""What every evaluation is: numbers about a network, at the evaluations of a run and once it is done.

Many are means over the held-out set: one pass over it serves them all. No torch at import.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlrun.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.config import Hardware
    from mlrun.models.network import Network
    from mlrun.train.parallel.processes import Ranks

    Batch = Mapping[str, Tensor]

# By name (mean, how many it is the mean over).
Means = Mapping[str, tuple[float, int]]


@dataclass(frozen=True)
class Context:
    """What an evaluation may use beside the network.

    batch: samples of one forward pass.
    pause: raises Stopped if a signal asks for it; what takes long calls it, on all processes, between pieces of work.
    """

    source: Any
    batch: int
    hardware: Hardware
    ranks: Ranks
    pause: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Evaluation(ABC):
    """Numbers about a network."""

    def applies(self, model: Model) -> bool:
        """Return whether the numbers make sense for a model; one of another objective is passed over."""
        return True

    @abstractmethod
    def measure(self, net: Network, context: Context) -> dict[str, float]:
        """Return {name: number}. All processes call it and return the same."""


@dataclass(frozen=True)
class HeldOutMeans(Evaluation):
    """Means over the held-out set; `measure` of a whole list reads it once."""

    @abstractmethod
    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        """Return by name (mean over one batch, how many it is the mean over); the loss is the mean over its labels."""

    def of_all(self, means: dict[str, float], count: int) -> dict[str, float]:
        """Return what is reported of the means over the whole set, which has `count` samples."""
        return means

    def measure(self, net: Network, context: Context) -> dict[str, float]:
        return measure([self], net, context)


def measure(evaluations: Iterable[Evaluation], net: Network, context: Context) -> dict[str, float]:
    """Return the numbers of all evaluations that apply; all processes call it."""
    fitting = [evaluation for evaluation in evaluations if evaluation.applies(net.model)]
    shared = [evaluation for evaluation in fitting if isinstance(evaluation, HeldOutMeans)]
    found: dict[str, float] = {}
    means, count = _means(shared, net, context) if shared else ([], 0)
    for one, own in zip(shared, means, strict=True):
        found |= one.of_all(own, count)
    for evaluation in fitting:
        if not isinstance(evaluation, HeldOutMeans):
            found |= evaluation.measure(net, context)
    return found


def _means(evaluations: Sequence[HeldOutMeans], net: Network, context: Context) -> tuple[list[dict[str, float]], int]:
    """Return the means of each evaluation over the held-out set, whose batches the processes share, and its samples."""
    import torch

    from mlrun.train.loop import autocast, samples

    ranks, seen = context.ranks, []
    net.eval()
    try:
        for batch, counts in _shared_out(context):
            here = {key: value.to(ranks.device) for key, value in batch.items()}
            with torch.no_grad(), autocast(context.hardware, ranks.device):
                loss, logits = net.loss_and_logits(here)
                found = [evaluation.of_batch(net.model, here, loss, logits) for evaluation in evaluations]
            if counts:
                seen.append((samples(batch), found))
    finally:
        ranks.placement.reshard(net.train())
    everywhere = ranks.together(lambda: seen)
    means = [
        _over_all([[(size, found[number]) for size, found in part] for part in everywhere])
        for number in range(len(evaluations))
    ]
    return means, sum(size for part in everywhere for size, _ in part)


def _over_all(processes: Sequence[Sequence[tuple[int, Means]]]) -> dict[str, float]:
    """Return by name the mean over all batches, given (samples, means) of each batch by process.

    A batch weighs its samples, corrected by what it counts more or less than an average one: bitwise the mean over
    samples where each counts alike.
    """
    batches = [batch for process in processes for batch in process]
    total = sum(size for size, _ in batches)
    means = {}
    for name in batches[0][1]:
        counted = sum(found[name][1] for _, found in batches)
        sums = [
            sum((mean * (count * total / counted) for mean, count in (found[name] for _, found in process)), 0.0)
            for process in (processes if counted else ())
        ]
        means[name] = sum(sums) / total if counted else math.nan
    return means


def _shared_out(context: Context) -> Iterator[tuple[Batch, bool]]:
    """Yield this process's share of the held-out batches, and whether each counts.

    Where forward passes are collective, a process that has none left takes part with one that does not count.
    """
    ranks, index, spare = context.ranks, -1, None
    for index, batch in enumerate(context.source.validation(context.batch)):
        if index % ranks.world == 0:
            context.pause()
            spare = batch
        if index % ranks.world == ranks.rank:
            yield batch, True
    if ranks.placement.collective and spare is not None and index % ranks.world < ranks.rank:
        yield spare, False
