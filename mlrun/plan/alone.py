"""A smaller model alone, for as many FLOPs as the whole one would cost: the control that growth has to beat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from mlrun.config.load import Config
from mlrun.errors import UserError, mistake, nearest
from mlrun.models.axes import Sizes, depths
from mlrun.plan.make import make_plan
from mlrun.units import flops, parse

MIDDLE = "middle"


def settled(config: Config) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration of the smaller model that `alone` asks for, and a note; as it is where it asks nothing.

    A size is a number, a share of the whole model's (50%), rounded, at least 1, or `middle`. What comes back is what
    anybody gets who gives that model and a budget in FLOPs, and so is what the run keeps.
    UserError for sizes that the model lacks or that are not smaller, and for what is wrong with the whole model.
    """
    if not config.settings.alone:
        return config, ()
    if problems := _problems(config.settings.alone, config.model.sizes()):
        raise UserError(problems)
    named = {axis: _size(asked, config.model.sizes()[axis]) for axis, asked in config.settings.alone.items()}
    asked = _with_decoder(named, config.model.sizes())
    whole = replace(config, settings=replace(config.settings, alone={}))
    budget = flops(make_plan(whole, sources=False).budget_flops)
    model = config.model.resize(asked)
    settings = replace(whole.settings, budget=budget)
    own = {"model": {**config.resolved["model"], **asdict(model)}, "budget": budget}
    sizes = ", ".join(f"{axis} {size} of {config.model.sizes()[axis]}" for axis, size in asked.items())
    note = f"a smaller model alone ({sizes}), for the FLOPs that {config.settings.budget} cost the whole one"
    return replace(whole, settings=settings, model=model, resolved=config.resolved | own), (note,)


def _with_decoder(asked: Mapping[str, int], sizes: Sizes) -> dict[str, int]:
    """Return the sizes with a decoder as deep as `layer` says, where it is deeper and nothing is said of it.

    Growth begins so (`coarsening=shallow`), and a control with all of the decoder would be no control of it.
    """
    return {axis: min(layers, sizes[axis]) for axis, layers in depths(asked, sizes).items()} | dict(asked)


def _size(asked: Any, whole: int) -> Any:
    """Return the size that a share of the whole one's is, or the middle; anything else as it is.

    The middle between 1 and the whole is meant by ratio, as costs are compared: the square root.
    """
    if asked == MIDDLE:
        return round(math.sqrt(whole))
    share = parse(asked)
    if share is None or share.unit != "%":
        return asked
    return max(1, round(share.amount / 100 * whole)) if share.amount > 0 else 0


def _problems(asked: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """Return a line for each size that does not make the model smaller."""
    lines = []
    for axis, given in asked.items():
        key = f"alone.{axis}"
        if axis not in sizes:
            remedy = f"name an axis of the model{nearest(axis, list(sizes))}"
            lines.append(mistake(key, given, ", ".join(sizes), remedy))
            continue
        size, whole = _size(given, sizes[axis]), sizes[axis]
        if type(size) is not int or not 1 <= size < whole:
            allowed = f"1 to {whole - 1}, a share as 50%, or {MIDDLE}" if whole > 1 else "left out"
            lines.append(mistake(key, given, allowed, f"the whole model has {whole}: this is to be smaller"))
    return lines
