"""Hopeless runs of a sweep: told by the held-out losses of its finished runs at the same FLOPs. Files only.

The median rule of Golovin et al. 2017 (Google Vizier), with a margin: schedules that stay at their peak are read in
the middle, where a higher rate has a higher loss and may still end lower.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median

from mlrun import files
from mlrun.config.settings import Find, Settings
from mlrun.errors import UserError
from mlrun.plan.stages import Plan, Stage

# A run's held-out losses at level 1: (stage, cumulative FLOPs, loss in nats), in order.
Curve = Sequence[tuple[int, float, float]]
# Evaluations of one stage above the limit, one after the other, that make a run hopeless; that where a stage begins,
# with the loss of a transfer, is none of them.
IN_A_ROW = 2


class Pruned(Exception):
    """The run was stopped as hopeless; what it takes to go on is saved."""


def hopeless(folder: Path, method: str, find: Find) -> str | None:
    """Return why a run is hopeless beside the finished runs of its sweep; None if it is not, or cannot be told.

    Args:
        folder: the run's; its neighbours are the folders beside it.
        method: the cycle's name. Others have curves of other shapes: one that grows late is above all until then.
    """
    curve = _curve(folder)
    stage = [point for point in curve if point[0] == curve[-1][0]]
    if find.prune is None or len(stage) <= IN_A_ROW:
        return None
    others = _finished(folder, method)
    for _, flops, loss in stage[-IN_A_ROW:]:
        known = [found for other in others if (found := _read(other, flops)) is not None]
        if len(known) < find.prune_after or not loss > median(known) + find.prune:
            return None
    told = f"held-out loss {loss:.4f} at {flops:.4g} FLOPs, {loss - median(known):.4f} nats above the median"
    return f"{told} of {len(known)} finished runs of {method} (find.prune={find.prune:g})"


def judged(folder: Path, settings: Settings, plan: Plan, stage: Stage, step: int) -> str | None:
    """Return why a run is hopeless (`hopeless`) at a step; at the trunk's end it is what it is."""
    last = plan.trunk[-1]
    if settings.find.prune is None or (stage, step) == (last, last.end):
        return None
    return hopeless(folder, settings.cycle.name, settings.find)


def _curve(folder: Path) -> Curve:
    """Return the trunk's evaluations at level 1; a last line under way is left out."""
    points = []
    with open(folder / files.LOG, encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n") or '"val"' not in line:
                continue
            record = json.loads(line)
            if record["kind"] == "val" and record["level"] == 1 and not {"branch", "probe"} & record.keys():
                loss = math.inf if record["loss"] is None else float(record["loss"])
                points.append((int(record["stage"]), float(record["flops"]), loss))
    return points


def _finished(folder: Path, method: str) -> list[Curve]:
    """Return the curves of the finished runs of a method beside a folder."""
    beside = sorted(folder.absolute().parent.glob(f"*/{files.SUMMARY}"))
    done = [_whole(path.parent) for path in beside if files.read_json(path)["status"] == "finished"]
    return [curve for name, curve in done if name == method]


@cache
def _whole(folder: Path) -> tuple[str, Curve]:
    """Return the method and the curve of a finished run, which change no more; UserError if a file of it is damaged."""
    config = files.read_yaml(folder / files.CONFIG)
    try:
        return str(config["cycle"]["name"]), _curve(folder)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: not a run folder as mlrun writes it ({error!r}); restore or remove it") from None


def _read(curve: Curve, flops: float) -> float | None:
    """Return a curve's loss at some FLOPs, on the straight line between two evaluations of a stage; None if outside."""
    for (stage, before, loss), (next_stage, after, next_loss) in pairwise(curve):
        if stage == next_stage and before <= flops <= after:
            share = (flops - before) / (after - before)
            return loss if share == 0 else next_loss if share == 1 else loss + share * (next_loss - loss)
    return None
