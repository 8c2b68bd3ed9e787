"""Claims on the models: published sizes, declared shapes, starting values, and logits equal to Hugging Face's."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from composed import choice
from safetensors.torch import load_file
from torch import Tensor, nn

from mlrun.interop.folders import import_hf
from mlrun.models.axes import depth_axis, expand, parameter_count
from mlrun.models.base import IGNORED, Model
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.gpt import GPT
from mlrun.models.llama import Llama
from mlrun.models.network import Network, build
from mlrun.models.t5 import T5

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"

PUBLISHED = {
    "gpt_base": 124_439_808,
    "gpt_medium": 354_823_168,
    "gpt_large": 774_030_080,
    "bert_base": 109_514_298,
    "bert_large": 335_174_458,
    "roberta_base": 124_697_433 - 2 * 768,  # rows of its position table that no position uses
    "deit_tiny": 5_717_416,
    "deit_s": 22_050_664,
    "deit_b": 86_567_656,
    "llama_160m": 162_417_408,
    "llama_1b": 1_100_048_384,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
}

TEXT = {"vocab": 48, "position": 12, "embed": 16, "head": 2, "head_dim": 8, "ffn": 24, "layer": 2}
IMAGE = {"image": 8, "channel": 3, "patch": 4, "classes": 6} | {
    axis: TEXT[axis] for axis in ("embed", "head", "head_dim", "ffn", "layer")
}
GROUPED = {axis: size for axis, size in TEXT.items() if axis != "head"} | {"kv_head": 2, "group": 4}
SPAN = {axis: size for axis, size in TEXT.items() if axis != "position"} | {
    "decoder_layer": 3,
    "bucket": 8,
    "distance": 10,
}
TINY: dict[str, Model] = {
    "gpt": GPT(**TEXT),
    "gpt untied": GPT(**TEXT, tied=False),
    "gpt gelu": GPT(**TEXT, activation="gelu"),
    "gpt relu": GPT(**TEXT, activation="relu"),
    "bert": BERT(**TEXT, token_type=2),
    "roberta": BERT(**TEXT, token_type=1),
    "deit": DeiT(**IMAGE),
    "deit distilled": DeiT(**IMAGE, distillation=True),
    "deit one head": DeiT(**IMAGE, distillation=True, distillation_head=False),
    "vit mean": DeiT(**IMAGE, pooling="mean"),
    "llama": Llama(**GROUPED),
    "llama tied qk": Llama(**GROUPED, tied=True, qk_norm=True),
    "llama stretched": Llama(**GROUPED, rope_factor=4.0, rope_position=16),
    "qwen2": Llama(**GROUPED, qkv_bias=True),
    "llama biased": Llama(**GROUPED, qkv_bias=True, output_bias=True),
    "qwen3 biased": Llama(**GROUPED, qk_norm=True, qkv_bias=True, output_bias=True),
    "t5 v1.1": T5(**SPAN),
    "t5": T5(**SPAN, mlp="relu", tied=True, head_scale=0.25),
}
EVERY = pytest.mark.parametrize("model", TINY.values(), ids=TINY)


def read(name: str) -> Model:
    """Return the model of a YAML in conf/model."""
    fields = dict(choice("model", name))
    module, _, cls = fields.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), cls)(**fields)


def a_batch(model: Model, dtype: torch.dtype = torch.float64, rows: int = 2) -> dict[str, Tensor]:
    """Return random inputs and labels of the model's objective."""
    random = torch.Generator().manual_seed(0)

    def tokens(length: int) -> Tensor:
        # Without 0 and 1: RoBERTa gives padding no position.
        return torch.randint(2, model.sizes()["vocab"], (rows, length), generator=random)

    if isinstance(model, DeiT):
        images = torch.randn(rows, model.channel, model.image, model.image, generator=random, dtype=dtype)
        return {"images": images, "labels": torch.randint(model.classes, (rows,), generator=random)}
    if model.objective == "mlm":
        return {"tokens": tokens(10), "positions": torch.tensor([[0, 3, 9]] * rows), "labels": tokens(3)}
    if model.objective == "span":
        return {"tokens": tokens(11), "decoder_tokens": tokens(7), "labels": tokens(7)}
    return {"tokens": tokens(10), "labels": tokens(10)}


def everywhere(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch whose masked head, if there is one, runs on every token."""
    if "positions" not in batch:
        return batch
    return batch | {"positions": torch.arange(batch["tokens"].shape[1]).expand_as(batch["tokens"])}


def scatter(module: nn.Module) -> None:
    """Give every tensor of a module random values, so that no bias is 0 and no norm is 1."""
    random = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        parameter.data.copy_(0.2 * noise + (1.0 if parameter.dim() == 1 else 0.0))


# Sizes and declarations


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    model = read(name)
    assert parameter_count(model.params(), model.sizes()) == PUBLISHED[name]


def test_vit_with_a_class_token_has_the_published_size() -> None:
    for name, published in (("vit_s", 22_050_664), ("vit_b", 86_567_656)):
        model = replace(read(name), pooling="class")
        assert parameter_count(model.params(), model.sizes()) == published


def test_t5_v1_1_small_has_the_published_size() -> None:
    heads = {"head": 6, "ffn": 1024, "layer": 8, "decoder_layer": 8}
    model = replace(read("t5_small"), **heads, mlp="gated", tied=False, head_scale=1.0)
    assert parameter_count(model.params(), model.sizes()) == 76_961_152


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_yaml_is_a_sound_model_and_states_its_size(name: str) -> None:
    model = read(name)
    assert model.problems() == []
    assert f"{parameter_count(model.params(), model.sizes()):,} parameters" in (CONF / f"{name}.yaml").read_text()


def test_models_are_declared_without_torch() -> None:
    imports = "".join(f"from {type(m).__module__} import {type(m).__name__}\n" for m in TINY.values())
    script = (
        f"import sys, mlrun.models.layers\n{imports}"
        f"for model in {list(TINY.values())!r}:\n"
        "    assert model.problems() == [] and model.params() and model.flops(8, 8).total > 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=CONF.parent.parent)


@EVERY
def test_state_dict_is_what_was_declared(model: Model) -> None:
    declared = {name: param.shape(model.sizes()) for name, param in expand(model.params(), model.sizes())}
    assert {name: tuple(tensor.shape) for name, tensor in build(model, 0).state_dict().items()} == declared


@EVERY
def test_resize_is_the_same_constructor_with_other_sizes(model: Model) -> None:
    half = {axis: model.sizes()[axis] // 2 for axis in ("embed", "ffn", "layer")}
    coarse = model.resize(half)
    assert coarse == replace(model, **half)
    assert coarse.problems() == []
    assert model.resize(model.sizes()) == model
    with pytest.raises(KeyError, match="wings"):
        model.resize({"wings": 2})


def test_a_resize_leaves_the_published_head_scale() -> None:
    model = read("t5_small")
    assert isinstance(model, T5)
    assert model.head_scale == 512**-0.5
    assert replace(model, embed=256).head_scale == 512**-0.5


def test_problems_are_one_line_each_and_name_the_key() -> None:
    wrong = [
        (replace(TINY["gpt"], embed=0, head=-1), ["model.embed=0", "model.head=-1"]),
        (replace(TINY["deit"], patch=3), ["model.patch=3"]),
        (replace(TINY["deit"], pooling="max"), ["model.pooling=max"]),
        (replace(TINY["deit distilled"], pooling="mean"), ["model.distillation=true"]),
        (replace(TINY["llama"], head_dim=7), ["model.head_dim=7"]),
        (replace(TINY["llama"], rope_factor=0.5, rope_high=1.0), ["model.rope_factor=0.5", "model.rope_high=1.0"]),
        (replace(TINY["gpt"], activation="swish"), ["model.activation=swish"]),
        (replace(TINY["t5"], bucket=6), ["model.bucket=6"]),
        (replace(TINY["t5"], distance=4), ["model.distance=4"]),
        (replace(TINY["t5"], mlp="swish"), ["model.mlp=swish"]),
        (replace(TINY["gpt"], layer=1.5), ["model.layer=1.5"]),
    ]
    for model, keys in wrong:
        found = model.problems()
        assert len(found) == len(keys)
        assert all(line.startswith(key + ":") and "\n" not in line for line, key in zip(found, keys, strict=True))


def test_images_count_their_patches_and_learned_tokens() -> None:
    assert read("deit_b").tokens(0) == 14 * 14 + 1
    assert read("vit_b").tokens(0) == 14 * 14
    assert TINY["gpt"].tokens(9) == 9


# Starting values


@pytest.mark.parametrize("name", ["gpt_tiny", "bert_tiny", "deit_digits", "llama_tiny", "t5_tiny"])
def test_starting_values_have_the_declared_mean_and_deviation(name: str) -> None:
    model = read(name)
    state = build(model, seed=0).state_dict()
    for tensor_name, param in expand(model.params(), model.sizes()):
        tensor = state[tensor_name]
        spread = 5 / math.sqrt(tensor.numel())  # five standard errors
        assert abs(tensor.mean() - param.mean) <= spread * param.std
        assert tensor.std(correction=0) == pytest.approx(param.std, rel=spread)


def test_gpt2_residual_projections_start_smaller() -> None:
    params = read("gpt_base").params()
    for name, param in params.items():
        branch = name.endswith(("attention.output.weight", "mlp.down.weight"))
        assert param.residual == (branch or name.endswith(("attention.output.bias", "mlp.down.bias")))
        if name.endswith("weight") and "norm" not in name:
            assert param.std == pytest.approx(0.02 / math.sqrt(24) if branch else 0.02)


def test_start_depends_on_seed_and_name_alone() -> None:
    model = TINY["gpt"]
    first, again, other = (build(model, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["token.weight"], other["token.weight"])
    assert not torch.equal(first["blocks.0.mlp.up.weight"], first["blocks.1.mlp.up.weight"])
    deeper = build(replace(model, layer=3), 0, dtype=torch.float64).state_dict()
    assert torch.equal(deeper["blocks.1.mlp.up.weight"], first["blocks.1.mlp.up.weight"].double())


def test_without_a_seed_weights_are_unset_and_on_meta_there_are_none() -> None:
    model = TINY["t5"]
    assert all(tensor.isnan().all() for tensor in build(model, None).state_dict().values())
    assert all(tensor.is_meta for tensor in build(TINY["llama"], 0, device="meta").state_dict().values())


# What they compute


@EVERY
def test_every_parameter_gets_a_gradient(model: Model) -> None:
    net = build(model, 0, dtype=torch.float64)
    net(a_batch(model)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@EVERY
def test_loss_is_finite_under_autocast_and_close_to_float32(model: Model) -> None:
    net, batch = build(model, 0), a_batch(model, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(net(batch).item(), rel=0.05)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_the_whole_loss_compiles_without_a_graph_break(name: str) -> None:
    torch.compiler.reset()  # one code object serves all models, and recompiles a few times only
    net, batch = build(TINY[name], 0), a_batch(TINY[name], torch.float32)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert compiled(batch).item() == pytest.approx(net(batch).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt", "llama", "t5"])
def test_causal_models_do_not_look_ahead(name: str) -> None:
    model = TINY[name]
    net, batch = build(model, 0, dtype=torch.float64), a_batch(model)
    scatter(net)
    key = "decoder_tokens" if name == "t5" else "tokens"
    changed = batch[key].clone()
    changed[:, 5] = (changed[:, 5] + 1) % model.sizes()["vocab"]
    before, after = net.logits(batch), net.logits({**batch, key: changed})
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(dim=-1).all()


def test_the_masked_head_equals_the_full_head_at_its_positions() -> None:
    model = TINY["bert"]
    net, batch = build(model, 0, dtype=torch.float64), a_batch(model)
    full = net.logits(everywhere(batch))
    assert torch.allclose(net.logits(batch), full[:, [0, 3, 9]], rtol=0, atol=1e-14)


def test_ignored_labels_do_not_count() -> None:
    logits, labels = torch.randn(1, 3, 5), torch.tensor([[1, -100, 2]])
    expected = Network.cross_entropy(logits[:, [0, 2]], labels[:, [0, 2]])
    assert Network.cross_entropy(logits, labels) == pytest.approx(expected)


def test_soft_labels_equal_hard_ones_when_they_are_certain() -> None:
    model = TINY["deit distilled"]
    net, batch = build(model, 0, dtype=torch.float64), a_batch(model)
    soft = nn.functional.one_hot(batch["labels"], model.sizes()["classes"]).double()
    assert net({**batch, "labels": soft}).item() == pytest.approx(net(batch).item(), rel=1e-12)


def test_both_heads_of_a_distilled_model_learn_the_labels() -> None:
    model = TINY["deit distilled"]
    net, batch = build(model, 0, dtype=torch.float64), a_batch(model)
    losses = [Network.cross_entropy(head, batch["labels"]) for head in model.heads(net, batch)]  # type: ignore[attr-defined]
    assert net(batch).item() == pytest.approx(sum(losses).item() / 2, rel=1e-12)


@pytest.mark.parametrize("name", TINY)
def test_loss_and_logits_come_from_one_forward_pass(name: str) -> None:
    net, batch = build(TINY[name], 0, dtype=torch.float64), a_batch(TINY[name])
    loss, logits = net.loss_and_logits(batch)
    assert torch.equal(loss, net(batch)) and torch.equal(logits, net.logits(batch))


def test_labels_that_are_ignored_give_no_loss_and_no_nan() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = Network.cross_entropy(logits, torch.full((2, 3), IGNORED))
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


# Hugging Face is the reference


def gpt2(hf: ModuleType, model: GPT) -> nn.Module:
    """Return Hugging Face's GPT-2 of the same sizes."""
    sizes = {"n_positions": model.position, "n_embd": model.embed, "n_layer": model.layer, "n_inner": model.ffn}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "activation_function": model.activation.replace("_tanh", "_new")}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=model.vocab, n_head=model.head, **sizes, **ends))


def wide(model: Model) -> dict[str, int]:
    """Return the sizes that most configurations call alike."""
    sizes = model.sizes()
    names = {"hidden_size": "embed", "intermediate_size": "ffn", "num_hidden_layers": "layer"}
    return {theirs: sizes[ours] for theirs, ours in names.items()}


def bert(hf: ModuleType, model: BERT) -> nn.Module:
    """Return Hugging Face's BERT of the same sizes, or its RoBERTa if there is one token type."""
    if model.token_type == 1:
        tables = {"max_position_embeddings": model.position + 2, "type_vocab_size": 1, "layer_norm_eps": model.eps}
        return hf.RobertaForMaskedLM(
            hf.RobertaConfig(vocab_size=model.vocab, num_attention_heads=model.head, **tables, **wide(model))
        )
    tables = {"max_position_embeddings": model.position, "type_vocab_size": model.token_type}
    config = hf.BertConfig(vocab_size=model.vocab, num_attention_heads=model.head, **tables, **wide(model))
    return hf.BertForMaskedLM(config)


def vision(hf: ModuleType, model: DeiT) -> nn.Module:
    """Return Hugging Face's ViT of the same sizes, or its DeiT if there is a distillation token."""
    shape = {"image_size": model.image, "patch_size": model.patch, "num_labels": model.classes}
    settings = {"num_attention_heads": model.head, "layer_norm_eps": model.eps, **shape, **wide(model)}
    if model.distillation:
        kind = hf.DeiTForImageClassificationWithTeacher if model.two_heads else hf.DeiTForImageClassification
        return kind(hf.DeiTConfig(**settings))
    return hf.ViTForImageClassification(hf.ViTConfig(**settings))


def llama(hf: ModuleType, model: Llama) -> nn.Module:
    """Return Hugging Face's Llama of the same sizes, or its Qwen3 if queries and keys are normed."""
    heads = {"num_attention_heads": model.kv_head * model.group, "num_key_value_heads": model.kv_head}
    constants = {"rms_norm_eps": model.eps, "rope_theta": model.theta, "tie_word_embeddings": model.tied}
    sizes = {"vocab_size": model.vocab, "max_position_embeddings": model.position, "head_dim": model.head_dim}
    settings = {**heads, **constants, **sizes, **wide(model), "bos_token_id": 0, "eos_token_id": 0}
    if model.output_bias:
        settings["attention_bias"] = True
    elif model.qkv_bias:
        return hf.Qwen2ForCausalLM(hf.Qwen2Config(**settings))
    if model.rope_factor > 1:
        factors = {"low_freq_factor": model.rope_low, "high_freq_factor": model.rope_high}
        first = {"factor": model.rope_factor, "original_max_position_embeddings": model.rope_position}
        settings["rope_scaling"] = {"rope_type": "llama3", **factors, **first}  # transformers 5 takes these names too
    if model.qk_norm:
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**settings))
    return hf.LlamaForCausalLM(hf.LlamaConfig(**settings))


def t5(hf: ModuleType, model: T5) -> nn.Module:
    """Return Hugging Face's T5 of the same sizes."""
    depth = {"num_layers": model.layer, "num_decoder_layers": model.decoder_layer}
    width = {"d_model": model.embed, "d_kv": model.head_dim, "d_ff": model.ffn, "num_heads": model.head}
    bias = {"relative_attention_num_buckets": model.bucket, "relative_attention_max_distance": model.distance}
    mlp = "gated-gelu" if model.mlp == "gated" else "relu"
    settings = {**depth, **width, **bias, "feed_forward_proj": mlp, "tie_word_embeddings": model.tied}
    theirs = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=model.vocab, **settings))
    if not model.tied:  # transformers 5 ties a fresh T5 whatever its config says; only loading a file unties it
        theirs.lm_head.weight = nn.Parameter(theirs.lm_head.weight.detach().clone())
    return theirs


def reference(model: Model) -> nn.Module:
    """Return a Hugging Face model of the same sizes."""
    hf = pytest.importorskip("transformers")
    makers = {GPT: gpt2, BERT: bert, DeiT: vision, Llama: llama, T5: t5}
    return makers[type(model)](hf, model)


def widen(module: nn.Module) -> None:
    """Let the reference's RMS norms, rotary angles and, before transformers 5, T5's attention weights, which it works
    out in float32, be float64."""
    for child in module.modules():
        kind = type(child).__name__
        if kind.endswith("RMSNorm") or kind.endswith("T5LayerNorm"):
            child.forward = lambda x, norm=child: nn.functional.rms_norm(
                x, norm.weight.shape, norm.weight, norm.variance_epsilon
            )
        if kind.endswith("RotaryEmbedding"):
            child.forward = lambda x, position_ids, rotary=child: angles(x, position_ids, rotary.config)
        if kind.endswith("T5Attention"):
            child.forward = mock.patch.object(Tensor, "float", Tensor.double)(child.forward)


def angles(x: Tensor, position_ids: Tensor, config) -> tuple[Tensor, Tensor]:
    """Return the reference's cosines and sines in float64: its formula, without the roundings."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = {"rope_type": "default", "rope_theta": getattr(config, "rope_theta", None)}
    # transformers 5 has one object for both; before it, the stretch stood beside the base.
    rope |= getattr(config, "rope_parameters", None) or config.rope_scaling or {}
    inverse = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "llama3":
        low, high, first = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        length = 2 * math.pi / inverse
        smooth = (first / length - low) / (high - low)
        between = (1 - smooth) * inverse / rope["factor"] + smooth * inverse
        inverse = torch.where(length > first / low, inverse / rope["factor"], inverse)
        inverse = torch.where((length <= first / low) & (length >= first / high), between, inverse)
    angle = (position_ids[..., None].double() * inverse).repeat(1, 1, 2)
    return angle.cos().to(x), angle.sin().to(x)


def reference_logits(theirs: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the reference's logits on one of our batches."""
    names = {"images": "pixel_values", "tokens": "input_ids", "decoder_tokens": "decoder_input_ids"}
    with torch.no_grad():
        return theirs(**{names[key]: value for key, value in batch.items() if key in names}).logits


REFERENCES = [name for name in TINY if name not in ("gpt untied", "vit mean")]


@pytest.mark.parametrize("name", REFERENCES)
def test_logits_equal_hugging_face(name: str, tmp_path: Path) -> None:
    model = TINY[name]
    theirs = reference(model)
    scatter(theirs.double().eval())
    theirs.save_pretrained(tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "ours")

    net = build(model, None, dtype=torch.float64)
    net.load_state_dict(load_file(tmp_path / "ours" / "model" / "model.safetensors"))
    batch = everywhere(a_batch(model))
    single = reference_logits(theirs, batch)  # as published: norms and angles in float32
    widen(theirs)
    logits, double = net.logits(batch), reference_logits(theirs, batch)
    assert logits.std() > 0.1
    assert (logits - double).abs().max() < 1e-10
    assert (logits - single).abs().max() < 1e-4


def test_relative_buckets_equal_hugging_face_at_every_distance() -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    net = build(read("t5_small"), None)
    offset = torch.arange(-400, 401)
    for bias, both_ways in ((net.encoder_bias, True), (net.decoder_bias, False)):
        assert torch.equal(bias.bucket(offset), t5.T5Attention._relative_position_bucket(offset, both_ways, 32, 128))


def test_depth_is_only_in_blocks() -> None:
    axes = {name: {depth_axis(template) for template in model.params()} for name, model in TINY.items()}
    assert axes["gpt"] == {None, "layer"}
    assert axes["t5"] == {None, "layer", "decoder_layer"}
