"""What Hydra calls: one task in the folder that was made for it, and the end of a sweep."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

# points registers what a job's folder is resolved with, wherever a launcher unpickles a job.
from mlrun.cli import capacity, initial, points, run_folder, tasks
from mlrun.cli.command import override, unquoted
from mlrun.cli.messages import Ended, Failed, common, disk_errors, first, print_error, print_once, user_errors
from mlrun.cli.objective import objective
from mlrun.cli.preflight import Checked
from mlrun.errors import InUse, UserError
from mlrun.files import ERROR, LOG, SEARCH, read_json, write_text
from mlrun.train import lock


class Jobs:
    """Hydra's task function; it knows what was checked and planned before Hydra began."""

    def __init__(self, checked: Sequence[Checked] = ()) -> None:
        self._planned = {str(one.point.folder.absolute()): one.planned for one in checked}
        self.points = {_overrides(one.point): one.point for one in checked if one.point.overrides is not None}

    def __reduce__(self) -> Any:
        """In another process nothing is known: the job plans for itself."""
        return Jobs, ()

    def __call__(self, settings: DictConfig) -> float | None:
        """Do one task; in a sweep a failure is written down, and the next starts.

        Return what the sweeper asked for (`find.objective`); None where nothing was trained.
        """
        capacity.spin_briefly()
        hydra = HydraConfig.get()
        planned = self._planned.pop(hydra.runtime.output_dir, None)
        folder = run_folder.short(Path(hydra.runtime.output_dir))
        settings.run = str(folder)
        given = _given(hydra, folder)
        if planned is None and tasks.TASKS[settings.task].planned:
            said, model = points.as_said(hydra.overrides.task), hydra.runtime.choices.get("model")
            settings = initial.completed(settings, said, model, folder)
        if hydra.mode != RunMode.MULTIRUN:
            with user_errors(everywhere=True):
                tasks.perform(settings, folder, planned, given)
            return None
        print_once(f"\n-- run {hydra.job.num}: {folder}")
        try:
            with disk_errors():
                tasks.perform(settings, folder, planned, given)
            if first():
                forget_failure(folder)
        except InUse as error:  # another process trains this run
            print_error(f"mlrun: {error}")
        except (UserError, Failed) as error:
            if first() or not common(error):
                _failed(folder, "".join(f"mlrun: {line}\n" for line in str(error).splitlines()))
        except Exception:
            _failed(folder, traceback.format_exc())
        except (KeyboardInterrupt, SystemExit, Ended):
            with contextlib.suppress(OSError):  # Hydra made it, and there may be nothing in it yet
                folder.rmdir()
            raise
        if tasks.TASKS[settings.task].trains:
            _heed_signals(folder.parent)
        return objective(folder, settings.find) if settings.task == "train" else None


def _heed_signals(sweep: Path) -> None:
    """End a sweep where a signal asked its last run to stop when there was nothing left to stop."""
    from mlrun.train.signals import Signals

    if Signals.unheeded:
        print_error(f"mlrun: stopped by a signal; the same command with run={sweep} goes on")
        raise SystemExit(tasks.STOPPED)


def _overrides(point: points.Point) -> tuple[str, ...]:
    """Return what a launcher composes a point of a sweep from: its overrides, and the name of its folder.

    A folder that the clock named is named too: the clock has gone on since, and would name one for each point.
    """
    shared = [] if point.own_run else [override("run", point.base)]
    return (*(point.overrides or ()), *shared, override("hydra.sweep.subdir", point.folder.name))


def _given(hydra: Any, folder: Path) -> list[str]:
    """Return the words after `mlrun` that make this run again, one of a sweep by itself: its folder among them."""
    paths = [text for text in points.as_said(hydra.overrides.hydra) if text.startswith("hydra.searchpath=")]
    said = [unquoted(text) for text in points.as_said(hydra.overrides.task) if text.partition("=")[0] != "run"]
    return [*said, *paths, unquoted(override("run", folder))]


def _failed(folder: Path, text: str) -> None:
    print_error(text.rstrip())
    if first():
        note_failure(folder, text)


def note_failure(folder: Path, text: str) -> None:
    """Write why a run failed: into its folder, or beside it while another process holds that."""
    note = folder / ERROR if lock.free(folder) else folder.with_name(f"{folder.name}.{ERROR}")
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, text)


def forget_failure(folder: Path) -> None:
    """Remove what was noted of a run's last failure, where it may be."""
    folder.with_name(f"{folder.name}.{ERROR}").unlink(missing_ok=True)
    if lock.free(folder):
        (folder / ERROR).unlink(missing_ok=True)


def failures(sweep: Path) -> list[str]:
    """Return the folders of a sweep's runs that failed, or that another process held."""
    inside = {str(note.parent) for note in sweep.glob(f"*/{ERROR}")}
    return sorted(inside | {str(note).removesuffix(f".{ERROR}") for note in sweep.glob(f"*.{ERROR}")})


class AfterSweep(Callback):
    """Ends a sweep: the comparison of its runs, then the names of those that failed and exit code 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra would swallow an exception here, so it is told and becomes an exit code."""
        folder = run_folder.short(Path(config.hydra.sweep.dir).absolute())
        with user_errors(), _ours():
            if config.task == "train" and any(folder.glob(f"*/{LOG}")):
                print_once(f"\n-- report of {folder}")
                if first():
                    tasks.report_on(_reporting(folder) or [folder], folder / "report")
            if failed := failures(folder):
                raise Failed(f"{len(failed)} of the sweep's runs failed: {', '.join(failed)}")


def _reporting(sweep: Path) -> list[Path]:
    """Return the runs that report a search on fresh seeds; none in another sweep, or before it has chosen."""
    if not (sweep / SEARCH).exists():
        return []
    return [path for name in read_json(sweep / SEARCH)["fresh"] if ((path := sweep / name) / LOG).exists()]


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """Show a bug of ours in full, with exit code 1."""
    try:
        yield
    except (UserError, Failed):
        raise
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
