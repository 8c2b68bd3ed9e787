"""Batches made ahead are those made in the loop; a stop, an error or a kill leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pair
import pytest
import torch
import toy
from test_images import deit, equal, hub, labelled, numbers  # noqa: F401

from mlrun.config.settings import Checkpoint, Hardware
from mlrun.data import ahead
from mlrun.data.images import workers
from mlrun.data.images.files import ImageFiles
from mlrun.data.images.hub import ImageHub
from mlrun.data.images.workers import Asked, Job
from mlrun.data.source import Broken
from mlrun.train.copying import moved

CPU = torch.device("cpu")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mlrun-batches"]


def ended(pids: list[int], within: float) -> bool:
    """Return whether processes are gone, or will be in some seconds; one that is dead and not yet waited for is."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        states = [Path(f"/proc/{pid}/stat") for pid in pids]
        if all(not s.exists() or s.read_text().rpartition(")")[2].split()[0] == "Z" for s in states):
            return True
        time.sleep(0.02)
    return False


def test_a_thread_gives_what_the_iterator_gives_and_is_little_ahead() -> None:
    taken: list[int] = []

    def numbered() -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number

    with closing(ahead.made(numbered())) as found:  # type: ignore[type-var]
        assert list(islice(found, 5)) == [0, 1, 2, 3, 4] and threads()
        time.sleep(0.1)
        assert len(taken) <= 5 + ahead.DEEP + 1
    assert not threads()


def test_what_was_made_before_an_error_comes_first_and_the_error_is_the_same() -> None:
    error = Broken("the disk is gone")

    def breaking() -> Iterator[int]:
        yield from (1, 2)
        raise error

    found = ahead.made(breaking())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(Broken) as caught:
        next(found)
    assert caught.value is error and not threads()
    assert list(ahead.made(iter(()))) == []


@pytest.mark.parametrize(
    ("asked", "gpu", "threads", "env", "found"),
    [
        (3, False, 2, {}, 3),
        (0, True, 2, {}, 0),
        ("auto", False, 8, {}, 0),
        ("auto", False, 6, {}, 2),
        ("auto", True, 8, {}, 7),
        ("auto", True, 8, {"LOCAL_WORLD_SIZE": "4"}, 1),
        ("auto", True, 8, {"LOCAL_WORLD_SIZE": "8"}, 1),
    ],
)
def test_auto_is_what_the_cores_leave(
    asked: Any, gpu: bool, threads: int, env: dict[str, str], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert ahead.workers(asked, gpu, threads, env) == found


def test_text_is_made_in_the_loop_on_a_processor_and_by_a_thread_if_asked() -> None:
    for asked, made in (("auto", False), (0, False), (1, True)):
        batches = ahead.beside(toy.Toy().open(None, 0, "").batches(0, 8), asked, CPU)
        next(batches)
        assert bool(threads()) == made
        batches.close()  # type: ignore[attr-defined]
        assert not threads()
    assert moved({"x": torch.ones(2)}, CPU)["x"].device == CPU


# --- runs ------------------------------------------------------------------------------------------------------------


def same(one: Path, other: Path) -> bool:
    return toy.records(one) == toy.records(other) and equal(toy.weights(one), toy.weights(other))


def test_a_run_with_branches_is_the_same_stopped_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_of = {**toy.BRANCHED, "checkpoint": Checkpoint(every="20%")}
    toy.run(tmp_path / "loop", toy.make(**ahead_of, hardware=Hardware(workers=0)))
    config = toy.make(**ahead_of, hardware=Hardware(workers=1))
    toy.run(tmp_path / "thread", config)
    with monkeypatch.context() as patch:
        toy.stop_at(patch, 12)
        with pytest.raises(toy.loop.Stopped):
            toy.run(tmp_path / "cut", config)
    assert not threads()
    toy.run(tmp_path / "cut", config)
    assert same(tmp_path / "loop", tmp_path / "thread") and same(tmp_path / "loop", tmp_path / "cut")


def test_stages_of_shorter_samples_and_two_processes_are_the_same(tmp_path: Path) -> None:
    toy.run(tmp_path / "one", pair.config("other samples", workers=0))
    toy.run(tmp_path / "thread", pair.config("other samples", workers=1))
    assert same(tmp_path / "one", tmp_path / "thread")
    parts = [pair.Part(str(tmp_path / f"two-{n}"), "reset", {"workers": n}) for n in (0, 1)]
    pair.together(tmp_path, parts)
    assert same(tmp_path / "two-0", tmp_path / "two-1")


def test_a_run_on_pictures_is_the_same_with_processes(labelled: ImageFiles, tmp_path: Path) -> None:  # noqa: F811
    model = replace(deit(), head=2, layer=2)
    for n in (0, 2):
        hardware = Hardware(workers=n)
        toy.run(tmp_path / str(n), toy.make(model=model, data=labelled, cache=str(tmp_path), hardware=hardware))
    assert same(tmp_path / "0", tmp_path / "2")
    assert not multiprocessing.active_children()


# --- pictures --------------------------------------------------------------------------------------------------------


def test_any_number_of_processes_makes_the_same_pictures(labelled: ImageFiles, tmp_path: Path) -> None:  # noqa: F811
    source = labelled.open(deit(), 5, str(tmp_path))
    here = list(islice(source.batches(24, 40, slice(3, 39)), 3))  # more rows than a part has
    for n in (1, 2):
        with closing(source.with_workers(n).batches(24, 40, slice(3, 39))) as beside:  # type: ignore[type-var]
            assert all(equal(a, b) for a, b in zip(here, beside, strict=False))
    held = (list(s.validation(4)) for s in (source, source.with_workers(2)))
    assert all(equal(a, b) for a, b in zip(*held, strict=True))


def test_streamed_pictures_too_and_a_stream_that_breaks(
    hub: ImageHub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = replace(hub, streaming=True, block=32).open(deit(), 0, str(tmp_path))
    here = [numbers(batch) for batch in islice(source.batches(31, 10), 4)]
    with closing(source.with_workers(2).batches(31, 10)) as beside:  # type: ignore[type-var]
        assert [numbers(batch) for batch in islice(beside, 4)] == here

    def breaking(start: int) -> Iterator[Any]:
        yield from islice(whole(start), 25)
        raise Broken("the connection is gone")

    whole = source.stream
    monkeypatch.setattr(source, "stream", breaking)
    beside = source.with_workers(2).batches(31, 10)
    assert [numbers(batch) for batch in islice(beside, 2)] == here[:2]
    with pytest.raises(Broken, match=r"^the connection is gone$"):
        next(beside)


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def endless(make: Any = lambda asked: (np.zeros(2), 0)) -> Iterator[dict[str, Any]]:
    jobs = (Job([Asked(n)], lambda images, labels: {"images": images}) for n in count())
    return workers.batches(make, jobs, 2)


def test_processes_heed_no_signal_but_the_runs_own_and_end_when_they_are_not_wanted() -> None:
    generator = torch.get_rng_state()
    batches = endless()
    next(batches)
    pids = children()
    assert len(pids) == 2 and torch.equal(torch.get_rng_state(), generator)
    time.sleep(0.2)  # until both have begun
    for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        [os.kill(pid, number) for pid in pids]
    subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)  # as a cluster does
    list(islice(batches, 20))
    assert children() == pids
    began = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 3 and ended(pids, 3) and not threads()


def test_a_process_that_is_gone_is_one_line() -> None:
    batches = endless()
    next(batches)
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(Broken, match=r"^DataLoader worker .*lower hardware.workers[^\n]*$"):
        list(islice(batches, 10**4))


@pytest.mark.parametrize(
    ("met", "told"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "DataLoader worker ended ([Errno 104] Connection re"),
        (EOFError(), "DataLoader worker ended (EOFError) while it made pictures"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nMore"),
            "DataLoader worker (pid 7) is k",
        ),
    ],
)
def test_whatever_the_loader_meets_of_a_process_that_is_gone_is_that_line(met: Exception, told: str) -> None:
    found = workers._gone(met)
    assert isinstance(found, Broken) and str(found).startswith(told) and "\n" not in str(found)


@pytest.mark.parametrize(
    "met", [RuntimeError("shapes differ"), EOFError("Caught EOFError in DataLoader worker process 0.")]
)
def test_what_a_process_itself_met_stays_what_it_is(met: Exception) -> None:
    assert workers._gone(met) is met


def test_a_run_that_is_killed_leaves_no_process_behind() -> None:
    code = "import test_ahead as t, time; b = t.endless(); next(b); print(*t.children(), flush=True); time.sleep(60)"
    path = os.pathsep.join(sys.path)
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert run.stdout is not None
    pids = [int(word) for word in run.stdout.readline().split()]
    assert len(pids) == 2
    run.kill()
    run.wait()
    assert ended(pids, 2)
