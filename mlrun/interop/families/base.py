"""What a family of foreign checkpoints is; each has a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlrun.interop.hf_config import Options
from mlrun.interop.name_tables import NameTable
from mlrun.models.base import Model

SpecialIds = Mapping[str, int]


def no_problems(model: Any) -> list[str]:
    """Say that the family can express every model."""
    return []


def every(model: Any) -> bool:
    """Say that the family is the one for every model of its class."""
    return True


@dataclass(frozen=True)
class Family:
    """How one architecture is written by its publishers.

    architectures: what config.json calls it -> model_type.
    read: config.json to our model; notes what is unsupported in the options.
    write: our model and the tokenizer's special ids to config.json; `problems` is empty then.
    speaks: whether a model of this class is written this way, where two families share a class.
    padded: the family with this id of the padding token, where the stored tensors depend on it.
    spellings: (pattern, replacement) for older names of the same tensors.
    copies: stored again under a second name; accepted when equal to the first.
    dropped: patterns of tensors that play no part in the logits.
    also: further names of keys in config.json -> the key; `transformers` reads both.
    implied: settings of ours that follow from the sizes in its config.json; a table makes up for another value.
    """

    model: type[Model]
    architectures: Mapping[str, str]
    read: Callable[[Options], Model]
    write: Callable[[Any, SpecialIds], dict[str, Any]]
    table: Callable[[Any], NameTable]
    problems: Callable[[Any], list[str]] = no_problems
    speaks: Callable[[Any], bool] = every
    padded: Callable[[int], Family] | None = None
    spellings: tuple[tuple[str, str], ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    also: Mapping[str, str] = field(default_factory=dict)
    implied: tuple[str, ...] = ()


def whole_heads(model: Any) -> list[str]:
    """Return a line unless the heads fill the width, which the published class takes for granted."""
    width = model.head * model.head_dim
    if width == model.embed:
        return []
    sizes = f"head * head_dim = {model.head} * {model.head_dim} = {width}"
    return [
        f"model: the published class needs head * head_dim equal to embed={model.embed}, but {sizes}; "
        "coarsen heads and width by the same ratio"
    ]
