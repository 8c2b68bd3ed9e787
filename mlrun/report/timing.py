"""Whether the seconds of two runs may be compared: the same machine and settings throughout, and the same speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlrun.report.curves import Point
from mlrun.report.read import Run

# What a start record says of a machine, and of the code that ran on it.
FACTS = (
    "host", "processor", "cores", "threads", "gpu", "precision", "compile", "processes", "mlrun", "commit", "torch",
    "python",
)  # fmt: skip
# What a run is asked to do beside training; a cycle's branches are evaluated too.
BESIDE = ("eval", "evaluation", "checkpoint", "health", "logger", "log_every")
# Of two runs at level 1, or of two halves of one; more is other load, and no property of a method.
TOLERANCE = 0.10


def incomparable(run: Run, baseline: Run) -> str | None:
    """Return why the seconds of two runs say nothing about each other; None if they may be compared."""
    for one in (run, baseline):
        if not one.starts:
            return f"{one.folder} does not say which machine it ran on"
        if changed := [c for before, after in pairwise(one.starts) for c in _changed(before, after)]:
            return f"{one.folder} went on elsewhere ({', '.join(dict.fromkeys(changed))})"
    if changed := _changed(baseline.starts[0], run.starts[0]) or _hardware(baseline, run):
        return f"{run.folder} and {baseline.folder} ran differently ({', '.join(changed)})"
    if foreign := _foreign(run):
        return f"{run.folder} began with weights from another machine ({foreign})"
    return _speed(run, baseline)


def same_beside(run: Run, baseline: Run) -> bool:
    """Return whether two runs were asked for the same beside their training; all of their seconds have that in them."""
    asked = [
        [*(one.config.get(key) for key in BESIDE), one.config["cycle"].get("branches") or []] for one in (run, baseline)
    ]
    return asked[0] == asked[1]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [f"{k} {before.get(k)}, then {after.get(k)}" for k in FACTS if before.get(k) != after.get(k)]


def _hardware(baseline: Run, run: Run) -> list[str]:
    old, new = (one.config.get("hardware") or {} for one in (baseline, run))
    return [f"hardware.{k} {old.get(k)}, then {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]


def _foreign(run: Run) -> str | None:
    """Return the machine of a source whose seconds are not this machine's."""
    own = (run.summary or {}).get("machine")
    parts = (run.source or {}).get("parts", ())
    return next((str(part["machine"]) for part in parts if part.get("machine") not in (None, own)), None)


def _speed(run: Run, baseline: Run) -> str | None:
    """Return which speeds at level 1 are too far apart; a run without plain steps there has none."""
    for one in (run, baseline):
        first, second = _halves(plain(one))
        if first and second and apart(speed(first), speed(second)) > TOLERANCE:
            return (
                f"the speed of {one.folder} at level 1 changed by {apart(speed(first), speed(second)):.0%} on the way"
            )
    own, other = plain(run), plain(baseline)
    if own and other and apart(speed(own), speed(other)) > TOLERANCE:
        return f"{run.folder} and {baseline.folder} differ in speed at level 1 by {apart(speed(own), speed(other)):.0%}"
    return None


def plain(run: Run) -> list[tuple[Point, Point]]:
    """Return neighbouring evaluations in the stages at level 1 whose steps cost what the model's own steps cost."""
    per_step = run.step_flops
    stages = {
        stage["stage"]
        for stage in run.trunk
        if stage["level"] == 1 and stage["flops"] == stage.get("entry_flops", 0) + stage["steps"] * (per_step or 0)
    }
    return [
        (a, b) for a, b in pairwise(run.evaluations) if a.stage == b.stage and a.stage in stages and b.step > a.step
    ]


Spans = Sequence[tuple[Point, Point]]


def _halves(spans: Spans) -> tuple[Spans, Spans]:
    return spans[: len(spans) // 2], spans[len(spans) // 2 :]


def speed(spans: Spans) -> float:
    """Return tokens per second of training over some spans."""
    return sum(b.tokens - a.tokens for a, b in spans) / max(sum(b.seconds - a.seconds for a, b in spans), 1e-12)


def apart(one: float, other: float) -> float:
    """Return by how much the faster of two is faster."""
    return max(one, other) / min(one, other) - 1 if min(one, other) > 0 else 0.0
