"""What a model's weights cost: every distinct training that led to them, as `ledger.json` beside config.json has it.

A model trained here ends with its own training; a folder without the file is one training of unknown cost. Converting,
importing and exporting carry the list along; where two models meet, a training that both have counts once.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlrun.errors import UserError
from mlrun.files import RUNTIME, read_json, write_json

FILE = "ledger.json"
# Of each file of weights so many bytes at both ends tell it from others.
_ENDS = 2**16


@dataclass(frozen=True)
class Training:
    """One stretch of training: FLOPs, FLOPs without the vocabulary head, training seconds, tokens; None is unknown.

    `machine` is what the seconds were measured on. `recipe` names what was done, whatever the seed (see `recipe`).
    `declared` says that the FLOPs are the user's word (`init_flops`). `data` are digests of what it read and of what it
    held out.
    """

    id: str
    name: str
    flops: int | None = None
    flops_body: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    machine: str | None = None
    declared: bool = False
    recipe: str | None = None
    data: Mapping[str, str] | None = None


Ledger = tuple[Training, ...]
AMOUNTS = ("flops", "flops_body", "seconds", "tokens")


def own(name: str, **done: Any) -> Training:
    """Return the training of one run, which no other is taken for; `done` are the other fields of `Training`."""
    return Training(uuid.uuid4().hex, name, **done)


def read_of(data: Mapping[str, Any]) -> dict[str, str] | None:
    """Return what a training says of its data, of what the source says of itself; None if that has no identity."""
    identity = data.get("identity")
    return None if identity is None else {name: identity[name] for name in ("train", "held_out") if name in identity}


def recipe(resolved: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return what names a run's training but for its seed: runs that a report takes as repeats have one.

    Its data is known by content where it tells it (`identity`). Where the run started from is not in it: the trainings
    before it have recipes of their own.
    """
    aside = (*RUNTIME, "seed", "init", "init_flops", *(("data",) if "identity" in data else ()))
    done = {key: value for key, value in resolved.items() if key not in aside} | {"identity": data.get("identity")}
    return hashlib.sha256(json.dumps(done, sort_keys=True, default=str).encode()).hexdigest()[:32]


def read(folder: Path) -> Ledger:
    """Return the ledger of a model folder; without the file, one training of unknown cost.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return (Training(_fingerprint(folder), folder.resolve().name),)
    rows = read_json(path).get("parts")
    try:
        assert isinstance(rows, list) and rows
        found = tuple(Training(**row) for row in rows)
        assert all(isinstance(t.id, str) and all(_amount(getattr(t, key)) for key in AMOUNTS) for t in found)
    except (AssertionError, TypeError):
        raise UserError(f"{path}: not a ledger as mlrun writes it; restore the file, or remove it") from None
    return found


def _amount(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0)


def _fingerprint(folder: Path) -> str:
    """Return what tells a foreign model from others, without reading all of its weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(_ENDS))
            file.seek(max(0, path.stat().st_size - _ENDS))
            digest.update(file.read())
    return digest.hexdigest()[:32]


def merged(*ledgers: Ledger) -> Ledger:
    """Return every training of several models once; where one of them knows the cost, that is taken."""
    found: dict[str, Training] = {}
    for training in (training for ledger in ledgers for training in ledger):
        if training.id not in found or found[training.id].flops is None:
            found[training.id] = training
    return tuple(found.values())


def declared(ledger: Ledger, flops: int) -> Ledger:
    """Return the ledger with what is unknown in it as one training of so many FLOPs."""
    unknown = [training for training in ledger if training.flops is None]
    assert unknown, "nothing is left to declare"
    name, ids = " and ".join(training.name for training in unknown), "+".join(training.id for training in unknown)
    told = Training(ids, name, flops, declared=True)
    return (told, *(training for training in ledger if training.flops is not None))


def known(ledger: Ledger) -> bool:
    """Return whether the FLOPs of every training are known."""
    return all(training.flops is not None for training in ledger)


def write(folder: Path, ledger: Ledger) -> None:
    """Write the ledger of a model folder."""
    write_json(folder / FILE, {"parts": rows(ledger)})


def rows(ledger: Iterable[Training]) -> list[dict[str, Any]]:
    """Return the ledger as JSON has it."""
    return [asdict(training) for training in ledger]


def source(name: str, ledger: Ledger) -> dict[str, Any]:
    """Return what plan.json says of where a run starts: each amount summed, None where a part of it is unknown."""
    sums = {key: _sum([getattr(training, key) for training in ledger]) for key in AMOUNTS}
    told = any(training.declared for training in ledger)
    return {"name": name, **sums, "declared": told, "parts": rows(ledger)}


def of_source(record: Mapping[str, Any]) -> Ledger:
    """Return the ledger that a plan's `source` was made of."""
    return tuple(Training(**row) for row in record["parts"])


def _sum(amounts: Sequence[float | None]) -> float | None:
    return None if any(amount is None for amount in amounts) else sum(a for a in amounts if a is not None)
