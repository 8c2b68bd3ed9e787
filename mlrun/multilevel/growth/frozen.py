"""A network whose lowest layers do not learn: which tensors they are, and the FLOPs that this leaves. No torch here.

With `count` > 0 the first `count` blocks are frozen, and everything in front of them. A tied head is frozen too: its
table is the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlrun.models.axes import expand
from mlrun.models.base import TRAIN, Model
from mlrun.models.layers import Flops, Layer, LayerNorm, Patches, RMSNorm, Stack


def stack(model: Model) -> tuple[str, Stack]:
    """Return the name and declaration of the one stack of blocks."""
    ((name, found),) = [(n, part) for n, part in model.parts().items() if isinstance(part, Stack)]
    return name, found


def names(model: Model, count: int) -> set[str]:
    """Return the names of the tensors that do not learn."""
    if count == 0:
        return set()
    trunk, _ = stack(model)
    parts = list(model.parts())
    fixed = (*(f"{part}." for part in parts[: parts.index(trunk)]), *(f"{trunk}.{i}." for i in range(count)))
    return {name for name, _ in expand(model.params(), model.sizes()) if name.startswith(fixed)}


def flops(model: Model, sequence: int, targets: int, count: int) -> Flops:
    """Return the FLOPs of one sample, forward and backward, with `count` blocks frozen; equal to FlopCounterMode."""
    full = model.flops(sequence, targets)
    if count == 0:
        return full
    _, blocks = stack(model)
    sizes, rows = model.sizes(), model.tokens(sequence)
    saved = (TRAIN - 1) * count * blocks.block.flops(sizes, rows)
    saved += sum(part.flops(sizes, _patches(model)) for part in model.parts().values() if isinstance(part, Patches))
    if blocks.block.post:
        # The first projections of a post-norm block read frozen values: no gradient goes to their input.
        first = blocks.block.attention.projections()
        saved += sum(first[name].flops(sizes, rows) for name in ("query", "key", "value"))
    head = full.head * (TRAIN - 1) // TRAIN if tied(model) else full.head
    return Flops(full.body - saved, head)


def forward(model: Model, sequence: int, targets: int) -> Flops:
    """Return the FLOPs of one sample's forward pass alone."""
    full = model.flops(sequence, targets)
    patches = sum(p.flops(model.sizes(), _patches(model)) for p in model.parts().values() if isinstance(p, Patches))
    return Flops((full.body - (TRAIN - 1) * patches) // TRAIN + patches, full.head // TRAIN)


def tied(model: Model) -> bool:
    """Return whether the head is the token table."""
    return model.objective != "image" and "head" not in model.parts()


def norms(model: Model) -> set[str]:
    """Return the name templates of all tensors of norms."""
    return {
        f"{path}.{name}"
        for path, layer in _walk(model)
        for name in layer.own()
        if isinstance(layer, LayerNorm | RMSNorm)
    }


def _patches(model: Model) -> int:
    patches: int = model.patches()  # type: ignore[attr-defined]
    return patches


def _walk(model: Model) -> Iterator[tuple[str, Layer]]:
    todo = list(model.parts().items())
    while todo:
        path, layer = todo.pop()
        yield path, layer
        todo += [(f"{path}.{name}", child) for name, child in layer.children().items()]
