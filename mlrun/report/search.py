"""What a search tried, what it spent and what it chose, beside the runs on fresh seeds that report its choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.report.compare import Group
from mlrun.report.read import FILES, Run, read
from mlrun.report.sentences import sentence
from mlrun.report.tables import Table

STATES = ("finished", "pruned", "failed")


@dataclass(frozen=True)
class Tried:
    """What a search tried of one method: how many settings ended how, the FLOPs of all, and what it chose.

    `flops` are charged whatever became of a run; `missing` are settings whose run folder is gone or was never made,
    of which nothing is known.
    """

    method: str
    settings: int
    ended: Mapping[str, int]
    missing: int
    flops: float
    chosen: tuple[str, ...]
    loss: float | None


@dataclass(frozen=True)
class Search:
    """One search: what it tried of each method, and the names of the runs that report it, with their methods."""

    folder: Path
    tried: tuple[Tried, ...]
    fresh: Mapping[str, str]

    @property
    def flops(self) -> float:
        """What searching cost, the baseline's share included."""
        return sum(tried.flops for tried in self.tried)


def searches(groups: Sequence[Group]) -> tuple[Search, ...]:
    """Return the searches that runs of a report were chosen by."""
    found = {run.folder.parent: run.search for group in groups for run in group.runs if run.search is not None}
    return tuple(_search(folder, said) for folder, said in found.items())


def _search(folder: Path, said: Mapping[str, Any]) -> Search:
    tried = [_tried(folder, method, runs, said["chosen"].get(method)) for method, runs in said["tried"].items()]
    return Search(folder, tuple(tried), said["fresh"])


def _tried(folder: Path, method: str, names: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None) -> Tried:
    places = [folder / one["run"] for one in names]
    runs = [read(place) for place in places if all((place / name).exists() for name in FILES)]
    ended = {state: sum(_state(run) == state for run in runs) for state in (*STATES, "unfinished")}
    best = next((run for run in runs if chosen is not None and run.folder.name == chosen["run"]), None)
    return Tried(
        method,
        len(names),
        ended,
        len(names) - len(runs),
        sum(float(run.last.get("flops", 0)) for run in runs),
        tuple(chosen["settings"]) if chosen is not None else (),
        best.final.loss if best is not None and best.final is not None else None,
    )


def _state(run: Run) -> str:
    if run.failed or (run.folder / files.ERROR).exists():
        return "failed"
    return run.status if run.status in STATES else "unfinished"


def table(search: Search) -> Table:
    """Return what a search tried, a row per method."""
    header = ("method", "chosen", "tried", *STATES, "FLOPs", "loss (search)")
    rows = []
    for t in search.tried:
        counts = [str(t.ended[state]) for state in STATES]
        loss = "n/a" if t.loss is None else f"{t.loss:.4f}"
        rows.append((t.method, "\n".join(t.chosen) or "nothing", str(t.settings), *counts, f"{t.flops:.3g}", loss))
    title = f"What the search in {search.folder} tried; its runs chose the settings and are in no saving above."
    return Table(title, header, tuple(rows), 2)


def sentences(search: Search, groups: Sequence[Group]) -> Iterator[str]:
    """Yield what each chosen method saved on fresh seeds, then what finding it cost."""
    mine = {search.folder / name for name in search.fresh}
    rows = [(g, row) for g in groups for row in g.rows if row.best and any(p.run.folder in mine for p in row.pairs)]
    for group, row in rows:
        seeds = ", ".join(str(pair.run.seed) for pair in row.pairs)
        yield f"{sentence(group, row)} Seed{'s' if len(row.pairs) > 1 else ''} {seeds} chose nothing."
    whole = [run.last["flops"] for g in groups for run in g.baselines.values() if run.folder in mine]
    if whole:
        parts = ", ".join(f"{t.method} {t.flops:.3g}" for t in search.tried)
        runs = search.flops / (sum(whole) / len(whole))
        yield (
            f"Finding it cost {search.flops:.3g} FLOPs ({parts}), as much as {runs:.3g} from-scratch runs; "
            "no saving above has this in it."
        )


def caveats(search: Search) -> Iterator[str]:
    """Yield who had more to choose from, and what is not known of the search."""
    baseline = next((t for t in search.tried if t.method == "scratch"), None)
    for t in search.tried:
        if baseline is not None and t.settings > baseline.settings:
            yield (
                f"Search: {t.method} was tried at {t.settings} settings, the baseline at {baseline.settings}: "
                "the method had more to choose from."
            )
        if t.missing or t.ended["unfinished"]:
            yield f"Search: of {t.method} {t.missing} runs left nothing and {t.ended['unfinished']} have no end."
