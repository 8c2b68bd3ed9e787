"""The processes of one run: who this is among them, and what they tell each other."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mlrun.config import Hardware
from mlrun.errors import UserError, mistake
from mlrun.train.parallel import environment
from mlrun.train.parallel.placement import Placement, Replicated, sharded

T = TypeVar("T")


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

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def most(self, value: int) -> int:
        """Return the greatest of all processes' values, on every process."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared.item())

    def total(self, value: int) -> int:
        """Return the sum of all processes' values, on every process."""
        return value if self.world == 1 else int(self.sum(torch.tensor(value, device=self.device)).item())

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
        UserError: a GPU was asked for and there is none for this process.
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
    if (world > 1 or shards) and not dist.is_initialized():
        _join(rank, world, device, shards)
    return Ranks(rank, world, device, sharded(device, world) if shards else Replicated())


def _join(rank: int, world: int, device: torch.device, shards: bool) -> None:
    """Make the process group; shards that rest on the CPU need one there too, and a single process one of its own."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if shards and device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
    if world == 1:
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())
        return
    os.environ.update(environment.rendezvous())
    dist.init_process_group(backend, rank=rank, world_size=world)


def stop(ranks: Ranks) -> None:
    """Leave the other processes."""
    if (ranks.world > 1 or ranks.placement.collective) and dist.is_initialized():
        dist.destroy_process_group()


def machine(ranks: Ranks) -> str:
    """Return what the seconds were measured on, in words."""
    if ranks.device.type == "cuda":
        return f"{ranks.world} x {torch.cuda.get_device_name(ranks.device)}, torch {torch.__version__}"
    return f"{ranks.world} x CPU ({platform.machine()}), {torch.get_num_threads()} threads, torch {torch.__version__}"
