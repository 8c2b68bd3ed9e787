"""A report that follows its runs: written again whenever their folders have something new."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlrun import files
from mlrun.errors import UserError
from mlrun.report import write
from mlrun.report.build import Report, build
from mlrun.report.read import FILES, find

INTERVAL = 5.0  # seconds between two looks at the runs, or longer where the report itself takes long
RELOAD = 10  # seconds after which the page reads itself again, while somebody watches
# A report may take this share of the time, as the runs need the machine.
SHARE = 0.2


def watch(
    runs: Sequence[Path],
    out: Path | None,
    show: Callable[[Report], None],
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the report, `show` it, and write it again when a run has something new, until Ctrl-C.

    Each time `tell` is given a line. In the end the page is written once more without reading itself again. Without
    `out` it lies under what `runs` name, if these are folders: a run that comes later may lie anywhere in them.

    Raises:
        UserError: as `build`, of the first report. Later ones are told: a run may be half written, and is read again,
            or gone.
        KeyboardInterrupt: before there was a report.
    """
    seen, report, took = _state(runs), None, 0.0
    try:
        while True:
            began = time.monotonic()
            if report is None:
                report = build(runs, out, reload=RELOAD)
                out = report.files[0].parent  # stays there, wherever new runs lie
                show(report)
                tell(f"watched: {report.files[0]} is written again when a run has something new; Ctrl-C ends it")
            elif (now := _state(runs)) != seen:
                seen = now
                report = _again(runs, out, tell) or report
            took = max(took, time.monotonic() - began)
            sleep(max(INTERVAL, took / SHARE))
    except KeyboardInterrupt:
        if report is None:
            raise
        _last(runs, report.files[0], tell)
    except BaseException:  # such as SIGTERM: at once, but no page may go on reading itself for nobody
        if report is not None:
            _still(report.files[0])
        raise


def _last(runs: Sequence[Path], page: Path, tell: Callable[[str], None]) -> None:
    """Write the report a last time, as one that nobody watches; where that fails, the page before becomes one."""
    try:
        build(runs, page.parent)
    except (UserError, OSError, KeyboardInterrupt) as error:
        _still(page)
        tell(f"the last report was not written: {str(error) or 'interrupted'}; {page} stays as it is")
    else:
        tell(f"no longer watched; {page} stays as it is")


def _still(page: Path) -> None:
    """Take the line from a page that makes the browser read it again."""
    with contextlib.suppress(OSError):  # it may be gone with its runs
        text = page.read_text(encoding="utf-8")
        write.write(page.parent, page.name, re.sub(r'<meta http-equiv="refresh"[^>]*>', "", text, count=1))


def _again(runs: Sequence[Path], out: Path | None, tell: Callable[[str], None]) -> Report | None:
    """Return the report of what is there now; None, with a line, if it cannot be read."""
    try:
        report = build(runs, out, reload=RELOAD)
    except (UserError, OSError) as error:
        tell(f"{time.strftime('%H:%M:%S')} not written: {error}")
        return None
    found = [run for group in report.groups for run in group.runs]
    done = sum(run.ended for run in found)
    tell(f"{time.strftime('%H:%M:%S')} {report.files[0]}: {len(found)} runs, {done} of them ended")
    return report


def _state(runs: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Return the length and the time of every file that a report reads."""
    found: dict[Path, tuple[int, int]] = {}
    with contextlib.suppress(UserError):  # none is left
        for folder in find([files.expanded(path) for path in runs]):
            for name in (*FILES, files.SUMMARY):
                with contextlib.suppress(OSError):
                    about = (folder / name).stat()
                    found[folder / name] = (about.st_size, about.st_mtime_ns)
    return found
