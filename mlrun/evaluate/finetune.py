"""Fine-tuning: the published recipe over a grid of rates and seeds, and what comes out of it. Torch waits inside.

The recipe is BERT's (Devlin et al. 2018, section 4.1 and appendix A.3): AdamW, a rate that rises in a tenth of the
steps and falls to zero on a line, a few epochs, and the rate with the best score on the dev set, which is the one that
is reported. So each number is the best of `rates`, and says so.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlrun.errors import mistakes
from mlrun.evaluate.base import Benchmark, Context, Result
from mlrun.evaluate.proportion import wilson

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from mlrun.evaluate.base import Batch

CHOSEN = "the rate with the best mean score on this same set"
BETAS, EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class FineTuning(Benchmark):
    """What fine-tunings share. The comments in conf/_finetune.yaml say what each setting means."""

    rates: list[float] = field(default_factory=lambda: [2e-5, 3e-5, 5e-5])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    epochs: float = 3.0
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.1

    def recipe_problems(self, key: str) -> list[str]:
        """Return what is wrong with the recipe; `key` stands before each name."""
        rates, seeds = list(self.rates), list(self.seeds)

        def once(values: list[Any]) -> bool:
            return bool(values) and len(set(values)) == len(values)

        checks: list[tuple[str, object, bool, str]] = [
            ("rates", rates, once(rates) and all(0 < r < math.inf for r in rates), "different ones above 0"),
            ("seeds", seeds, once(seeds) and all(s >= 0 for s in seeds), "different ones of 0 and more"),
            ("epochs", self.epochs, 0 < self.epochs < math.inf, "above 0"),
            ("batch", self.batch, self.batch >= 1, "at least 1"),
            ("warmup", self.warmup, 0 <= self.warmup < 1, "a share of at least 0 and under 1"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0"),
            ("clip", self.clip, self.clip > 0, "above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and under 1"),
        ]
        return mistakes(key, checks)

    def steps(self, samples: int) -> int:
        """Return the steps of all epochs over so many samples."""
        return max(1, round(self.epochs * math.ceil(samples / self.batch)))


class Subject(ABC):
    """What is fine-tuned, and on what: `samples` training examples."""

    samples: int

    @abstractmethod
    def learner(self, seed: int) -> nn.Module:
        """Return the pretrained weights with a new head, on the CPU: a module of a batch, that returns (loss, logits).

        The head starts as the seed says.
        """

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield training batches for ever, in the order of a seed."""

    @abstractmethod
    def flops(self, batch: Batch) -> int:
        """Return the FLOPs of the forward and backward pass of a batch."""

    @abstractmethod
    def dev(self) -> Iterator[Batch]:
        """Yield the batches of the dev set, always the same."""

    @abstractmethod
    def scores(self, logits: np.ndarray) -> dict[str, float]:
        """Return by metric what the logits (N, C) of the dev set are worth; the first one chooses the rate."""


@dataclass(frozen=True)
class Trial:
    """One fine-tuning: its scores by metric, and the FLOPs of its training."""

    rate: float
    seed: int
    scores: Mapping[str, float]
    flops: int


def factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the rate at a step: up to 1 in the first `warmup` of the steps, then down to 0, on lines."""
    rising = round(warmup * steps)
    return (step + 1) / rising if step < rising else (steps - step) / (steps - rising)


def trials(subject: Subject, recipe: FineTuning, context: Context) -> list[Trial]:
    """Return all fine-tunings, rate by rate and seed by seed; the processes share them out.

    Each runs on one process alone, so that its number does not depend on how many there are. All take equally many
    steps, and ask together after each whether they are to stop: one that has none left repeats the last.
    """
    import torch

    ranks, jobs = context.ranks, [(rate, seed) for rate in recipe.rates for seed in recipe.seeds]
    mine: dict[int, Trial] = {}
    with torch.random.fork_rng([ranks.device] if ranks.device.type == "cuda" else []):
        for first in range(0, len(jobs), ranks.world):
            number = min(first + ranks.rank, len(jobs) - 1)
            own = context.about(f"{context.what} trial {number + 1}/{len(jobs)}")
            mine[number] = _trial(subject, recipe, own, *jobs[number])
    found = {number: one for part in ranks.together(lambda: mine) for number, one in part.items()}
    return [found[number] for number in range(len(jobs))]


def _trial(subject: Subject, recipe: FineTuning, context: Context, rate: float, seed: int) -> Trial:
    learner = subject.learner(seed).to(context.ranks.device)
    flops = _train(learner, subject, recipe, context, rate, seed)
    return Trial(rate, seed, subject.scores(_logits(learner, subject, context)), flops)


def _train(learner: nn.Module, subject: Subject, recipe: FineTuning, context: Context, rate: float, seed: int) -> int:
    """Train in place, and return the FLOPs; masks of dropout follow from seed and step."""
    import torch

    from mlrun.models.dropout import seed_masks
    from mlrun.train.loop import autocast

    device, steps, flops = context.ranks.device, recipe.steps(subject.samples), 0
    optimizer = _optimizer(learner, recipe)
    learner.train()
    for step, batch in zip(range(steps), subject.batches(seed), strict=False):
        context.reached(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(step, steps, recipe.warmup)
        seed_masks(seed, step, 0, 0)
        with autocast(context.hardware, device):
            loss, _ = learner({key: value.to(device) for key, value in batch.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        flops += subject.flops(batch)
    return flops


def _optimizer(learner: nn.Module, recipe: FineTuning) -> Any:
    """Return AdamW that decays matrices alone: no vector, as BERT's."""
    import torch

    parameters = list(learner.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS)


def _logits(learner: nn.Module, subject: Subject, context: Context) -> np.ndarray:
    """Return the logits (N, C) of the dev set, float32."""
    import torch

    from mlrun.train.loop import autocast

    device, found = context.ranks.device, []
    asked = context.about(f"{context.what} dev set")
    learner.eval()
    for done, batch in enumerate(subject.dev()):
        asked.reached(done, None)
        with torch.no_grad(), autocast(context.hardware, device):
            _, logits = learner({key: value.to(device) for key, value in batch.items()})
        found.append(logits.float().cpu())
    return torch.cat(found).numpy()


# What came out


def best(found: Sequence[Trial]) -> list[Trial]:
    """Return the trials of the rate with the best mean score over the seeds, the first one of equal ones.

    A rate at which a seed has no score is never chosen, unless all are so.
    """

    def mean(rate: float) -> float:
        scores = [next(iter(trial.scores.values())) for trial in found if trial.rate == rate]
        return statistics.fmean(scores) if all(map(math.isfinite, scores)) else -math.inf

    chosen = max(dict.fromkeys(trial.rate for trial in found), key=mean)
    return [trial for trial in found if trial.rate == chosen]


def result(metric: str, found: Sequence[Trial], n: int, version: int, about: Mapping[str, Any]) -> Result:
    """Return a metric at the chosen rate: the mean over the seeds, and its standard error from two seeds on.

    An accuracy has the interval of a share of `n` answers as well: seeds share the dev set, so that their standard
    error leaves out how few examples it has. `about` is added to what is said of the choice:

    rate, chosen: the rate, and how it was chosen. by_rate: the mean score at each rate, None where a seed has none.
    seeds: of each seed its score. fine_tuning_flops: of all trials; no part of what pretraining had cost.
    """
    chosen = best(found)
    values = [trial.scores[metric] for trial in chosen]
    value = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    interval = wilson(value, n) if metric == "accuracy" and math.isfinite(value) else None
    told = {
        "rate": chosen[0].rate,
        "chosen": CHOSEN,
        "by_rate": {f"{rate:g}": _known(scores) for rate, scores in _by_rate(metric, found).items()},
        "seeds": {str(trial.seed): _known([trial.scores[metric]]) for trial in chosen},
        "fine_tuning_flops": sum(trial.flops for trial in found),
    }
    return Result(metric, value, error, n, version, interval, {**about, **told})


def _by_rate(metric: str, found: Sequence[Trial]) -> dict[float, list[float]]:
    rates = dict.fromkeys(trial.rate for trial in found)
    return {rate: [trial.scores[metric] for trial in found if trial.rate == rate] for rate in rates}


def _known(scores: Sequence[float]) -> float | None:
    mean = statistics.fmean(scores)
    return mean if math.isfinite(mean) else None
