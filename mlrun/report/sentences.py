"""What was found, in a sentence for each method: how much less, how sure, annealed or at the first crossing."""

from __future__ import annotations

from collections.abc import Sequence

from mlrun.report.compare import Group, Row
from mlrun.report.elsewhere import Variant, against, beside, better, smaller_against, variants
from mlrun.report.headline import AT_LEAST, NOT_BRACKETED, NUMBERS, Headlines
from mlrun.report.smaller import Alone, below, lower, size, sizes
from mlrun.report.stats import Spread
from mlrun.report.tables import ordered, percent
from mlrun.units import human

SURE = 0.05
SMALLER = "A smaller model alone ("
CROSSING = "at the first crossing of its curve, un-annealed"


def sentences(group: Group) -> list[str]:
    """Return a sentence for each method with a baseline, at its best rate, the largest saving first.

    Where a smaller model alone does as well as the baseline, that is said after the first: what a cycle saves against a
    model that is too large for its budget, a smaller model saves without one. Without any method it is said too, but
    not of a group that is itself there as another's smaller model. Then come other ways from scratch that end lower.
    """
    found = [sentence(group, row) for row in ordered(group) if row.best and row.pairs]
    smaller = _smaller(group) if found or not (group.rows or group.control) else []
    won, lost = _otherwise(group)
    return [*found[:1], *smaller, *won, *found[1:], *_failed(group), *lost]


def _otherwise(group: Group) -> tuple[list[str], list[str]]:
    """Say what from scratch does with other settings for the same budget, of those that end lower and of the others.

    Where no method is, the others have no sentence.
    """
    tried = [(one.wins, f"From scratch with {one.how}: {_does(one)}.") for one in variants(group)]
    return [line for wins, line in tried if wins], [line for wins, line in tried if not wins and group.rows]


def _does(one: Variant) -> str:
    saved, gap = one.headline.saved("flops"), one.gap
    if saved.mean is not None:
        return f"the baseline's loss {_with(saved.mean, one.headline.bound, saved)}, annealed"
    assert gap.mean is not None, "a baseline has a final loss"
    side = "below" if gap.mean < 0 else "above"
    return f"for no more FLOPs it ends {abs(gap.mean):.4f} nats {side} the baseline ({_seeds(gap.count)})"


def _failed(group: Group) -> list[str]:
    """Say which methods have no rate that is their best."""
    found = without_best(group) if group.baselines else {}
    return [f"{name}: no saving can be told, since {why}." for name, why in found.items()]


def without_best(group: Group) -> dict[str, str]:
    """Return why methods have no best rate: at each some seed failed, or none has the seeds of another."""
    by_method: dict[str, list[Row]] = {}
    for row in group.rows:
        by_method.setdefault(row.method, []).append(row)
    return {name: _why(rows) for name, rows in by_method.items() if not any(row.best for row in rows)}


def _why(rows: Sequence[Row]) -> str:
    """Return at which rates of a method how many seeds failed, or that its rates cannot be compared."""
    gaps = {row.lr: row.gap for row in rows}
    failed = [
        f"{gap.count - gap.reached} of {_seeds(gap.count)} at rate {lr:g}"
        for lr, gap in gaps.items()
        if gap.reached < gap.count
    ]
    return f"runs failed or diverged: {', '.join(failed)}" if failed else "its rates have no seed in common"


def _smaller(group: Group) -> list[str]:
    """Say with how much less a smaller model alone ends at the baseline's loss, over the seeds as of a method."""
    found = group.smaller
    if found is None:
        return _lower(group)
    lacking = len(group.baselines) - len(found.seeds)
    left = f"; left out: {_seeds(lacking)} of the baseline without it" if lacking else ""
    lower_too = smaller_against(group)
    besides = "" if lower_too is None else f", and the lower loss of another run from scratch {_alone(lower_too)}"
    return [_said_of_smaller(group, [found.parameters], f"reaches the baseline's loss {_alone(found)}{left}{besides}")]


def _lower(group: Group) -> list[str]:
    """Say by how much a smaller model alone ends below the baseline that has no ending which reaches it for less."""
    found = lower(group.controls, group.baselines)
    ends = [(run.final, group.baselines[seed].final) for seed, run in found.items()]
    gaps = [base.loss - final.loss for final, base in ends if final is not None and base is not None]
    if not gaps:
        return []
    of = "one seed" if len(group.baselines) == 1 else f"in {len(gaps)} of {_seeds(len(group.baselines))}"
    does = f"ends {sum(gaps) / len(gaps):.4f} nats below the baseline for no more FLOPs ({of})"
    return [_said_of_smaller(group, sorted({size(run) for run in found.values()}), does)]


def _said_of_smaller(group: Group, found: Sequence[int], does: str) -> str:
    """Return what a smaller model does, and what that means."""
    passed = _passed(group)
    means = f"but {passed} with as many FLOPs" if passed else "the model is too large for this budget, cycle or none"
    named = f"{', '.join(map(human, found))} parameters{_chosen(group, found)}"
    return f"{SMALLER}{named}), from scratch, {does}: {means}."


def _chosen(group: Group, named: Sequence[int]) -> str:
    """Say of how many sizes these are the best, as a choice flatters what is chosen."""
    tried = len(sizes(group.controls))
    each = "at each seed " if len(named) > 1 else ""
    return f", {each}the best of {tried} sizes" if tried > 1 else ""


def _alone(found: Alone) -> str:
    """Return what a smaller model saved, and how sure that is; or what each seed has, where one has nothing."""
    saved = found.saved
    if saved.mean is not None:
        return _with(saved.mean, found.bound, saved)
    each = ", ".join(_less(value, found.bound) for value in saved.values if value is not None)
    return f"in {saved.reached} of {_seeds(saved.count)} only ({each})"


def _with(mean: float, bound: bool, over: Spread) -> str:
    """Return with how much less, and how sure that is."""
    return f"with {_less(mean, bound)} ({_interval(over)})"


def _passed(group: Group) -> str | None:
    """Say which method ends below every smaller model, on each of its seeds one of them with as many FLOPs."""
    found = {}
    for row in (row for row in group.rows if row.best and row.pairs):
        gaps = [below(pair.run, group.controls.get(pair.run.seed, ())) for pair in row.pairs]
        least = [gap for gap in gaps if gap is not None and gap > 0]
        if len(least) == len(gaps):
            found[row.method] = sum(least) / len(least)
    best = max(found, key=lambda method: found[method], default=None)
    return None if best is None else f"{best} ends {found[best]:.4f} nats below the lowest smaller one"


def sentence(group: Group, row: Row) -> str:
    """Return what one method saved at its best rate, how sure that is and how it was measured."""
    if row.uncharged("flops"):
        return f"{row.method}: no saving can be told, since what its source cost is not known."
    if row.spread("flops").reached == 0:
        return _not_reached(row)
    found = row.claim if _annealed(row) else row.spread("flops")
    what = _reached(group, row, found) if found.mean is not None else _partly(row, found)
    told = f"{_tuning(group)}{_against(group, row)}{_declared(row)}{_one_sided(group, row)}"
    return f"{row.method} reaches the baseline's loss {what}; {told}."


def _against(group: Group, row: Row) -> str:
    """Say what the method saves against the better run from scratch that is named just before."""
    found = against(group, row)
    return "" if found is None else f"; that lower loss it {_against_it(found)}"


def _against_it(found: Headlines) -> str:
    kinds, saved = found.kinds, found.saved("flops")
    if saved.mean is not None:
        return f"reaches {_with(saved.mean, found.bound, saved)}"
    reached = saved.reached + kinds.count(NOT_BRACKETED)
    if not reached:
        return f"does not reach ({_seeds(saved.count)})"
    told = zip(kinds, saved.values, strict=True)
    each = ", ".join(_less(value, kind == AT_LEAST) for kind, value in told if value is not None)
    where = "" if reached == saved.count else f" in {reached} of {_seeds(saved.count)} only"
    return f"reaches{where}" + (f" ({each})" if each else ", by how much no ending tells")


def _declared(row: Row) -> str:
    """Say that what its weights had cost is the user's word."""
    sources = [pair.run.source for pair in row.pairs]
    told = [float(one["flops"]) for one in sources if one is not None and one.get("declared")]
    return f"; what its source cost is declared ({max(told):.3g} FLOPs in all)" if told else ""


def _one_sided(group: Group, row: Row) -> str:
    """Say that one side ran at seeds that the other lacks, which are in no number."""
    unpaired, lacking = group.aside(row)
    ended = {run.seed for run in (*(pair.run for pair in row.pairs), *row.unpaired, *row.failed)}
    stopped = {run.seed for run in row.unfinished} - ended
    parts = [f"{_seeds(len(stopped))} of it without an end"] if stopped else []
    parts += [f"{_seeds(len(unpaired))} of it without a baseline"] if unpaired else []
    parts += [f"{_seeds(len(lacking))} of the baseline without it"] if lacking else []
    return f"; left out: {' and '.join(parts)}" if parts else ""


def _annealed(row: Row) -> bool:
    """Return whether some seed's endings give a number; without any the first crossing is all there is."""
    return row.annealed and any(kind in NUMBERS for kind in row.headline.kinds)


def _not_reached(row: Row) -> str:
    mean = row.gap.mean
    above = "it diverged or failed" if mean is None else f"it ends {mean:.4f} nats above it"
    return f"{row.method} does not reach the baseline's loss: {above} ({_seeds(row.gap.count)})."


def _reached(group: Group, row: Row, found: Spread) -> str:
    """Return how much less it took, how sure that is, and by which of the two measures."""
    bound = _annealed(row) and row.headline.bound
    assert found.mean is not None
    sure = _bound(row) if bound else _interval(found)
    return f"with {_less(found.mean, bound)} ({sure}), {_how(row)}{_stands(group, row)}"


def _less(share: float, bound: bool) -> str:
    """Return a saving in words; one that is a bound and no saving says how much more it takes at most."""
    if share < 0:
        return f"{'at most ' if bound else ''}{percent(-share)} more FLOPs"
    return f"{'at least ' if bound else ''}{percent(share)} fewer FLOPs"


def _bound(row: Row) -> str:
    """Say why a saving is a lower bound; there is no interval of it."""
    kinds = row.headline.kinds
    each = "" if len(kinds) == 1 else f" in {kinds.count(AT_LEAST)} of them"
    return f"{_seeds(len(kinds))}; a bound, since{each} the cheapest ending that counts is there already"


def _interval(found: Spread) -> str:
    if found.low is None or found.high is None:
        return _seeds(found.count)
    return f"95% interval {percent(found.low)} to {percent(found.high)} over {_seeds(found.count)}"


def _stands(group: Group, row: Row) -> str:
    """Say whether more than one seed make it a claim for all methods that were compared.

    A sign test, without an interval, needs six seeds to say anything: of fewer it is left out.
    """
    found = row.claim
    if found.p is None or found.mean is None:
        return ""
    p, many = group.claims[row.method], len(group.claims)
    among = "as the only method compared" if many == 1 else f"with {many} methods compared"
    sure = p < SURE and found.mean > 0
    if found.low is None and not sure:
        return ""
    return f"; {among} this {'stands' if sure else 'does not stand'} at 5% (p {p:.2g})"


def _partly(row: Row, found: Spread) -> str:
    """Return of how many seeds it is true; there is no mean over those alone."""
    kinds = row.headline.kinds if _annealed(row) else [""] * found.count
    told = zip(kinds, found.values, strict=True)
    each = ", ".join(_less(value, kind == AT_LEAST) for kind, value in told if value is not None)
    there, known = found.reached + kinds.count(NOT_BRACKETED), f"{found.reached} of {_seeds(found.count)}"
    if there == found.reached:
        return f"in {known} only ({each}), {_how(row)}"
    reached = "" if there == found.count else f"in {there} of {_seeds(found.count)} only, "
    return f"{reached}with a saving that endings tell in {known} ({each}), {_how(row)}"


def _how(row: Row) -> str:
    if _annealed(row):
        return "annealed"
    return CROSSING + (" (no two of its endings bracket that loss)" if row.annealed else "")


def _tuning(group: Group) -> str:
    """Say how the baseline was found, and which other run from scratch is a better one."""
    below_it = _lower_elsewhere(group)
    if group.tuned:
        edge = ", at the edge of its sweep" if group.edge else ""
        of = f"{group.settings} settings of a search" if group.searched else f"{group.tried} rates{edge}"
        return f"the baseline is the best of {of}{below_it}"
    return ("the baseline was not tuned" if group.tried < 2 else "a method had more settings to choose from") + below_it


def _lower_elsewhere(group: Group) -> str:
    """Say which other run from scratch ends lower, and last the one at these seeds, which savings are told against."""
    found, own = better(group), beside(group)
    if found is None:
        return ""
    told = f", and another run from scratch ({found.how}) ends {found.gap:.4f} nats lower"
    if own is None or own.group is found.group:
        return told
    return f"{told}, one at the same seeds ({own.how}) {own.gap:.4f} nats lower"


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"
