"""What a machine takes for a family of models: a few steps of each level, evaluations, checkpoints and transfers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from mlrun.config.load import Config
from mlrun.config.settings import Cycle, Row, Schedule
from mlrun.data import ahead
from mlrun.errors import UserError, mistake
from mlrun.evaluate import words
from mlrun.evaluate.base import Context, HeldOutMeans, measure
from mlrun.multilevel.transition import Transition
from mlrun.plan.calibration import Calibration, Size, evaluated, size
from mlrun.plan.make import make_plan
from mlrun.plan.stages import Level, Plan, Stage
from mlrun.train import compiled, reading
from mlrun.train.checkpoint.store import Checkpoints
from mlrun.train.clock import Clock
from mlrun.train.loop import samples
from mlrun.train.parallel import processes
from mlrun.train.parallel.processes import Ranks
from mlrun.train.probe import Bench, peak
from mlrun.train.signals import Signals
from mlrun.train.snapshot import Progress, Snapshot
from mlrun.units import human

# Batches of the held-out set that are timed; a rate at which nothing moves, however fresh the weights are.
READ, RATE = 4, 1e-12


def calibrate(config: Config, machine: Mapping[str, Any], scratch: Path) -> Calibration:
    """Measure the levels of a configuration, two at least; `scratch` is a folder on the disk that is timed.

    Raises:
        UserError: several processes or shards, a device that is missing, or data that cannot be read.
    """
    ranks = processes.start(config.settings.hardware)
    try:
        if ranks.world > 1 or ranks.placement.collective:
            remedy = "calibrate with one; several are not predicted"
            raise UserError(mistake("task", "calibrate", "one process without shards", remedy))
        return _calibrate(config, machine, scratch, ranks)
    finally:
        processes.stop(ranks)


def _calibrate(config: Config, machine: Mapping[str, Any], scratch: Path, ranks: Ranks) -> Calibration:
    if config.settings.hardware.compile:
        compiled.keep_in(config.settings.cache)
    quiet = short(config)
    plan = make_plan(quiet)
    source, workers = reading.opened(config, plan, ranks).source, config.settings.hardware.workers

    def batches(stage: Stage) -> Iterator[Any]:
        return ahead.beside(source.batches(0, stage.samples.batch), workers, ranks.device)

    bench = Bench(quiet, plan, ranks, batches, lambda: Clock.of(ranks.device), Signals())
    sizes, snapshots = _sizes(bench, source)
    saves = _saves(bench, snapshots, scratch)
    held_out = whole_evaluations(config)
    return Calibration(
        name=f"{type(config.model).__name__} of {human(plan.levels[0].parameters)} parameters",
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=dict(machine),
        sizes=sizes,
        evaluates=sum(samples(b) for b in source.validation(config.settings.eval.batch)) if held_out else None,
        evaluated=evaluated(config),
        save_seconds=saves[0],
        byte_seconds=saves[1],
        transfers=_transfers(bench, snapshots[0], source),
        growth=config.resolved.get("growth", {}),
    )


def short(config: Config) -> Config:
    """Return the configuration with a step for each stage, at a rate that moves nothing; two levels at least."""
    cycle = config.settings.cycle
    levels = [row.level for row in cycle.stages]
    rows = [Row(level, "1 step") for level in (levels if max(levels) > 1 else (1, 2, 1))]
    scales = cycle.lr_scale if len(cycle.lr_scale) >= max(row.level for row in rows) else []
    plain = Cycle(cycle.name, {}, rows, cycle.alpha, cycle.noise, scales, cycle.optimizer_policy)
    settings = replace(config.settings, cycle=plain, budget="1000 steps")
    still = replace(config.optimizer, lr=RATE, schedule=Schedule(shape="constant", warmup="0%"))
    return replace(config, settings=settings, optimizer=still)


def whole_evaluations(config: Config) -> bool:
    """Return whether all evaluations are means over the held-out set, whose time is that of its tokens."""
    return all(isinstance(one, HeldOutMeans) for one in config.evaluation.values())


def _sizes(bench: Bench, source: Any) -> tuple[tuple[Size, ...], list[Snapshot]]:
    """Return what each level takes, and a snapshot of each."""
    sizes, snapshots = [], []
    for level in bench.plan.levels:
        trainee = bench.trainee(level)
        sizes.append(_size(bench, source, level, trainee))
        snapshots.append(trainee.at_rest(bench.ranks.placement))
    return tuple(sizes), snapshots


def _size(bench: Bench, source: Any, level: Level, trainee: Any) -> Size:
    plan, hardware = bench.plan, bench.config.settings.hardware
    micro = hardware.micro_batch if isinstance(hardware.micro_batch, int) else plan.batch
    most = max(2, min(plan.batch, micro))
    whole = replace(next(s for s in plan.stages if s.level == level.number), transfer=None)
    few = most // 2
    probes = [bench.probe(trainee, whole, n, m) for n, m in ((most, most), (few, few), (most, few))]
    seconds, held = _read(bench, source, trainee.net)
    return size(level, plan.tokens_per_sample, probes, seconds, held)


@dataclass(frozen=True)
class _Few:
    """The first batches of the held-out set."""

    source: Any
    batches: int

    def validation(self, samples: int) -> Iterator[Any]:
        return islice(self.source.validation(samples), self.batches)

    def describe(self) -> dict[str, Any]:
        return {}  # how many these are nobody waits to see


def _read(bench: Bench, source: Any, net: Any) -> tuple[float, int]:
    """Return the seconds that a token takes in an evaluation, and its peak of bytes beyond the model."""
    config = bench.config
    settings, known = config.settings, words.of_source(source, config.model, config.data.sequence)
    means = [one for one in config.evaluation.values() if isinstance(one, HeldOutMeans)]

    def look(count: int) -> None:
        few = _Few(source, count)
        measure(means, net, Context(few, settings.eval.batch, settings.hardware, bench.ranks, words=known))

    with peak(bench.ranks.device) as found:
        look(1)
    clock = bench.clock()
    with clock.during("evaluation"):
        look(READ)
    count = sum(samples(batch) for batch in _Few(source, READ).validation(settings.eval.batch))
    return clock.totals["evaluation"] / (count * bench.plan.tokens_per_sample), found.bytes


def _saves(bench: Bench, snapshots: list[Snapshot], scratch: Path) -> tuple[float, float]:
    """Return the seconds of a checkpoint and of each of its bytes, from that of the first and the last level."""
    points = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for snapshot in (snapshots[0], snapshots[-1]):
            checkpoints = Checkpoints(Path(folder) / "checkpoints", lambda _: bench.plan, bench.ranks)
            checkpoints.begin()
            clock = bench.clock()
            with clock.during("checkpoint"):
                checkpoints.save(Progress(), snapshot, {})
            count = sum(t.nbytes for kind in snapshot.tensors.values() for t in kind.values())
            points.append((count, clock.totals["checkpoint"]))
    (large, slow), (small, fast) = points
    each = max((slow - fast) / (large - small), 0.0) if large > small else 0.0
    return max(slow - each * large, 0.0), min(each, slow / large)


def _transfers(bench: Bench, current: Snapshot, source: Any) -> dict[str, float]:
    """Return the seconds of a transfer by kind, for each parameter of the finer level.

    What learns a mapping is left out: it trains for longer than a calibration may take.
    """
    found: dict[str, float] = {}
    config, plan = bench.config, bench.plan
    kept: dict[int, Snapshot] = {}
    if any(stage.entry_flops.total > 0 for stage in plan.stages) or plan.stages[0].level != 1:
        return found
    for stage in plan.stages:
        clock = bench.clock()
        move = _transition(config, plan, bench, clock, source, kept)
        with clock.during("transfer"):
            current, _ = move.enter(stage, current, stage.first)
        if stage.transfer is not None and stage.transfer not in found:
            finer = stage.level - 1 if stage.transfer == "coalesce" else stage.level
            found[stage.transfer] = clock.totals["transfer"] / plan.level(finer).parameters
    return found


def _transition(
    config: Config, plan: Plan, bench: Bench, clock: Clock, source: Any, kept: dict[int, Snapshot]
) -> Transition:
    def held_out() -> Iterator[Any]:
        found: Iterator[Any] = source.validation(config.settings.eval.batch)
        return found

    return Transition(
        config, plan, bench.ranks, clock, kept, lambda stage, _: bench.batches(stage), held_out, lambda: None
    )
