"""Batches made ahead, beside the loop that uses them: by a thread, and where each costs much Python by processes too.

What is made is the same, in the same order: a source gives the batches from any cursor on, and only what the loop has
taken counts. What was made and not taken is dropped, so a checkpoint knows nothing of it.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mlrun import cores

if TYPE_CHECKING:
    import torch

    from mlrun.data.source import Batch

Item = TypeVar("Item")

AUTO = "auto"
DEEP = 2  # batches that wait to be used
MOST = 16  # processes that `auto` starts beside one of a run
_PATIENCE = 0.1  # seconds between two looks at whether anybody still wants what is made
_GIVE_UP = 1.0  # seconds that a thread has to end; one that makes a large batch, or waits for a network, is left behind


def workers(asked: int | str, gpu: bool, threads: int, env: Mapping[str, str] = os.environ) -> int:
    """Return how many processes may make batches beside this one; 0 makes them in the loop.

    `auto` is what the cores of this machine leave: on a GPU all but one, for each process of a run on it; on a
    processor those that torch's own threads do not take, which is none unless `hardware.threads` is lowered.
    """
    if asked != AUTO:
        return int(asked)
    own = cores.usable() // int(env.get("LOCAL_WORLD_SIZE", 1))
    return min(MOST, max(1, own - 1) if gpu else max(0, own - threads))


def served(source: Any, asked: int | str, device: torch.device) -> Any:
    """Return a source with as many processes as `hardware.workers` asks for, if each of its batches costs much Python.

    Such a source has `with_workers(count)`, which returns the same source with so many.
    """
    import torch

    if not hasattr(source, "with_workers"):
        return source
    return source.with_workers(workers(asked, device.type == "cuda", torch.get_num_threads()))


def beside(batches: Iterator[Batch], asked: int | str, device: torch.device) -> Generator[Batch]:
    """Yield batches made by a thread, in memory from which a GPU copies beside its work.

    In the loop instead with `hardware.workers=0`; and with `auto` on a processor, whose cores compute already.
    """
    gpu = device.type == "cuda"
    if asked == 0 or (asked == AUTO and not gpu):
        yield from batches
    else:
        yield from made(_pinned(batches) if gpu else batches)


def _pinned(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield {name: tensor.pin_memory() for name, tensor in batch.items()}


def made(batches: Iterator[Item]) -> Generator[Item]:
    """Yield what an iterator gives, made by a thread up to `DEEP` items ahead.

    What the iterator raises is raised here, after all that it gave before. Closing this ends thread and iterator.
    """
    ready: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(DEEP)
    unwanted = threading.Event()
    thread = threading.Thread(target=_fill, args=(batches, ready, unwanted), name="mlrun-batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error, ended = ready.get()
            if error is not None:
                raise error
            if ended:
                return
            yield item  # type: ignore[misc]
            del item
    finally:
        unwanted.set()
        thread.join(_GIVE_UP)


def _fill(batches: Iterator[Item], ready: queue.Queue[Any], unwanted: threading.Event) -> None:
    """Put everything into the queue, then what ended it; the iterator is closed by the thread that used it."""
    last: BaseException | None = None
    try:
        for item in batches:
            _put(ready, (item, None, False), unwanted)
            del item
            if unwanted.is_set():
                break
    except BaseException as error:  # told where the batch is missed
        last = error
    finally:
        if hasattr(batches, "close"):
            batches.close()
        _put(ready, (None, last, True), unwanted)


def _put(ready: queue.Queue[Any], entry: Any, unwanted: threading.Event) -> None:
    while not unwanted.is_set():
        try:
            ready.put(entry, timeout=_PATIENCE)
        except queue.Full:
            continue
        return
