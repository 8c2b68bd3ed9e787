"""What a reader must know before believing a number: every caveat is one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlrun.report import pairing
from mlrun.report.compare import Group
from mlrun.report.curves import unrest
from mlrun.report.figure import COLOURS
from mlrun.report.read import Run

RULES = (
    "Saving: 1 - cost(method) / cost(baseline), each taken where its held-out loss at level 1 first stays at or below "
    "L*, the final loss of the baseline of the same seed, on straight lines between evaluations.",
    "Everything a run spent is charged, with coarse levels and declared sources; `source free` leaves sources out.",
    "Of several learning rates the one with the lowest final loss counts: by the mean over seeds for a method (*), "
    "seed by seed for the baseline, which gains by it.",
    "± is the standard deviation over seeds; [ ] a 95% bootstrap interval of the mean. Time is of training only.",
    "Speed-up s is the FLOPs saving as 1 - 1 / (1 + s). `of body` leaves the vocabulary head out of both costs.",
    "The loss gap is the final loss minus L*, in nats: below 0 is better than the baseline.",
)
ENDINGS = (
    "Matched endings: each loss is fully annealed, by a decay of its own from the stable phase of the same run "
    "(`cycle.branches`), and costs what a run would have cost that ended there: what came before the fork, and the "
    "decay. The curves and L* know nothing of branches.",
    "The baseline's annealed loss is taken as a straight line over the logarithm of the cost between two of its "
    "endings. Saved is 1 - cost(ending) / cost at which the same seed's line first stays at or below the ending's "
    "loss. Nothing is extrapolated: `not reached` is a loss above that of the baseline's cheapest ending, `beyond the "
    "baseline` one that the baseline had not reached with its whole budget.",
)


def notes(groups: Sequence[Group]) -> list[str]:
    """Return the caveats of this report, then the rules that hold for every report."""
    annealed = any(row.endings for group in groups for row in group.rows)
    return [*(line for group in groups for line in _group(group, groups)), *RULES, *(ENDINGS if annealed else ())]


def _group(group: Group, groups: Sequence[Group]) -> Iterator[str]:
    label = f"Group {group.number}"
    if group.rows and group.baselines:
        yield from _tuning(group, label)
        if len(group.baselines) == 1:
            yield f"{label}: one seed; differences between runs of one seed may be chance."
        if not all(row.timed for row in group.rows):
            yield f"{label}: times are n/a where method and baseline ran on different machines or hardware settings."
        yield from _unmatched(group, label)
        yield from _early(group, label)
        yield from _noisy(group, label)
    yield from _left_out(group, label)
    yield from _unpaired(group, label, [run for g in groups for run in g.runs if run.baseline])
    methods_found = len({row.method for row in group.rows})
    if methods_found > len(COLOURS):
        yield f"{label}: the figure shows the {len(COLOURS)} methods with the lowest final loss of {methods_found}."


def _tuning(group: Group, label: str) -> Iterator[str]:
    if len(group.rates) < 2:
        yield f"{label}: baseline not tuned (one learning rate was tried): this is not a matched comparison."
    elif not group.tuned:
        yield f"{label}: a method was tried at more learning rates than the baseline: this is not a matched comparison."
    if group.edge:
        yield f"{label}: the baseline's best rate is at the edge of its sweep; a better one may lie outside."
    if at_edge := [name for name, rates, best in _swept(group) if best in (min(rates), max(rates))]:
        names = ", ".join(at_edge)
        yield f"{label}: the best rate is at the edge of those tried, a better one may lie outside: {names}."


def _swept(group: Group) -> Iterator[tuple[str, list[float], float]]:
    """Yield the methods that were tried at several learning rates, those rates, and the best of them."""
    for name in dict.fromkeys(row.method for row in group.rows):
        rows = [row for row in group.rows if row.method == name]
        if rows[0].tried > 1:
            tried = [row for row in rows if row.pairs] or rows
            yield name, [row.lr for row in tried], next(row.lr for row in rows if row.best)


def _unmatched(group: Group, label: str) -> Iterator[str]:
    """Say whose endings stand alone: a baseline without branches has no price for them, and the other way round."""
    for row in group.rows:
        for pair in row.pairs:
            if bool(pair.run.branches) != bool(pair.baseline.branches):
                with_, without = sorted((pair.run, pair.baseline), key=lambda run: not run.branches)
                remedy = f"{without.folder} has none: run it with the same cycle.branches"
                yield f"{label}: the endings of {with_.folder} are matched with nothing; {remedy}."


def _early(group: Group, label: str) -> Iterator[str]:
    """Say where a baseline stood at its final loss long before its end: its cost is taken there, as for a method."""
    for seed, run in group.baselines.items():
        costs = [p.baseline_cost["flops"] for row in group.rows for p in row.pairs if p.baseline is run]
        final = run.final
        if costs and costs[0] is not None and final is not None and costs[0] < 0.99 * final.flops:
            share = 100 * costs[0] / final.flops
            yield f"{label}: the baseline of seed {seed} stays at its final loss from {share:.0f}% of its FLOPs on."


def _noisy(group: Group, label: str) -> Iterator[str]:
    """Say where a difference is smaller than the noise of the curves that it is read from."""
    for row in group.rows:
        rise = max((unrest(run.evaluations) for p in row.pairs for run in (p.run, p.baseline)), default=0.0)
        gaps = [abs(pair.gap) for pair in row.pairs if pair.gap is not None]
        if gaps and rise > min(gaps):
            what = f"{label}: {row.method} at rate {row.lr:g}: losses near the end still rise by up to {rise:.4f} nats"
            yield f"{what} between evaluations, more than the gap of {min(gaps):.4f}: the saving may be noise."


def _left_out(group: Group, label: str) -> Iterator[str]:
    for run in group.runs:
        if not run.finished:
            yield f"{label}: {run.folder} is {run.status} at {100 * run.progress:.0f}% and in no mean."
    doubles = len(group.runs) - len({(pairing.family(run), run.lr, run.seed) for run in group.runs})
    if doubles > 0:
        yield f"{label}: {doubles} of the runs repeat another's settings and seed; the last finished one counts."


def _unpaired(group: Group, label: str, baselines: Sequence[Run]) -> Iterator[str]:
    """Say of the finished cycle runs without a baseline which baseline is nearest, and what keeps them apart."""
    found: dict[str, list[Run]] = {}
    for run in group.runs:
        if run.baseline or not run.finished or run.seed in group.baselines:
            continue
        apart = [(pairing.differences(run, other) or [f"being {other.status}"], other) for other in baselines]
        if apart:
            why, nearest = min(apart, key=lambda item: len(item[0]))
            hint = f"the nearest, {nearest.folder}, differs in {', '.join(why)}"
        else:
            hint = "there is none: run the same with cycle=scratch"
        found.setdefault(hint, []).append(run)
    for hint, runs in found.items():
        whose = f"{runs[0].folder} has" if len(runs) == 1 else f"{len(runs)} runs, such as {runs[0].folder}, have"
        yield f"{label}: {whose} no matched baseline ({hint})."
