"""The form of a result: which keys it has and of what kind; a file that is none is told where it differs.

A list with `...` at its end holds one or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlrun.errors import shown
from mlrun.report.leaderboard.entry import FORMAT

NUMBER, MAYBE = (int, float), (int, float, type(None))
_ENDING = {
    **dict.fromkeys(("budget", "tokens", "flops", "flops_body", "seconds"), NUMBER),
    "loss": MAYBE,
    **dict.fromkeys(("stage", "level", "step"), int),
}
_RUN: dict[str, Any] = {
    "name": str,
    "status": str,
    "config": {
        "seed": int,
        "model": {"_target_": str},
        "optimizer": {"lr": NUMBER},
        "eval": Mapping,
        "cycle": {"name": str, "stages": [Mapping]},
        "batch": int,
    },
    "plan": {
        "budget": {"flops": NUMBER},
        "levels": [{"parameters": int, "flops_per_sample": NUMBER}, ...],
        "stages": [{"level": int, "steps": int, "flops": NUMBER}, ...],
    },
    "data": Mapping,
    "source": (Mapping, type(None)),
    "starts": [Mapping],
    "machine": (str, type(None)),
    "ledger": (Mapping, type(None)),
    "receipts": (list, type(None)),
    "skipped_steps": (int, type(None)),
    "val_loss": MAYBE,
    "held_out_error": MAYBE,
    "endings": [_ENDING, ...],
}
_SPREAD = {**dict.fromkeys(("mean", "sd", "low", "high", "p"), MAYBE), "values": [MAYBE]}
SCHEMA: dict[str, Any] = {
    "format": str,
    "method": str,
    "task": {"model": Mapping, "data": Mapping, "budget": {"flops": NUMBER}},
    "claim": {"measure": str, "at_least": bool, **_SPREAD, "p_holm": MAYBE, "methods_compared": int},
    "target": _SPREAD,
    "chosen": {
        "seeds": [int],
        "fresh": [int],
        "method": int,
        "baseline": int,
        "best": MAYBE,
        "edge": (bool, type(None)),
        "better_elsewhere": (str, type(None)),
    },
    "failed": [str],
    "seeds": [
        {
            "seed": int,
            "target": NUMBER,
            "gap": MAYBE,
            "timed": bool,
            "headline": Mapping,
            "run": _RUN,
            "baseline": _RUN,
            "smaller": [_RUN],
        }
    ],
}


def problems(found: Any) -> list[str]:
    """Return a line for each place where a value is no result of this format."""
    if isinstance(found, Mapping) and found.get("format") != FORMAT:
        return [f"format={found.get('format')}: allowed: {FORMAT}"]
    return list(_unlike(found, SCHEMA, ""))


def _unlike(found: Any, form: Any, at: str) -> Iterator[str]:
    match form:
        case dict():
            if not isinstance(found, Mapping):
                yield f"{at or 'the file'}: allowed: an object"
                return
            for key, below in form.items():
                place = f"{at}.{key}".lstrip(".")
                if key not in found:
                    yield f"{place}: missing"
                else:
                    yield from _unlike(found[key], below, place)
        case list():
            if not isinstance(found, list):
                yield f"{at}: allowed: a list"
                return
            if form[-1] is ... and not found:
                yield f"{at}: allowed: one or more"
            for index, one in enumerate(found):
                yield from _unlike(one, form[0], f"{at}[{index}]")
        case _:
            kinds = form if isinstance(form, tuple) else (form,)
            if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
                yield f"{at}={shown(found)[:40]}: allowed: {' or '.join(kind.__name__ for kind in kinds)}"
