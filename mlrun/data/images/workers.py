"""Samples of pictures made by processes, which torch's DataLoader keeps: it is handed parts of batches, in order.

Threads would hold the interpreter's lock for as long as they run Python, which is most of the work on small pictures,
and the loop would wait for it with each operation that it starts.
Shapes: R samples of a batch that are wanted, C channels, H = W = side.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlrun.data import ahead
from mlrun.data.images.collections import Stored
from mlrun.data.source import Broken
from mlrun.errors import UserError

if TYPE_CHECKING:
    from mlrun.data.source import Batch

Sample = tuple[np.ndarray, int]
Images = Sequence[np.ndarray]  # R times (C, H, W)
PART = 32  # samples that a process makes at a time
_DEATH = 1  # prctl's PR_SET_PDEATHSIG


class Asked(NamedTuple):
    """What is wanted: a picture, or its number in the collection; as which sample of training, None for evaluation."""

    picture: int | Stored
    sample: int | None = None


@dataclass(frozen=True)
class Job:
    """One batch: the samples that it takes, and what makes it of their images and labels."""

    asked: Sequence[Asked]
    finish: Callable[[Images, np.ndarray], Batch]


def batches(make: Callable[[Asked], Sample], jobs: Iterable[Job], workers: int) -> Iterator[Batch]:
    """Yield the batches of jobs in order: made here, or ahead by so many processes.

    Raises:
        UserError, Broken: as `make` raises them, in the place of their batch.
        Broken: a process ended, by the system or a person.
    """
    if workers == 0:
        return (job.finish(*apart(map(make, job.asked))) for job in jobs)
    return ahead.made(_by_processes(make, jobs, workers))


def apart(made: Iterable[Sample]) -> tuple[Images, np.ndarray]:
    """Return the images of samples, and their labels (R,)."""
    images, labels = zip(*made, strict=True)
    return images, np.array(labels)


class _Parts:
    """What a process is given parts of; a mistake comes back as what it is, so that its line stays one."""

    def __init__(self, make: Callable[[Asked], Sample]) -> None:
        self.make = make

    def __getitem__(self, part: Sequence[Asked]) -> Any:
        from torch.utils.data import default_collate

        try:
            images, labels = apart(map(self.make, part))
        except (UserError, Broken) as error:
            return error
        return default_collate(list(images)), labels  # at once into memory that is shared


def _by_processes(make: Callable[[Asked], Sample], jobs: Iterable[Job], workers: int) -> Iterator[Batch]:
    import torch
    from torch.utils.data import DataLoader

    # Whoever asks for more processes than there are cores means it.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    waiting: deque[tuple[Job, int]] = deque()
    failed: list[Exception] = []
    loader: Any = DataLoader(
        _Parts(make),  # type: ignore[arg-type]
        batch_size=None,
        sampler=_parts(jobs, waiting, failed),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_begin, os.getpid()),
        generator=torch.Generator(),  # else it draws from the one that everything else draws from
        multiprocessing_context="fork",  # the pictures and the open files are there at once
    )
    parts = _checked(iter(loader))
    for first in parts:
        job, count = waiting.popleft()
        images, labels = zip(first, *islice(parts, count - 1), strict=True)
        yield job.finish(list(chain.from_iterable(images)), np.concatenate(labels))
    if failed:
        raise failed[0]


def _parts(jobs: Iterable[Job], waiting: deque[tuple[Job, int]], failed: list[Exception]) -> Iterator[Sequence[Asked]]:
    """Yield the parts of all jobs, and note these; what a stream raises has its turn after what came before."""
    try:
        for job in jobs:
            parts = [job.asked[start : start + PART] for start in range(0, len(job.asked), PART)]
            waiting.append((job, len(parts)))
            yield from parts
    except Exception as error:
        failed.append(error)


def _checked(made: Iterator[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what processes made, or raise what they met."""
    while True:
        try:
            part = next(made)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            raise _gone(error) from error
        if isinstance(part, Exception):
            raise part
        images, labels = part
        yield images.numpy(), labels


def _gone(error: Exception) -> Exception:
    """Return what to raise where the loader met this: a line where a process is gone, else the error itself."""
    said = str(error).partition("\n")[0]
    if said.startswith("Caught "):  # the loader's words for what its process met
        return error
    if isinstance(error, RuntimeError) and not said.startswith("DataLoader worker"):
        return error
    # One that ends while it hands over a part shuts the connection, and that is met first.
    what = said if isinstance(error, RuntimeError) else f"DataLoader worker ended ({said or type(error).__name__})"
    remedy = "a lower hardware.workers takes less memory, 0 makes pictures in the loop"
    return Broken(f"{what} while it made pictures; {remedy}")


def _as_it_is(made: Any) -> Any:
    return made


def _begin(run: int, number: int) -> None:
    """Make a process end with the thread that it works for, and leave signals to the run: a terminal, and a cluster,
    send them to all processes, and the run may want to go on."""
    for ignored in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_if_told, args=(run,), daemon=True).start()
    ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL)
    if os.getppid() != run:  # it is gone already
        os._exit(1)


def _end_if_told(run: int) -> None:
    """End this process at a SIGTERM of the run itself."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
