"""Model folders, ours and Hugging Face's, behind one face: a model, and its tensors under our names.

    ours      model.safetensors, config.json with `_target_`, tokenizer.json; in a run folder they are in `model/`
    hub       model.safetensors (or shards with an index), config.json with `architectures`, tokenizer files

A tensor is read when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlrun.config.choices import build, literal
from mlrun.errors import UserError, mistake, nearest
from mlrun.files import read_json
from mlrun.interop import published
from mlrun.interop.families.base import Family
from mlrun.interop.families.registry import find_family, read_model, table_of
from mlrun.interop.name_tables import NameTable, Shape, Stored, groups, stored_shape, take
from mlrun.interop.published import Facts
from mlrun.models.axes import at_depth, depth_axis, expand
from mlrun.models.base import Model
from mlrun.train.checkpoint.tensor_files import Shards, open_shards

CONFIG, INNER = "config.json", "model"
# So many folders are named where there are more to choose among.
MOST_NAMED = 3


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Tensor]):
    """A model folder as a lazy mapping from our names; `family` is None if the folder is ours.

    `facts` is what was published beside sizes and weights; None where nobody said anything.
    """

    folder: Path
    family: Family | None
    model: Model
    table: NameTable
    stored: Mapping[str, str]
    shards: Shards
    facts: Facts | None = None

    def __getitem__(self, name: str) -> Tensor:
        source = self._source(name)
        return take(source, self.shards[self.stored[source.name]])

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in expand(self.model.params(), self.model.sizes()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def dtype(self, template: str) -> torch.dtype:
        """Return the dtype of a template's tensors, which is one for all layers."""
        dtype = self.shards.entries[self.stored[at_depth(self.table[template].name, 0)]].dtype
        assert dtype is not None, "checked when the folder was opened"
        return dtype

    def view(self, template: str) -> Mapping[str, Tensor]:
        """Return the part of this mapping that one template names."""
        return Part(self, list(names(template, self.model)))

    def stream(self, template: str) -> Iterator[Tensor]:
        """Yield a template's tensors as they are."""
        return (self[name] for name in names(template, self.model))

    def _source(self, name: str) -> Stored:
        for template, source in self.table.items():
            axis = depth_axis(template)
            if axis is None and template == name:
                return source
            if axis is not None:
                before, after = template.split(f"{{{axis}}}")
                index = name.removeprefix(before).removesuffix(after)
                if name.startswith(before) and name.endswith(after) and index.isdecimal():
                    return source._replace(name=at_depth(source.name, int(index)))
        raise KeyError(name)


@dataclass(frozen=True)
class Part(Mapping[str, Tensor]):
    """Some of a mapping's tensors, as lazy as the mapping."""

    whole: Mapping[str, Tensor]
    names: list[str]

    def __getitem__(self, name: str) -> Tensor:
        return self.whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def names(template: str, model: Model) -> Iterator[str]:
    """Yield the tensor names of a template, in order of depth."""
    axis = depth_axis(template)
    return (at_depth(template, index) for index in range(1 if axis is None else model.sizes()[axis]))


def open_folder(folder: Path, key: str = "source") -> Checkpoint:
    """Return a model folder or a run's model, all names, shapes and dtypes checked; `key` is the setting it came from.

    Raises:
        UserError: no model, an architecture or option without counterpart, tensors that do not fit, broken files.
    """
    if not folder.is_dir():
        remedy = "name a folder that exists (a hub name must be downloaded first)"
        remedy = "it is a file: name its folder" if folder.exists() else remedy
        raise UserError(mistake(key, folder, "a model folder or a run folder", remedy))
    inner = folder / INNER if (folder / INNER / CONFIG).is_file() else folder
    if not (inner / CONFIG).is_file():
        allowed = f"a folder with {CONFIG} or {INNER}/{CONFIG}, as finished runs are"
        raise UserError(mistake(key, folder, allowed, below(folder) or "no model is there yet"))
    config = read_json(inner / CONFIG)
    family = None if "_target_" in config else find_family(config, inner / CONFIG)
    model = _declared(family, config, inner / CONFIG)
    if problems := model.problems():
        raise UserError(f"{inner / CONFIG}: {line}" for line in problems)
    shards = open_shards(inner)
    table = table_of(family, model)
    facts = published.read(inner) if family is None else published.of_config(config)
    found = Checkpoint(inner, family, model, table, spell(family, table, shards), shards, facts)
    _check(found)
    shards.verify()
    return found


def _declared(family: Family | None, config: Mapping[str, Any], path: Path) -> Model:
    """Return the model of a config.json, ours or a family's."""
    if family is not None:
        return read_model(family, config, path)
    model: Model = build(literal(config, path), "model")
    return model


def below(folder: Path) -> str:
    """Return a remedy that names models below a folder, in runs or by themselves; empty if there are none."""
    depths = ("*", "*/*")
    found = {path.parents[1] for depth in depths for path in folder.glob(f"{depth}/{INNER}/{CONFIG}")}
    found |= {path.parent for depth in depths for path in folder.glob(f"{depth}/{CONFIG}") if path.parent.name != INNER}
    if not found:
        return ""
    shown = sorted(map(str, found))
    more = f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
    return f"models are in {', '.join(shown[:MOST_NAMED])}{more}: name one of them"


def spell(family: Family | None, table: NameTable, shards: Shards) -> dict[str, str]:
    """Return {name in the family's own spelling: name in the files}; what the logits do not need is left out.

    Raises:
        UserError: a second copy of a tensor differs from the first.
    """
    if family is None:
        return {name: name for name in shards}
    spelled = {_respell(family, name): name for name in shards}
    needed = {source.name for source in table.values()}
    for again, first in family.copies.items():
        if again in spelled and again not in needed:
            name = spelled.pop(again)
            if first in spelled and not _equal(shards, name, spelled[first]):
                raise UserError(f"tensor {name}: differs from {spelled[first]}, but config.json says they are one")
    return {name: file for name, file in spelled.items() if not any(re.search(p, name) for p in family.dropped)}


def _respell(family: Family, name: str) -> str:
    for pattern, replacement in family.spellings:
        name = re.sub(pattern, replacement, name)
    return name


def _equal(shards: Shards, one: str, other: str) -> bool:
    a, b = shards.entries[one], shards.entries[other]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(shards[one], shards[other])


# Checking


def _check(found: Checkpoint) -> None:
    """Raise UserError, a line for each tensor that is missing, unknown, or of a wrong shape or dtype."""
    expected = {stored: shape for stored, _, shape in layout(found.table, found.model)}
    entries = {name: found.shards.entries[file] for name, file in found.stored.items()}
    problems = [f"tensor {name}: missing; the model needs it" for name in expected if name not in entries]
    for name, entry in entries.items():
        stored = found.stored[name]
        if name not in expected:
            problems.append(f"tensor {stored}: the model has no such tensor{nearest(name, list(expected))}")
        elif entry.shape != expected[name]:
            problems.append(f"tensor {stored}: shape {entry.shape}, but the model has {expected[name]}")
        elif entry.dtype is None:
            problems.append(f"tensor {stored}: not in float64, float32, float16 or bfloat16, as weights must be")
    if not problems:
        problems = _mixed(found)
    if problems:
        raise UserError(problems)


def _mixed(found: Checkpoint) -> list[str]:
    """Return a line for each tensor whose dtype is not that of the same tensor in layer 0."""
    problems = []
    for name, template, _ in layout(found.table, found.model):
        first, own = found.dtype(template), found.shards.entries[found.stored[name]].dtype
        if own != first:
            problems.append(f"tensor {found.stored[name]}: {own}, but layer 0 has {first}; save all layers alike")
    return problems


def layout(table: NameTable, model: Model) -> Iterator[tuple[str, str, Shape]]:
    """Yield (stored name, one of our templates in it, stored shape) for every stored tensor of a model."""
    params, sizes = model.params(), model.sizes()
    for stored, templates in groups(table).items():
        shape = stored_shape((table[t] for t in templates), (params[t].shape(sizes) for t in templates))
        axis = depth_axis(templates[0])
        for index in range(1 if axis is None else sizes[axis]):
            yield at_depth(stored, index), templates[0], shape
