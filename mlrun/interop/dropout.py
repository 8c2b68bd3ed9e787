"""Dropout in config.json: under the keys that a published class reads, or else under ours.

`transformers` keeps a key that a class does not read, and does nothing with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlrun.interop.hf_config import Options
from mlrun.models.base import RATES, Model

# What a rate is called where its own class has no word for it.
NAMES = {"dropout": ("dropout",), "attention_dropout": ("attention_dropout",), "drop_path": ("drop_path_rate",)}

# The keys of a class by our rates; several keys of one rate have one value.
Keys = Mapping[str, tuple[str, ...]]


def write(model: Model, keys: Keys) -> dict[str, float]:
    """Return the part of config.json that says what is dropped."""
    return {key: getattr(model, rate) for rate in RATES for key in (NAMES | dict(keys))[rate]}


def read(options: Options, keys: Keys, absent: Mapping[str, float]) -> dict[str, Any]:
    """Return our rates; `absent` is what the class takes for a key that is not there, 0 where it does not say."""
    rates: dict[str, Any] = {}
    for rate, names in (NAMES | dict(keys)).items():
        found = {name: options.rate(name, absent.get(rate, 0.0)) for name in names}
        rates[rate] = found[names[0]]
        for name in names[1:]:
            if found[name] != rates[rate]:
                options.wrong(name, f"{rates[rate]}, which is {names[0]}")
    return rates
