"""Our tensors and those in a Hugging Face checkpoint file, as data: one table per architecture.

A table maps our name template to a `Source`. Names are those of the published files (`model.safetensors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mlrun.axes import Params, Sizes, at_depth, depth_axis


class Source(NamedTuple):
    """Where a tensor of ours is: a name template, stored transposed or not, and which part of a packed tensor.

    `part` is (index, count) along the packed axis, our first.
    """

    name: str
    transpose: bool = False
    part: tuple[int, int] | None = None


Table = Mapping[str, Source]


def affine(ours: str, theirs: str, transpose: bool = False, part: tuple[int, int] | None = None) -> dict[str, Source]:
    """Return the rows of a weight and its bias."""
    weight = {f"{ours}.weight": Source(f"{theirs}.weight", transpose, part)}
    return weight | {f"{ours}.bias": Source(f"{theirs}.bias", part=part)}


def weights(prefix: str, their_prefix: str, names: Mapping[str, str]) -> dict[str, Source]:
    """Return the rows of weights without bias."""
    return {f"{prefix}.{ours}.weight": Source(f"{their_prefix}.{theirs}.weight") for ours, theirs in names.items()}


def gpt2() -> Table:
    """GPT2LMHeadModel: query, key and value are packed, and every projection is stored input first."""
    ours, theirs = "blocks.{layer}", "transformer.h.{layer}"
    packed = {"query": 0, "key": 1, "value": 2}
    table = {
        "token.weight": Source("transformer.wte.weight"),
        "position.weight": Source("transformer.wpe.weight"),
        **affine("norm", "transformer.ln_f"),
        **affine(f"{ours}.attention_norm", f"{theirs}.ln_1"),
        **affine(f"{ours}.mlp_norm", f"{theirs}.ln_2"),
        **affine(f"{ours}.attention.output", f"{theirs}.attn.c_proj", transpose=True),
        **affine(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", transpose=True),
        **affine(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", transpose=True),
    }
    for name, index in packed.items():
        table |= affine(f"{ours}.attention.{name}", f"{theirs}.attn.c_attn", transpose=True, part=(index, 3))
    return table


def bert() -> Table:
    """BertForMaskedLM."""
    ours, theirs = "blocks.{layer}", "bert.encoder.layer.{layer}"
    embeddings = {"token": "word", "position": "position", "token_type": "token_type"}
    return {
        **{f"{a}.weight": Source(f"bert.embeddings.{b}_embeddings.weight") for a, b in embeddings.items()},
        **affine("norm", "bert.embeddings.LayerNorm"),
        **affine(f"{ours}.attention.query", f"{theirs}.attention.self.query"),
        **affine(f"{ours}.attention.key", f"{theirs}.attention.self.key"),
        **affine(f"{ours}.attention.value", f"{theirs}.attention.self.value"),
        **affine(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        **affine(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        **affine(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
        **affine(f"{ours}.mlp.down", f"{theirs}.output.dense"),
        **affine(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm"),
        **affine("transform.dense", "cls.predictions.transform.dense"),
        **affine("transform.norm", "cls.predictions.transform.LayerNorm"),
        "head_bias.weight": Source("cls.predictions.bias"),
    }


def image(root: str) -> dict[str, Source]:
    """Return what ViT and DeiT share; `root` is the name of the trunk."""
    ours, theirs = "blocks.{layer}", f"{root}.encoder.layer.{{layer}}"
    return {
        **affine("patches", f"{root}.embeddings.patch_embeddings.projection"),
        "class_token.weight": Source(f"{root}.embeddings.cls_token"),
        "position.weight": Source(f"{root}.embeddings.position_embeddings"),
        **affine(f"{ours}.attention_norm", f"{theirs}.layernorm_before"),
        **affine(f"{ours}.attention.query", f"{theirs}.attention.attention.query"),
        **affine(f"{ours}.attention.key", f"{theirs}.attention.attention.key"),
        **affine(f"{ours}.attention.value", f"{theirs}.attention.attention.value"),
        **affine(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        **affine(f"{ours}.mlp_norm", f"{theirs}.layernorm_after"),
        **affine(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
        **affine(f"{ours}.mlp.down", f"{theirs}.output.dense"),
        **affine("norm", f"{root}.layernorm"),
    }


def vit() -> Table:
    """ViTForImageClassification; the published DeiT without distillation is one."""
    return image("vit") | affine("head", "classifier")


def deit() -> Table:
    """DeiTForImageClassificationWithTeacher: class and distillation token, two heads."""
    return {
        **image("deit"),
        "distillation_token.weight": Source("deit.embeddings.distillation_token"),
        **affine("head", "cls_classifier"),
        **affine("distillation_head", "distillation_classifier"),
    }


def llama(tied: bool, qk_norm: bool = False) -> Table:
    """LlamaForCausalLM; with `qk_norm` Qwen3ForCausalLM."""
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
        "token.weight": Source("model.embed_tokens.weight"),
        "norm.weight": Source("model.norm.weight"),
        **({} if tied else {"head.weight": Source("lm_head.weight")}),
        **weights("blocks.{layer}", "model.layers.{layer}", block | (norms if qk_norm else {})),
    }


def t5(tied: bool, gated: bool) -> Table:
    """T5ForConditionalGeneration, original (relu, tied) or v1.1 (gated, untied)."""
    heads = {"query": "q", "key": "k", "value": "v", "output": "o"}
    own = {f"attention.{a}": f"0.SelfAttention.{b}" for a, b in heads.items()} | {"attention_norm": "0.layer_norm"}
    cross = {f"cross.{a}": f"1.EncDecAttention.{b}" for a, b in heads.items()} | {"cross_norm": "1.layer_norm"}
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        "token.weight": Source("shared.weight"),
        **({} if tied else {"head.weight": Source("lm_head.weight")}),
        "encoder_bias.weight": Source(f"encoder.{bias}"),
        "decoder_bias.weight": Source(f"decoder.{bias}"),
        "encoder_norm.weight": Source("encoder.final_layer_norm.weight"),
        "decoder_norm.weight": Source("decoder.final_layer_norm.weight"),
        **weights("encoder.{layer}", "encoder.block.{layer}.layer", own | t5_mlp(gated, "1")),
        **weights("decoder.{decoder_layer}", "decoder.block.{decoder_layer}.layer", own | cross | t5_mlp(gated, "2")),
    }


def t5_mlp(gated: bool, place: str) -> dict[str, str]:
    """Return a T5 block's feed-forward names; `place` counts the branches in front of it."""
    wide = {"mlp.gate": "wi_0", "mlp.up": "wi_1"} if gated else {"mlp.up": "wi"}
    names = {ours: f"{place}.DenseReluDense.{theirs}" for ours, theirs in (wide | {"mlp.down": "wo"}).items()}
    return names | {"mlp_norm": f"{place}.layer_norm"}


def pairs(table: Table, params: Params, sizes: Sizes) -> dict[str, tuple[Source, tuple[int, ...]]]:
    """Return, by our tensor name, its source with the depth filled in, and our shape; KeyError if unmapped."""
    found = {}
    for template, param in params.items():
        axis = depth_axis(template)
        for index in range(1 if axis is None else sizes[axis]):
            source = table[template]
            name = source._replace(name=at_depth(source.name, index))
            found[at_depth(template, index)] = (name, param.shape(sizes))
    return found


def from_hf(state: Mapping[str, Tensor], table: Table, params: Params, sizes: Sizes) -> dict[str, Tensor]:
    """Return our state dict out of a Hugging Face one; KeyError if one is missing, ValueError if its shape is wrong."""
    ours = {}
    for name, (source, shape) in pairs(table, params, sizes).items():
        tensor = state[source.name]
        tensor = tensor.T if source.transpose else tensor
        if source.part is not None:
            tensor = tensor.chunk(source.part[1])[source.part[0]]
        if proper(tensor.shape) != proper(shape):
            raise ValueError(f"{source.name}: shape {tuple(tensor.shape)}, expected {shape}")
        ours[name] = tensor.reshape(shape)
    return ours


def to_hf(state: Mapping[str, Tensor], table: Table, params: Params, sizes: Sizes) -> dict[str, Tensor]:
    """Return the Hugging Face tensors, packed and transposed as the files have them, leading dims of 1 left out."""
    parts: dict[str, list[tuple[Source, Tensor]]] = {}
    for name, (source, _) in pairs(table, params, sizes).items():
        parts.setdefault(source.name, []).append((source, state[name]))
    theirs = {}
    for name, found in parts.items():
        found.sort(key=lambda one: one[0].part or (0, 1))
        tensor = torch.cat([tensor for _, tensor in found])
        theirs[name] = (tensor.T if found[0][0].transpose else tensor).contiguous()
    return theirs


def proper(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its 1s, which the two sides place differently."""
    return tuple(size for size in shape if size != 1)
