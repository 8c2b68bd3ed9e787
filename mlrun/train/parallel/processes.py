"""The processes of one run: who this is among them, and what they tell each other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mlrun.config.settings import Hardware, leaves
from mlrun.errors import UserError, mistake
from mlrun.train.parallel import environment
from mlrun.train.parallel.placement import Placement, Replicated, sharded

T = TypeVar("T")


class Lost(Exception):
    """Another process of the run is gone; what was saved stays good."""


@dataclass(frozen=True)
class Ranks:
    """One process among `world`; `device` is where it computes, `placement` what it keeps of a model."""

    rank: int
    world: int
    device: torch.device
    placement: Placement = field(default_factory=Replicated)

    @property
    def first(self) -> bool:
        """True for the one process that writes files."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print a line for people, by the first process alone."""
        if self.first:
            print(f"mlrun: {line}", flush=True)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def most(self, value: int) -> int:
        """Return the greatest of all processes' values, on every process."""
        if self.world == 1:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def total(self, value: int) -> int:
        """Return the sum of all processes' values, on every process."""
        return value if self.world == 1 else int(self.sum(torch.tensor(value)))

    def together(self, step: Callable[[], T]) -> list[T]:
        """Take a step on every process and return all results, in order of rank.

        What one of them raises is raised on all, so that none waits for one that has given up.
        """
        result: T | None = None
        error: Exception | None = None
        try:
            result = step()
        except Exception as found:
            error = found
        if self.world == 1:
            found_all = [(result, error)]
        else:
            found_all = [(None, None)] * self.world
            dist.all_gather_object(found_all, (result, error))
        for _, problem in found_all:
            if problem is not None:
                if isinstance(problem, UserError):
                    problem.common = True
                raise problem
        return [one for one, _ in found_all]  # type: ignore[misc]

    def by_first(self, step: Callable[[], object]) -> None:
        """Let the first process take a step; the others wait, and fail with it."""

        def here() -> None:
            if self.first:
                step()

        self.together(here)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


def start(hardware: Hardware) -> Ranks:
    """Join the other processes, if the launcher started several, and return this one's place.

    Raises:
        UserError: a GPU was asked for and there is none for this process, or shards where this torch makes none.
    """
    place = environment.process()
    rank, world, local = place.rank, place.world, place.local
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    device = torch.device("cpu")
    if hardware.device == "cuda":
        if torch.cuda.device_count() <= local:
            remedy = "choose hardware=cpu, or start fewer processes per node"
            raise UserError(mistake("hardware.device", "cuda", f"{torch.cuda.device_count()} GPUs are seen", remedy))
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    shards = hardware.sharding == "fsdp"
    if shards:
        _refuse_old(device)
    if (world > 1 or shards) and not dist.is_initialized():
        _join(rank, world, device)
    return Ranks(rank, world, device, sharded(device, world) if shards else Replicated())


def _refuse_old(device: torch.device) -> None:
    """Raise UserError where FSDP2 would fail in the first forward pass: it calls what streams lack before torch 2.7."""
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        remedy = f"torch {torch.__version__} cannot shard on processors: torch 2.7 or newer can"
        raise UserError(mistake("hardware.sharding", "fsdp", "none", remedy))


def _join(rank: int, world: int, device: torch.device) -> None:
    """Make the process group; a single process with shards needs one of its own.

    Beside GPUs there is one of processors: shards rest there, and what processes tell each other at every step goes
    over it, so that none waits for its GPU.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if world == 1:
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())
        return
    os.environ.update(environment.rendezvous())
    try:
        dist.init_process_group(backend, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        allowed = f"a place where all {world} processes of the run meet"
        remedy = f"choose a port that is free, and start all of them ({_first_line(error)})"
        raise UserError(mistake("MASTER_ADDR:MASTER_PORT", place, allowed, remedy)) from None


def same_settings(ranks: Ranks, settings: Mapping[str, Any]) -> None:
    """Raise UserError, on every process, if they were not all started with the same settings; the keys are named."""
    mine = {key: json.dumps(value, default=str) for key, value in leaves(settings)}
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(ranks.together(lambda: digest))) == 1:
        return
    every = ranks.together(lambda: mine)
    keys = sorted({key for one in every for key in one if any(one.get(key) != other.get(key) for other in every)})
    differing = "; ".join(f"{key} ({_by_process([one.get(key, 'absent') for one in every])})" for key in keys)
    error = UserError(f"the processes of this run have different settings: {differing}; start all with the same")
    error.common = True
    raise error


def _by_process(values: Sequence[str]) -> str:
    """Return the first process's value, and the first that differs with its process."""
    rank = next(rank for rank, value in enumerate(values) if value != values[0])
    return f"{values[0]} in process 0, {values[rank]} in process {rank}"


def lost(error: RuntimeError) -> str | None:
    """Return in few words that another process is gone, if that is what an error of torch's says; else None."""
    reason = _first_line(error)
    if isinstance(error, dist.DistError) or "gloo/transport" in reason or "Connection closed by peer" in reason:
        return f"another process of this run was lost ({reason})"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def stop(ranks: Ranks) -> None:
    """Leave the other processes."""
    if (ranks.world > 1 or ranks.placement.collective) and dist.is_initialized():
        dist.destroy_process_group()
