"""The FLOPs that torch counts of a growing method of one's own, beside those it declares: savings are made of them.

Ours are held by tests. What the steps of the stage cost that it leads into is counted before a run begins, as shapes
alone (device `meta`); what the growing itself costs, as it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlrun.errors import UserError
from mlrun.models.network import build
from mlrun.multilevel.growth.base import Growth
from mlrun.own import ours
from mlrun.plan.stages import Plan, Stage
from mlrun.train.counted import SLACK, passes, too_little
from mlrun.train.snapshot import Snapshot
from mlrun.units import human

# What growing may cost beyond what it declares, as a share of the budget: operators multiply by small matrices.
SMALL = 0.001
Batch = Mapping[str, Tensor]


def notes(growth: Growth, probes: Sequence[Growth], plan: Plan, sample: Callable[[int], Batch]) -> list[str]:
    """Return what is to be known of the costs of the steps after growing that a method of one's own declares.

    Args:
        probes: the ways to grow that the plan's probes try, by their numbers.
        sample: returns one of the data's samples cut into so many, as a batch of one.

    Raises:
        UserError: a step costs more than it declares.
    """
    said, problems = [], []
    for stage in (s for s in plan.stages if s.transfer == "decoalesce" and s.fork is None):
        own = growth if stage.probe is None else probes[stage.probe]
        if ours(type(own)):
            continue
        key, name = f"growth (into level {stage.level})", type(own).__name__
        try:
            found = steps(own, plan, stage, sample(stage.samples.pieces))
        except (NotImplementedError, RuntimeError) as error:  # it needs values
            reason = str(error).partition("\n")[0]
            said.append(f"{key}: torch cannot count {name} ({reason}); its steps cost what {name}.step_flops says")
            continue
        for told, cost in zip(stage.step_flops, found, strict=True):
            if told.total < (1 - SLACK) * cost:
                problems.append(too_little(key, f"{human(told.total)}FLOPs a sample from {name}.step_flops", cost))
    if problems:
        raise UserError(problems)
    return said


def steps(growth: Growth, plan: Plan, stage: Stage, batch: Batch) -> list[int]:
    """Return the FLOPs that torch counts of a sample in each of the steps that come in turn after growing."""
    level, coarse = plan.pair(stage), plan.level(stage.level + 1)
    net = build(level.model, None, device="meta").train()
    # Its weights are real: a teacher is built from them, and then goes to where the network is.
    teacher = Snapshot({"weights": dict(build(coarse.model, None).state_dict())}) if growth.keeps_teacher else None
    own = growth.stage_loss(net, stage, coarse, teacher)
    found = []
    for turn in range(len(stage.step_flops)):
        if own is not None:
            own.train().at_step(stage.first + turn)
        found.append(passes(net if own is None else own, batch))
    return found


@contextmanager
def growing(growth: Growth, stage: Stage, budget: int) -> Iterator[None]:
    """Count what is multiplied meanwhile, where the method is one's own.

    Raises:
        UserError: that is more than it declares by more than a thousandth of the budget.
    """
    if ours(type(growth)):
        yield
        return
    with FlopCounterMode(display=False) as counter:
        yield
    found, told = counter.get_total_flops(), stage.entry_flops.total
    if found > told + SMALL * budget:
        given = f"{human(told)}FLOPs from {type(growth).__name__}.entry_flops"
        raise UserError(too_little(f"growth (into level {stage.level})", given, found))
