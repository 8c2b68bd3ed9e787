"""Llama and its kin: Mistral without a window, Qwen2 with biases and Qwen3 with norms on queries and keys.

Llama and Qwen3 have biases on all four projections of attention or on none, Qwen2 on all but the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlrun.interop.families.base import Family, SpecialIds
from mlrun.interop.hf_config import Options, read_rates, write_rates
from mlrun.interop.name_tables import NameTable, Stored, weights
from mlrun.models.llama import Llama

KINDS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# The classes that read attention_bias.
BIASED = ("llama", "qwen3")
# What each class takes for an absent num_key_value_heads; Llama, and every class for null, the number of query heads.
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
# What each class takes for an absent max_position_embeddings.
POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}


def table(model: Llama) -> NameTable:
    """Return the names of LlamaForCausalLM, which its kin share."""
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
    biased = [("query", "q"), ("key", "k"), ("value", "v")] if model.qkv_bias else []
    biased += [("output", "o")] if model.output_bias else []
    biases = {
        f"blocks.{{layer}}.attention.{ours}.bias": Stored(f"model.layers.{{layer}}.self_attn.{theirs}_proj.bias")
        for ours, theirs in biased
    }
    norms = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
    return {
        "token.weight": Stored("model.embed_tokens.weight"),
        "norm.weight": Stored("model.norm.weight"),
        **({} if model.tied else {"head.weight": Stored("lm_head.weight")}),
        **weights("blocks.{layer}", "model.layers.{layer}", block | (norms if model.qk_norm else {})),
        **biases,
    }


def read(options: Options) -> Llama:
    """Return the model of a config.json."""
    kind = options.config.get("model_type") or KINDS[options.config["architectures"][0]]
    embed, head = options.integer("hidden_size"), options.integer("num_attention_heads")
    absent = "num_key_value_heads" not in options.config
    kv_head = options.integer("num_key_value_heads", KV_HEADS.get(kind, head) if absent else head)
    position = options.integer("max_position_embeddings", POSITIONS[kind])
    options.only("hidden_act", ("silu",), "silu")
    biased = kind in BIASED and options.flag("attention_bias", False)
    if kind == "mistral":  # whose class has none; Qwen2's has its own always
        options.only("attention_bias", (False,), False)
    options.only("mlp_bias", (False,), False)
    if head % kv_head:
        options.wrong("num_key_value_heads", f"a divisor of num_attention_heads={head}")
    _refuse_window(options, kind, position)
    return Llama(
        vocab=options.integer("vocab_size"),
        position=position,
        embed=embed,
        kv_head=kv_head,
        group=max(1, head // kv_head),
        head_dim=options.integer("head_dim", 128 if kind == "qwen3" else embed // head),
        ffn=options.integer("intermediate_size"),
        layer=options.integer("num_hidden_layers"),
        tied=options.flag("tie_word_embeddings", False),
        qk_norm=kind == "qwen3",
        qkv_bias=biased or kind == "qwen2",
        output_bias=biased,
        **rotary(options),
        eps=options.number("rms_norm_eps", 1e-6),
        **read_rates(options, {}, {}),
    )


def _refuse_window(options: Options, kind: str, position: int) -> None:
    """Note a window that is narrower than the longest text: some token would not see all before it."""
    window = options.config.get("sliding_window", 4096 if kind == "mistral" else None)
    if kind == "mistral" and not (window is None or (type(window) is int and window >= position)):
        options.wrong("sliding_window", f"null, or at least max_position_embeddings={position}")
    options.only("use_sliding_window", (False,), False)
    layers = options.config.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        options.wrong("layer_types", "full_attention in every layer")


def rotary(options: Options) -> dict[str, Any]:
    """Return our settings of the rotary positions; what is neither plain nor Llama 3.1's is unsupported."""
    found: dict[str, Any] = {}
    theta, ropes = options, {key: options.object(key) for key in ("rope_scaling", "rope_parameters")}
    if options.config.get("partial_rotary_factor", 1) != 1:
        options.wrong("partial_rotary_factor", "1, or absent")
    told = [_whole(rope, options) for rope in ropes.values() if rope.config]
    if told != told[:1] * len(told):  # of two names of one thing, each version of the class takes another
        options.wrong("rope_scaling", "absent, or what rope_parameters says")
    for key, rope in ropes.items():
        if _kind(rope) == "llama3":
            found = _stretch(rope)
        elif _kind(rope) != "default" or rope.config.get("partial_rotary_factor", 1) != 1:
            options.wrong(key, "null, or rope_type default or llama3")
        if "rope_theta" in rope.config:
            theta = rope
    return found | {"theta": theta.number("rope_theta", 10000.0)}


def _kind(rope: Options) -> str:
    return str(rope.config.get("rope_type", rope.config.get("type", "default")))


def _whole(rope: Options, options: Options) -> dict[str, Any]:
    """Return what an object of rotary settings says, the base that stands beside it included."""
    theta = {"rope_theta": options.config.get("rope_theta", 10000.0)}
    return theta | {key: value for key, value in rope.config.items() if key != "type"} | {"rope_type": _kind(rope)}


def _stretch(rope: Options) -> dict[str, Any]:
    return {
        "rope_factor": rope.number("factor", 0),
        "rope_low": rope.number("low_freq_factor", 0),
        "rope_high": rope.number("high_freq_factor", 0),
        "rope_position": rope.integer("original_max_position_embeddings"),
    }


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
        "attention_bias": model.output_bias,
        "rms_norm_eps": model.eps,
        "rope_theta": model.theta,
        "rope_scaling": _rope_scaling(model),
        "sliding_window": None,
        "tie_word_embeddings": model.tied,
        "bos_token_id": ids.get("bos_token"),
        "eos_token_id": ids.get("eos_token"),
        "pad_token_id": ids.get("pad_token"),
        **write_rates(model, {}),
    }


def _rope_scaling(model: Llama) -> dict[str, Any] | None:
    stretch = model.stretch()
    return (
        None
        if stretch is None
        else {
            "rope_type": "llama3",
            "factor": stretch.factor,
            "low_freq_factor": stretch.low,
            "high_freq_factor": stretch.high,
            "original_max_position_embeddings": stretch.position,
        }
    )


def _three(model: Llama) -> bool:
    """Return whether all projections but the last have biases, as Qwen2 has them."""
    return model.qkv_bias and not model.output_bias


def problems(model: Llama) -> list[str]:
    """Return why the published class cannot express a model."""
    heads = model.kv_head * model.group
    if model.output_bias and not model.qkv_bias:
        return ["model.output_bias=True: allowed: false without model.qkv_bias; no published class has it alone"]
    if model.qk_norm and model.qkv_bias and not model.output_bias:
        remedy = "no published class with norms has a bias on three projections"
        return [f"model.qkv_bias=True: allowed: false with model.qk_norm, or with model.output_bias; {remedy}"]
    if model.embed % heads == 0:
        return []
    return [f"model: the published class needs embed={model.embed} to be a multiple of its {heads} query heads"]


def family(architecture: str, kind: str, speaks: Callable[[Llama], bool]) -> Family:
    """Return one of the families."""
    return Family(
        Llama,
        {architecture: kind},
        read,
        write,
        table,
        problems,
        speaks=speaks,
        copies={"lm_head.weight": "model.embed_tokens.weight"},
        dropped=(r"^model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$",),
    )


LLAMA = family("LlamaForCausalLM", "llama", lambda model: not model.qk_norm and not _three(model))
MISTRAL = family("MistralForCausalLM", "mistral", lambda model: False)  # a model of ours goes out as Llama
QWEN2 = family("Qwen2ForCausalLM", "qwen2", lambda model: not model.qk_norm and _three(model))
QWEN3 = family("Qwen3ForCausalLM", "qwen3", lambda model: model.qk_norm)
