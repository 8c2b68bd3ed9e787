"""Lives of one run, for `test_kill.py`: as a program it is forked for every life.

Importing torch forty times would take minutes, and so would what the first step of an optimizer imports. A life counts
the calls of one kind of work and kills itself, with no chance to clean up, in the middle of the one that it was told.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import toy

from mlrun import files, run
from mlrun.config.load import Config
from mlrun.config.settings import Hardware
from mlrun.log.jsonl import Jsonl
from mlrun.multilevel import operators, receipt
from mlrun.running import assessment, trained
from mlrun.train.checkpoint import sharded, tensor_files
from mlrun.train.checkpoint.store import Checkpoints


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, at: int, before: bool) -> None:
    """Die before or after call number `at`."""
    real, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at and before:
            die()
        out = real(*args, **kwargs)
        if calls[0] == at:
            die()
        return out

    setattr(owner, name, counted)


def torn(at: int) -> None:
    """Half a file reaches the disk."""
    real, calls = tensor_files.save_file, [0]

    def save(tensors: Any, path: Any, meta: Any) -> None:
        calls[0] += 1
        real(tensors, path, meta)
        if calls[0] == at:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    tensor_files.save_file = save


def torn_shard(at: int) -> None:
    """Half of a shard reaches the disk."""
    real, calls = sharded.write_shard, [0]

    def write(path: Path, *args: Any) -> str:
        calls[0] += 1
        checksum = real(path, *args)
        if calls[0] == at:
            os.truncate(path, os.path.getsize(path) // 2)
            die()
        return checksum

    sharded.write_shard = write


def half_line(at: int) -> None:
    """Half a record reaches the log."""
    real, calls = Jsonl.write, [0]

    def write(self: Any, record: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            self._file.write(b'{"kind": "tra')
            die()
        real(self, record)

    Jsonl.write = write  # type: ignore[method-assign]


POINTS: dict[str, Callable[[int, bool], None]] = {
    "step": lambda at, before: around(torch.optim.AdamW, "step", at, before),
    "torn checkpoint": lambda at, before: torn(at),
    "torn shard": lambda at, before: torn_shard(at),
    "note": lambda at, before: around(sharded, "write_note", at, before),
    "removal": lambda at, before: around(files, "remove", at, before),
    "rename": lambda at, before: around(os, "replace", at, before),
    "half a record": lambda at, before: half_line(at),
    "transfer": lambda at, before: around(operators, ("iter_coalesce", "iter_decoalesce")[at % 2], 1, before),
    "blend": lambda at, before: around(operators, "interpolate", 1, before),
    "receipt": lambda at, before: around(receipt, "receipt", 1 + at % 2, before),
    "evaluation": lambda at, before: around(assessment, "measure", at, before),
    "model": lambda at, before: around(trained, "save_model", 1, before),
    "decision": lambda at, before: around(run.Run, "_grows", at, before),
    "choice": lambda at, before: around(run.Run, "_choose", 1, before),
    "fork": lambda at, before: around(Checkpoints, "save_fork", at, before),
    "branch": lambda at, before: around(Checkpoints, "load_fork", at, before),
}


def config(sharding: str) -> Config:
    """Return the run of `test_kill.py`: of shards if that is asked for, or one that decides when to grow."""
    if sharding == "auto":
        return toy.make(checkpoint=toy.Checkpoint(every="2 steps"), **toy.DECIDING)
    model = replace(toy.model(), dropout=0.1, attention_dropout=0.1, drop_path=0.1)
    often, hardware = toy.Checkpoint(every="2 steps"), Hardware(sharding=sharding)
    return toy.make(model=model, checkpoint=often, hardware=hardware, **toy.BRANCHED)


def live(folder: Path, point: str, at: int, before: bool) -> None:
    """Live one life to its end; the process ends with it."""
    status = 1
    try:
        if point:
            POINTS[point](at, before)
        os.dup2(2, 1)  # the console of a run is not the answer to the test
        toy.run(folder, config(sys.argv[1]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    torch.set_num_threads(1)
    warm = torch.nn.Parameter(torch.zeros(1))
    warm.grad = torch.zeros(1)
    torch.optim.AdamW([warm]).step()
    print("ready", flush=True)
    for line in sys.stdin:
        folder, point, at, before = line.rstrip("\n").split("|")
        child = os.fork()
        if child == 0:
            live(Path(folder), point, int(at), before == "True")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), child, flush=True)


if __name__ == "__main__":
    main()
