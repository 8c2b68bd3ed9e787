"""One size of model in the training loop for a few steps: how long a step takes, and how many bytes at its peak."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mlrun.config.load import Config
from mlrun.models.network import blocks, initials
from mlrun.plan.calibration import Probe
from mlrun.plan.stages import Level, Plan, Stage
from mlrun.train import loop, memory
from mlrun.train.clock import Clock
from mlrun.train.loop import Batch, Job, Trainee
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.parallel.processes import Ranks
from mlrun.train.signals import Signals

# Steps between two looks at the clock; the first look, which has all that is done once, is left out.
TOGETHER, LOOKS = 2, 4


@dataclass(frozen=True)
class Bench:
    """What all probes share. `batches(stage)` gives the batches of a stage; `clock()` makes a clock for a probe."""

    config: Config
    plan: Plan
    ranks: Ranks
    batches: Callable[[Stage], Iterator[Batch]]
    clock: Callable[[], Clock]
    signals: Signals

    def trainee(self, level: Level) -> Trainee:
        """Return a fresh model of a level with its optimizer, as a stage would train it."""
        spec, hardware = self.config.optimizer, self.config.settings.hardware
        placement = self.ranks.placement
        weights = placement.shard_all(initials(level.model, self.config.settings.seed))
        net = placement.network(level.model, weights, self.ranks.device, hardware.precision)
        for block in blocks(net):
            block.recompute = hardware.activation_checkpointing
        ema = {n: p.detach().clone() for n, p in net.named_parameters()} if spec.ema is not None else None
        return Trainee(net, Stepping(spec, net), ema)

    def probe(self, trainee: Trainee, stage: Stage, samples: int, at_a_time: int) -> Probe:
        """Return seconds and bytes of a step of so many samples, in forward passes of so many.

        Raises:
            UserError: the memory of the GPU ran out; the line says which micro-batch fits.
        """
        steps = TOGETHER * LOOKS
        timed = replace(stage, first=0, steps=steps, samples=replace(stage.samples, batch=samples), fade=None)
        records = self._run(trainee, timed, at_a_time, 0)
        looks = [record["seconds"] for record in records if record["kind"] == "train"]
        seconds = median((b - a) / TOGETHER for a, b in pairwise(looks))
        one_more = replace(timed, steps=steps + 1)
        with peak(self.ranks.device) as found:
            self._run(trainee, one_more, at_a_time, steps)
        return Probe(samples, at_a_time, seconds, found.bytes)

    def _run(self, trainee: Trainee, stage: Stage, at_a_time: int, start: int) -> list[dict[str, Any]]:
        """Take the steps of a stage from `start` on in the one loop, and return what it logs; nothing else is done."""
        written: list[dict[str, Any]] = []
        hardware = replace(self.config.settings.hardware, micro_batch=at_a_time)
        settings = replace(self.config.settings, hardware=hardware, log_every=TOGETHER)
        fit, clock = memory.Fit(hardware, self.ranks), self.clock()
        job = Job(self.plan, settings, self.ranks, clock, written.append, self.signals, fit)
        with clock.during("training"):
            for _ in loop.train(job, stage, trainee, self.batches(stage), start):
                pass
        return written


@dataclass
class Peak:
    """The most bytes of tensors beyond those that there were, once the block is left."""

    bytes: int = 0


class peak:
    """Measures the peak of a block on a device: by the allocator of a GPU, on a processor by torch's profiler."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._found = device, Peak()

    def __enter__(self) -> Peak:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of each start and stop
            activities = [torch.profiler.ProfilerActivity.CPU]
            self._profiler = torch.profiler.profile(activities=activities, profile_memory=True)
            self._profiler.__enter__()
        return self._found

    def __exit__(self, *error: Any) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            self._found.bytes = torch.cuda.max_memory_allocated() - self._before
            return
        self._profiler.__exit__(*error)
        if error[0] is None:
            with tempfile.TemporaryDirectory() as folder:
                self._profiler.export_chrome_trace(str(trace := Path(folder) / "trace.json"))
                self._found.bytes = most(json.loads(trace.read_text())["traceEvents"])


def most(events: list[dict[str, Any]]) -> int:
    """Return the largest sum of the processor's bytes that a trace says were allocated, less those freed."""
    held = highest = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda event: event["ts"]):
        if event["args"]["Device Type"] == 0:
            held += event["args"]["Bytes"]
            highest = max(highest, held)
    return highest
