"""The processes of one run: who this is among them, and what they tell each other."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mlrun import launched
from mlrun.config import Hardware
from mlrun.errors import UserError, mistake


@dataclass(frozen=True)
class Ranks:
    """One process among `world`; `device` is where it computes."""

    rank: int
    world: int
    device: torch.device

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

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


def start(hardware: Hardware) -> Ranks:
    """Join the other processes, if the launcher started several, and return this one's place.

    Raises:
        UserError: a GPU was asked for and there is none for this process.
    """
    place = launched.place()
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
    if world > 1 and not dist.is_initialized():
        os.environ.update(launched.rendezvous())
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=world)
    return Ranks(rank, world, device)


def stop(ranks: Ranks) -> None:
    """Leave the other processes."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()
