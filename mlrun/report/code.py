"""Which code runs were made with, where it is not the same for all: of mlrun, and of classes of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mlrun.report.read import Run

# As much of a commit or a digest as tells it apart.
SHOWN = 10


def versions(runs: Iterable[Run]) -> dict[str, dict[str, list[Path]]]:
    """Return, by what differs, the runs of each version: `mlrun`, or a module of one's own that some of them share.

    A run that says nothing of it is left out; one that went on with another version counts for both.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for run in runs:
        for name, version in _of(run):
            folders = found.setdefault(name, {}).setdefault(version, [])
            folders += [run.folder] * (run.folder not in folders)
    return {name: by_version for name, by_version in found.items() if len(by_version) > 1}


def _of(run: Run) -> Iterator[tuple[str, str]]:
    for start in run.starts:
        if told := start.get("commit") or start.get("mlrun"):
            yield "mlrun", _short(str(told))
    for module, digest in (run.plan.get("code") or {}).items():
        yield str(module), _short(str(digest))


def _short(text: str) -> str:
    """Return the beginning of it; a plus behind a commit are changes that were in none."""
    return text[:SHOWN] + ("+" if text.endswith("+") and len(text) > SHOWN else "")
