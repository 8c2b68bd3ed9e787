"""What a reader must know before believing a number: every caveat is one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlrun.report import code, pairing, schedule, timing
from mlrun.report.compare import Group
from mlrun.report.curves import unrest
from mlrun.report.elsewhere import better
from mlrun.report.figure import COLOURS
from mlrun.report.freedom import NEIGHBOURS, SAME
from mlrun.report.own_settings import own_settings
from mlrun.report.read import Run
from mlrun.report.search import Search, caveats
from mlrun.report.smaller import coarser, short, size
from mlrun.units import human

HEADLINE = (
    "Headline, of a method with endings: 1 - cost(method) / cost(baseline), each of its smallest fully annealed budget "
    "that reaches L*, the final loss of the baseline of the same seed: the cheapest of its own endings after which no "
    "dearer one is above L*, on a straight line over the logarithm of the cost from the ending before. Costs are those "
    "of a run that ends there.",
    "`\N{GREATER-THAN OR EQUAL TO}`: the cheapest ending is at or below L* already (or the loss of the one before is "
    "not finite), so less would have done: a lower bound, without an interval, and a mean with one in it is a bound "
    "too. `not bracketed` is a method with no ending but its last, or a baseline whose cheapest ending, or curve long "
    "before its end, is at L* already. `not reached`: its last ending is above L*, by the loss gap.",
)
RULES = (
    "First crossing of the curve, un-annealed: 1 - cost(method) / cost(baseline), each taken where its held-out loss "
    "at level 1 first stays at or below L*, the final loss of the baseline of the same seed, on straight lines between "
    "evaluations. Before a run's decay its rate is high, and so is its curve.",
    "Everything a run spent on training is charged, with coarse levels and sources (`init=`); `source free` leaves "
    "sources out. Evaluations are charged to nobody, also not those that a cycle decides by (`cycle=auto`).",
    "A baseline is a from-scratch run of one stage at level 1 that spent the whole budget; any other run is a method.",
    "Of several learning rates the one with the lowest final loss counts: by the mean over seeds for a method (*), "
    "seed by seed for the baseline, which gains by it. A rate at which a seed failed is never the best.",
    "± is the standard deviation over seeds; [ ] the 95% interval of the mean by Student's t with n - 1 degrees of "
    "freedom. Time is of training only.",
    "Data: runs of one seed draw the same samples in the same order. At equal FLOPs a cycle reads more of them than "
    "its baseline does: `tokens` is what it read over what the baseline read, and what is over 1 the baseline never "
    "saw.",
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
    "baseline` one that the baseline had not reached with its whole budget. Losses between two endings mostly lie "
    "below that line, so the price is rather high: the further apart the baseline's endings, the more it flatters.",
)


# The rules of every report, which say nothing of these runs.
DEFINITIONS = frozenset((*HEADLINE, *RULES, *ENDINGS))


def notes(groups: Sequence[Group], searches: Sequence[Search] = ()) -> list[str]:
    """Return the caveats of this report, then the rules that hold for every report."""
    matched = any(row.endings for group in groups for row in group.rows)
    headline = HEADLINE if any(group.annealed or group.of_sizes for group in groups) else ()
    rules = (*headline, *RULES, *(ENDINGS if matched else ()))
    found = [line for search in searches for line in caveats(search)]
    return [*(line for group in groups for line in _group(group, groups)), *found, *rules]


def _group(group: Group, groups: Sequence[Group]) -> Iterator[str]:
    label = f"Group {group.number}"
    if group.rows and group.baselines:
        yield from _tuning(group, label) if not group.searched else _searched(group, label)
        yield from _better_elsewhere(group, label)
        yield from _own_settings(group, label)
        yield from _unannealed(group, label)
        yield from _control(group, label)
        yield from _control_sizes(group, label)
        yield from _control_rates(group, groups, label)
        yield from _sure(group, label)
        yield from _one_sided(group, label)
        yield from _coded(group, label)
        yield from _untimed(group, label)
        yield from _declared(group, label)
        yield from _seen(group, label)
        yield from _unmatched(group, label)
        yield from _lacking(group, label)
        yield from _cadence(group, label)
        yield from _early(group, label)
        yield from _noisy(group, label)
    elif group.of_sizes:
        yield from _tuning(group, label)
        yield from _control_rates(group, groups, label)
    yield from _data(group, label)
    yield from _left_out(group, label)
    yield from _unpaired(group, label, [run for g in groups for run in g.runs if pairing.baseline(run)])
    methods_found = len({row.method for row in group.rows})
    if methods_found > len(COLOURS):
        yield f"{label}: the figure shows the {len(COLOURS)} methods with the lowest final loss of {methods_found}."


def _tuning(group: Group, label: str) -> Iterator[str]:
    swept = {seed: len(group.swept(seed)) for seed in group.paired}
    if group.tried < 2 and len(group.rates) > 1:
        far = f"within a factor {NEIGHBOURS:g} of its best, and {SAME - 1:.0%} or more from it,"
        yield f"{label}: baseline not tuned: for some seed no other rate {far} was tried: no matched comparison."
    elif group.tried < 2:
        yield f"{label}: baseline not tuned (one learning rate was tried): this is not a matched comparison."
    elif any(row.tried > group.tried for row in group.rows):
        yield f"{label}: a method was tried at more learning rates than the baseline: this is not a matched comparison."
    if len(set(swept.values())) > 1:
        counts = ", ".join(f"{count} for seed {seed}" for seed, count in swept.items())
        yield f"{label}: the baseline was not tried at as many rates for every seed ({counts}); the least counts."
    for freedom in group.freer:
        yield (
            f"{label}: {freedom.method} was tried at {freedom.settings} settings ({', '.join(freedom.keys) or 'lr'}), "
            f"the baseline at {freedom.baseline}: the method had more to choose from."
        )
    if group.edge:
        yield f"{label}: the baseline's best rate is at the edge of its sweep; a better one may lie outside."
    if at_edge := [name for name, rates, best in _swept(group) if best in (min(rates), max(rates))]:
        names = ", ".join(at_edge)
        yield f"{label}: the best rate is at the edge of those tried, a better one may lie outside: {names}."


def _searched(group: Group, label: str) -> Iterator[str]:
    """Say how the settings of runs were found that report a search."""
    run = next(iter(group.baselines.values()))
    assert run.search is not None
    counts = ", ".join(f"{name} {len(tried)}" for name, tried in run.search["tried"].items())
    yield f"{label}: chosen by a search on seed {run.search['run_seed']}, in no mean here; settings tried: {counts}."


def _better_elsewhere(group: Group, label: str) -> Iterator[str]:
    """Say which from-scratch run of this model and data ends lower for no more FLOPs, and what it sets otherwise."""
    if (found := better(group)) is not None:
        lower = f"a from-scratch run ends {found.gap:.4f} nats lower than this baseline"
        yield f"{label}: {lower}: {found.run.folder} with {found.how}."


def _own_settings(group: Group, label: str) -> Iterator[str]:
    """Say by which settings a method trains the whole model that no run from scratch was given."""
    for method, settings in own_settings(group).items():
        told = f"{method} trains the whole model with {' and '.join(settings)}"
        yield f"{label}: {told}, as no run from scratch here does: what it saves may be that."


def _unannealed(group: Group, label: str) -> Iterator[str]:
    """Say of which seeds L* is a loss at a high rate: what brings its rate down saves against that without growing."""
    ends = {seed: schedule.ends_at(run) for seed, run in group.baselines.items()}
    high = {seed: share for seed, share in ends.items() if share > schedule.ANNEALED}
    if high:
        seeds = "" if len(high) == len(ends) else f" of {', '.join(f'seed {seed}' for seed in high)}"
        what = f"the baseline's rate{seeds} ends at {max(high.values()):.0%} of its peak, so L* is not annealed"
        yield f"{label}: {what}: with a decay (optimizer.schedule) it would end lower, and less be saved."


def _control(group: Group, label: str) -> Iterator[str]:
    """Say what is not known of smaller models alone: none was trained, or only with fewer FLOPs than the baseline."""
    if not group.controls:
        where = "on these data at a seed of the baseline"
        known = "whether this one is too large is not known"
        yield f"{label}: no smaller model was trained alone (method=alone) {where}: {known}."
    elif group.smaller_on_all is None and (found := short(group.controls, group.baselines)):
        ends = (
            f"{human(one.parameters)} parameters: {one.gap:.4f} nats above L* with {one.share:.0%}" for one in found
        )
        given = "smaller models alone had fewer FLOPs than the baseline and may reach L* with as many (method=alone)"
        yield f"{label}: {given}: {'; '.join(ends)}."


def _control_sizes(group: Group, label: str) -> Iterator[str]:
    """Say which methods, of those that save more than a smaller model alone, grow from a size that none alone has."""
    tried = {size(run) for runs in group.controls.values() for run in runs}
    most = (group.smaller.saved.mean if group.smaller is not None else None) or 0.0
    grown = {row.method: row.pairs[0].run for row in group.rows if row.best and (row.claim.mean or 0.0) > most}
    coarse = {method: sorted(set(coarser(run)) - tried) for method, run in grown.items()}
    if tried and (found := {method: sizes for method, sizes in coarse.items() if sizes}):
        sizes = "; ".join(f"{method} ({', '.join(map(human, own))} parameters)" for method, own in found.items())
        why = "what they save may be what that size alone would (method=alone alone.layer=...)"
        yield f"{label}: no smaller model alone has the size that these grow from, so {why}: {sizes}."


def _control_rates(group: Group, groups: Sequence[Group], label: str) -> Iterator[str]:
    """Say which sizes of smaller models were tried at fewer rates than the baseline or a method."""
    found: dict[int, dict[int, int]] = {}
    for own in groups:
        for seed, run in own.baselines.items():
            if any(run is one for one in group.controls.get(seed, ())):
                by_seed = found.setdefault(size(run), {})
                by_seed[seed] = max(by_seed.get(seed, 0), len(own.swept(seed)))
    most = max([group.tried, *(row.tried for row in group.rows)])
    tried = {parameters: min(by_seed.values()) for parameters, by_seed in sorted(found.items())}
    if fewer := [f"{human(one)} parameters at {count}" for one, count in tried.items() if count < most]:
        sizes = f"smaller models alone were tried at fewer rates than the {most} of whole ones"
        yield f"{label}: {sizes}, and may do better at others: {', '.join(fewer)}."


def _sure(group: Group, label: str) -> Iterator[str]:
    """Say how many methods were compared and which savings stand for all of them; and how sure the seeds make us."""
    seeds = {row.method: len(row.pairs) for row in group.rows if row.pairs}
    if alone := [f"{row.method} at rate {row.lr:g}" for row in group.rows if len(row.pairs) == 1]:
        which = f" ({', '.join(alone)})" if any(len(row.pairs) > 1 for row in group.rows) else ""
        yield f"{label}: one seed; differences between runs of one seed may be chance{which}."
    if any(count > 1 for count in seeds.values()):
        savings = {row.method: row.claim.mean for row in group.rows if row.best}
        sure = [name for name, p in group.claims.items() if p < 0.05 and (savings[name] or 0) > 0]
        stands = ", ".join(f"{name} (p {group.claims[name]:.2g})" for name in sure) or "none"
        many = len(group.claims)
        counted = f"{many} methods were" if many != 1 else "1 method was"
        tested = "Each was tested against 0 (a t-test over its seeds, a sign test of bounds)"
        yield (
            f"{label}: {counted} compared with the baseline. FLOPs saved by more than the luck of the seeds: {stands}. "
            f"{tested}, then all were corrected for how many there are (Holm): the risk of any wrong claim is 5%."
        )
        bounds = [row.method for row in group.rows if row.best and row.annealed and row.headline.bound]
        if bounds:
            yield f"{label}: a smaller ending would turn a lower bound into a number: {', '.join(bounds)}."
    samples = next(iter(group.baselines.values())).data.get("validation_samples")
    errors = [run.held_out_error for run in group.baselines.values()]
    error = "n/a (not logged)" if None in errors else f"{max(e for e in errors if e is not None):.4f} nats"
    yield f"{label}: standard error of a held-out loss over its {samples or 'unknown number of'} samples: {error}."


def _coded(group: Group, label: str) -> Iterator[str]:
    """Say what code differs between runs that are compared: their losses may differ by it, and not by the method."""
    runs = [*group.baselines.values(), *(pair.run for row in group.rows for pair in row.pairs)]
    for name, versions in code.versions(runs).items():
        which = "; ".join(f"{version} in {folders[0]}{_more(folders)}" for version, folders in versions.items())
        yield f"{label}: not all of these runs are of one version of {name}, and losses may differ by that: {which}."


def _more(folders: Sequence[Path]) -> str:
    return f" and {len(folders) - 1} more" if len(folders) > 1 else ""


def _untimed(group: Group, label: str) -> Iterator[str]:
    """Say why times are n/a, one reason for all rows that share it."""
    reasons = [pair.untimed for row in group.rows for pair in row.pairs if pair.untimed is not None]
    if reasons:
        others = len(set(reasons)) - 1
        more = f", and {others} more such reason{'s' if others > 1 else ''}" if others else ""
        yield f"{label}: times are n/a where they may not be compared: {reasons[0]}{more}."
    unchecked = [row.method for row in group.rows if row.pairs and row.timed and not timing.plain(row.pairs[0].run)]
    if unchecked:
        names = ", ".join(dict.fromkeys(unchecked))
        yield f"{label}: no plain step at level 1 shows whether these had the machine to themselves: {names}."


def _declared(group: Group, label: str) -> Iterator[str]:
    """Say whose weights are charged with what the user says that they cost."""
    sources = {row.method: row.pairs[0].run.source for row in group.rows if row.pairs}
    for method, source in sources.items():
        if source is not None and source.get("declared") and source["flops"] is not None:
            yield f"{label}: the source of {method} is charged with {source['flops']:.3g} FLOPs, some of it declared."


def _seen(group: Group, label: str) -> Iterator[str]:
    """Say whose weights come from a training that may have read the held-out samples."""
    for method, run in {row.method: row.pairs[0].run for row in group.rows if row.pairs}.items():
        identity = run.data.get("identity") or {}
        mine = {name: identity[name] for name in ("train", "held_out") if name in identity}
        parts = (run.source or {}).get("parts", [{}] if run.source else [])
        if other := [str(part.get("name", "its source")) for part in parts if not mine or part.get("data") != mine]:
            yield (
                f"{label}: {method} starts from {', '.join(dict.fromkeys(other))}, trained on other data, or on what "
                "nobody knows: if held-out samples were among it, a low loss is partly memory."
            )


def _cadence(group: Group, label: str) -> Iterator[str]:
    every = {pair.read_every for row in group.rows for pair in row.pairs if pair.read_every is not None}
    if every:
        steps = ", ".join(map(str, sorted(every)))
        yield f"{label}: runs were evaluated at different distances; both are read every {steps} steps, the wider one."


def _data(group: Group, label: str) -> Iterator[str]:
    """Say what is not known of the data, and of held-out documents that are in the training part too."""
    unknown = [run for run in group.runs if run.data.get("identity") is None]
    if unknown and any(row.pairs for row in group.rows):
        kept = "settings and content hash" if unknown[0].data.get("content") else "settings alone"
        which = f"{len(unknown)} of the runs, such as {unknown[0].folder}"
        yield f"{label}: no digests of the data of {which}: they are matched by its {kept}."
    copies = {(run.data.get("copies"), run.data.get("held_out_documents")) for run in group.runs}
    for copied, of in sorted(pair for pair in copies if pair[0]):
        yield f"{label}: {copied} of {of or 'the'} held-out documents are in the training part too, word for word."


def _swept(group: Group) -> Iterator[tuple[str, list[float], float]]:
    """Yield the methods that were tried at several learning rates and have a best one, those rates, and the best."""
    for best in (row for row in group.rows if row.best and row.tried > 1):
        rows = [row for row in group.rows if row.method == best.method]
        tried = [row for row in rows if row.pairs] or rows
        yield best.method, [row.lr for row in tried], best.lr


def _unmatched(group: Group, label: str) -> Iterator[str]:
    """Say whose endings stand alone: a baseline without branches has no price for them, and the other way round."""
    for row in group.rows:
        for pair in row.pairs:
            if bool(pair.run.branches) != bool(pair.baseline.branches):
                with_, without = sorted((pair.run, pair.baseline), key=lambda run: not run.branches)
                remedy = f"{without.folder} has none: run it with the same cycle.branches"
                yield f"{label}: the endings of {with_.folder} are matched with nothing; {remedy}."


def _lacking(group: Group, label: str) -> Iterator[str]:
    """Say which endings a method was asked for `if possible` and cannot have, and why."""
    found: dict[str, dict[str, None]] = {}
    for run in (*group.baselines.values(), *(pair.run for row in group.rows for pair in row.pairs)):
        methods = [row.method for row in group.rows if any(pair.run is run for pair in row.pairs)] or ["the baseline"]
        for point, why in run.lacking.items():
            found.setdefault(f"no ending at {point} ({why})", {})[methods[0]] = None
    for what, methods_found in found.items():
        yield f"{label}: {what}: {', '.join(methods_found)}."


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
        if run.fault is not None:
            yield f"{label}: {run.folder} says that it is finished, but {run.fault}: it is in no mean."
        elif run.failed:
            yield f"{label}: {run.folder} failed at {100 * run.progress:.0f}%: its seeds have no mean without it."
        elif not run.finished:
            yield f"{label}: {run.folder} is {run.status} at {100 * run.progress:.0f}% and in no mean."
    yield from _copied(group, label)
    doubles = len(group.runs) - len({(pairing.family(run), run.lr, run.seed) for run in group.runs})
    if doubles > 0:
        yield (
            f"{label}: {doubles} of the runs repeat another's settings and seed; of a method's the one with the "
            "highest loss counts, or that failed, of the baseline's that with the lowest."
        )


def _one_sided(group: Group, label: str) -> Iterator[str]:
    """Say at which seeds only one side ran: who chooses seeds afterwards chooses savings."""
    for row in group.rows:
        if not row.best or not row.pairs:
            continue
        unpaired, lacking = group.aside(row)
        if unpaired:
            here = _mean_loss([pair.run for pair in row.pairs])
            ends = f"in no saving: there it ends at {_mean_loss(unpaired)}, where compared at {here}"
            yield f"{label}: {row.method} has seeds without a baseline ({_numbers(unpaired)}), {ends}."
        if lacking:
            here = _mean_loss([pair.baseline for pair in row.pairs])
            ends = f"in no saving: L* there is {_mean_loss(lacking)}, where compared {here}"
            yield f"{label}: {row.method} lacks seeds of the baseline ({_numbers(lacking)}), {ends}."


def _mean_loss(runs: Sequence[Run]) -> str:
    losses = [run.final.loss for run in runs if run.final is not None]
    return f"{sum(losses) / len(losses):.4f}" if losses else "n/a"


def _numbers(runs: Sequence[Run]) -> str:
    return ", ".join(map(str, sorted(run.seed for run in runs)))


def _copied(group: Group, label: str) -> Iterator[str]:
    """Say which runs have other seeds and yet the very same losses: no seed gives another's."""
    seen: dict[tuple[float, ...], Run] = {}
    for run in group.runs:
        losses = tuple(point.loss for point in run.evaluations)
        other = seen.setdefault(losses, run)
        if run.ended and other.seed != run.seed and len(losses) > 1:
            yield f"{label}: {run.folder} and {other.folder} have other seeds and the same losses: is one a copy?"


def _unpaired(group: Group, label: str, baselines: Sequence[Run]) -> Iterator[str]:
    """Say of the finished cycle runs without a baseline which baseline is nearest, and what keeps them apart."""
    found: dict[str, list[Run]] = {}
    for run in group.runs:
        if pairing.baseline(run) or not run.finished or run.seed in group.baselines:
            continue
        apart = [(pairing.told_apart(run, other) or [f"being {other.status}"], other) for other in baselines]
        if apart:
            why, nearest = min(apart, key=lambda item: len(item[0]))
            hint = f"the nearest, {nearest.folder}, differs in {', '.join(why)}"
        else:
            hint = "there is none: run the same with cycle=scratch"
        found.setdefault(hint, []).append(run)
    for hint, runs in found.items():
        whose = f"{runs[0].folder} has" if len(runs) == 1 else f"{len(runs)} runs, such as {runs[0].folder}, have"
        yield f"{label}: {whose} no matched baseline ({hint})."
