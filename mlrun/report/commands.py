"""The command of each run, as a shell takes it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from mlrun.report.read import Run

MOST = 100  # runs whose commands are shown
FROM_PYTHON = "started from Python (mlrun.run), so there is no command; config.yaml has its settings"
OLDER = "started by a version that kept no command; config.yaml has its settings"


def command(run: Run) -> str | None:
    """Return the command that makes a run again, quoted for a shell; None where its log has none."""
    words = _overrides(run)
    return None if words is None else " ".join(["mlrun", *map(_quoted, words)])


def _quoted(word: str) -> str:
    """Return a word as a shell takes it; in double quotes where it has single ones and nothing that is read there."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def why_not(run: Run) -> str:
    """Return why a run has no command."""
    return FROM_PYTHON if run.starts and "overrides" in run.starts[0] else OLDER


def lines(runs: Sequence[Run]) -> list[str]:
    """Return a line of a shell for each run: its command with its versions, or a remark why there is none."""
    shown = [line for run in runs[:MOST] for line in (_remark(run), *([command(run) or ""] if command(run) else []))]
    return [
        *shown,
        *([f"# and {len(runs) - MOST} more; the start records of their logs have them"] * (len(runs) > MOST)),
    ]


def _remark(run: Run) -> str:
    """Return the name of a run and what it was first started with; a name is one line, whatever it holds."""
    first = run.starts[0] if run.starts else {}
    with_ = ", ".join(f"{name} {first.get(name) or 'unknown'}" for name in ("mlrun", "commit", "torch"))
    told = f"# {run.folder.name}: {with_}" + ("" if command(run) else f"; {why_not(run)}")
    return " ".join(told.split())


def _overrides(run: Run) -> list[str] | None:
    """Return the words of the first start; a later one goes on with what that began."""
    words = run.starts[0].get("overrides") if run.starts else None
    return None if words is None else [str(word) for word in words]
