"""Signals become requests that the training loop, evaluations and transfers read between two pieces of work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from mlrun.train.parallel import environment, processes

# What is asked for; the greatest over all processes counts.
NOTHING, SAVE, STOP = 0, 1, 2

HEARD = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)


class Stopped(Exception):
    """A signal asked the run to stop; what it takes to go on is saved."""


class Signals:
    """What signals asked for since the last answer.

    Alone, all four stop the run, saved, and a second Ctrl-C ends it at once. SIGHUP and SIGINT stay ignored where
    they are (`nohup`, a job in the background). Where a launcher listened before us (submitit does), SIGTERM only
    saves, for SLURM sends it to a preempted job ahead of SIGUSR2; and SIGUSR2 stops, then goes on to the launcher,
    which puts the job back into the queue.

    `unheeded` says of the last run of this process that a signal asked it to stop and it ended otherwise: it was at its
    end, had diverged, or could not be saved. Whoever has more runs to start must not.
    """

    unheeded: ClassVar[bool] = False

    def __init__(self) -> None:
        self.asked, Signals.unheeded = NOTHING, False
        self._to_launcher = False
        self._interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block, then give the signals back to whoever had them.

        Where another process was lost SIGTERM stays unheard: the launcher sends it to those that are left at once, and
        what they have to say of it comes first.
        """
        after = before = {number: signal.getsignal(number) for number in HEARD}
        launcher = callable(before[signal.SIGUSR2])
        heard = [number for number in HEARD if before[number] != signal.SIG_IGN]

        def hear(number: int, frame: object) -> None:
            if number == signal.SIGINT:
                self._interrupt()
            Signals.unheeded |= not launcher  # a launcher that starts one run has nothing else to start
            ask = SAVE if launcher and number == signal.SIGTERM else STOP
            self.asked = max(self.asked, ask)
            self._to_launcher |= launcher and number == signal.SIGUSR2

        for number in heard:
            signal.signal(number, hear)
        try:
            yield
        except RuntimeError as error:
            if processes.lost(error) is not None:
                after = before | {signal.SIGTERM: signal.SIG_IGN}
            raise
        finally:
            for number in heard:
                signal.signal(number, after[number])

    def _interrupt(self) -> None:
        """Say what the first Ctrl-C does; raise KeyboardInterrupt at the second, if this process is the only one.

        The launcher of several processes sends them the signal that the terminal has sent them already.
        """
        if environment.process().world > 1:
            return
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        # print() may be what was interrupted.
        os.write(2, b"\nmlrun: saving, then stopping; Ctrl-C again ends at once\n")

    def answered(self, ask: int) -> None:
        """Forget a request that was fulfilled; a greater one that came meanwhile stays."""
        if self.asked <= ask:
            self.asked = NOTHING

    def pass_on(self) -> None:
        """Let the launcher hear the SIGUSR2 that stopped us: submitit requeues the job and ends the process."""
        if self._to_launcher:
            os.kill(os.getpid(), signal.SIGUSR2)
