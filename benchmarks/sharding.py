"""What each process holds of weights and Adam's moments before, during and after a transfer on shards (FSDP2).

Bytes of live tensors, counted as they come and go, in processes over gloo on this machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.table import table
from mlrun.config.settings import Hardware
from mlrun.models.axes import expand, parameter_count
from mlrun.models.gpt import GPT
from mlrun.models.network import initials
from mlrun.multilevel import transfer
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.plan.stages import Level
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.parallel import processes
from mlrun.train.parallel.placement import Placement, local
from mlrun.train.snapshot import Snapshot

HALF = Uniform(width=2, ffn=2, head=2, depth=2)
MODEL = GPT(vocab=16384, position=512, embed=512, head=8, head_dim=64, ffn=2048, layer=8)
WORLDS = (1, 2, 4)
MB = 2**20


@dataclass(frozen=True)
class Seen:
    """Bytes in one process: of the fine snapshot, (peak, result) of either transfer, of the largest whole tensor."""

    before: int
    down: tuple[int, int]
    up: tuple[int, int]
    largest: int


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that live: those of the snapshots given, and what is made inside the block."""

    def __init__(self, *snapshots: Snapshot) -> None:
        super().__init__()
        self.now = self.peak = sum(map(held, snapshots))
        there = (t for snapshot in snapshots for tensors in snapshot.tensors.values() for t in tensors.values())
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(local(t).untyped_storage() for t in there)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._count(local(tensor).untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, count: int) -> None:
        self.now -= count


def held(snapshot: Snapshot) -> int:
    """Return the bytes of a snapshot in this process."""
    return sum(local(t).nbytes for tensors in snapshot.tensors.values() for t in tensors.values())


def look(model: GPT, placement: Placement) -> Seen:
    """Go down a level and up again, moments carried."""
    resize = HALF.resize(model.sizes())
    level = Level(1, model, 0, model.flops(1, 1), resize)
    fine = Snapshot({kind: placement.shard_all(initials(model, 0)) for kind in ("weights", *AdamW.state)}, 1)
    with Live(fine) as live:
        coarse = transfer.coalesce(fine, level, AdamW.state, placement)
    down = live.peak, held(coarse)
    # The fine level waits meanwhile, to be blended with.
    with Live(fine, coarse) as live:
        grown = transfer.decoalesce(coarse, level, AdamW.state, placement)
    largest = max(4 * param.count(model.sizes()) for _, param in expand(model.params(), model.sizes()))
    return Seen(held(fine), down, (live.peak, held(grown)), largest)


def measure(model: GPT, world: int) -> list[Seen]:
    """Return what each of `world` processes saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = str(Path(__file__).resolve().parent.parent)
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "PYTHONPATH": root}
    command = [sys.executable, "-m", "benchmarks.sharding", json.dumps(asdict(model))]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    running = [subprocess.Popen(command, env={**env, **own}, stdout=subprocess.PIPE, text=True) for own in ranks]
    outputs = [process.communicate()[0] for process in running]
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return [Seen(one["before"], tuple(one["down"]), tuple(one["up"]), one["largest"]) for one in found]


def main() -> str:
    """Return the table."""
    parameters = parameter_count(MODEL.params(), MODEL.sizes())
    full = 12 * parameters
    rows = []
    for world in WORLDS:
        seen = max(measure(MODEL, world), key=lambda one: one.up)
        sizes = (seen.before, *seen.down, *seen.up)
        rows.append([str(world), *(f"{size / MB:.0f} ({size / full:.2f})" for size in sizes)])
    head = ["processes", "level 1", "down: peak", "level 2", "up: peak", "level 1 again"]
    how = f"MB in one process, of {full / MB:.0f} MB: weights and moments of {parameters / 1e6:.1f}M parameters"
    largest = 4 * max(param.count(MODEL.sizes()) for _, param in expand(MODEL.params(), MODEL.sizes()))
    return f"{table(head, rows)}\n\n{how}. The largest tensor has {largest / MB:.0f} MB; going up, level 1 waits too."


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = processes.start(Hardware(sharding="fsdp"))
    print(json.dumps(asdict(look(GPT(**json.loads(sys.argv[1])), here.placement))))
    processes.stop(here)
