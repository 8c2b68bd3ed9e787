"""GPT-2: query, key and value are packed, and every projection is stored input first."""

from __future__ import annotations

from typing import Any

from mlrun.interop.families.base import Family, SpecialIds, whole_heads
from mlrun.interop.hf_config import Options, read_rates, write_rates
from mlrun.interop.name_tables import NameTable, Stored, affine
from mlrun.models.gpt import GPT

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
KEYS = {"dropout": ("resid_pdrop", "embd_pdrop"), "attention_dropout": ("attn_pdrop",)}


def table(model: GPT) -> NameTable:
    """Return the names of GPT2LMHeadModel."""
    ours, theirs = "blocks.{layer}", "transformer.h.{layer}"
    names = {
        "token.weight": Stored("transformer.wte.weight"),
        "position.weight": Stored("transformer.wpe.weight"),
        **affine("norm", "transformer.ln_f"),
        **affine(f"{ours}.attention_norm", f"{theirs}.ln_1"),
        **affine(f"{ours}.mlp_norm", f"{theirs}.ln_2"),
        **affine(f"{ours}.attention.output", f"{theirs}.attn.c_proj", transpose=True),
        **affine(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", transpose=True),
        **affine(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", transpose=True),
        **({} if model.tied else {"head.weight": Stored("lm_head.weight")}),
    }
    for index, name in enumerate(("query", "key", "value")):
        names |= affine(f"{ours}.attention.{name}", f"{theirs}.attn.c_attn", transpose=True, part=(index, 3))
    return names


def read(options: Options) -> GPT:
    """Return the model of a config.json."""
    embed, head = options.integer("n_embd"), options.integer("n_head")
    activation = options.only("activation_function", tuple(ACTIVATIONS), "gelu_new")
    options.only("scale_attn_weights", (True,), True)
    options.only("scale_attn_by_inverse_layer_idx", (False,), False)
    options.only("add_cross_attention", (False,), False)
    return GPT(
        vocab=options.integer("vocab_size"),
        position=options.integer("n_positions"),
        embed=embed,
        head=head,
        head_dim=embed // head,
        ffn=options.integer("n_inner", 4 * embed),
        layer=options.integer("n_layer"),
        tied=options.flag("tie_word_embeddings", True),
        activation=ACTIVATIONS[activation],
        eps=options.number("layer_norm_epsilon", 1e-5),
        **read_rates(options, KEYS, {"dropout": 0.1, "attention_dropout": 0.1}),
    )


def write(model: GPT, ids: SpecialIds) -> dict[str, Any]:
    """Return config.json."""
    return {
        "vocab_size": model.vocab,
        "n_positions": model.position,
        "n_embd": model.embed,
        "n_head": model.head,
        "n_inner": model.ffn,
        "n_layer": model.layer,
        "activation_function": next(theirs for theirs, own in ACTIVATIONS.items() if own == model.activation),
        "layer_norm_epsilon": model.eps,
        "tie_word_embeddings": model.tied,
        "bos_token_id": ids.get("eos_token"),
        "eos_token_id": ids.get("eos_token"),
        **write_rates(model, KEYS),
    }


FAMILY = Family(
    GPT,
    {"GPT2LMHeadModel": "gpt2"},
    read,
    write,
    table,
    whole_heads,
    spellings=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),  # as OpenAI's own conversion left them
    copies={"lm_head.weight": "transformer.wte.weight"},
    also={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    dropped=(r"^transformer\.h\.\d+\.attn\.(bias|masked_bias)$",),
)
