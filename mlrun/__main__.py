"""`mlrun`: compose, check everything, then run. Exit code 2 is a mistake of the user, 1 a failed run or a bug."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import hydra

from mlrun import files
from mlrun.cli import capacity, command, explain, points, preflight
from mlrun.cli.blame import line
from mlrun.cli.jobs import Jobs
from mlrun.cli.messages import Ended, first, lasting_output, print_error, print_once, user_errors
from mlrun.cli.tasks import perform
from mlrun.config.load import conf_dir
from mlrun.errors import UserError


def main() -> None:
    """Do what the command line asks; nothing is written before all of it is checked."""
    capacity.spin_briefly()
    with lasting_output(), user_errors(), _interrupted("interrupted"), _heard():
        asked = command.read(sys.argv[1:])
        if asked.subjects:
            print_once(explain.text(asked))
            return
        found = [] if asked.helps else points.of(asked)
        if asked.informs:
            _inform(asked, found)
            return
        checked = preflight.check(found)
        if checked[0].planned is None:
            for point in found:
                perform(point.settings, files.expanded(point.settings.run) if point.own_run else None)
            return
        with files.no_trace(found[0].base):
            files.make(found[0].base)
            # The folder that was checked is the one that is used: the clock has gone on since.
            _hydra(Jobs(checked), asked, [] if found[0].own_run else [command.override("run", found[0].base)])


def _inform(asked: command.Command, found: Sequence[points.Point]) -> None:
    """Let Hydra print; whatever it raises is about the command line, as nothing of ours runs."""
    if asked.flags.package is not None and (problem := points.package_problem(asked, found[0])):
        raise UserError(problem)
    try:
        _hydra(Jobs(), asked)
    except Exception as error:
        raise UserError(f"{line(error)}; mlrun --hydra-help lists the flags") from None
    except SystemExit as ended:
        raise SystemExit(2 if ended.code else 0) from None


def _hydra(jobs: Jobs, asked: command.Command, more: list[str] | None = None) -> None:
    """Hand over to Hydra, which makes the folders and starts the jobs, here or through a launcher."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions out as they are
    sys.argv = [sys.argv[0], *asked.rest, *asked.overrides, *(more or [])]
    with _interrupted("interrupted; the same command with its run=... goes on from the last checkpoint"):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=points.CONFIG)(jobs)()


@contextlib.contextmanager
def _interrupted(line: str) -> Iterator[None]:
    """Let Ctrl-C, or another signal, end the command in a line, and with the exit code that a shell gives it."""
    try:
        yield
    except (KeyboardInterrupt, Ended) as asked:
        number = asked.number if isinstance(asked, Ended) else signal.SIGINT
        if first() or number == signal.SIGINT:
            print_error(f"mlrun: {line}")
        raise SystemExit(128 + number) from None


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what no run listens in: preparing data, evaluating, a report. The second kills.

    What is ignored stays so (`nohup`), and what a launcher heard before us remains its own.
    """
    mine = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def hear(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Ended(number)

    for number in mine:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
