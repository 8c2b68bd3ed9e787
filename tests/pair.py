"""Two processes of one run, started as a launcher would; each call takes many runs in turn, as torch is slow to import.

As a program it is one of the two: `pair.py RUNS.json`, with the runs as `together` wrote them down.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from mlrun.config.settings import Auto, Cycle, Eval, Hardware, Row, Schedule
from mlrun.models.bert import BERT
from mlrun.models.llama import Llama
from mlrun.multilevel.coarsening.fpi import FPI
from mlrun.multilevel.coarsening.shallow import Shallow
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth.aki import AKI
from mlrun.multilevel.growth.expand import Expand
from mlrun.multilevel.growth.fresh import Fresh
from mlrun.multilevel.growth.mslt import MSLT
from mlrun.multilevel.growth.staged import Staged
from mlrun.train import loop
from mlrun.train.optimizers.adamw import AdamW

DIMS = {"embed": 16, "head": 2, "head_dim": 8, "ffn": 32, "layer": 2}
GROW = (Row(2, "30%"), Row(1, "40%"), Row(1, "20%"))
BOTH = Uniform(width=2, ffn=2, head=2, depth=2, layers="strided")
# AdamW makes whole steps of gradients that are zero but for rounding, as a key's bias has; a larger eps does not.
PLAIN = AdamW(lr=1e-2, eps=1e-6)
AVERAGED = replace(PLAIN, ema=0.9)
DECAYED = replace(AVERAGED, schedule=Schedule(shape="wsd", warmup="1 steps", decay="2 steps"))
PROBED = toy.DECIDING["cycle"].auto.probe


def cycle(stages: Any = toy.V_CYCLE, policy: str = "reset", **changes: Any) -> Cycle:
    return Cycle(name="cycle", stages=list(stages), optimizer_policy=policy, **changes)


def growing(growth: Any, coarsening: Any = BOTH, policy: str = "reset", **changes: Any) -> dict[str, Any]:
    """Return a run that grows into four layers, in a stage of the method's own and one more."""
    model = replace(toy.model(), layer=4)
    return {"growth": growth, "coarsening": coarsening, "model": model, "cycle": cycle(GROW, policy), **changes}


RUNS: dict[str, dict[str, Any]] = {
    "reset": {"cycle": cycle()},
    "carry": {"cycle": cycle(policy="carry"), "optimizer": AVERAGED},
    "branched": {"cycle": cycle(branches=["60%"]), "optimizer": DECAYED},
    "layers left out": {
        "model": replace(toy.model(), layer=4),
        "cycle": cycle(policy="carry", layer_dropout=0.6, branches=["45%"]),
        "optimizer": DECAYED,
    },
    "other samples": {
        "cycle": cycle((Row(2, "40%", batch=16, sequence=8), Row(1, "20%", batch=4, sequence=4), Row(1, "30%"))),
    },
    "3 levels": {
        "model": replace(toy.model(), layer=4, tied=False),
        "cycle": cycle((Row(1, "10%"), Row(2, "10%"), Row(3, "20%"), Row(2, "20%"), Row(1, "30%")), "carry"),
        "optimizer": PLAIN,
    },
    "llama": {
        "cycle": cycle(noise=0.05),
        "coarsening": Uniform(width=2, ffn=2, head=2),
        "model": Llama(toy.WORDS, toy.SEQUENCE, 16, kv_head=2, group=2, head_dim=8, ffn=32, layer=2, qk_norm=True),
    },
    "bert": {"model": BERT(vocab=toy.WORDS, position=toy.SEQUENCE, token_type=1, **DIMS)},
    "ragged": {"data": toy.Toy(ragged=True), "cycle": cycle(policy="carry")},
    "apart": {"data": toy.Toy(apart=True), "cycle": cycle(policy="carry")},
    "aki": growing(AKI(), FPI(width=2, ffn=2, head=2, depth=2)),
    "staged": growing(Staged(), Uniform(width=2, ffn=2, head=2), "carry"),
    "expand": growing(Expand(), Uniform(depth=2), optimizer=AVERAGED),
    "fresh": growing(Fresh(), Shallow(layers=1)),
    "mslt": growing(MSLT(), Uniform(depth=2, layers="strided")),
    "auto": {key: value for key, value in toy.DECIDING.items() if key != "eval"}
    | {"cycle": replace(toy.DECIDING["cycle"], branches=[], auto=Auto("1 step", 1.0, PROBED, "1 step"))},
    "two stages": growing(AKI(substructures=2)),
    "health": {"cycle": cycle(), "health": True},
}


def config(name: str, **hardware: Any) -> Any:
    """Return a short run whose three held-out batches do not share out evenly."""
    seldom = {"eval": Eval(every="50%", batch=6), "checkpoint": toy.Checkpoint(every="50%")}
    return toy.make(budget="10 steps", **{"optimizer": PLAIN, **seldom, **RUNS[name]}, hardware=Hardware(**hardware))


@dataclass(frozen=True)
class Part:
    """One run in `folder`, stopped as by a signal at the first event from step `stop` on."""

    folder: str
    run: str
    hardware: Mapping[str, Any]
    stop: int | None = None
    room: tuple[int, int] | None = None  # samples in training for which each process has memory
    chunk: int | None = None  # rows of which the losses are taken at a time
    backend: str | None = None  # of what is compiled, where that is not torch's own, which needs a compiler


def possible(hardware: Mapping[str, Any]) -> bool:
    """Say whether this torch makes such a run: 2.6 shards on GPUs alone."""
    return hardware.get("sharding") != "fsdp" or hasattr(torch.cpu.Stream, "record_event")


def needs(*hardware: Mapping[str, Any]) -> None:
    """Skip a test of runs that this torch does not make."""
    if not all(map(possible, hardware)):
        pytest.skip("shards on processors need torch 2.7")


def live(part: Part) -> None:
    """Train the run to its end, or to where it is stopped; skip where this torch makes none such."""
    needs(part.hardware)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if part.stop is not None:
            toy.stop_at(patch, part.stop)
            stack.enter_context(pytest.raises(loop.Stopped))
        if part.room is not None:
            toy.memory_for(patch, part.room[int(os.environ["RANK"])])
        if part.backend is not None:
            patch.setattr(torch, "compile", partial(torch.compile, backend=part.backend))
        chunked = [1] if part.chunk is None else toy.in_chunks(patch, part.chunk)
        toy.run(Path(part.folder), config(part.run, **part.hardware))
    assert chunked, "no loss was taken in chunks"


def meet(file: Path) -> None:
    """Agree on a port that is free now: the first process chooses, the second reads what it wrote."""
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            file.with_suffix(".new").write_text(str(free.getsockname()[1]))
        file.with_suffix(".new").rename(file)
    while not file.exists():
        time.sleep(0.01)
    os.environ["MASTER_PORT"] = file.read_text()


def together(scratch: Path, parts: list[Part]) -> None:
    """Train each run that this torch makes by two processes; what they print is shown where one fails."""
    if not (parts := [part for part in parts if possible(part.hardware)]):
        needs({"sharding": "fsdp"})
    listed = scratch / "runs.json"
    listed.write_text(json.dumps([vars(part) for part in parts]))
    command = [sys.executable, __file__, str(listed)]
    here = Path(__file__).parent
    path = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    logs = [scratch / f"rank-{rank}.txt" for rank in range(2)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **path, **own}, stdout=open(log, "w"), stderr=subprocess.STDOUT)  # noqa: SIM115
        for own, log in zip(ranks, logs, strict=True)
    ]
    try:
        # Where one has failed, the other would wait for it.
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n\n".join(log.read_text()[-3000:] for log in logs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    at = Path(sys.argv[1])
    for number, given in enumerate(json.loads(at.read_text())):
        meet(at.with_name(f"port-{number}"))
        live(Part(**given))
