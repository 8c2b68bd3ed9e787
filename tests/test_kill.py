"""kill -9 at 40 moments, again and again on the same folder: the end is bitwise that of a run left in peace."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import toy

SEED = 20240407
KILLS = 40
CHANGES = {"log_every": 1}

# One process that is forked for every life: importing torch forty times would take minutes, and so would what the first
# step of an optimizer imports. The child counts the calls of one kind of work and kills itself, with no chance to clean
# up, in the middle of the one that it was told.
CHILD = '''
import os, pathlib, signal, sys
import torch, toy
from dataclasses import replace
from mlrun import checkpoint, operators, run, sharded, transfer
from mlrun.config import Hardware
from mlrun.log.jsonl import Jsonl

torch.set_num_threads(1)
warm = torch.nn.Parameter(torch.zeros(1))
warm.grad = torch.zeros(1)
torch.optim.AdamW([warm]).step()

def die(): os.kill(os.getpid(), signal.SIGKILL)

def around(owner, name, at, before):
    real, calls = getattr(owner, name), [0]
    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at and before: die()
        out = real(*args, **kwargs)
        if calls[0] == at: die()
        return out
    setattr(owner, name, counted)

def torn(at):
    """Half a file reaches the disk."""
    real, calls = checkpoint.save_file, [0]
    def save(tensors, path, meta):
        calls[0] += 1
        real(tensors, path, meta)
        if calls[0] == at:
            os.truncate(path, os.path.getsize(path) // 2)
            die()
    checkpoint.save_file = save

def torn_shard(at):
    """Half of a shard reaches the disk."""
    real, calls = sharded._write, [0]
    def write(folder, *args):
        calls[0] += 1
        real(folder, *args)
        if calls[0] == at:
            (path,) = folder.glob("*.distcp")
            os.truncate(path, os.path.getsize(path) // 2)
            die()
    sharded._write = write

def half_line(at):
    """Half a record reaches the log."""
    real, calls = Jsonl.write, [0]
    def write(self, record):
        calls[0] += 1
        if calls[0] == at:
            self._file.write(b'{"kind": "tra')
            die()
        return real(self, record)
    Jsonl.write = write

POINTS = {
    "step": lambda at, before: around(torch.optim.AdamW, "step", at, before),
    "torn checkpoint": lambda at, before: torn(at),
    "torn shard": lambda at, before: torn_shard(at),
    "note": lambda at, before: around(sharded, "_sign", at, before),
    "removal": lambda at, before: around(checkpoint, "remove", at, before),
    "rename": lambda at, before: around(os, "replace", at, before),
    "half a record": lambda at, before: half_line(at),
    "transfer": lambda at, before: around(operators, ("iter_coalesce", "iter_decoalesce")[at % 2], 1, before),
    "blend": lambda at, before: around(operators, "interpolate", 1, before),
    "receipt": lambda at, before: around(transfer, "receipt", 1 + at % 2, before),
    "evaluation": lambda at, before: around(run, "held_out_loss", at, before),
    "model": lambda at, before: around(run, "save_model", 1, before),
    "fork of shards": lambda at, before: around(sharded, "save_fork", at, before),
    "fork": lambda at, before: around(checkpoint, "save_fork", at, before),
    "branch": lambda at, before: around(checkpoint, "load_fork", at, before),
}

def config():
    model = replace(toy.model(), dropout=0.1, attention_dropout=0.1, drop_path=0.1)
    often, hardware = toy.Checkpoint(every="2 steps"), Hardware(sharding=sys.argv[1])
    return toy.make(model=model, checkpoint=often, hardware=hardware, **toy.BRANCHED)

print("ready", flush=True)
for line in sys.stdin:
    folder, point, at, before = line.rstrip("\\n").split("|")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if point:
                POINTS[point](int(at), before == "True")
            os.dup2(2, 1)  # the console of a run is not the answer to the test
            toy.run(pathlib.Path(folder), config())
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), child, flush=True)
'''


class Lives:
    """Starts lives of runs, each in a process of its own."""

    def __init__(self, script: Path, sharding: str) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parent)])
        self.process = subprocess.Popen(
            [sys.executable, str(script), sharding],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(script.with_suffix(".err"), "w"),  # noqa: SIM115
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def live(self, folder: Path, point: str = "", at: int = 0, before: bool = False) -> int:
        """Return the exit code of one life: -9 if it was killed, 0 if it came to its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder}|{point}|{at}|{before}\n")
        self.process.stdin.flush()
        return int(self.answer().split()[0])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


REACH = {
    "step": 6, "torn checkpoint": 4, "rename": 8, "half a record": 9, "transfer": 2, "blend": 1,
    "receipt": 2, "evaluation": 3, "model": 1, "fork": 2, "branch": 2,
}  # fmt: skip
REACH_OF_SHARDS = {
    "torn shard": 4,
    "note": 4,
    "rename": 12,
    "removal": 12,
    "transfer": 2,
    "model": 1,
    "fork of shards": 2,
}


def moments(draw: random.Random, reach: dict[str, int]) -> Iterator[tuple[str, int, bool]]:
    """Yield where to kill, for ever: each kind of moment in turn, at a random count of it."""
    while True:
        names = list(reach)
        draw.shuffle(names)
        for name in names:
            yield name, draw.randint(1, reach[name]), draw.random() < 0.5


def ledger(folder: Path) -> dict[str, Any]:
    """Return the summary without what is measured in seconds or in files."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["ledger"]["seconds"]
    for stage in summary["ledger"]["stages"]:
        del stage["seconds"]
    return summary


def test_forty_kills_leave_no_trace(tmp_path: Path) -> None:
    kinds = kill(tmp_path, "none", REACH, KILLS)
    assert {"torn checkpoint", "rename", "half a record", "transfer", "step", "fork", "branch"} <= kinds


def test_a_dozen_kills_of_a_run_of_shards_leave_no_trace(tmp_path: Path) -> None:
    assert {"torn shard", "note", "rename", "removal"} <= kill(tmp_path, "fsdp", REACH_OF_SHARDS, 12)


def kill(tmp_path: Path, sharding: str, reach: dict[str, int], kills: int) -> set[str]:
    """Kill runs until it is enough, compare their ends with that of one left in peace; return the kinds of moments."""
    script = tmp_path / "life.py"
    script.write_text(CHILD)
    lives = Lives(script, sharding)
    assert lives.live(tmp_path / "peace") == 0, (tmp_path / "life.err").read_text()[-2000:]
    print(f"seed {SEED}")
    draw, killed, began = moments(random.Random(SEED), reach), 0, time.perf_counter()
    run_number, kinds = 0, set()
    while killed < kills:
        folder = tmp_path / f"war-{run_number}"
        codes = []
        # A life that reaches its end before its moment finishes the run: the next one begins.
        while killed < kills and (not codes or codes[-1] == -9):
            point, at, before = next(draw)
            codes.append(lives.live(folder, point, at, before))
            killed += codes[-1] == -9
            kinds |= {point} if codes[-1] == -9 else set()
        if codes[-1] == -9:
            codes.append(lives.live(folder))
        assert codes[-1] == 0, (point, at, before, (tmp_path / "life.err").read_text()[-2000:])
        same_end(tmp_path / "peace", folder)
        run_number += 1
    lives.close()
    print(f"{killed} kills over {run_number} runs in {time.perf_counter() - began:.0f} s, in {sorted(kinds)}")
    return kinds


def same_end(peace: Path, war: Path) -> None:
    assert toy.records(war) == toy.records(peace)
    assert ledger(war) == ledger(peace)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (war / "model" / name).read_bytes() == (peace / "model" / name).read_bytes()
    assert not list((war / "checkpoints").glob("fork-*"))
    leftovers = [p.name for p in (war / "model").iterdir() if p.name.startswith(".")]
    assert len(leftovers) <= KILLS
