"""Writing a model folder: laid out in advance, filled tensor by tensor, and renamed into place when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mlrun.errors import UserError, mistake
from mlrun.interop import tokenizers
from mlrun.interop.families.base import Family
from mlrun.interop.families.registry import table_of
from mlrun.interop.name_tables import NameTable, groups, store
from mlrun.interop.read import CONFIG, INNER, Checkpoint, layout
from mlrun.models.axes import at_depth
from mlrun.models.base import Model
from mlrun.train.checkpoint.tensor_files import SHARD_BYTES, TensorInfo, Writer

# All layers' tensors of one of our templates, in order of depth.
Stream = Callable[[str], Iterator[Tensor]]


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` when the block ends well, and nothing at all when it does not."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(mistake("target", target, "a new or an empty folder", "remove it or name another"))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(mistake("target", target, "a place to write to", f"{error.strerror}; name another")) from None
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save(
    target: Path,
    family: Family | None,
    model: Model,
    stream: Stream,
    source: Checkpoint,
    *,
    notes: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model folder whose tensors come from `stream`; ours go to `target`/model, as in a run.

    `source` is where dtypes and the tokenizer come from; `notes` are further JSON files by name.

    Raises:
        UserError: the family cannot express the model, the target is in use, the disk is full, a tensor is wrong.
    """
    if problems := model.problems() or ([] if family is None else family.problems(model)):
        raise UserError(problems)
    table = table_of(family, model)
    if problems := _unlike(table, source):
        raise UserError(problems)
    with fresh(target) as folder:
        inner = folder / INNER if family is None else folder
        inner.mkdir(exist_ok=True)
        tokenizers.copy(source.folder, inner)
        if family is not None:
            tokenizers.describe(inner, model)
        _write_tensors(inner, table, model, stream, source, shard_bytes)
        written = {CONFIG: ours(model) if family is None else theirs(family, model, source, inner), **(notes or {})}
        for name, content in written.items():
            (inner / name).write_text(json.dumps(content, indent=2) + "\n")


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


def theirs(family: Family, model: Model, source: Checkpoint, folder: Path) -> dict[str, Any]:
    """Return a Hugging Face config.json."""
    architecture, kind = next(iter(family.architectures.items()))
    dtype = source.dtype(next(iter(model.params())))
    settings = family.write(model, tokenizers.special_ids(folder, model))
    named = {"architectures": [architecture], "model_type": kind, "torch_dtype": str(dtype).removeprefix("torch.")}
    return named | settings
