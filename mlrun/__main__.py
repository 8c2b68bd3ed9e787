"""`mlrun`: compose, check everything, then run. Exit code 2 is a mistake of the user, 1 a failed run or a bug."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra

from mlrun.cli import compose, preflight, tasks
from mlrun.config import conf_dir
from mlrun.errors import UserError, mistake


def main() -> None:
    """Do what the command line asks; nothing is written before all of it is checked."""
    with tasks.user_errors():
        command = compose.read(sys.argv[1:])
        points = [] if command.helps else compose.points(command)
        if not command.informs:
            preflight.check(points)
        if command.informs or points[0].settings.task in preflight.PLANNED:
            with _no_trace(points):
                if not command.informs:
                    _make(Path(str(points[0].settings.run)))
                _hydra(command, points)
        else:
            for point in points:
                tasks.perform(point)


def _hydra(command: compose.Command, points: list[compose.Point]) -> None:
    """Hand over to Hydra, which makes the folders and starts the jobs, here or through a launcher."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions out as they are
    # The folder that was checked is the one that is used: the clock has gone on since.
    named = [] if not points or points[0].own_run else [compose.override("run", str(points[0].settings.run))]
    sys.argv = [sys.argv[0], *command.rest, *command.overrides, *named]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=compose.CONFIG)(tasks.job)()
    except KeyboardInterrupt:
        tasks.print_error("mlrun: interrupted; the same command with its run=... goes on from the last checkpoint")
        raise SystemExit(130) from None


def _make(folder: Path) -> None:
    """Make the folder; UserError where the file system does not let us, such as /proc or a full disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"{error.strerror}: choose another run=..."
        raise UserError(mistake("run", folder, "a folder that can be made", remedy)) from None


@contextlib.contextmanager
def _no_trace(points: list[compose.Point]) -> Iterator[None]:
    """Remove the folders that were made for nothing: those still empty when the work ends by an error."""
    folders = [Path(str(point.settings.run)).absolute() for point in points[:1]]
    absent = [place for folder in folders for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in absent:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


if __name__ == "__main__":
    main()
