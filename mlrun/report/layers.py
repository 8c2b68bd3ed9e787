"""What the page draws of the layers: how large each is at every look (`health=true`), how alike copies still are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlrun.report.compare import Group
from mlrun.report.curves import thin
from mlrun.report.figure import chosen
from mlrun.report.read import Run

QUANTITIES = {
    "gradient": "gradient, L2 norm",
    "weight": "weights, L2 norm",
    "gain": "least gain of a norm, root mean square",
    "activation": "activation, root mean square",
    "logit": "largest attention logit",
}
LOOKS = 200  # of a run in the page
LAYERS = 26  # lines of a chart: more are thinned, evenly
HINT = (
    "On one held-out batch, without dropout, by layer over training FLOPs; names are those of the tensors. Dashed "
    "verticals are changes of level, with a look just before and just after. Of each method the first seed that looked."
)


def charts(group: Group) -> dict[str, Any]:
    """Return `health`, the names of its `quantities`, and `symmetry` of one group, None where no run has them.

    `health`: per run its name, FLOPs of the changes of level, and by quantity the layers with points [FLOPs, value].
    `symmetry`: per run its name, colour and points [FLOPs, mean cosine]. A value that is not finite is null.
    """
    named = [(curve.name, colour, run) for colour, curve in enumerate(chosen(group)) for run in curve.runs]
    looked = _first([(name, colour, run) for name, colour, run in named if run.health])
    alike = _first([(name, colour, run) for name, colour, run in named if run.likeness])
    return {
        "health": [_health(name, run) for name, _, run in looked] or None,
        "quantities": QUANTITIES if looked else None,
        "symmetry": [
            {"name": name, "colour": colour, "points": _points(run.likeness, "copy_similarity")}
            for name, colour, run in alike
        ]
        or None,
    }


def _first(named: Sequence[tuple[str, int, Run]]) -> list[tuple[str, int, Run]]:
    """Return the first run of each name."""
    found: dict[str, tuple[str, int, Run]] = {}
    for one in named:
        found.setdefault(one[0], one)
    return list(found.values())


def _health(name: str, run: Run) -> dict[str, Any]:
    looks = thin(run.health, LOOKS)
    moved = [after["flops"] for before, after in pairwise(run.health) if before["stage"] != after["stage"]]
    return {"name": name, "moved": moved, "quantities": {key: _layers(looks, key) for key in QUANTITIES}}


def _layers(looks: Sequence[Mapping[str, Any]], quantity: str) -> list[dict[str, Any]]:
    """Return each layer's points; where a level lacks a layer, or a look a number, its line is broken."""
    names = list(dict.fromkeys(name for look in looks for name in look.get(quantity, ())))
    return [
        {"name": name, "points": [[round(look["flops"]), look.get(quantity, {}).get(name)] for look in looks]}
        for name in thin(names, LAYERS)
    ]


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[list[Any]]:
    return [[round(record["flops"]), record[key]] for record in thin(records, LOOKS)]
