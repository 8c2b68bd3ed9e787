"""ViT with a class token (the published DeiT without distillation is one), and DeiT with one or both of its heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlrun.interop.families.base import Family, SpecialIds, whole_heads
from mlrun.interop.hf_config import Options, read_rates, write_rates
from mlrun.interop.name_tables import NameTable, Stored, affine
from mlrun.models.deit import DeiT

DISTILLED = "DeiTForImageClassificationWithTeacher"
ONE_HEAD = "DeiTForImageClassification"
KEYS = {"dropout": ("hidden_dropout_prob",), "attention_dropout": ("attention_probs_dropout_prob",)}


def table(model: DeiT) -> NameTable:
    """Return the names of ViTForImageClassification, or with distillation those of DeiT."""
    if not model.distillation:
        return trunk("vit") | affine("head", "classifier")
    token = {"distillation_token.weight": Stored("deit.embeddings.distillation_token", lead=2)}
    if not model.distillation_head:
        return trunk("deit") | token | affine("head", "classifier")
    return {
        **trunk("deit"),
        **token,
        **affine("head", "cls_classifier"),
        **affine("distillation_head", "distillation_classifier"),
    }


def trunk(root: str) -> dict[str, Stored]:
    """Return what both share; `root` is the name of the trunk."""
    ours, theirs = "blocks.{layer}", f"{root}.encoder.layer.{{layer}}"
    return {
        **affine("patches", f"{root}.embeddings.patch_embeddings.projection"),
        "class_token.weight": Stored(f"{root}.embeddings.cls_token", lead=2),
        "position.weight": Stored(f"{root}.embeddings.position_embeddings", lead=1),
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


def read(options: Options) -> DeiT:
    """Return the model of a config.json."""
    embed, head = options.integer("hidden_size", 768), options.integer("num_attention_heads", 12)
    options.only("hidden_act", ("gelu",), "gelu")
    options.only("qkv_bias", (True,), True)
    labels = options.config.get("id2label")
    named = options.config["architectures"][0]
    return DeiT(
        image=options.integer("image_size", 224),
        channel=options.integer("num_channels", 3),
        patch=options.integer("patch_size", 16),
        classes=len(labels) if isinstance(labels, dict) else options.integer("num_labels", 2),
        embed=embed,
        head=head,
        head_dim=embed // head,
        ffn=options.integer("intermediate_size", 3072),
        layer=options.integer("num_hidden_layers", 12),
        distillation=named != "ViTForImageClassification",
        distillation_head=named != ONE_HEAD,
        eps=options.number("layer_norm_eps", 1e-12),
        **read_rates(options, KEYS, {}),
    )


def write(model: DeiT, ids: SpecialIds) -> dict[str, Any]:
    """Return config.json."""
    labels = [f"LABEL_{index}" for index in range(model.classes)]
    return {
        "image_size": model.image,
        "num_channels": model.channel,
        "patch_size": model.patch,
        "hidden_size": model.embed,
        "num_attention_heads": model.head,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layer,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": model.eps,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        **write_rates(model, KEYS),
    }


def problems(model: DeiT) -> list[str]:
    """Return why the published classes cannot express a model."""
    pooling = "model.pooling=mean: allowed: class; the published ViT classifies its class token and has no other way"
    return whole_heads(model) + ([pooling] if model.pooling != "class" else [])


VIT = Family(
    DeiT,
    {"ViTForImageClassification": "vit"},
    read,
    write,
    table,
    problems,
    speaks=lambda model: not model.distillation,
    dropped=(r"^vit\.pooler\.",),
)
DEIT = Family(
    DeiT,
    {DISTILLED: "deit"},
    read,
    write,
    table,
    problems,
    speaks=lambda model: model.two_heads,
    dropped=(r"^deit\.pooler\.",),
)
DEIT_ONE_HEAD = replace(
    DEIT, architectures={ONE_HEAD: "deit"}, speaks=lambda model: model.distillation and not model.distillation_head
)
