"""RoBERTa and XLM-RoBERTa: BERT with one token type, whose rows 0 to `pad` of the position table belong to no position.

Its class numbers positions from the padding token's id + 1 on (`create_position_ids_from_input_ids` of the published
code); padding itself reads row `pad`. Ours has the rows of positions alone, and no padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlrun.errors import UserError, mistake
from mlrun.interop.families import bert
from mlrun.interop.families.base import Family, SpecialIds, whole_heads
from mlrun.interop.hf_config import Options
from mlrun.interop.name_tables import NameTable, Stored, affine
from mlrun.models.bert import BERT

# The published padding token, and that of a model without tokenizer.
PAD = 1


def family(architecture: str, kind: str, pad: int = PAD) -> Family:
    """Return the family of the models whose padding token has the id `pad`; both architectures are one model."""

    def table(model: BERT) -> NameTable:
        names = bert.trunk("roberta")
        return {
            **names,
            "position.weight": names["position.weight"]._replace(front=pad + 1),
            **affine("transform.dense", "lm_head.dense"),
            **affine("transform.norm", "lm_head.layer_norm"),
            "head_bias.weight": Stored("lm_head.bias"),
        }

    def read(options: Options) -> BERT:
        rows = options.integer("max_position_embeddings")
        if rows <= pad + 1:
            options.wrong("max_position_embeddings", f"over {pad + 1}, the rows up to the padding token's")
        return bert.encoder(options, max(rows - pad - 1, 1))

    def write(model: BERT, ids: SpecialIds) -> dict[str, Any]:
        ends = {"bos_token_id": ids.get("cls_token"), "eos_token_id": ids.get("sep_token")}
        rows = {"max_position_embeddings": model.position + pad + 1, "pad_token_id": pad}
        return bert.write(model, ids) | ends | rows

    return Family(
        BERT,
        {architecture: kind},
        read,
        write,
        table,
        whole_heads,
        # A model of ours goes out as RoBERTa.
        speaks=lambda model: model.token_type == 1 and kind == "roberta",
        padded=partial(family, architecture, kind),
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        dropped=(r"^roberta\.pooler\.", r"^roberta\.embeddings\.position_ids$"),
    )


def padding(config: Mapping[str, Any], path: Path) -> int:
    """Return the padding token's id in a config.json; UserError unless it is one."""
    pad = config.get("pad_token_id", PAD)
    if type(pad) is not int or pad < 0:
        allowed = "an integer of at least 0"
        raise UserError(mistake(f"{path}: pad_token_id", pad, allowed, "positions are counted from it"))
    return pad


ROBERTA = family("RobertaForMaskedLM", "roberta")
XLM_ROBERTA = family("XLMRobertaForMaskedLM", "xlm-roberta")
