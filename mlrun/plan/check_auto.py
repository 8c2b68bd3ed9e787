"""What can be wrong with stages of length `auto`: every problem is one line. No torch here."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from mlrun.config.load import Config
from mlrun.config.settings import Auto, Cycle
from mlrun.errors import mistake, mistakes
from mlrun.models.layers import Flops
from mlrun.plan import auto, branches
from mlrun.plan.check import length_problem
from mlrun.plan.stages import Level, Samples
from mlrun.units import parse

# A rate that does not depend on when the run will grow.
NEEDED = {"optimizer.schedule.shape": "wsd", "cycle.lr_policy": "continue"}


def problems(config: Config) -> list[str]:
    """Return a line for each problem of the cycle's stages of length `auto` and of `cycle.auto`."""
    cycle, rows = config.settings.cycle, auto.rows(config)
    if cycle.auto is None:
        remedy = "it says how the length auto is decided: cycle=auto has it"
        return [mistake("cycle.auto", "null", "mixing, early, probe, probe_length", remedy)] if rows else []
    if not rows:
        remedy = "no stage has the length auto: give one, or leave cycle.auto out"
        return [mistake("cycle.auto", "given", "null", remedy)]
    given = {"optimizer.schedule.shape": config.optimizer.schedule.shape, "cycle.lr_policy": cycle.lr_policy}
    found = [
        mistake(key, given[key], needed, "under a length auto the rate may not depend on when the run grows: set it")
        for key, needed in NEEDED.items()
        if given[key] != needed
    ]
    return found + _places(cycle) + _fixed(cycle) + _numbers(cycle.auto)


def _places(cycle: Cycle) -> list[str]:
    """A stage of length `auto` ends by growing, and the last stage takes what the budget leaves."""
    found = [
        mistake(f"cycle.stages.{i}.length", "auto", "a length where no finer level follows", "it ends by growing")
        for i, (row, after) in enumerate(pairwise([*cycle.stages, None]))
        if row is not None and row.length == auto.AUTO and (after is None or after.level != row.level - 1)
    ]
    required = [point.text for point in branches.points(cycle.branches) if not point.optional]
    if len(found) == 0 and required and sum(row.length == auto.AUTO for row in cycle.stages) > 1:
        remedy = "where the last stage can begin at the latest is known with one length auto only"
        allowed = f"points such as `{required[0]} {branches.IF_POSSIBLE}` with several stages of length auto"
        found.append(mistake("cycle.branches", required, allowed, remedy))
    last = len(cycle.stages) - 1
    if cycle.stages[last].length not in ("rest", auto.AUTO):
        remedy = "what a length auto leaves of the budget is the last stage's"
        found.append(mistake(f"cycle.stages.{last}.length", cycle.stages[last].length, "rest", remedy))
    return found


def _fixed(cycle: Cycle) -> list[str]:
    """What a step reads and costs is the same all along: looks are compared and the latest end is planned by it."""
    found = [
        mistake(
            f"cycle.stages.{i}.{key}", value, "null", "under a length auto all stages have the run's own: remove it"
        )
        for i, row in enumerate(cycle.stages)
        for key, value in (("batch", row.batch), ("sequence", row.sequence))
        if value is not None
    ]
    if cycle.layer_dropout != 0:
        remedy = "under a length auto the share left out may not depend on when the run grows: set it"
        found.append(mistake("cycle.layer_dropout", cycle.layer_dropout, "0", remedy))
    return found


def _numbers(given: Auto) -> list[str]:
    lengths: dict[str, str] = {"cycle.auto.mixing": given.mixing, "cycle.auto.probe_length": given.probe_length}
    found = [line for key, text in lengths.items() if (line := length_problem(key, text, ("rest",))) is not None]
    known = auto.names(given.probe)
    probe, twice = parse(given.probe_length), len(set(known)) < len(known)
    checks: list[tuple[str, Any, bool, str]] = [
        ("early", given.early, 0 <= given.early < math.inf, "a finite number of at least 0; 0 never grows early"),
        ("probe", list(known), len(known) != 1 and not twice, "[], or two or more different growths"),
        ("probe_length", given.probe_length, probe is None or probe.amount > 0, "a length above 0, such as 1%"),
    ]
    return found + mistakes("cycle.auto.", checks)


def probe_problems(config: Config, level: Level) -> list[str]:
    """Return what keeps the probes from growing into a level, one line each.

    A probe trains the level's own loss at the level's own cost, so that what follows costs the same whichever is kept.
    """
    found, resize = [], level.resize
    assert resize is not None
    data, model = config.data, config.model
    samples = Samples(data.sequence, data.targets(model), config.settings.batch, model.tokens(data.sequence))
    for i, growth in enumerate(config.probes):
        key, name = f"cycle.auto.probe.{i}", type(growth).__name__
        lines = growth.policy_problems(config) + growth.size_problems(level.model, resize)
        found += [f"{key}: {line}" for line in lines]
        plain = growth.step_flops(level.model, resize, samples) == (level.flops,)
        free = growth.entry_flops(level.model, resize, samples) == Flops(0, 0)
        if not lines and not (plain and free and not growth.keeps_teacher):
            found.append(
                mistake(key, name, "a growth that costs nothing and trains on the model's own loss", "leave it out")
            )
    return found
