"""The training loop as a run calls it, on batches that are ready: with its log, its console and an evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlrun.cli import command, points
from mlrun.cli.tasks import planned
from mlrun.config.load import Config
from mlrun.evaluate.base import Context, measure, recorded
from mlrun.log import log
from mlrun.models.network import build
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan, Stage
from mlrun.train import loop, memory
from mlrun.train.clock import Clock
from mlrun.train.loop import Evaluate, Job, Trainee, record
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.parallel.processes import Ranks
from mlrun.train.signals import Signals

Batch = Mapping[str, Tensor]
# What is alike in every measurement: one thread, a rate that stays, the held-out loss at the end alone.
COMMON = (
    "recipe=none", "hardware=cpu", "hardware.threads=1", "log_every=10", "eval.every=100%", "checkpoint.every=100%",
    "evaluation=[held_out]", "optimizer.schedule.shape=constant", "optimizer.schedule.warmup=0%",
)  # fmt: skip
# Batches of `eval.batch` that an evaluation reads.
HELD_OUT = 1


@dataclass(frozen=True)
class HeldOut:
    """Batches that are ready, in the place of a source."""

    ready: Sequence[Batch]

    def validation(self, samples: int) -> Iterator[Batch]:
        """Yield them, whatever their size."""
        return iter(self.ready)

    def describe(self) -> dict[str, Any]:
        """Say nothing of them: they belong to no corpus."""
        return {}


@dataclass(frozen=True)
class Work:
    """A composed run, and the batches of its steps and of its evaluation, in memory."""

    config: Config
    plan: Plan
    batches: Sequence[Batch]
    held_out: HeldOut

    def stage(self, level: int = 1) -> Stage:
        """Return the first stage at a level."""
        return next(stage for stage in self.plan.stages if stage.level == level)


def work(overrides: Sequence[str]) -> Work:
    """Compose a run and read its data."""
    torch.set_num_threads(1)
    (point,) = points.of(command.read([*COMMON, *overrides]))
    config, plan = planned(point.settings)
    settings = config.settings
    source = config.data.open(config.model, 0, settings.cache, settings.batch)
    batches = list(islice(source.batches(0, settings.batch), max(stage.steps for stage in plan.stages)))
    held_out = list(islice(source.validation(settings.eval.batch), HELD_OUT))
    return Work(config, plan, batches, HeldOut(held_out))


def trainee(given: Work, level: int = 1) -> Trainee:
    """Return a fresh model of a level with its optimizer."""
    net = build(given.plan.level(level).model, 0)
    return Trainee(net, Stepping(given.config.optimizer, net), None)


def train(given: Work, one: Trainee, folder: Path, level: int = 1) -> float | None:
    """Train the stage of a level in the loop, with a log in a folder of its own.

    Return the held-out loss; None where there is nothing held out.
    """
    settings, stage, ranks = given.config.settings, given.stage(level), Ranks(0, 1, torch.device("cpu"))
    folder.mkdir(parents=True)
    with open(os.devnull, "w") as console, log.start(folder, {}, {}, as_dict(given.plan), stream=console) as told:
        fit, clock = memory.Fit(settings.hardware, ranks), Clock()
        job = Job(given.plan, settings, ranks, clock, told.write, Signals(), fit)
        values: dict[str, Any] = {}
        with clock.during("training"):
            for event in loop.train(job, stage, one, iter(given.batches), stage.first):
                if isinstance(event, Evaluate) and given.held_out.ready:
                    context = Context(given.held_out, settings.eval.batch, settings.hardware, ranks)
                    with clock.during("evaluation"):
                        values = recorded({"": measure(given.config.evaluation.values(), one.net, context)}, whole=True)
                    told.write(record(job, stage, event.step, "val", **values))
    return values.get("loss")
