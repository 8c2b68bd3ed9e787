"""BERT with its masked-language head; pooler and next-sentence head are left out."""

from __future__ import annotations

from typing import Any

from mlrun.interop.families.base import Family, SpecialIds, whole_heads
from mlrun.interop.hf_config import Options, read_rates, write_rates
from mlrun.interop.name_tables import NameTable, Stored, affine
from mlrun.models.bert import BERT

KEYS = {"dropout": ("hidden_dropout_prob",), "attention_dropout": ("attention_probs_dropout_prob",)}


def table(model: BERT) -> NameTable:
    """Return the names of BertForMaskedLM."""
    return {
        **trunk("bert"),
        **affine("transform.dense", "cls.predictions.transform.dense"),
        **affine("transform.norm", "cls.predictions.transform.LayerNorm"),
        "head_bias.weight": Stored("cls.predictions.bias"),
    }


def trunk(root: str) -> dict[str, Stored]:
    """Return what BERT and RoBERTa share; `root` is the name of the trunk."""
    ours, theirs = "blocks.{layer}", f"{root}.encoder.layer.{{layer}}"
    embeddings = {"token": "word", "position": "position", "token_type": "token_type"}
    return {
        **{f"{a}.weight": Stored(f"{root}.embeddings.{b}_embeddings.weight") for a, b in embeddings.items()},
        **affine("norm", f"{root}.embeddings.LayerNorm"),
        **affine(f"{ours}.attention.query", f"{theirs}.attention.self.query"),
        **affine(f"{ours}.attention.key", f"{theirs}.attention.self.key"),
        **affine(f"{ours}.attention.value", f"{theirs}.attention.self.value"),
        **affine(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        **affine(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        **affine(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
        **affine(f"{ours}.mlp.down", f"{theirs}.output.dense"),
        **affine(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm"),
    }


def read(options: Options) -> BERT:
    """Return the model of a config.json."""
    return encoder(options, options.integer("max_position_embeddings"))


def encoder(options: Options, position: int) -> BERT:
    """Return the model of a config.json with this many positions."""
    embed, head = options.integer("hidden_size"), options.integer("num_attention_heads")
    options.only("hidden_act", ("gelu",), "gelu")
    options.only("position_embedding_type", ("absolute",), "absolute")
    options.only("is_decoder", (False,), False)
    options.only("add_cross_attention", (False,), False)
    options.only("tie_word_embeddings", (True,), True)
    return BERT(
        vocab=options.integer("vocab_size"),
        position=position,
        token_type=options.integer("type_vocab_size", 2),
        embed=embed,
        head=head,
        head_dim=embed // head,
        ffn=options.integer("intermediate_size"),
        layer=options.integer("num_hidden_layers"),
        eps=options.number("layer_norm_eps", 1e-12),
        **read_rates(options, KEYS, {"dropout": 0.1, "attention_dropout": 0.1}),
    )


def write(model: BERT, ids: SpecialIds) -> dict[str, Any]:
    """Return config.json."""
    return {
        "vocab_size": model.vocab,
        "max_position_embeddings": model.position,
        "type_vocab_size": model.token_type,
        "hidden_size": model.embed,
        "num_attention_heads": model.head,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layer,
        "hidden_act": "gelu",
        "layer_norm_eps": model.eps,
        "tie_word_embeddings": True,
        "pad_token_id": ids.get("pad_token"),
        **write_rates(model, KEYS),
    }


FAMILY = Family(
    BERT,
    {"BertForMaskedLM": "bert", "BertForPreTraining": "bert"},
    read,
    write,
    table,
    whole_heads,
    speaks=lambda model: model.token_type > 1,
    spellings=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),  # TensorFlow's
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    dropped=(r"^bert\.pooler\.", r"^cls\.seq_relationship\.", r"^bert\.embeddings\.position_ids$"),
)
