"""How the processes of a run hold a model: each of them whole (alone, and DDP), or a shard of every tensor (FSDP2).

A shard is some rows of a tensor's first dim, cut as `torch.chunk` does and FSDP2 with it (Zhao et al. 2023,
arXiv 2304.11277). What trains is on the device; what rests (snapshots, waiting levels) is on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from mlrun.models.modules import Rotary
from mlrun.models.network import Network, blocks, build

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from mlrun.models.base import Model


class Placement(ABC):
    """Where a model's tensors are. `collective`: forward passes and checkpoints need all processes at once."""

    collective: ClassVar[bool]

    @abstractmethod
    def shard(self, tensor: Tensor) -> Tensor:
        """Return what this process keeps of a tensor, on the CPU."""

    def shard_all(self, pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return what this process keeps of (name, tensor) pairs, which come one at a time."""
        return {name: self.shard(tensor) for name, tensor in pairs}

    @abstractmethod
    def gather(self, tensor: Tensor) -> Tensor:
        """Return a kept tensor whole, on the device if it had to be gathered; all processes ask together."""

    @abstractmethod
    def gathering(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return kept tensors as the operators read them: whole, each gathered when it is asked for."""

    @abstractmethod
    def to_cpu(self, tensor: Tensor) -> Tensor:
        """Return a copy on the CPU of a tensor that trains."""

    @abstractmethod
    def read(self, shape: Sequence[int], rows: Callable[[slice], Tensor]) -> Tensor:
        """Return what this process keeps of a tensor of at least one dim; `rows` reads some of its rows to the CPU."""

    @abstractmethod
    def reshard(self, net: Network) -> None:
        """Leave a network as training finds it, after a forward pass without a backward one."""

    @abstractmethod
    def network(
        self, model: Model, weights: Mapping[str, Tensor], device: torch.device, precision: str = "fp32"
    ) -> Network:
        """Return a network on the device with kept weights, float32; `precision` is that of autocast around it."""


class Replicated(Placement):
    """Every process holds every tensor: one process alone, and DDP."""

    collective = False

    def shard(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def gathering(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return tensors

    def to_cpu(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True)

    def read(self, shape: Sequence[int], rows: Callable[[slice], Tensor]) -> Tensor:
        return rows(slice(0, shape[0]))

    def reshard(self, net: Network) -> None:
        """Nothing is sharded."""

    def network(
        self, model: Model, weights: Mapping[str, Tensor], device: torch.device, precision: str = "fp32"
    ) -> Network:
        net = build(model, None)
        net.load_state_dict(dict(weights))
        return net.to(device)


@dataclass(frozen=True)
class Sharded(Placement):
    """Every process holds its rows of every tensor, as DTensors: `mesh` is of the devices, `resting` of the CPUs."""

    mesh: DeviceMesh
    resting: DeviceMesh
    collective = True

    def shard(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            return tensor.detach().cpu()
        return _sharded(tensor.detach()[self.own(len(tensor))].contiguous().to("cpu", copy=True), self.resting, tensor)

    def own(self, count: int) -> slice:
        """Return which of `count` rows this process keeps, as `torch.chunk` cuts them: maybe none."""
        size = -(-count // self.resting.size())
        first = min(self.resting.get_local_rank() * size, count)
        return slice(first, min(first + size, count))

    def gather(self, tensor: Tensor) -> Tensor:
        mine = local(tensor)
        if mine is tensor:
            return tensor
        # A number (a norm) is no row of anything: what each process has is a part of it.
        parts = cast(Any, tensor) if tensor.ndim == 0 else _sharded(mine.to(self.mesh.device_type), self.mesh, tensor)
        full: Tensor = parts.full_tensor()
        return full

    def gathering(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return Gathered(self, tensors)

    def to_cpu(self, tensor: Tensor) -> Tensor:
        mine = local(tensor).to("cpu", copy=True)
        return mine if local(tensor) is tensor else _sharded(mine, self.resting, tensor)

    def read(self, shape: Sequence[int], rows: Callable[[slice], Tensor]) -> Tensor:
        return _sharded(rows(self.own(shape[0])), self.resting, torch.empty(tuple(shape), device="meta"))

    def reshard(self, net: Network) -> None:
        net.reshard()  # FSDP2 keeps what is outside of the blocks gathered for a backward pass

    def network(
        self, model: Model, weights: Mapping[str, Tensor], device: torch.device, precision: str = "fp32"
    ) -> Network:
        net = build(model, None, device="meta")
        _fully_shard(net, self.mesh, precision)
        net.to_empty(device=device)
        for module in net.modules():
            if isinstance(module, Rotary):
                module.reset()
        for name, parameter in net.named_parameters():
            local(parameter).copy_(local(weights[name]))
        return net


class Gathered(Mapping[str, Tensor]):
    """Sharded tensors by name; each is gathered when it is asked for, and only then, by all processes together."""

    def __init__(self, placement: Placement, tensors: Mapping[str, Tensor]) -> None:
        self._placement, self._tensors = placement, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._placement.gather(self._tensors[name])

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


REPLICATED = Replicated()


def sharded(device: torch.device, world: int) -> Sharded:
    """Return shards over all processes; the process group must be there."""
    from torch.distributed.device_mesh import init_device_mesh

    resting = init_device_mesh("cpu", (world,))
    return Sharded(resting if device.type == "cpu" else init_device_mesh(device.type, (world,)), resting)


def local(tensor: Tensor) -> Tensor:
    """Return a process's own rows of a sharded tensor, sharing memory; any other tensor as it is."""
    to_local = getattr(tensor.detach(), "to_local", None)
    return tensor if to_local is None else to_local()


def like(target: Tensor, source: Tensor) -> Tensor:
    """Return a tensor held, and lying, as `target` with the values of `source`, which is cut up alike."""
    made = torch.empty_like(target.detach())
    local(made).copy_(local(source))
    return made


def rewrapped(source: Tensor, mine: Tensor) -> Tensor:
    """Return own rows `mine` as a tensor that is sharded as `source` is; if that is whole, `mine`."""
    return mine if local(source) is source else _sharded(mine, source.device_mesh, source)  # type: ignore[attr-defined]


def _sharded(mine: Tensor, mesh: DeviceMesh, whole: Tensor) -> Any:
    """Return own rows as a DTensor of the shape of `whole`."""
    from torch.distributed.tensor import DTensor, Shard

    shape, stride = whole.shape, torch.empty(whole.shape, device="meta").stride()
    return DTensor.from_local(mine, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _fully_shard(net: Network, mesh: DeviceMesh, precision: str) -> None:
    """Shard every block, then all the rest as one group: tied tables stay one tensor, read by both of their ends.

    With bf16, blocks are gathered in bf16 and their gradients summed in float32. The rest (tables, last norm, head)
    is gathered in float32, so that the residual stream has the precision that it has under autocast alone.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = low if precision == "bf16" else MixedPrecisionPolicy()
    for block in blocks(net):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh)
    register_fsdp_forward_method(net, "logits")
    register_fsdp_forward_method(net, "loss_and_logits")
