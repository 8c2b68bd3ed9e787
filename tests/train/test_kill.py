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

import pair
import toy

SEED = 20240407
KILLS = 40
CHANGES = {"log_every": 1}


class Lives:
    """Starts lives of runs, each in a process of its own."""

    def __init__(self, errors: Path, sharding: str) -> None:
        here = Path(__file__).resolve().parents[1]
        path = os.pathsep.join([str(here), str(here.parent)])
        self.process = subprocess.Popen(
            [sys.executable, str(here / "life.py"), sharding],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(errors, "w"),  # noqa: SIM115
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
REACH_OF_DECISIONS = {
    "step": 6,
    "torn checkpoint": 4,
    "half a record": 12,
    "fork": 3,
    "branch": 3,
    "decision": 3,
    "choice": 1,
}
REACH_OF_SHARDS = {
    "torn shard": 4,
    "note": 4,
    "rename": 12,
    "removal": 12,
    "transfer": 2,
    "model": 1,
    "fork": 2,
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


def test_sixteen_kills_of_a_run_that_decides_leave_no_trace(tmp_path: Path) -> None:
    """A fork is also what probes start from and end in; a choice is which of them to keep."""
    assert {"decision", "choice", "branch"} <= kill(tmp_path, "auto", REACH_OF_DECISIONS, 16)


def test_a_dozen_kills_of_a_run_of_shards_leave_no_trace(tmp_path: Path) -> None:
    pair.needs({"sharding": "fsdp"})
    assert {"torn shard", "note", "rename", "removal"} <= kill(tmp_path, "fsdp", REACH_OF_SHARDS, 12)


def kill(tmp_path: Path, sharding: str, reach: dict[str, int], kills: int) -> set[str]:
    """Kill runs until it is enough, compare their ends with that of one left in peace; return the kinds of moments."""
    lives = Lives(tmp_path / "life.err", sharding)
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
