"""Writing a model folder: laid out in advance, filled tensor by tensor, and renamed into place when it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mlrun.errors import UserError
from mlrun.interop import card, ledger, published, tokenizers
from mlrun.interop.families.base import Family, SpecialIds
from mlrun.interop.families.registry import table_of
from mlrun.interop.name_tables import NameTable, groups, store
from mlrun.interop.read import CONFIG, INNER, Checkpoint, layout
from mlrun.interop.target import fresh
from mlrun.interop.told import declare, of_model
from mlrun.models.axes import at_depth
from mlrun.models.base import Model
from mlrun.train.checkpoint.tensor_files import SHARD_BYTES, TensorInfo, Writer

# All layers' tensors of one of our templates, in order of depth.
Stream = Callable[[str], Iterator[Tensor]]


def save(
    target: Path,
    family: Family | None,
    model: Model,
    stream: Stream,
    source: Checkpoint,
    *,
    spent: ledger.Ledger | None = None,
    notes: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    licence: str | None = None,
) -> None:
    """Write a model folder whose tensors come from `stream`; ours go to `target`/model, as in a run.

    `source` is where dtypes and the tokenizer come from; `spent` is what the weights cost, None for what the source's
    did; `notes` are further JSON files by name; `licence` is what a user says of the data (`told.declare`).

    Raises:
        UserError: the family cannot express the model, the target is in use, the disk is full, a tensor is wrong.
    """
    table = _fitting(family, model, source)
    told = declare(of_model(source.folder) if source.family is None else None, licence)
    with fresh(target) as folder:
        inner = folder / INNER if family is None else folder
        inner.mkdir(exist_ok=True)
        tokenizers.copy(source.folder, inner, model)
        if family is not None:
            tokenizers.describe(inner, model, source.facts)
        _write_tensors(inner, table, model, stream, source, shard_bytes)
        config = ours(model) if family is None else theirs(family, model, source)
        for name, content in {CONFIG: config, **(notes or {})}.items():
            (inner / name).write_text(json.dumps(content, indent=2) + "\n")
        _write_facts(inner, family, model, source, config)
        cost = ledger.read(source.folder) if spent is None else spent
        ledger.write(inner, cost)
        if family is not None:
            card.write(inner, model, config["architectures"][0], cost, told)


def _fitting(family: Family | None, model: Model, source: Checkpoint) -> NameTable:
    """Return the names that a model's tensors get; UserError if the family cannot express it."""
    if problems := model.problems() or ([] if family is None else family.problems(model)):
        raise UserError(problems)
    table = table_of(family, model)
    if problems := _unlike(table, source):
        raise UserError(problems)
    return table


def _write_facts(folder: Path, family: Family | None, model: Model, source: Checkpoint, config: Any) -> None:
    """Write what a published source says of itself, or how a model of ours generates."""
    if family is None and source.facts is not None:
        published.write(folder, source.facts)
    elif source.family is None and model.objective in ("causal", "span"):
        published.generation(folder, config)


def _unlike(table: NameTable, source: Checkpoint) -> list[str]:
    """Return a line for each stored tensor that would pack tensors of several dtypes."""
    dtypes = {name: {str(source.dtype(template)) for template in found} for name, found in groups(table).items()}
    return [
        f"tensor {name}: it packs tensors in {' and '.join(sorted(found))}; save them in one dtype"
        for name, found in dtypes.items()
        if len(found) > 1
    ]


def _write_tensors(
    folder: Path, table: NameTable, model: Model, stream: Stream, source: Checkpoint, shard_bytes: int
) -> None:
    infos = [TensorInfo(name, source.dtype(template), shape) for name, template, shape in layout(table, model)]
    writer = Writer(folder, infos, shard_bytes)
    for stored, templates in groups(table).items():
        sources = [table[template] for template in templates]
        for index, parts in enumerate(zip(*map(stream, templates), strict=True)):
            writer.write(at_depth(stored, index), store(sources, parts))
    writer.close()


def ours(model: Model) -> dict[str, Any]:
    """Return our config.json."""
    cls = type(model)
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **asdict(model)}


def special_ids(source: Checkpoint) -> SpecialIds:
    """Return the id of each role: as published, or by what the tokenizer's special tokens are called."""
    if source.facts is None:
        return tokenizers.special_ids(source.folder, source.model)
    given = {key.removesuffix("_id"): source.facts.get(key) for key in published.IDS}
    return {role: number for role, number in given.items() if type(number) is int}


def theirs(family: Family, model: Model, source: Checkpoint) -> dict[str, Any]:
    """Return a Hugging Face config.json."""
    architecture, kind = next(iter(family.architectures.items()))
    dtype = source.dtype(next(iter(model.params())))
    settings = family.write(model, special_ids(source))
    if source.facts is not None:
        settings = {key: value for key, value in settings.items() if key not in published.IDS} | dict(source.facts)
    named = {"architectures": [architecture], "model_type": kind, "torch_dtype": str(dtype).removeprefix("torch.")}
    return named | settings
