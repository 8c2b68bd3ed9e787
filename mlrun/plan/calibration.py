"""What a machine was measured to take for a family of models, and what follows for a plan: seconds and bytes.

A step's seconds are a sum: of its tokens, of its forward passes, and of itself (the optimizer). Between the sizes that
were measured each of these follows a power of the FLOPs per token, or of the parameters. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlrun.config.load import Config
from mlrun.plan.stages import Level, Plan, Stage

# How far beyond the measured sizes, as a factor on FLOPs per token, anything is said; measured sizes end sharp.
REACH, SLACK = 10.0, 1.001
BYTES = 4
PURPOSES = ("training", "evaluation", "checkpoint", "transfer")


@dataclass(frozen=True)
class Probe:
    """A step that was measured: its samples, those of one forward pass, its seconds, and its peak of bytes.

    The bytes are those beyond weights, the optimizer's state and the average: gradients and all that is passing.
    """

    samples: int
    at_a_time: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Size:
    """What one size of model takes.

    tokens: of a sample. samples: the fewest and the most of a forward pass that were measured.
    token_seconds, pass_seconds, step_seconds: of each token, forward pass (with its backward pass) and step.
    token_bytes, pass_bytes, again_bytes: of each token of a pass, of a pass, and more where a step has several.
    read_seconds, read_bytes: of a token in an evaluation, of an evaluation.
    """

    flops_per_token: float
    parameters: int
    tokens: int
    samples: tuple[int, int]
    token_seconds: float
    pass_seconds: float
    step_seconds: float
    token_bytes: float
    pass_bytes: float
    again_bytes: float
    read_seconds: float
    read_bytes: float


@dataclass(frozen=True)
class Calibration:
    """The measurements of one family on one machine; `machine` says what they hold for.

    name: of the model that was measured. time: when.
    evaluates: the samples held out, of the data and evaluations in `evaluated`; None where it is not known.
    save_seconds, byte_seconds: of a checkpoint, and of each of its bytes.
    transfers: seconds per parameter of the finer level, by kind, for the way up in `growth`.
    """

    name: str
    time: str
    machine: dict[str, Any]
    sizes: tuple[Size, ...]
    evaluates: int | None
    evaluated: dict[str, Any]
    save_seconds: float
    byte_seconds: float
    transfers: dict[str, float]
    growth: dict[str, Any]


@dataclass(frozen=True)
class Costs:
    """Predicted seconds by purpose, and the peak in bytes; None is unknown. `beyond` what was measured or not."""

    training: float | None
    evaluation: float | None
    checkpoint: float | None
    transfer: float | None
    bytes: float | None
    beyond: bool = False


@dataclass(frozen=True)
class Prediction:
    """The costs of each stage of a plan, with the calibration that they follow from."""

    calibration: Calibration
    stages: tuple[Costs, ...]

    @property
    def total(self) -> Costs:
        """The sum of the seconds and the largest peak; None where that of a stage is."""
        sums = {key: _sum([getattr(one, key) for one in self.stages]) for key in PURPOSES}
        peaks = [one.bytes for one in self.stages]
        known = [peak for peak in peaks if peak is not None]
        peak = max(known) if len(known) == len(peaks) else None
        return Costs(**sums, bytes=peak, beyond=any(one.beyond for one in self.stages))

    @property
    def whole(self) -> float | None:
        """Seconds of all purposes together, without the start of the process."""
        return _sum([getattr(self.total, key) for key in PURPOSES])


@dataclass(frozen=True)
class Habits:
    """What of a run's settings its seconds and bytes depend on beside its plan.

    micro_batch: samples of a forward pass, None for all. evaluations, saves: how many a stage has, by its index.
    averages: 1, or 2 where a moving average is evaluated too. on_processor: where a peak is that of the whole process,
    which holds more than tensors and is not predicted.
    """

    micro_batch: int | None
    evaluations: Mapping[int, int]
    saves: Mapping[int, int]
    evaluated: Mapping[str, Any]
    growth: Mapping[str, Any]
    averages: int
    on_processor: bool


def size(level: Level, tokens: int, probes: Sequence[Probe], read_seconds: float, read_bytes: int) -> Size:
    """Return what follows from three steps of a level: whole, of fewer samples, and whole in passes of these.

    With n samples, m at a time: t(n, n) - t(m, m) = (n - m) * token, t(n, m) - t(n, n) = (n / m - 1) * pass. Noise may
    make a part negative; it is then nothing, and the whole step still takes what it took.
    """
    whole, fewer, parted = probes
    n, m = whole.samples, fewer.samples
    sample = (whole.seconds - fewer.seconds) / (n - m)
    if not 0 < sample * n <= whole.seconds:
        sample = whole.seconds / n
    rest = whole.seconds - sample * n
    one_pass = min(max((parted.seconds - whole.seconds) / (math.ceil(n / m) - 1), 0.0), rest)
    slope = max((whole.bytes - fewer.bytes) / (n - m), 0.0)
    return Size(
        flops_per_token=level.flops.total / tokens,
        parameters=level.parameters,
        tokens=tokens,
        samples=(m, n),
        token_seconds=sample / tokens,
        pass_seconds=one_pass,
        step_seconds=rest - one_pass,
        token_bytes=slope / tokens,
        pass_bytes=max(whole.bytes - slope * n, 0.0),
        again_bytes=max(parted.bytes - fewer.bytes, 0),
        read_seconds=read_seconds,
        read_bytes=read_bytes,
    )


def predict(plan: Plan, habits: Habits, calibration: Calibration) -> Prediction:
    """Return what each stage of a plan should take on the machine of a calibration."""
    return Prediction(calibration, tuple(_costs(plan, stage, habits, calibration) for stage in plan.stages))


def _costs(plan: Plan, stage: Stage, habits: Habits, calibration: Calibration) -> Costs:
    level, tokens = plan.level(stage.level), stage.samples.tokens
    at = _At(calibration.sizes, stage.mean_step_flops / tokens, level.parameters)
    if not at.known:
        return Costs(None, None, None, None, None)
    passes = _passes(stage.samples.batch, habits.micro_batch)
    fewest = min(found.samples[0] for found in calibration.sizes)
    most = max(found.samples[1] for found in calibration.sizes)
    beyond = not at.within or not fewest <= passes[0] <= most or tokens != calibration.sizes[0].tokens
    step = at.step_seconds() + sum(at.pass_seconds() + at.token_seconds() * tokens * n for n in passes)
    entry = stage.entry_flops.total * at.token_seconds() / at.flops
    peak = _peak(plan, stage, habits, calibration, at.step_bytes(passes, tokens))
    return Costs(
        stage.steps * step + entry,
        _evaluation(plan, stage, habits, calibration),
        _checkpoints(plan, stage, habits, calibration),
        _transfer(plan, stage, habits, calibration),
        peak,
        beyond,
    )


def _passes(rows: int, micro: int | None) -> list[int]:
    """Return the samples of each forward pass of a step."""
    size = min(micro or rows, rows)
    return [min(size, rows - first) for first in range(0, rows, size)]


def _evaluation(plan: Plan, stage: Stage, habits: Habits, calibration: Calibration) -> float | None:
    if calibration.evaluates is None or habits.evaluated != calibration.evaluated:
        return None
    level = plan.level(stage.level)
    at = _At(calibration.sizes, level.flops.total / plan.tokens_per_sample, level.parameters)
    tokens = calibration.evaluates * plan.tokens_per_sample
    return habits.evaluations[stage.index] * habits.averages * tokens * at.read_seconds()


def _checkpoints(plan: Plan, stage: Stage, habits: Habits, calibration: Calibration) -> float:
    held = _held(plan.level(stage.level)) + sum(_held(level) for level in _kept(plan, stage))
    return habits.saves[stage.index] * (calibration.save_seconds + held * calibration.byte_seconds)


def _transfer(plan: Plan, stage: Stage, habits: Habits, calibration: Calibration) -> float | None:
    if stage.transfer is None:
        return 0.0
    if stage.transfer not in calibration.transfers or dict(habits.growth) != calibration.growth:
        return None
    finer = stage.level - 1 if stage.transfer == "coalesce" else stage.level
    return calibration.transfers[stage.transfer] * plan.level(finer).parameters


def _peak(plan: Plan, stage: Stage, habits: Habits, calibration: Calibration, step: float) -> float | None:
    """Return the peak bytes of a stage by the allocator of a GPU; None on a processor.

    There a peak is that of the whole process, and libraries, mapped files and what the allocator keeps are as large as
    the tensors of a small model: a sum of tensors would say too little.
    """
    if habits.on_processor:
        return None
    level = plan.level(stage.level)
    read = _At(calibration.sizes, level.flops.total / plan.tokens_per_sample, level.parameters).read_bytes()
    return _held(level) + max(step, read)


def _held(level: Level) -> int:
    """Return the bytes of weights, the optimizer's state and average: all but the gradients."""
    return level.state_bytes - BYTES * level.parameters


def _kept(plan: Plan, stage: Stage) -> list[Level]:
    """Return the finer levels whose models wait for the return of a stage."""
    kept: set[int] = set()
    for one in plan.stages[: stage.index + 1]:
        if one.transfer == "coalesce":
            kept.add(one.level - 1)
        kept.discard(one.level)
    return [plan.level(number) for number in sorted(kept)]


class _At:
    """The measured numbers at a size between those measured, or a little outside."""

    def __init__(self, sizes: Sequence[Size], flops: float, parameters: int) -> None:
        self.sizes, self.flops, self.parameters = sizes, flops, parameters
        measured = [one.flops_per_token for one in sizes]
        self.known = min(measured) / REACH <= flops <= max(measured) * REACH
        self.within = min(measured) / SLACK <= flops <= max(measured) * SLACK

    def token_seconds(self) -> float:
        return self._by_flops(lambda one: one.token_seconds)

    def pass_seconds(self) -> float:
        return self._by_flops(lambda one: one.pass_seconds)

    def step_seconds(self) -> float:
        return self._by_parameters(lambda one: one.step_seconds)

    def read_seconds(self) -> float:
        return self._by_flops(lambda one: one.read_seconds)

    def read_bytes(self) -> float:
        return self._by_flops(lambda one: one.read_bytes)

    def step_bytes(self, passes: Sequence[int], tokens: int) -> float:
        """Return the peak of a step beyond the model: what its largest pass keeps; never less than the gradients."""
        largest = self._by_flops(lambda one: one.token_bytes) * tokens * passes[0]
        again = self._by_parameters(lambda one: one.again_bytes) if len(passes) > 1 else 0.0
        peak = self._by_parameters(lambda one: one.pass_bytes) + largest + again
        return max(peak, BYTES * self.parameters)

    def _by_flops(self, value: Callable[[Size], float]) -> float:
        return between([(one.flops_per_token, value(one)) for one in self.sizes], self.flops)

    def _by_parameters(self, value: Callable[[Size], float]) -> float:
        return between([(one.parameters, value(one)) for one in self.sizes], self.parameters)


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the value at x > 0 on a power law through the two neighbours; a straight line where one is nothing."""
    ordered = sorted(points)
    place = min(max(sum(known <= x for known, _ in ordered), 1), len(ordered) - 1)
    (x0, y0), (x1, y1) = ordered[place - 1], ordered[place]
    if x0 == x1:
        return (y0 + y1) / 2
    if y0 > 0 and y1 > 0:
        return y0 * (x / x0) ** (math.log(y1 / y0) / math.log(x1 / x0))
    return max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def evaluated(config: Config) -> dict[str, Any]:
    """Return what an evaluation's seconds depend on, as config.yaml has it."""
    wanted = ("evaluation", "data")
    return {key: config.resolved.get(key) for key in wanted} | {"batch": config.settings.eval.batch}


def as_record(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as JSON has it."""
    return asdict(calibration)


def read_record(record: Mapping[str, Any]) -> Calibration:
    """Return the calibration that `as_record` wrote; TypeError or KeyError for anything else."""
    sizes = tuple(Size(**{**one, "samples": tuple(one["samples"])}) for one in record["sizes"])
    return Calibration(**{**record, "sizes": sizes})


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
