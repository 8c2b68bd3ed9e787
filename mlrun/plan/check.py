"""What can be wrong in a configuration, known without data or a GPU: every problem is one line. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

from mlrun.config.load import Config
from mlrun.config.settings import Cycle, Find, Hardware, Schedule, Settings
from mlrun.errors import mistake, mistakes
from mlrun.models.axes import Rule
from mlrun.plan import branches
from mlrun.plan.auto import AUTO
from mlrun.plan.stages import alpha_problems
from mlrun.units import EXAMPLES, parse

# Seeds are hashed as 64 bits.
SEEDS = range(2**63)
# What a number must be.
COUNT = "an integer of at least 1"
POSITIVE = "a finite number above 0"


def problems(config: Config, sources: bool = True) -> list[str]:
    """Return one line for each problem of the configuration; empty if it can be planned.

    Without `sources` the files that the data comes from need not be there.
    """
    settings, schedule = config.settings, config.optimizer.schedule
    found = _parts(config, sources) + _numbers(settings, schedule) + _lengths(settings, schedule)
    found += _cycle(settings.cycle) + _branches(settings.cycle, schedule) + _layer_dropout(settings)
    found += _samples(settings) + _find(settings.find)
    return found + ([] if found else _sequences(config))


def _parts(config: Config, sources: bool) -> list[str]:
    """Each part judges itself; the data is judged against a model that makes sense."""
    model = config.model.problems()
    data = [] if model else config.data.problems(config.model)
    if data and not sources:
        absent = config.data.source_problems()
        data = [line for line in data if line not in absent]
    others = _kept(config) + config.optimizer.problems(config.settings.hardware)
    others += of_choices("logger", config.logger)
    return model + data + others + _parametrization(config) + _evaluations(config, sources)


def of_choices(group: str, chosen: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the choices of a group that is a list, under the name that each has there.

    A class names its keys as our file of it does; a file of one's own may be called otherwise.
    """
    ours = re.compile(rf"{group}\.\w+\.")
    return [
        ours.sub(f"{group}.{name}.", line, count=1) if ours.match(line) else line
        for name, one in chosen.items()
        for line in one.problems()
    ]


def _kept(config: Config) -> list[str]:
    """What an optimizer keeps goes through the operators by a rule; a class of one's own may name another."""
    state, name = getattr(config.optimizer, "state", None), type(config.optimizer).__name__
    rules, remedy = get_args(Rule), "correct `state` in that class"
    if not isinstance(state, Mapping):
        return [mistake("optimizer", name, "a class whose `state` is {tensor that it keeps: rule}", remedy)]
    counted = config.optimizer.counted
    if counted is not None and counted not in state:
        allowed = ", ".join([*state, "None"])
        return [mistake("optimizer", f"{name}.counted={counted}", allowed, "name one of its `state`")]
    return [
        mistake("optimizer", f"{name}.state[{kind!r}]={rule}", ", ".join(rules), remedy)
        for kind, rule in state.items()
        if rule not in rules
    ]


def _parametrization(config: Config) -> list[str]:
    """The optimizer must know the model's factors on its rates."""
    given, known = config.model.parametrization, config.optimizer.parametrizations
    if given in known or given not in config.model.parametrizations:
        return []
    name = type(config.optimizer).__name__
    remedy = f"{name} knows no other: choose it with model.base=null, or optimizer=adamw"
    return [mistake("model.parametrization", given, ", ".join(known), remedy)]


def _evaluations(config: Config, sources: bool) -> list[str]:
    """Runs are compared by their held-out loss; a plan needs no files to measure by."""
    if "held_out" in config.evaluation:
        return of_choices("evaluation", config.evaluation) if sources else []
    given = ", ".join(config.evaluation) or "nothing"
    return [mistake("evaluation", given, "a list with held_out", "runs are compared by that loss: add it")]


def _positive(number: float | None) -> bool:
    """Return whether an optional number is absent, or finite and above 0."""
    return number is None or 0 < number < math.inf


def _numbers(s: Settings, schedule: Schedule) -> list[str]:
    micro, flops = s.hardware.micro_batch, s.hardware.flops_per_second
    checks: list[tuple[str, Any, bool, str]] = [
        ("batch", s.batch, s.batch >= 1, COUNT),
        ("log_every", s.log_every, s.log_every >= 1, f"{COUNT} (steps)"),
        ("optimizer.schedule.floor", schedule.floor, 0 <= schedule.floor <= 1, "a share in [0, 1]"),
        ("hardware.micro_batch", micro, _divides(micro, s.batch), f"a divisor of {s.batch}, auto, or null"),
        ("hardware.flops_per_second", flops, _positive(flops), f"{POSITIVE}, or null"),
    ]
    return mistakes("", checks) + small(s.seed, s.eval.batch, s.hardware)


def small(seed: int, batch: int, h: Hardware) -> list[str]:
    """Return what is wrong with the numbers that tasks without a plan read too; `batch` is that of evaluations."""
    checks: list[tuple[str, Any, bool, str]] = [
        ("eval.batch", batch, batch >= 1, f"{COUNT} (samples)"),
        ("seed", seed, seed in SEEDS, "an integer from 0 to 2^63 - 1"),
        ("hardware.threads", h.threads, _positive(h.threads), f"{COUNT}, or null"),
        ("hardware.compile", h.compile, h.compile in (True, False, "auto"), "true, false, auto"),
        ("hardware.workers", h.workers, _auto_or_count(h.workers), "auto, or an integer of at least 0"),
    ]
    return mistakes("", checks)


def _find(f: Find) -> list[str]:
    """Return what is wrong with what a search wants of its runs."""
    if (f.objective == "flops") != (f.objective_loss is not None):
        allowed = "a loss in nats with find.objective=flops, null without"
        return [mistake("find.objective_loss", f.objective_loss, allowed, "give both or neither")]
    checks: list[tuple[str, Any, bool, str]] = [
        ("objective_loss", f.objective_loss, _positive(f.objective_loss), f"{POSITIVE} (nats), or null"),
        ("prune", f.prune, _positive(f.prune), f"{POSITIVE} (nats), or null"),
        ("prune_after", f.prune_after, f.prune_after >= 1, f"{COUNT} (finished runs)"),
    ]
    return mistakes("find.", checks)


def _auto_or_count(number: int | str) -> bool:
    return number == "auto" or (isinstance(number, int) and number >= 0)


def _divides(micro: int | str | None, batch: int) -> bool:
    if isinstance(micro, int):
        return micro >= 1 and batch % micro == 0
    return micro in (None, "auto")


def _lengths(s: Settings, schedule: Schedule) -> list[str]:
    lengths = {
        "eval.every": s.eval.every,
        "checkpoint.every": s.checkpoint.every,
        "optimizer.schedule.warmup": schedule.warmup,
        "optimizer.schedule.decay" if s.cycle.decay is None else "cycle.decay": schedule.decay,
    }
    found = [length_problem(key, text, except_for=("rest",)) for key, text in lengths.items()]
    found.append(length_problem("budget", s.budget, except_for=("rest", "%")))
    return [line for line in found if line is not None] + _periods(s)


def _periods(s: Settings) -> list[str]:
    """Nothing can be due every 0 steps; less than a step is every step."""
    periods = {"eval.every": s.eval.every, "checkpoint.every": s.checkpoint.every}
    lengths = {key: parse(text) for key, text in periods.items()}
    return [
        mistake(key, periods[key], "a length above 0, such as 5%", "lengthen it; 100% is once")
        for key, length in lengths.items()
        if length is not None and length.unit != "rest" and length.amount == 0
    ]


def length_problem(key: str, text: object, except_for: Sequence[str] = ()) -> str | None:
    """Return a line unless `text` is a length with its unit, other than the units excepted."""
    length = parse(text)
    if length is not None and length.unit not in except_for:
        return None
    allowed = ", ".join(example for unit, example in EXAMPLES.items() if unit not in except_for)
    return mistake(key, text, allowed, "write a number with its unit")


def _cycle(cycle: Cycle) -> list[str]:
    rows = cycle.stages
    if not rows:
        return [mistake("cycle.stages", "[]", "at least one row {level, length}", "add a row")]
    found = [length_problem(f"cycle.stages.{i}.length", row.length) for i, row in enumerate(rows) if row.length != AUTO]
    if [row.length for row in rows].count("rest") > 1:
        found.append(mistake("cycle.stages", "rest twice", "one stage of length rest", "give the other a length"))
    if not 0 <= cycle.noise < math.inf:
        found.append(mistake("cycle.noise", cycle.noise, "a finite number of at least 0", "0 means none"))
    return [line for line in found if line is not None] + _alphas(cycle) + _levels(cycle)


def _branches(cycle: Cycle, schedule: Schedule) -> list[str]:
    """Each point is a length, maybe `if possible`; where it may lie is known once the cycle is planned."""
    points = branches.points(cycle.branches)
    found = [length_problem(f"cycle.branches.{point.place}", point.length, except_for=("rest",)) for point in points]
    if schedule.shape != "wsd" and not all(point.optional for point in points):
        remedy = "a branch leaves a stable rate: set it, or cycle.branches=[]"
        found.append(mistake("optimizer.schedule.shape", schedule.shape, "wsd", remedy))
    if schedule.shape != "wsd" and cycle.decay is not None:
        remedy = "no other schedule has a decay after a stable rate: set it, or cycle.decay=null"
        found.append(mistake("optimizer.schedule.shape", schedule.shape, "wsd", remedy))
    return [line for line in found if line is not None]


def _layer_dropout(s: Settings) -> list[str]:
    """Its cost follows from the number of steps, and the shapes of a step from the step."""
    rate, key = s.cycle.layer_dropout, "cycle.layer_dropout"
    if not 0 <= rate < 1:
        return [mistake(key, rate, "a number of at least 0 and under 1", "correct the value")]
    if rate == 0:
        return []
    found = [] if s.hardware.compile is not True else [
        mistake("hardware.compile", True, "false", f"{key} computes another number of samples at each step")
    ]  # fmt: skip
    allowed = ", ".join(example for unit, example in EXAMPLES.items() if unit != "flops")
    return found + [
        mistake(f"cycle.stages.{i}.length", row.length, allowed, f"{key} spares FLOPs by the length: give another unit")
        for i, row in enumerate(s.cycle.stages)
        if (length := parse(row.length)) is not None and length.unit == "flops"
    ]


def _samples(s: Settings) -> list[str]:
    """What a row says of its batch."""
    rows = [(f"cycle.stages.{i}.batch", row.batch) for i, row in enumerate(s.cycle.stages) if row.batch is not None]
    micro = s.hardware.micro_batch
    shared = f"a multiple of hardware.micro_batch={micro}"
    return [mistake(key, batch, COUNT, "correct the value") for key, batch in rows if batch < 1] + [
        mistake(key, batch, shared, "change one of them")
        for key, batch in rows
        if batch >= 1 and isinstance(micro, int) and micro >= 1 and batch % micro
    ]


def _sequences(config: Config) -> list[str]:
    """What a row says of the length of its samples: they are pieces of the data's own, and a step takes whole ones."""
    found, data, default = [], config.data, config.settings.batch
    for i, row in enumerate(config.settings.cycle.stages):
        if row.sequence is None:
            continue
        pieces = data.sequences(config.model)
        if row.sequence not in pieces:
            allowed = ", ".join(["null", *map(str, sorted(pieces))])
            remedy = "these are whole parts of the data's own, so that no token is left out"
            remedy = remedy if pieces else "this data has samples of one length"
            found.append(mistake(f"cycle.stages.{i}.sequence", row.sequence, allowed, remedy))
        elif (default if row.batch is None else row.batch) % pieces[row.sequence]:
            batch, count = default if row.batch is None else row.batch, pieces[row.sequence]
            remedy = f"a sample of {data.sequence} gives {count} of {row.sequence}, and a step takes all of them"
            found.append(mistake(f"cycle.stages.{i}.batch", batch, f"a multiple of {count}", remedy))
    return found


def _alphas(cycle: Cycle) -> list[str]:
    alphas: Mapping[str, float | None] = {
        "cycle.alpha": cycle.alpha,
        **{f"cycle.stages.{i}.alpha": row.alpha for i, row in enumerate(cycle.stages)},
    }
    return [line for key, alpha in alphas.items() if alpha is not None for line in alpha_problems(key, alpha)]


def _levels(cycle: Cycle) -> list[str]:
    numbers = [row.level for row in cycle.stages]
    found = [
        mistake(f"cycle.stages.{i}.level", n, COUNT, "level 1 is the model you want")
        for i, n in enumerate(numbers)
        if n < 1
    ]
    found += [
        mistake(f"cycle.stages.{i}.level", b, f"{max(a - 1, 1)} to {a + 1}", f"after level {a} comes a neighbour")
        for i, (a, b) in enumerate(pairwise(numbers), start=1)
        if abs(a - b) > 1
    ]
    if numbers[-1] != 1:
        found.append(mistake("cycle.stages", numbers, "a last stage at level 1", "add {level: 1, length: rest}"))
    scales = cycle.lr_scale
    if scales and (len(scales) < max(numbers) or not all(map(_positive, scales))):
        allowed = f"{max(numbers)} positive numbers, one per level, or []"
        found.append(mistake("cycle.lr_scale", scales, allowed, "give each level its factor"))
    return found
