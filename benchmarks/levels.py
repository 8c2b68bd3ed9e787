"""What a coarser level takes of the time of the finer one, beside what it takes of its FLOPs; on one thread.

Both levels train in turn in the loop, as a run calls it, on the same batches, which are ready in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks import ours
from benchmarks.loop import timed
from benchmarks.ours import Work
from benchmarks.table import Report, Target, table

STEPS, TURNS = 10, 5
# Time over FLOPs, each of level 2 by level 1, may be this much.
BOUND = 1.3
STAGES = (
    "cycle.stages=[{{level: 1, length: {0} steps}},{{level: 2, length: {0} steps}},{{level: 1, length: {0} steps}}]"
)
WIDE = ["model=gpt_tiny", "model.layer=6", "model.embed=256", "model.head=8", "model.ffn=1024", "batch=8"]
THIN = ["model=gpt_thin", "batch=8"]
CASES = {
    "256 x 6 to 128 x 3": WIDE,
    "96 x 8 to 96 x 1": [*THIN, "coarsening=shallow", "coarsening.layers=1"],
}
HEAD = ["levels", "level 1: ms a step", "level 2: ms a step", "time ratio", "FLOPs ratio", "time over FLOPs"]


def work(overrides: Sequence[str], steps: int) -> Work:
    """Compose a cycle of two levels."""
    return alone([*overrides, "cycle=2level", STAGES.format(steps), f"budget={10 * steps} steps"])


def alone(overrides: Sequence[str]) -> Work:
    """Compose a run that is not evaluated."""
    return replace(ours.work(overrides), held_out=ours.HeldOut(()))


def seconds(given: Work, count: int) -> dict[int, list[float]]:
    """Return the processor seconds of a step by level, a number for each turn; the first turn does not count."""
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(count + 1):
            for level in found:
                folder, one = Path(scratch) / f"{level}-{turn}", ours.trainee(given, level)
                took = timed(lambda to, level=level, one=one: ours.train(given, one, to, level), folder)
                found[level] += [took.processor / given.stage(level).steps] if turn else []
    return found


def main(cases: Mapping[str, Sequence[str]] = CASES, count: int = TURNS, steps: int = STEPS) -> Report:
    """Return the table of medians."""
    rows, targets = [], []
    for name, overrides in cases.items():
        given = work(overrides, steps)
        found = seconds(given, count)
        time = median(small / large for large, small in zip(found[1], found[2], strict=True))
        flops = given.plan.level(2).flops.total / given.plan.level(1).flops.total
        steps_ms = [f"{1000 * median(found[level]):.1f}" for level in (1, 2)]
        rows.append([name, *steps_ms, f"{time:.3f}", f"{flops:.3f}", f"{time / flops:.2f}"])
        targets.append(Target(f"levels: time over FLOPs, {name}", BOUND, time / flops, unit=" x"))
    how = (
        f"GPT, batch 8 x 128, {steps} steps without evaluation, one thread, processor time, medians of {count} in turn."
    )
    return Report(f"{table(HEAD, rows)}\n\n{how}", tuple(targets))
