"""The families that we can read and write, and which of them a folder or a model belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlrun.errors import UserError, mistake, nearest
from mlrun.interop.families import bert, gpt2, llama, roberta, t5, vit
from mlrun.interop.families.base import Family, SpecialIds
from mlrun.interop.hf_config import Options
from mlrun.interop.name_tables import NameTable, Stored
from mlrun.models.base import Model

FAMILIES = (
    gpt2.FAMILY,
    bert.FAMILY,
    roberta.ROBERTA,
    roberta.XLM_ROBERTA,
    vit.VIT,
    vit.DEIT,
    vit.DEIT_ONE_HEAD,
    llama.LLAMA,
    llama.MISTRAL,
    llama.QWEN2,
    llama.QWEN3,
    t5.FAMILY,
    t5.MT5,
)


def find_family(config: Mapping[str, Any], path: Path) -> Family:
    """Return the family of a Hugging Face config.json; UserError if we have none."""
    if config.get("quantization_config") is not None:
        raise UserError(f"{path}: quantization_config: allowed: null; take the model in full or half precision")
    named, kind = config.get("architectures") or [], config.get("model_type")
    known = {name: family for family in FAMILIES for name in family.architectures}
    given = named[0] if isinstance(named, list) and named else None
    if not isinstance(given, str) or given not in known:
        kinds = [name for name, family in known.items() if kind == family.architectures[name]]
        remedy = (
            f"import one of these{nearest(str(given), list(known))}" if not kinds else f"name {kinds[0]}, if it is one"
        )
        raise UserError(mistake(f"{path}: architectures", given, ", ".join(known), remedy))
    family = known[given]
    if kind not in (None, family.architectures[given]):
        remedy = f"a {given} is of that kind, and this would be read as another model"
        raise UserError(mistake(f"{path}: model_type", kind, family.architectures[given], remedy))
    return family if family.padded is None else family.padded(roberta.padding(config, path))


def family_of(model: Model, ids: SpecialIds) -> Family:
    """Return the family that a model with these special tokens is exported as; UserError if there is none."""
    for family in FAMILIES:
        if type(model) is family.model and family.speaks(model):
            return family if family.padded is None else family.padded(ids.get("pad_token", roberta.PAD))
    known = ", ".join(sorted({family.model.__name__ for family in FAMILIES}))
    raise UserError(mistake("model", type(model).__name__, known, "only these have a Hugging Face counterpart"))


def read_model(family: Family, config: Mapping[str, Any], path: Path) -> Model:
    """Return the model of a Hugging Face config.json; UserError for options without counterpart."""
    options = Options(config, path, family.also)
    model = family.read(options)
    options.done()
    return model


def table_of(family: Family | None, model: Model) -> NameTable:
    """Return where each of our templates is stored; in our own folders under its own name."""
    table = {template: Stored(template) for template in model.params()} if family is None else family.table(model)
    assert set(table) == set(model.params()), "a table must name each tensor of its model"
    return table
