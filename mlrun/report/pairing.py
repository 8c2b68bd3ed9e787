"""Which runs may be compared, which are the same method, and what to call them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlrun.files import RUNTIME
from mlrun.report.read import Run

# A cycle and its baseline agree on these (and on the seed); `optimizer.lr` is each one's own best.
MATCHED = ("model", "data", "budget", "batch", "eval", "optimizer")
# What does not make a method: runs that differ in the seed alone are repeats.
IGNORED = (*RUNTIME, "seed")
# Keys of a section that may differ: branches leave the trunk as it is.
FREE_KEY = {"optimizer": "lr", "eval": "every", "cycle": "branches"}
# Ratios that are that of the width unless a user sets them.
FOLLOWING = ("coarsening.ffn", "coarsening.head")


def matched(run: Run) -> dict[str, str]:
    """Return, by section, what must be equal for two runs to be compared, as text."""
    return {name: _text(_without_own(name, run.config.get(name))) for name in MATCHED}


def setting(run: Run) -> str:
    """Return one key for everything that must be equal but for the seed."""
    return _text(matched(run))


def family(run: Run) -> str:
    """Return one key for the method: equal for runs that differ in seed and learning rate only.

    What a one-stage run at level 1 never uses (coarsening, the cycle's policies) does not tell baselines apart.
    """
    if run.baseline:
        return "baseline " + setting(run)
    return _text({k: _without_own(k, v) for k, v in run.config.items() if k not in IGNORED})


def same_speed(one: Run, other: Run) -> bool:
    """Return whether the seconds of two finished runs were measured on the same machine in the same way."""
    return _machine(one) == _machine(other)


def differences(one: Run, other: Run) -> list[str]:
    """Return the names of what keeps two runs from being compared."""
    a, b = matched(one), matched(other)
    return [name for name in MATCHED if a[name] != b[name]] + (["seed"] if one.seed != other.seed else [])


def labels(families: Mapping[str, Run]) -> dict[str, str]:
    """Return a short name for each method, given one run of each: the cycle's name and what tells it apart."""
    by_name: dict[str, list[str]] = {}
    for key, run in families.items():
        by_name.setdefault(str(run.config["cycle"]["name"]), []).append(key)
    found = {}
    for name, keys in by_name.items():
        flats = [dict(_flat(families[key].config)) for key in keys]
        chosen = _telling(flats)
        for key, flat in zip(keys, flats, strict=True):
            found[key] = " ".join([name, *(_said(c, flat.get(c), chosen) for c in chosen)])
    return found


def _telling(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return few config keys whose values tell all of these apart, the plainest first."""
    every = {key for flat in flats for key in flat}
    keys = sorted(every, key=lambda key: ("stages" in key, "_target_" not in key, key in FOLLOWING, len(key), key))
    chosen: list[str] = []
    apart = 1
    for key in keys:
        now = len({tuple(_text(flat.get(k)) for k in [*chosen, key]) for flat in flats})
        if now > apart:
            chosen.append(key)
            apart = now
        if apart == len(flats):
            break
    return chosen


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything that makes a method."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in items:
        path = f"{prefix}{key}"
        if path in IGNORED or path in (f"{section}.{own}" for section, own in FREE_KEY.items()):
            continue
        if isinstance(value, Mapping | list):
            yield from _flat(value, path + ".")
        else:
            yield path, value


def _said(key: str, value: Any, others: Sequence[str]) -> str:
    """Return `key=value` in few words: of a class only its name, of a key only its last part where that is enough."""
    head, _, tail = key.rpartition(".")
    if tail == "_target_":
        return str(value).rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == tail for other in others) == 1
    return f"{tail if alone or not head else key}={value}"


def _without_own(section: str, value: Any) -> Any:
    own = FREE_KEY.get(section)
    return {k: v for k, v in value.items() if k != own} if isinstance(value, Mapping) else value


def _machine(run: Run) -> str:
    speed = None if run.summary is None else run.summary.get("machine")
    return _text([speed, run.config.get("hardware")])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
