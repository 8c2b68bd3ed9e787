"""A model at rest, and how far a run has come: the values that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from mlrun.errors import UserError
from mlrun.models.axes import expand
from mlrun.plan.auto import Decision
from mlrun.plan.deciding import Plans
from mlrun.plan.rule import Look
from mlrun.plan.stages import Level, Plan

if TYPE_CHECKING:
    from torch import Tensor

# The kind under which parameters have their own counts of the optimizer's steps, where these differ.
STEP = "step"


@dataclass
class Snapshot:
    """A model at rest: `tensors[kind][name]` with kinds weights, ema and the optimizer's own; its steps taken.

    The tensors are whole, or what this process keeps of them (see `mlrun.train.parallel.placement`).
    """

    tensors: dict[str, dict[str, Tensor]]
    optimizer_steps: int = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's parameters."""
        return self.tensors["weights"]


@dataclass
class Progress:
    """How far a run has come.

    `entered` says that the transfer into `stage` was made, `unevaluated` that the evaluation at `step` is still due.
    `looks` are the held-out losses that the next decision follows from: of the stage that it ends, or of the probes.
    """

    stage: int = 0
    step: int = 0
    entered: bool = False
    unevaluated: bool = False
    log_bytes: int = 0
    content: str | None = None  # of the data, where it can be told
    best: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: list[float] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    forks: dict[str, float] = field(default_factory=dict)  # training seconds up to each, by its step
    looks: list[Look] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


def as_record(progress: Progress) -> dict[str, Any]:
    """Return the progress as JSON has it."""
    return asdict(progress)


def read_progress(record: Any, plans: Plans) -> tuple[Progress, Plan]:
    """Return the progress that a record describes, and the plan as the run had decided it by then.

    Raises:
        ValueError: no run of this plan can be there; the first wrong field is named.
    """
    names = {field.name for field in fields(Progress)}
    if not isinstance(record, dict) or record.keys() != names:
        raise ValueError("the fields of its progress are not those of a run")
    try:
        looks = [Look(*look) for look in record["looks"]]
        decisions = [Decision(**made) for made in record["decisions"]]
        plan = plans(decisions)
    except (TypeError, ValueError, UserError) as error:
        raise ValueError(f"its progress has decisions that no run of this plan can make ({error})") from None
    progress = Progress(**{**record, "looks": looks, "decisions": decisions})
    for name, fine in _checks(progress, plan):
        if not fine:
            raise ValueError(f"its progress has {name} {record[name]!r}, where no run of this plan can be")
    return progress, plan


def _checks(p: Progress, plan: Plan) -> Iterator[tuple[str, bool]]:
    """Yield (field, whether it is as it must be), each once those before it are."""
    yield "stage", _count(p.stage) and p.stage <= len(plan.stages)
    over = p.stage == len(plan.stages)
    yield "entered", isinstance(p.entered, bool) and not (p.entered and over)
    first, last = (plan.steps, plan.steps) if over else (plan.stages[p.stage].first, plan.stages[p.stage].end)
    yield "step", _count(p.step) and first <= p.step <= (last if p.entered else first)
    yield "unevaluated", isinstance(p.unevaluated, bool) and (p.entered or not p.unevaluated)
    yield "log_bytes", _count(p.log_bytes)
    yield "content", p.content is None or isinstance(p.content, str)
    yield "best", p.best is None or (isinstance(p.best, float) and math.isfinite(p.best))
    yield "seconds", _durations(p.seconds)
    yield "stage_seconds", isinstance(p.stage_seconds, list) and all(map(_duration, p.stage_seconds))
    yield "stage_seconds", len(p.stage_seconds) == p.stage + p.entered
    yield "receipts", isinstance(p.receipts, list) and all(isinstance(one, dict) for one in p.receipts)
    kept = [made.kept for made in p.decisions if made.kept is not None]
    yield "decisions", all(0 <= number < len(plan.probes) for number in kept)
    yield "decisions", all(stage.open is None for stage in plan.stages[: p.stage])
    yield "looks", all(_count(look.batches) and isinstance(look.loss, float) for look in p.looks)
    yield "forks", _durations(p.forks) and p.forks.keys() <= {str(step) for step in plan.forks}


def refuse_others(p: Progress, plan: Plan, current: Snapshot, kept: Mapping[int, Snapshot], whole: bool) -> None:
    """Judge the models of a checkpoint by where its run is; `whole` says that their tensors are, and have all rows.

    Raises:
        ValueError: a model is not of the level that trains there, or one that waits for its return is missing.
    """
    entered = plan.stages[: p.stage + p.entered]
    levels = {entered[-1].level} if entered and p.entered else {stage.level for stage in plan.stages[: p.stage + 1]}
    if not any(_of(current, plan.level(number), whole) for number in levels):
        raise ValueError(f"its weights are not those of level {' or '.join(map(str, sorted(levels)))}")
    for number, snapshot in kept.items():
        if not 1 <= number <= len(plan.levels) or not _of(snapshot, plan.level(number), whole):
            raise ValueError(f"the weights kept for level {number} are not of that level")
    waiting: set[int] = set()
    for stage in entered:
        if stage.transfer == "coalesce":
            waiting.add(stage.level - 1)
        elif stage.transfer == "decoalesce":
            waiting.discard(stage.level)
    later = {stage.level for stage in plan.stages[len(entered) :] if stage.transfer == "decoalesce"}
    if lost := (waiting & later) - kept.keys():
        raise ValueError(f"the model that waits at level {min(lost)} is missing")


def _of(snapshot: Snapshot, level: Level, whole: bool) -> bool:
    """Return whether a snapshot is of a level's model: its names, and their shapes where these are whole."""
    sizes = level.model.sizes()
    shapes = {name: param.shape(sizes) for name, param in expand(level.model.params(), sizes)}
    if snapshot.weights.keys() != shapes.keys():
        return False
    beside = all(named.keys() <= shapes.keys() for named in snapshot.tensors.values())
    return beside and (not whole or all(tuple(t.shape) == shapes[name] for name, t in snapshot.weights.items()))


def _count(value: object) -> bool:
    return type(value) is int and value >= 0


def _duration(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < math.inf


def _durations(value: object) -> bool:
    return isinstance(value, dict) and all(map(_duration, value.values()))


def flat(current: Snapshot, kept: Mapping[int, Snapshot]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return all tensors by their path in a checkpoint, and the optimizer's steps by snapshot."""
    snapshots = {"current": current} | {f"kept/{level}": s for level, s in kept.items()}
    tensors = {
        f"{key}/{k}/{n}": t for key, s in snapshots.items() for k, ts in s.tensors.items() for n, t in ts.items()
    }
    return tensors, {key: s.optimizer_steps for key, s in snapshots.items()}


def nested(tensors: Mapping[str, Tensor], steps: Any) -> tuple[Snapshot, dict[int, Snapshot]]:
    """Return the snapshots that `flat` took apart: the current one, and those kept by level.

    Raises:
        ValueError: the steps are not those of these tensors.
    """
    snapshots: dict[str, Snapshot] = {}
    for path, tensor in tensors.items():
        key, kind, name = path.rsplit("/", 2)
        snapshots.setdefault(key, Snapshot({})).tensors.setdefault(kind, {})[name] = tensor
    if not isinstance(steps, dict) or steps.keys() != snapshots.keys() or not all(map(_count, steps.values())):
        raise ValueError(f"the optimizer's steps {steps!r} are not those of its tensors")
    if "current" not in snapshots or any("weights" not in snapshot.tensors for snapshot in snapshots.values()):
        raise ValueError("a model's weights are missing")
    for key, taken in steps.items():
        snapshots[key].optimizer_steps = taken
    current = snapshots.pop("current")
    return current, {int(key.removeprefix("kept/")): snapshot for key, snapshot in snapshots.items()}
