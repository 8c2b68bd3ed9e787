"""Where each tensor of ours is in a foreign checkpoint: tables as data, and the reshuffling that they describe.

A table maps our name template to a `Stored`. Several of ours may be packed in one stored tensor (GPT-2's query,
key and value).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


class Stored(NamedTuple):
    """A stored tensor's name template, and how ours is in it.

    transpose: a matrix stored input first.
    part: (index, count) along our first dim of a packed tensor.
    lead: stored leading dims of 1 that ours does not have.
    front: stored first rows that ours does not have; zeros when written.
    scale: what stored = ours * scale is; only ever written, since a read model keeps its own scale.
    """

    name: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    lead: int = 0
    front: int = 0
    scale: float = 1.0


NameTable = Mapping[str, Stored]


def affine(ours: str, theirs: str, transpose: bool = False, part: tuple[int, int] = (0, 1)) -> dict[str, Stored]:
    """Return the rows of a weight and its bias."""
    weight = {f"{ours}.weight": Stored(f"{theirs}.weight", transpose, part)}
    return weight | {f"{ours}.bias": Stored(f"{theirs}.bias", part=part)}


def weights(prefix: str, their_prefix: str, names: Mapping[str, str]) -> dict[str, Stored]:
    """Return the rows of weights without bias."""
    return {f"{prefix}.{ours}.weight": Stored(f"{their_prefix}.{theirs}.weight") for ours, theirs in names.items()}


def groups(table: NameTable) -> dict[str, list[str]]:
    """Return, by stored name template, our templates that it holds, in the order of their parts."""
    found: dict[str, list[str]] = {}
    for template in sorted(table, key=lambda template: table[template].part[0]):
        found.setdefault(table[template].name, []).append(template)
    return {table[template].name: found[table[template].name] for template in table}


def stored_shape(sources: Iterable[Stored], shapes: Iterable[Shape]) -> Shape:
    """Return the shape of the stored tensor that packs tensors of ours of these shapes."""
    source, found = next(iter(sources)), list(shapes)
    packed = (source.front + sum(shape[0] for shape in found), *found[0][1:])
    return (1,) * source.lead + (packed[::-1] if source.transpose else packed)


def store(sources: Iterable[Stored], tensors: Iterable[Tensor]) -> Tensor:
    """Return the stored tensor that packs these tensors of ours; it may share memory with a single one."""
    import torch

    source, parts = next(iter(sources)), list(tensors)
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if source.front > 0:
        tensor = torch.cat([tensor.new_zeros(source.front, *tensor.shape[1:]), tensor])
    if source.scale != 1:
        tensor = tensor * source.scale
    return (tensor.T if source.transpose else tensor)[(None,) * source.lead]


def take(source: Stored, stored: Tensor) -> Tensor:
    """Return our tensor as a view of the stored one."""
    tensor = stored[(0,) * source.lead]
    tensor = (tensor.T if source.transpose else tensor)[source.front :]
    index, count = source.part
    return tensor if count == 1 else tensor.chunk(count)[index]
