"""Llama, and with norms on queries and keys Qwen3."""

from __future__ import annotations

from typing import Any

from mlrun.interop.families.base import Family, SpecialIds
from mlrun.interop.hf_config import Options, read_rates, write_rates
from mlrun.interop.name_tables import NameTable, Stored, weights
from mlrun.models.llama import Llama


def table(model: Llama) -> NameTable:
    """Return the names of LlamaForCausalLM, or with `qk_norm` of Qwen3ForCausalLM."""
    block = {
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    norms = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
    return {
        "token.weight": Stored("model.embed_tokens.weight"),
        "norm.weight": Stored("model.norm.weight"),
        **({} if model.tied else {"head.weight": Stored("lm_head.weight")}),
        **weights("blocks.{layer}", "model.layers.{layer}", block | (norms if model.qk_norm else {})),
    }


def read(options: Options) -> Llama:
    """Return the model of a config.json."""
    qwen = options.config.get("model_type") == "qwen3"
    embed, head = options.integer("hidden_size"), options.integer("num_attention_heads")
    kv_head = options.integer("num_key_value_heads", head)
    options.only("hidden_act", ("silu",), "silu")
    options.only("attention_bias", (False,), False)
    options.only("mlp_bias", (False,), False)
    options.only("use_sliding_window", (False,), False)
    if head % kv_head:
        options.wrong("num_key_value_heads", f"a divisor of num_attention_heads={head}")
    return Llama(
        vocab=options.integer("vocab_size"),
        position=options.integer("max_position_embeddings", 2048),
        embed=embed,
        kv_head=kv_head,
        group=max(1, head // kv_head),
        head_dim=options.integer("head_dim", 128 if qwen else embed // head),
        ffn=options.integer("intermediate_size"),
        layer=options.integer("num_hidden_layers"),
        tied=options.flag("tie_word_embeddings", False),
        qk_norm=qwen,
        theta=theta(options),
        eps=options.number("rms_norm_eps", 1e-6),
        **read_rates(options, {}, {}),
    )


def theta(options: Options) -> float:
    """Return the base of the rotary wavelengths; any scaling of the positions is unsupported."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = options.config.get(key) or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            options.wrong(key, "null, or rope_type default")
        if "rope_theta" in rope:
            return Options(rope, options.path).number("rope_theta", 10000.0)
    return options.number("rope_theta", 10000.0)


def write(model: Llama, ids: SpecialIds) -> dict[str, Any]:
    """Return config.json."""
    return {
        "vocab_size": model.vocab,
        "max_position_embeddings": model.position,
        "hidden_size": model.embed,
        "num_attention_heads": model.kv_head * model.group,
        "num_key_value_heads": model.kv_head,
        "head_dim": model.head_dim,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layer,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": model.eps,
        "rope_theta": model.theta,
        "tie_word_embeddings": model.tied,
        "bos_token_id": ids.get("bos_token"),
        "eos_token_id": ids.get("eos_token"),
        "pad_token_id": ids.get("pad_token"),
        **write_rates(model, {}),
    }


def problems(model: Llama) -> list[str]:
    """Return why the published class cannot express a model."""
    heads = model.kv_head * model.group
    if model.embed % heads == 0:
        return []
    return [f"model: the published class needs embed={model.embed} to be a multiple of its {heads} query heads"]


def family(architecture: str, kind: str, qk_norm: bool) -> Family:
    """Return one of the two families."""
    return Family(
        Llama,
        {architecture: kind},
        read,
        write,
        table,
        problems,
        speaks=lambda model: model.qk_norm is qk_norm,
        copies={"lm_head.weight": "model.embed_tokens.weight"},
        dropped=(r"^model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$",),
    )


LLAMA = family("LlamaForCausalLM", "llama", qk_norm=False)
QWEN3 = family("Qwen3ForCausalLM", "qwen3", qk_norm=True)
