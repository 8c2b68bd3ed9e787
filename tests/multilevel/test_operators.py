"""The operators' claims: the dense formula, the identity, exactness on every family, gradients, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlrun.errors import UserError
from mlrun.models.axes import Merge, Param, Resize, Sizes, at_depth, depth_axis, expand, factors
from mlrun.models.base import Model
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.gpt import GPT
from mlrun.models.llama import Llama
from mlrun.models.network import Network, build
from mlrun.models.t5 import T5
from mlrun.multilevel.operators import (
    coalesce,
    decoalesce,
    interpolate,
    iter_coalesce,
    iter_decoalesce,
    noise,
    similarity,
)

RULES = ("weight", "gradient", "square")
SCALES = ("copy", "ode", "identity")
tried = settings(max_examples=25, deadline=None)

# A hand-made model with every kind of layout: tables, fused dims, one axis twice, vectors, untouched dims.
PARAMS = {
    "table": Param(("vocab", "embed.out")),
    "blocks.{layer}.query": Param(("head.out*head_dim", "embed.in")),
    "blocks.{layer}.fused": Param(("three*head.out*head_dim", "embed.in")),
    "blocks.{layer}.output": Param(("embed.out", "head.in*head_dim"), residual=True),
    "blocks.{layer}.output_bias": Param(("embed.out",), residual=True),
    "blocks.{layer}.up": Param(("ffn.out", "embed.in")),
    "blocks.{layer}.down": Param(("embed.out", "ffn.in"), residual=True),
    "dense": Param(("embed.out", "embed.in")),
    "relative": Param(("vocab", "head.out")),
    "norm": Param(("embed.in",)),
    "free": Param(("vocab",)),
}
FIXED = {"vocab": 3, "head_dim": 2, "three": 3}
MERGED = ("embed", "head", "ffn", "layer")


@st.composite
def merges(draw: st.DrawFn, coarse: int | None = None, even: bool = False) -> Merge:
    """Draw shuffled groups, equal or not."""
    count = draw(st.integers(1, 4)) if coarse is None else coarse
    sizes = [draw(st.integers(1, 4))] * count if even else [draw(st.integers(1, 4)) for _ in range(count)]
    units = draw(st.permutations(range(sum(sizes))))
    starts = [sum(sizes[:i]) for i in range(count)]
    groups = (tuple(units[s : s + size]) for s, size in zip(starts, sizes, strict=True))
    return Merge(tuple(groups), draw(st.sampled_from(("mean", "first"))))


@st.composite
def resizes(draw: st.DrawFn) -> Resize:
    """Draw a step between two levels of the hand-made model; some axes stay as they are."""
    found = {axis: draw(merges()) for axis in MERGED if draw(st.booleans())}
    stay = {axis: 2 for axis in MERGED if axis not in found} | FIXED
    fine = stay | {axis: merge.fine for axis, merge in found.items()}
    coarse = stay | {axis: merge.coarse for axis, merge in found.items()}
    return Resize(fine, coarse, found, draw(st.sampled_from(SCALES)))


def resized(depth_scale: str = "copy", **groups: Merge) -> Resize:
    """Return a step of the hand-made model with these merges, other axes of size 2."""
    stay = {axis: 2 for axis in MERGED} | FIXED
    fine = stay | {axis: merge.fine for axis, merge in groups.items()}
    return Resize(fine, stay | {axis: merge.coarse for axis, merge in groups.items()}, groups, depth_scale)


def drawn(params: Mapping[str, Param], sizes: Sizes, seed: int = 0, positive: bool = False) -> dict[str, Tensor]:
    """Return normal float64 tensors for every name."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: param.shape(sizes) for name, param in expand(params, sizes)}
    state = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    return {name: tensor.abs() if positive else tensor for name, tensor in state.items()}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the largest difference relative to the largest value; names and shapes must agree."""
    assert list(a) == list(b)
    assert all(a[name].shape == b[name].shape for name in a)
    differences = [float((a[name] - b[name]).abs().max()) for name in a]
    return max(differences) / max(1, *(float(tensor.abs().max()) for tensor in b.values()))


# The algebra


@tried
@given(resizes(), st.sampled_from(RULES))
def test_coalesce_after_decoalesce_is_the_identity(resize: Resize, rule: str) -> None:
    state = drawn(PARAMS, resize.coarse, positive=rule == "square")
    grown = decoalesce(state, PARAMS, resize, rule=rule)
    assert {name: tuple(t.shape) for name, t in grown.items()} == {
        name: param.shape(resize.fine) for name, param in expand(PARAMS, resize.fine)
    }
    assert distance(coalesce(grown, PARAMS, resize, rule=rule), state) < 1e-12


def merge_matrix(resize: Resize, axis: str) -> Tensor:
    """Return the paper's F (coarse x fine) of an axis: 1/g on the members of each group."""
    F = torch.zeros(resize.coarse[axis], resize.fine[axis], dtype=torch.float64)
    merge = resize.merges.get(axis, Merge(tuple((unit,) for unit in range(resize.fine[axis]))))
    for unit, group in enumerate(merge.groups):
        F[unit, list(group)] = 1 / len(group)
    return F


def dim_matrix(resize: Resize, dim: str, up: bool) -> Tensor:
    """Return what the dense formula multiplies onto a stored dim: F or T, Kronecker products over its factors."""
    total = torch.ones(1, 1, dtype=torch.float64)
    for factor in factors(dim):
        F = merge_matrix(resize, factor.axis)
        T = F.T / F.T.sum(1, keepdim=True)
        consumes = F.T if up else T.T
        produces = T if up else F
        chosen = consumes if factor.role == "in" else produces
        total = torch.kron(total, chosen.clone(memory_format=torch.contiguous_format))
    return total


def dense(tensor: Tensor, param: Param, resize: Resize, up: bool) -> Tensor:
    """Return F W T (down) or T W F (up) with dense matrices."""
    for index, dim in enumerate(param.dims):
        tensor = torch.tensordot(dim_matrix(resize, dim, up), tensor, ([1], [index])).movedim(0, index)
    return tensor


def means(resize: Resize) -> Resize:
    return Resize(resize.fine, resize.coarse, {a: Merge(m.groups) for a, m in resize.merges.items()}, "copy")


@tried
@given(resizes())
def test_operators_equal_the_dense_formula(resize: Resize) -> None:
    resize = means(resize)
    fine, coarse = drawn(PARAMS, resize.fine, 1), drawn(PARAMS, resize.coarse, 2)
    down, up = coalesce(fine, PARAMS, resize), decoalesce(coarse, PARAMS, resize)
    R = merge_matrix(resize, "layer")
    for template, param in PARAMS.items():
        if depth_axis(template) is None:
            wanted_down = {template: dense(fine[template], param, resize, up=False)}
            wanted_up = {template: dense(coarse[template], param, resize, up=True)}
        else:
            stack = torch.stack([fine[at_depth(template, i)] for i in range(resize.fine["layer"])])
            mixed = torch.tensordot(R, stack, 1)
            wanted_down = {at_depth(template, i): dense(t, param, resize, up=False) for i, t in enumerate(mixed)}
            stack = torch.stack([coarse[at_depth(template, i)] for i in range(resize.coarse["layer"])])
            copied = torch.tensordot((R.T > 0).double(), stack, 1)
            wanted_up = {at_depth(template, i): dense(t, param, resize, up=True) for i, t in enumerate(copied)}
        assert distance({name: down[name] for name in wanted_down}, wanted_down) < 1e-12
        assert distance({name: up[name] for name in wanted_up}, wanted_up) < 1e-12


@tried
@given(resizes())
def test_gradient_rule_is_the_chain_rule_of_decoalesce(resize: Resize) -> None:
    """Down, gradients go through the transpose of decoalesce, which autograd gives (means; width, ode and identity)."""
    merged = {a: Merge(m.groups) for a, m in resize.merges.items()}
    for axis in [a for a in merged if a != "layer"]:
        one = Resize(resize.fine, resize.fine | {axis: resize.coarse[axis]}, {axis: merged[axis]}, resize.depth_scale)
        assert transpose_distance(one) < 1e-12
    if "layer" in merged:
        coarse = resize.fine | {"layer": resize.coarse["layer"]}
        for scale in ("ode", "identity"):
            assert transpose_distance(Resize(resize.fine, coarse, {"layer": merged["layer"]}, scale)) < 1e-12


def transpose_distance(resize: Resize) -> float:
    """Return how far coalesce(rule=gradient) is from the adjoint of decoalesce, by <D w, u> = <w, D^T u>."""
    w, u = drawn(PARAMS, resize.coarse, 3), drawn(PARAMS, resize.fine, 4)
    grown = decoalesce(w, PARAMS, resize)
    shrunk = coalesce(u, PARAMS, resize, rule="gradient")
    left = sum(float((grown[name] * u[name]).sum()) for name in u)
    right = sum(float((w[name] * shrunk[name]).sum()) for name in w)
    return abs(left - right) / (1 + abs(left))


@tried
@given(resizes())
def test_squares_follow_the_gradient_rule_on_their_root(resize: Resize) -> None:
    for operator, sizes in ((coalesce, resize.fine), (decoalesce, resize.coarse)):
        root = drawn(PARAMS, sizes, positive=True)
        wanted = operator(root, PARAMS, resize, rule="gradient")
        given_ = operator({n: t.square() for n, t in root.items()}, PARAMS, resize, rule="square")
        assert distance(given_, {name: tensor.square() for name, tensor in wanted.items()}) < 1e-12


THREE = Merge(((0, 2), (1, 3, 4)))


def test_identity_leaves_the_new_layers_silent_and_ode_shares() -> None:
    copy, ode, once = (resized(scale, layer=THREE) for scale in SCALES)
    state = drawn(PARAMS, copy.coarse)
    grown = decoalesce(state, PARAMS, once)
    assert torch.equal(grown["blocks.1.down"], state["blocks.1.down"])
    assert torch.equal(grown["blocks.1.output_bias"], state["blocks.1.output_bias"])
    assert not grown["blocks.3.down"].any()
    assert not grown["blocks.4.output_bias"].any()
    assert torch.equal(grown["blocks.4.up"], state["blocks.1.up"])
    assert torch.equal(decoalesce(state, PARAMS, ode)["blocks.4.down"], state["blocks.1.down"] / 3)
    assert torch.equal(decoalesce(state, PARAMS, copy)["blocks.4.down"], state["blocks.1.down"])


def test_first_keeps_a_layer_bit_by_bit_and_reads_no_other() -> None:
    resize = resized(layer=Merge(THREE.groups, keep="first"))
    fine = drawn(PARAMS, resize.fine)
    reads = Reads(fine)
    down = dict(iter_coalesce(reads, PARAMS, resize))
    assert torch.equal(down["blocks.1.down"], fine["blocks.1.down"])
    assert {name.split(".")[1] for name in reads.seen if "blocks" in name} == {"0", "1"}


# Care with memory


class Reads(Mapping[str, Tensor]):
    """A mapping that remembers which tensors were read."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state, self.seen = state, []

    def __getitem__(self, name: str) -> Tensor:
        self.seen.append(name)
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    def __contains__(self, name: object) -> bool:
        return name in self.state


@pytest.mark.parametrize(("operator", "level"), [(iter_coalesce, "fine"), (iter_decoalesce, "coarse")])
def test_streams_read_no_tensor_before_it_is_needed(operator: object, level: str) -> None:
    resize = resized(layer=THREE, embed=THREE)
    reads = Reads(drawn(PARAMS, getattr(resize, level)))
    stream = operator(reads, PARAMS, resize)
    assert reads.seen == []
    next(stream)
    assert reads.seen == ["table"]
    next(stream)
    group = ["blocks.0.query", "blocks.2.query"] if level == "fine" else ["blocks.0.query"]
    assert reads.seen == ["table", *group]


@tried
@given(resizes(), st.sampled_from(RULES))
def test_inputs_stay_and_share_no_memory_with_outputs(resize: Resize, rule: str) -> None:
    for operator, sizes in ((coalesce, resize.fine), (decoalesce, resize.coarse)):
        state = drawn(PARAMS, sizes, positive=True)
        before = {name: tensor.clone() for name, tensor in state.items()}
        made = operator(state, PARAMS, resize, rule=rule)
        assert all(torch.equal(state[name], before[name]) for name in state)
        places = [t.untyped_storage().data_ptr() for t in (*state.values(), *made.values())]
        assert len(set(places)) == len(places)
        assert all(tensor.is_contiguous() for tensor in made.values())


def test_outputs_are_contiguous_whatever_the_strides() -> None:
    """A gradient that keeps first columns is a strided view of its input; a file needs plain tensors."""
    resize = resized(embed=Merge(((0, 1),), keep="first"), head=Merge(((0,),)))
    rows = drawn(PARAMS, resize.fine)
    columns = {name: t.mT.contiguous().mT if t.dim() > 1 else t for name, t in rows.items()}
    for state in (rows, columns):
        made = coalesce(state, PARAMS, resize, rule="gradient")
        assert all(tensor.is_contiguous() for tensor in made.values())


def test_no_matrix_products() -> None:
    resize = resized(embed=THREE, head=THREE, layer=THREE)
    with FlopCounterMode(display=False) as counter:
        coalesce(decoalesce(drawn(PARAMS, resize.coarse), PARAMS, resize), PARAMS, resize)
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_rounds_once(dtype: torch.dtype, rule: str) -> None:
    resize = resized("ode", embed=THREE, head=THREE, layer=THREE)
    for operator, sizes in ((coalesce, resize.fine), (decoalesce, resize.coarse)):
        half = {n: t.to(dtype) for n, t in drawn(PARAMS, sizes, positive=True).items()}
        single = operator({n: t.float() for n, t in half.items()}, PARAMS, resize, rule=rule)
        made = operator(half, PARAMS, resize, rule=rule)
        assert all(torch.equal(made[name], single[name].to(dtype)) for name in single)


# Interpolation


def test_interpolation_blends_and_its_ends_are_bitwise() -> None:
    sizes = resized().fine
    kept, grown = drawn(PARAMS, sizes, 1), drawn(PARAMS, sizes, 2)
    kept["free"][0], grown["free"][1] = math.inf, -0.0
    bits = lambda state: {name: tensor.view(torch.int64) for name, tensor in state.items()}  # noqa: E731
    assert distance(bits(interpolate(kept, grown, 0)), bits(kept)) == 0
    assert distance(bits(interpolate(kept, grown, 1.0)), bits(grown)) == 0
    assert torch.allclose(interpolate(kept, grown, 0.25)["dense"], 0.75 * kept["dense"] + 0.25 * grown["dense"])
    assert interpolate(kept, grown, 0)["dense"].data_ptr() != kept["dense"].data_ptr()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match="alpha="):
        interpolate({}, {}, alpha)


def test_interpolation_names_the_tensors_that_differ() -> None:
    one = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(UserError) as error:
        interpolate(one, {"a": torch.zeros(2), "c": torch.zeros(2)}, 0.5)
    assert "tensor b" in error.value.problems[0]
    for other in (torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)):
        with pytest.raises(UserError, match="tensor b"):
            interpolate(one, one | {"b": other}, 0.5)


# Errors


def test_every_wrong_tensor_is_named_at_once() -> None:
    resize = resized(layer=THREE)
    state = drawn(PARAMS, resize.fine)
    del state["blocks.3.up"]
    state["blocks.0.quary"] = torch.zeros(1)
    state["dense"] = torch.zeros(2, 5)
    state["free"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UserError) as error:
        coalesce(state, PARAMS, resize)
    missing, unknown, shape, dtype = error.value.problems
    assert "blocks.3.up" in missing
    assert "did you mean blocks.0.query" in unknown
    assert "dense" in shape and "(2, 5)" in shape and "(2, 2)" in shape
    assert "free" in dtype and "int64" in dtype


def test_streams_check_names_before_the_first_tensor_and_shapes_on_the_way() -> None:
    resize = resized(layer=THREE)
    state = drawn(PARAMS, resize.coarse)
    with pytest.raises(UserError, match="tensor free: missing"):
        iter_decoalesce({n: t for n, t in state.items() if n != "free"}, PARAMS, resize)
    with pytest.raises(UserError, match="tensor norm: shape"):
        dict(iter_decoalesce(state | {"norm": torch.zeros(9)}, PARAMS, resize))


# Real families, float64

FAMILIES: dict[str, Model] = {
    "gpt": GPT(vocab=7, position=4, embed=6, head=2, head_dim=4, ffn=5, layer=2),
    "gpt_untied": GPT(vocab=7, position=4, embed=6, head=2, head_dim=4, ffn=5, layer=2, tied=False),
    "bert": BERT(vocab=7, position=4, token_type=2, embed=6, head=2, head_dim=4, ffn=5, layer=2),
    "deit": DeiT(
        image=4, channel=2, patch=2, classes=3, embed=6, head=2, head_dim=4, ffn=5, layer=2, distillation=True
    ),
    "vit": DeiT(image=4, channel=2, patch=2, classes=3, embed=6, head=2, head_dim=4, ffn=5, layer=2, pooling="mean"),
    "llama": Llama(vocab=7, position=4, embed=6, kv_head=2, group=2, head_dim=4, ffn=5, layer=2, qk_norm=True),
    "llama_biased": Llama(
        vocab=7, position=4, embed=6, kv_head=2, group=2, head_dim=4, ffn=5, layer=2, qkv_bias=True, output_bias=True
    ),
    "llama_tied": Llama(vocab=7, position=4, embed=6, kv_head=2, group=3, head_dim=2, ffn=5, layer=2, tied=True),
    "t5": T5(vocab=7, embed=6, head=2, head_dim=4, ffn=5, layer=2, decoder_layer=2, bucket=8, distance=9, tied=True),
    "t5_gated": T5(vocab=7, embed=6, head=2, head_dim=4, ffn=5, layer=2, decoder_layer=2, bucket=8, distance=9),
}
PRE_NORM = [name for name in FAMILIES if name != "bert"]
DEPTH = ("layer", "decoder_layer")


def batch_of(model: Model) -> dict[str, Tensor]:
    """Return two samples with labels."""
    generator = torch.Generator().manual_seed(5)
    words = torch.randint(0, 7, (3, 2, 4), generator=generator)
    if model.objective == "image":
        images = torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float64)
        return {"images": images, "labels": words[0, :, 0] % 3}
    batch = {"tokens": words[0], "labels": words[1]}
    if model.objective == "mlm":
        return batch | {"positions": torch.tensor([[0, 2], [1, 3]]), "labels": words[1, :, :2]}
    return batch | ({"decoder_tokens": words[2]} if model.objective == "span" else {})


def network(model: Model, state: Mapping[str, Tensor]) -> Network:
    net = build(model, None, dtype=torch.float64)
    net.load_state_dict(dict(state))
    return net


def weights(model: Model, seed: int = 0) -> dict[str, Tensor]:
    """Return weights with biases and norms away from their start, scaled so that softmaxes do not saturate."""
    state = drawn(model.params(), model.sizes(), seed)
    return {name: 0.5 * tensor + (tensor.dim() == 1) for name, tensor in state.items()}


def logits(model: Model, state: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return network(model, state).logits(batch_of(model))


def gradients(model: Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    net = network(model, state)
    net(batch_of(model)).backward()
    return {name: dict(net.named_parameters())[name].grad for name, _ in expand(model.params(), model.sizes())}


def change(a: Tensor, b: Tensor) -> float:
    """Return the largest logit change relative to the largest logit."""
    return float((a - b).abs().max() / a.abs().max())


@st.composite
def widths(draw: st.DrawFn, model: Model) -> Resize:
    """Draw a step up in width from a coarse model: norms need equal groups in `embed` alone."""
    sizes = model.sizes()
    axes = [axis for axis in ("embed", "ffn", "head", "kv_head") if axis in sizes]
    found = {axis: draw(merges(sizes[axis], even=axis == "embed")) for axis in axes}
    return Resize(sizes | {axis: merge.fine for axis, merge in found.items()}, sizes, found)


def grouped(model: Model, g: int, *axes: str, depth_scale: str = "copy") -> Resize:
    """Return a step that merges g strided units on these axes of the fine model."""
    sizes = model.sizes()
    chosen = [axis for axis in axes if axis in sizes]
    found = {
        axis: Merge(tuple(tuple(range(unit, g * sizes[axis], sizes[axis])) for unit in range(sizes[axis])))
        for axis in chosen
    }
    return Resize(sizes | {axis: g * sizes[axis] for axis in chosen}, sizes, found, depth_scale)


WIDTH = ("embed", "ffn", "head", "kv_head")


@pytest.mark.parametrize("g", [2, 3, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_width_keeps_the_function(name: str, g: int) -> None:
    model, resize = FAMILIES[name], grouped(FAMILIES[name], g, *WIDTH)
    state = weights(model)
    grown = decoalesce(state, model.params(), resize)
    assert change(logits(model, state), logits(model.resize(resize.fine), grown)) < 1e-12


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_width_keeps_the_function_for_any_groups(name: str, data: st.DataObject) -> None:
    model = FAMILIES[name]
    resize, state = data.draw(widths(model)), weights(model)
    fine = model.resize(resize.fine)
    grown = decoalesce(state, model.params(), resize)
    assert change(logits(model, state), logits(fine, grown)) < 1e-12
    assert distance(coalesce(grown, model.params(), resize), state) < 1e-12


def test_unequal_embed_groups_cannot_keep_it() -> None:
    model = FAMILIES["gpt"]
    merge = Merge(((0, 1), (2,), (3,), (4,), (5,), (6,)))
    resize = Resize(model.sizes() | {"embed": 7}, model.sizes(), {"embed": merge})
    grown = decoalesce(weights(model), model.params(), resize)
    assert change(logits(model, weights(model)), logits(model.resize(resize.fine), grown)) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_gradients_of_the_grown_model_are_the_grown_gradients(name: str, data: st.DataObject) -> None:
    model = FAMILIES[name]
    params, resize, state = model.params(), data.draw(widths(model)), weights(model)
    coarse = gradients(model, state)
    fine = gradients(model.resize(resize.fine), decoalesce(state, params, resize))
    assert distance(decoalesce(coarse, params, resize, rule="gradient"), fine) < 1e-12
    means_ = Resize(resize.fine, resize.coarse, {a: Merge(m.groups) for a, m in resize.merges.items()})
    assert distance(coalesce(fine, params, means_, rule="gradient"), coarse) < 1e-12


@pytest.mark.parametrize("name", PRE_NORM)
def test_identity_depth_keeps_the_function_and_its_gradients(name: str) -> None:
    model = FAMILIES[name]
    params, resize, state = model.params(), grouped(model, 3, *DEPTH, *WIDTH, depth_scale="identity"), weights(model)
    fine = model.resize(resize.fine)
    grown = decoalesce(state, params, resize)
    assert change(logits(model, state), logits(fine, grown)) < 1e-12
    wanted, got = decoalesce(gradients(model, state), params, resize, rule="gradient"), gradients(fine, grown)
    silent = [n for n, param in expand(params, resize.fine) if param.residual and not grown[n].any()]
    known = [n for n in wanted if n not in silent]
    assert distance({n: wanted[n] for n in known}, {n: got[n] for n in known}) < 1e-12
    # Theirs does not follow from the coarse gradients; of those that act it does.
    assert all(got[n].any() and not wanted[n].any() for n in silent)
    acting = [n for n, param in expand(params, resize.fine) if param.residual and n not in silent and wanted[n].any()]
    assert 0 < len(acting) < len(silent)


@pytest.mark.parametrize("name", PRE_NORM)
def test_ode_is_exact_to_first_order_in_the_branch_and_copy_is_not(name: str) -> None:
    model = FAMILIES[name]
    marks = {tensor: param.residual for tensor, param in expand(model.params(), model.sizes())}

    def jump(scale: str, step: float) -> float:
        resize = grouped(model, 2, *DEPTH, depth_scale=scale)
        state = {tensor: step * w if marks[tensor] else w for tensor, w in weights(model).items()}
        grown = decoalesce(state, model.params(), resize)
        return change(logits(model, state), logits(model.resize(resize.fine), grown))

    assert jump("ode", 1e-4) < 0.02 * jump("ode", 1e-3)
    assert jump("copy", 1e-4) > 0.08 * jump("copy", 1e-3)
    assert jump("ode", 1e-3) < 0.1 * jump("copy", 1e-3)


# Symmetry


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_noise_keeps_the_function(name: str, data: st.DataObject) -> None:
    model = FAMILIES[name]
    params, resize, state = model.params(), data.draw(widths(model)), weights(model)
    grown = decoalesce(state, params, resize)
    before = {tensor: w.clone() for tensor, w in grown.items()}
    noised = noise(grown, params, resize, scale=0.5, seed=1)
    assert change(logits(model, state), logits(model.resize(resize.fine), noised)) < 1e-12
    assert distance(grown, before) == 0


@pytest.mark.parametrize("g", [2, 3])
def test_noise_has_its_scale_sums_to_zero_and_makes_gradients_differ(g: int) -> None:
    model = FAMILIES["gpt"]
    params, resize = model.params(), grouped(model, g, *WIDTH)
    grown = decoalesce(weights(model), params, resize)
    noised = noise(grown, params, resize, scale=0.1, seed=1)
    changed = {name for name in grown if not torch.equal(grown[name], noised[name])}
    consumers = ("query.weight", "key.weight", "value.weight", "output.weight", "up.weight", "down.weight")
    assert changed == {name for name in grown if name.endswith(consumers)}
    for name in changed:
        added = noised[name] - grown[name]
        assert float(added.std() / grown[name].std()) == pytest.approx(0.1, rel=0.02)
    assert distance(coalesce(noised, params, resize), coalesce(grown, params, resize)) < 1e-12
    fine = model.resize(resize.fine)
    for state, alike in ((grown, True), (noised, False)):
        grads = gradients(fine, state)
        again = decoalesce(coalesce(grads, params, resize, rule="gradient"), params, resize, rule="gradient")
        assert (distance(grads, again) < 1e-12) == alike


def test_noise_follows_its_seed_and_refuses_a_negative_scale() -> None:
    model = FAMILIES["gpt"]
    params, resize = model.params(), grouped(model, 2, *WIDTH)
    grown = decoalesce(weights(model), params, resize)
    one, same, other = (noise(grown, params, resize, 0.1, seed) for seed in (1, 1, 2))
    assert distance(one, same) == 0
    assert distance(one, other) > 1e-3
    assert distance(noise(grown, params, resize, 0, 1), grown) == 0
    with pytest.raises(UserError, match="noise=-1"):
        noise(grown, params, resize, -1, 0)


def test_similarity_is_the_mean_cosine_of_pairs() -> None:
    resize = resized("identity", embed=THREE, head=THREE, layer=THREE)
    grown = decoalesce(drawn(PARAMS, resize.coarse), PARAMS, resize)
    alike = similarity(grown, PARAMS, resize)
    assert alike["blocks.0.query"] == pytest.approx(1) and alike["dense"] == pytest.approx(1)
    assert "norm" not in alike and "free" not in alike
    assert "blocks.4.down" not in alike, "zero rows have no angle"
    fine = drawn(PARAMS, resize.fine)
    rows = fine["blocks.0.query"].reshape(5, -1)
    cosine = torch.nn.functional.cosine_similarity
    pairs = {group: [(i, j) for i in group for j in group if i < j] for group in THREE.groups}
    wanted = [sum(float(cosine(rows[i], rows[j], 0)) for i, j in p) / len(p) for p in pairs.values()]
    found = similarity(fine, PARAMS, resize)
    assert found["blocks.0.query"] == pytest.approx(sum(wanted) / len(wanted))
