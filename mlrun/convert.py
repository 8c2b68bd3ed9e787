"""The operators alone: from checkpoint folder to checkpoint folder, ours or Hugging Face's, a tensor at a time.

The target is of the source's kind. Beside its config.json a coalesced model keeps `fine.json`, the model that it came
from, so that `decoalesce_folder` knows the way back; over several levels they nest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from mlrun.config.choices import build, literal
from mlrun.errors import UserError, mistake
from mlrun.files import read_json
from mlrun.interop import ledger
from mlrun.interop.read import Checkpoint, open_folder
from mlrun.interop.target import judge
from mlrun.interop.write import ours, save
from mlrun.models.axes import FAMILIES, Resize
from mlrun.models.base import IN_TRAINING, Model
from mlrun.multilevel import operators
from mlrun.multilevel.coarsening.base import Coarsening, Ratios
from mlrun.train.checkpoint.tensor_files import SHARD_BYTES

FINE = "fine.json"


def coalesce_folder(source: Path, target: Path, coarsening: Coarsening, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the next coarser level of a model folder.

    Raises:
        UserError: the coarsening does not fit, a tensor is wrong, or `target` is in use; nothing is written then.
    """
    judge(target, source)
    found = open_folder(source)
    resize = coarsening.resize(found.model.sizes())
    coarse = found.model.resize(resize.coarse)
    params = found.model.params()

    def stream(template: str) -> Iterator[Tensor]:
        view = found.view(template)
        return (tensor for _, tensor in operators.iter_coalesce(view, {template: params[template]}, resize))

    notes = {FINE: {"model": ours(found.model), "fine": _fine_note(found)}}
    save(target, found.family, coarse, stream, found, notes=notes, shard_bytes=shard_bytes)


def decoalesce_folder(
    source: Path,
    target: Path,
    coarsening: Coarsening,
    fine: Path | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the next finer level of a model folder.

    The fine sizes are those of the folder `fine`, or of the model that `source` was coalesced from, or else they
    follow from the coarsening's ratios.

    Raises:
        UserError: the coarsening does not lead from the fine sizes to the source's, a tensor is wrong, or `target`
            is in use; nothing is written then.
    """
    judge(target, source, *([] if fine is None else [fine]))
    found = open_folder(source)
    wanted = _fine_model(found, coarsening, fine)
    resize = coarsening.resize(wanted.sizes())
    _fits(found, wanted, resize)
    model, params = found.model.resize(wanted.sizes()), found.model.params()

    def stream(template: str) -> Iterator[Tensor]:
        view = found.view(template)
        return (tensor for _, tensor in operators.iter_decoalesce(view, {template: params[template]}, resize))

    note = _fine_note(found)
    notes = {FINE: note["fine"]} if note is not None and note["fine"] is not None else {}
    save(target, found.family, model, stream, found, notes=notes, shard_bytes=shard_bytes)


def interpolate_folders(kept: Path, grown: Path, alpha: float, target: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write (1 - alpha) * kept + alpha * grown, as a folder of the kept one's kind.

    Raises:
        UserError: alpha is outside [0, 1], the models differ, a tensor is wrong, or `target` is in use; nothing is
            written then.
    """
    judge(target, kept, grown)
    base, other = open_folder(kept), open_folder(grown, "grown")
    if differences := _differences(base.model, other.model):
        raise UserError(f"grown={grown}: {line}, unlike {kept}; interpolate models of one size" for line in differences)
    operators.iter_interpolate({}, {}, alpha)  # alpha is checked before anything is written

    def stream(template: str) -> Iterator[Tensor]:
        pairs = operators.iter_interpolate(base.view(template), other.view(template), alpha)
        return (tensor for _, tensor in pairs)

    note = _fine_note(base)
    notes = {} if note is None else {FINE: note}
    spent = ledger.merged(ledger.read(base.folder), ledger.read(other.folder))
    save(target, base.family, base.model, stream, base, spent=spent, notes=notes, shard_bytes=shard_bytes)


def _fine_note(found: Checkpoint) -> dict[str, Any] | None:
    """Return what fine.json says, or None if the model was not coalesced."""
    path = found.folder / FINE
    if not path.is_file():
        return None
    note = read_json(path)
    if not isinstance(note.get("model"), dict) or not isinstance(note.get("fine", ""), dict | None):
        raise UserError(f"{path}: not as mlrun writes it; restore the file, or remove it and give fine=...")
    return note


def _fine_model(found: Checkpoint, coarsening: Coarsening, fine: Path | None) -> Model:
    """Return the model to grow to."""
    if fine is not None:
        return open_folder(fine, "fine").model
    note = _fine_note(found)
    if note is not None:
        model: Model = build(literal(note["model"], found.folder / FINE), "model")
        return model
    if not isinstance(coarsening, Ratios):
        remedy = "name a folder with the fine model, as its sizes do not follow from these groups"
        raise UserError(mistake("fine", None, "a model folder", remedy))
    sizes = found.model.sizes()
    ratios = {axis: getattr(coarsening, family) for family, axes in FAMILIES.items() for axis in axes if axis in sizes}
    return found.model.resize({axis: sizes[axis] * ratio for axis, ratio in ratios.items()})


def _fits(found: Checkpoint, fine: Model, resize: Resize) -> None:
    """Raise UserError unless the coarsening makes the found model out of the fine one."""
    problems = [
        f"coarsening: it leads from {axis}={fine.sizes().get(axis)} to {resize.coarse.get(axis)}, but the source has "
        f"{size}; take the coarsening that made it, or another fine model"
        for axis, size in found.model.sizes().items()
        if resize.coarse.get(axis) != size
    ]
    if not problems:
        implied = () if found.family is None else found.family.implied
        differences = _differences(found.model, fine.resize(resize.coarse), implied)
        problems = [f"fine: {line}, unlike the source; only sizes may differ" for line in differences]
    if problems:
        raise UserError(problems)


def _differences(one: Model, other: Model, besides: tuple[str, ...] = ()) -> list[str]:
    """Return a description of each setting of `other` that is not as in `one`, but for what acts in training alone."""
    if type(one) is not type(other):
        return [f"it is a {type(other).__name__}, not a {type(one).__name__}"]
    fields = (field.name for field in dataclasses.fields(one) if field.name not in (*besides, *IN_TRAINING))
    return [f"{name} is {getattr(other, name)}" for name in fields if getattr(one, name) != getattr(other, name)]
