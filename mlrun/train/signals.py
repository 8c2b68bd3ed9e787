"""SIGTERM and SIGUSR2 become requests that the training loop reads between two steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# What is asked for; the greatest over all processes counts.
NOTHING, SAVE, STOP = 0, 1, 2


class Stopped(Exception):
    """A signal asked the run to stop; what it takes to go on is saved."""


class Signals:
    """What signals asked for since the last answer.

    Alone, both signals stop the run, saved. Where a launcher listened before us (submitit does), SIGTERM only saves,
    for SLURM sends it to a preempted job ahead of SIGUSR2; and SIGUSR2 stops, then goes on to the launcher, which
    puts the job back into the queue.
    """

    def __init__(self) -> None:
        self.asked = NOTHING
        self._to_launcher = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block, then give the signals back to whoever had them."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
        launcher = callable(before[signal.SIGUSR2])

        def hear(number: int, frame: object) -> None:
            ask = SAVE if launcher and number == signal.SIGTERM else STOP
            self.asked = max(self.asked, ask)
            self._to_launcher |= launcher and ask == STOP

        for number in before:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def answered(self, ask: int) -> None:
        """Forget a request that was fulfilled; a greater one that came meanwhile stays."""
        if self.asked <= ask:
            self.asked = NOTHING

    def pass_on(self) -> None:
        """Let the launcher hear the SIGUSR2 that stopped us: submitit requeues the job and ends the process."""
        if self._to_launcher:
            os.kill(os.getpid(), signal.SIGUSR2)
