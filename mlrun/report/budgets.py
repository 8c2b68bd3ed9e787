"""What is saved as the budget grows: groups of the same model and data side by side, one for each budget.

A method that saves at one budget may save nothing at another, and a model that is too large for a small budget is right
for a large one. So the savings of one group say little of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlrun.report import pairing, tables
from mlrun.report.compare import Group, Row
from mlrun.report.read import Run
from mlrun.report.smaller import lower, short, sizes
from mlrun.report.tables import Table
from mlrun.units import human

ALONE = "a smaller model alone"


@dataclass(frozen=True)
class Budgets:
    """Groups of one model, data and kind of optimizer, one a budget, and the best row of each method in each of them.

    The smallest budget is the first. Of groups of one budget it is the one whose baseline ends lowest. A method ran at
    two of the budgets at least; a row is None where it did not.
    """

    groups: tuple[Group, ...]
    methods: Mapping[str, tuple[Row | None, ...]]

    @property
    def tokens(self) -> tuple[float, ...]:
        """Tokens of each budget by parameter of the model."""
        return tuple(budget_tokens(group) / parameters(group) for group in self.groups)


def budget_tokens(group: Group) -> float:
    """Return the tokens of a group's budget, as its baselines read them."""
    return float(next(run.final.tokens for run in group.baselines.values() if run.final is not None))


def parameters(group: Group) -> float:
    """Return how many parameters the model of a group has at level 1."""
    return float(group.runs[0].plan["levels"][0]["parameters"])


def over_budgets(groups: Sequence[Group]) -> list[Budgets]:
    """Return what one optimizer was run at two budgets or more for, the most budgets first.

    Groups without a baseline that ended at a loss say nothing.
    """
    by_task: dict[str, list[Group]] = {}
    for group in groups:
        if group.loss.mean is not None and group.rows and group.runs[0].plan.get("levels"):
            run = group.runs[0]
            optimizer = (run.config.get("optimizer") or {}).get("_target_")
            by_task.setdefault(f"{optimizer} {pairing.task(run)}", []).append(group)
    found = [_budgets(list(_one_each(alike))) for alike in by_task.values()]
    return sorted((one for one in found if one.methods), key=lambda one: -len(one.groups))


def _one_each(groups: Sequence[Group]) -> Iterator[Group]:
    """Yield for each budget, the smallest first, the group whose baseline ends lowest."""
    left = sorted(groups, key=budget_tokens)
    while left:
        same = [group for group in left if pairing.same_budget(group.runs[0], left[0].runs[0])]
        yield min(same, key=lambda group: math.inf if group.loss.mean is None else group.loss.mean)
        left = [group for group in left if group not in same]


def _budgets(groups: Sequence[Group]) -> Budgets:
    """Return the groups with their methods, each known over all of them by what it does and not by its name."""
    families: dict[str, list[Run]] = {}
    rows: dict[str, dict[int, Row]] = {}
    for group in groups:
        for row in (row for row in tables.ordered(group) if row.best and row.pairs):
            key = pairing.recipe(row.pairs[0].run)
            families.setdefault(key, []).extend(pair.run for pair in row.pairs)
            rows.setdefault(key, {})[group.number] = row
    repeated = {key: runs for key, runs in families.items() if len(rows[key]) > 1}
    names = pairing.labels(repeated, [run for group in groups for run in group.baselines.values()])
    methods = {name: tuple(rows[key].get(group.number) for group in groups) for key, name in names.items()}
    return Budgets(tuple(groups), methods)


def table(one: Budgets) -> Table:
    """Return methods by budgets: what each saved of the FLOPs, below L* and what a smaller model alone saved."""
    by = [f"{human(budget_tokens(group))} tokens\n{tokens:.3g} a parameter" for group, tokens in _each(one)]
    levels = [f"{group.loss.mean:.4f}\n{tables.tuning(group)}" for group in one.groups]
    rows = [("L*, from scratch", *levels), (ALONE, *(_alone(group) for group in one.groups))]
    rows += [(name, *map(_cell, found, one.groups)) for name, found in one.methods.items()]
    model = tables.model(one.groups[0].runs[0])
    numbers = ", ".join(f"{group.number}" for group in one.groups)
    return Table(f"{model}: FLOPs saved as the budget grows (groups {numbers}).", ("method", *by), tuple(rows), 1)


def _each(one: Budgets) -> list[tuple[Group, float]]:
    return list(zip(one.groups, one.tokens, strict=True))


def _alone(group: Group) -> str:
    if not group.controls:
        return _absent(group)
    found = group.smaller_on_all
    if found is not None:
        tried = len(sizes(group.controls))
        return tables.bounded(found.saved, found.bound) + (f"\nbest of {tried} sizes" if tried > 1 else "")
    if group.smaller is None and lower(group.controls, group.baselines):
        return "below L*\nwith as many FLOPs"
    given = max((one.share for one in short(group.controls, group.baselines)), default=None)
    return "above L*, or dearer" if given is None else f"above L*\nwith {given:.0%} of the FLOPs"


def _absent(group: Group) -> str:
    """Say that a group lacks something, which another group of that budget may have."""
    return f"not in group {group.number}"


def _cell(row: Row | None, group: Group) -> str:
    if row is None:
        return _absent(group)
    said = f"{tables.claimed(row)}\n{tables.count(len(row.pairs), 'seed')}"
    said += f" (+{len(row.unfinished)} unfinished)" if row.unfinished else ""
    return said if row.annealed else f"{said}, un-annealed"
