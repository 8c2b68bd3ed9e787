"""How the runs on the page were made: commands, settings, versions and machines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape

from mlrun.report import commands, pairing
from mlrun.report.compare import Group
from mlrun.report.page.parts import SEEN, cells, said, section
from mlrun.report.read import Run

# Where a run says what it ran on, and with what.
VERSIONS = ("commit", "mlrun", "torch", "python", "host", "processor", "cores", "gpu", "precision", "processes")


def reproduce(groups: Sequence[Group]) -> str:
    """Return what the run folders know of how they were made: commands, settings, versions and machines."""
    runs = [run for group in groups for run in group.runs]
    told = (
        "Each command makes one run again where another run=... is given: in a folder that has the run already it goes "
        "on with it, or only says what came out. Evaluations made later (task=evaluate) are commands of their own. "
        "Settings are those of one baseline of each group, as resolved; a method differs in what its group lists. "
        "The same settings, seed and versions on the same kind of machine give the same numbers."
    )
    again = shlex.join(["mlrun", "task=report", "runs=" + ",".join(_above(runs))])
    each = f"<pre>{escape(chr(10).join(commands.lines(runs)))}</pre>"
    if len(runs) > SEEN:
        each = f"<details><summary>The commands of {len(runs)} runs</summary>{each}</details>"
    parts = [f"<p>{told}</p>", each]
    parts += ["<p>This page again:</p>", f"<pre>{escape(again)}</pre>", _versions(runs)]
    for group in groups:
        run = next(iter(group.baselines.values()), group.runs[0])
        lines = "\n".join(f"{key}={said(value)}" for key, value in pairing.settings(run).items())
        title = f"Settings of {run.folder.name} (group {group.number}, seed {run.seed})"
        parts.append(f"<details><summary>{escape(title)}</summary><pre>{escape(lines)}</pre></details>")
    return section("reproduce", "How to reproduce", "\n".join(parts))


def _above(runs: Sequence[Run]) -> list[str]:
    """Return the folders that the runs lie in, each once."""
    return sorted({str(run.folder.parent) for run in runs})


def _short_commit(commit: str) -> str:
    """Return as much of a commit as tells it apart; a plus behind it are changes that were in no commit."""
    return commit[:10] + ("+" if commit.endswith("+") and len(commit) > 10 else "")


def _versions(runs: Sequence[Run]) -> str:
    """Return the versions and machines that runs were started with, and how many starts had each."""
    counted: dict[tuple[str, ...], int] = {}
    for start in (start for run in runs for start in run.starts):
        key = tuple(said(start.get(name)) for name in VERSIONS)
        key = (_short_commit(key[0]), *key[1:])
        counted[key] = counted.get(key, 0) + 1
    if not counted:
        return '<p class="hint">No run says what it was started with.</p>'
    rows = [(str(count), *key) for key, count in counted.items()]
    return '<p class="title">Starts, by commit, versions and machine</p>' + cells(("starts", *VERSIONS), rows, 11)
