"""T5, original (relu, tied) and v1.1 (gated, untied), and mT5, which is v1.1 under another name.

The published code scales the hidden states in front of a tied head by embed ** -0.5 of its own size, while a level
of ours keeps the scale of the size it came from; the ratio is written into the last norm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlrun.interop.families.base import Family, SpecialIds
from mlrun.interop.hf_config import Options, read_rates, write_rates
from mlrun.interop.name_tables import NameTable, Stored, weights
from mlrun.models.t5 import T5

HEADS = {"query": "q", "key": "k", "value": "v", "output": "o"}
MLPS = {"relu": "relu", "gated-gelu": "gated"}
# What the published class takes for each of these.
ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_new"}
# The published class has one rate for all.
KEYS = {"dropout": ("dropout_rate",)}


def table(model: T5) -> NameTable:
    """Return the names of T5ForConditionalGeneration."""
    gated = model.mlp == "gated"
    own = {f"attention.{a}": f"0.SelfAttention.{b}" for a, b in HEADS.items()} | {"attention_norm": "0.layer_norm"}
    cross = {f"cross.{a}": f"1.EncDecAttention.{b}" for a, b in HEADS.items()} | {"cross_norm": "1.layer_norm"}
    decoder = own | cross | feed_forward(gated, "2")
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    scale = model.head_scale / published_scale(model.embed, model.tied)
    return {
        "token.weight": Stored("shared.weight"),
        **({} if model.tied else {"head.weight": Stored("lm_head.weight")}),
        "encoder_bias.weight": Stored(f"encoder.{bias}"),
        "decoder_bias.weight": Stored(f"decoder.{bias}"),
        "encoder_norm.weight": Stored("encoder.final_layer_norm.weight"),
        "decoder_norm.weight": Stored("decoder.final_layer_norm.weight", scale=scale),
        **weights("encoder.{layer}", "encoder.block.{layer}.layer", own | feed_forward(gated, "1")),
        **weights("decoder.{decoder_layer}", "decoder.block.{decoder_layer}.layer", decoder),
    }


def feed_forward(gated: bool, place: str) -> dict[str, str]:
    """Return a block's feed-forward names; `place` counts the branches in front of it."""
    wide = {"mlp.gate": "wi_0", "mlp.up": "wi_1"} if gated else {"mlp.up": "wi"}
    names = {ours: f"{place}.DenseReluDense.{theirs}" for ours, theirs in (wide | {"mlp.down": "wo"}).items()}
    return names | {"mlp_norm": f"{place}.layer_norm"}


def published_scale(embed: int, tied: bool) -> float:
    """Return the factor that the published code puts in front of the head."""
    return embed**-0.5 if tied else 1.0


def read(options: Options) -> T5:
    """Return the model of a config.json."""
    embed, layer = options.integer("d_model"), options.integer("num_layers")
    rates = read_rates(options, KEYS, {"dropout": 0.1})
    if "attention_dropout" not in options.config:
        rates["attention_dropout"] = rates["dropout"]
    multilingual = options.config.get("model_type") == "mt5"
    mlp = options.only("feed_forward_proj", tuple(MLPS), "gated-gelu" if multilingual else "relu")
    # What the class works out of that key may stand beside it, and is what it then takes.
    options.only("dense_act_fn", (ACTIVATIONS[mlp],), ACTIVATIONS[mlp])
    options.only("is_gated_act", (mlp != "relu",), mlp != "relu")
    options.only("is_encoder_decoder", (True,), True)
    # Newer writers always say "tied". T5's keep the difference in scale_decoder_outputs; mT5 never scales, and what is
    # published of it has a head of its own.
    tied = not multilingual and options.flag("tie_word_embeddings", True)
    tied = tied and options.flag("scale_decoder_outputs", True)
    return T5(
        vocab=options.integer("vocab_size"),
        embed=embed,
        head=options.integer("num_heads"),
        head_dim=options.integer("d_kv"),
        ffn=options.integer("d_ff"),
        layer=layer,
        decoder_layer=options.integer("num_decoder_layers", layer),
        bucket=options.integer("relative_attention_num_buckets", 32),
        distance=options.integer("relative_attention_max_distance", 128),
        mlp=MLPS[mlp],
        tied=tied,
        head_scale=published_scale(embed, tied),
        eps=options.number("layer_norm_epsilon", 1e-6),
        **rates,
    )


def write(model: T5, ids: SpecialIds) -> dict[str, Any]:
    """Return config.json."""
    return {
        "vocab_size": model.vocab,
        "d_model": model.embed,
        "num_heads": model.head,
        "d_kv": model.head_dim,
        "d_ff": model.ffn,
        "num_layers": model.layer,
        "num_decoder_layers": model.decoder_layer,
        "relative_attention_num_buckets": model.bucket,
        "relative_attention_max_distance": model.distance,
        "feed_forward_proj": "gated-gelu" if model.mlp == "gated" else "relu",
        "layer_norm_epsilon": model.eps,
        "is_encoder_decoder": True,
        "tie_word_embeddings": model.tied,
        "pad_token_id": ids.get("pad_token", 0),
        "eos_token_id": ids.get("eos_token", 1),
        "decoder_start_token_id": ids.get("pad_token", 0),
        **write_rates(model, KEYS),
    }


FAMILY = Family(
    T5,
    {"T5ForConditionalGeneration": "t5"},
    read,
    write,
    table,
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
    also={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    # A table that the first release stored and never used.
    dropped=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
    implied=("head_scale",),
)
# A model of ours goes out as T5.
MT5 = replace(FAMILY, architectures={"MT5ForConditionalGeneration": "mt5"}, speaks=lambda model: False)
