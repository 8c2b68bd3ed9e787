"""CompleteP: folded factors train as those in front do, coordinates stay flat, levels keep the base, functions stay."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import test_operators
import torch
import toy
from kills import die
from test_operators import FAMILIES as TINY
from torch import Tensor

from benchmarks.coordinates import moved
from mlrun.config.settings import Cycle, Row
from mlrun.errors import UserError
from mlrun.interop import initial
from mlrun.models.axes import expand
from mlrun.models.base import Model
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.gpt import GPT
from mlrun.models.llama import Llama
from mlrun.models.network import Network, build
from mlrun.models.t5 import T5
from mlrun.multilevel import operators
from mlrun.multilevel.coarsening.shallow import Shallow
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth.fresh import Fresh
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.table import notes
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.optimizers.base import Optimizer
from mlrun.train.optimizers.muon import Muon
from mlrun.train.optimizers.orthogonal import Orthogonal
from mlrun.train.optimizers.stepping import Stepping

WORDS, LENGTH = 32, 16
SIZES = {"embed": 16, "ffn": 32, "layer": 2}
HEADS = {"head": 2, "head_dim": 8}
FAMILIES: dict[str, Model] = {
    "gpt": GPT(vocab=WORDS, position=LENGTH, **HEADS, **SIZES),
    "untied": GPT(vocab=WORDS, position=LENGTH, tied=False, **HEADS, **SIZES),
    "bert": BERT(vocab=WORDS, position=LENGTH, token_type=2, **HEADS, **SIZES),
    "deit": DeiT(image=8, channel=3, patch=4, classes=5, **HEADS, **SIZES),
    "llama": Llama(vocab=WORDS, position=LENGTH, kv_head=2, group=2, head_dim=8, qk_norm=True, **SIZES),
}
T5S: dict[str, Model] = {
    "t5": T5(vocab=WORDS, bucket=8, distance=LENGTH, decoder_layer=2, tied=True, head_scale=0.25, **HEADS, **SIZES),
    "t5 v1.1": T5(vocab=WORDS, bucket=8, distance=LENGTH, decoder_layer=2, **HEADS, **SIZES),
}
EVERY = FAMILIES | T5S
LR, EPS, DECAY = 1e-2, 1e-3, 0.5


def grown(model: Model, width: int, depth: int, head_dim: int = 1) -> Model:
    """Return a model of other sizes; heads follow the width, or grow in their own."""
    heads = dict.fromkeys({"head", "kv_head"} & set(model.axes), width // head_dim)
    depths = dict.fromkeys({"layer", "decoder_layer"} & set(model.axes), depth)
    times = {"embed": width, "ffn": width, "head_dim": head_dim, **depths, **heads}
    return model.resize({axis: model.sizes()[axis] * factor for axis, factor in times.items()})


def completep(model: Model) -> Model:
    """Return a model in CompleteP; it is the base of the sizes that are made of it."""
    return replace(model, parametrization="completep")


def batch(model: Model, seed: int, samples: int = 4) -> dict[str, Tensor]:
    """Return random samples that the model can learn by heart."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(WORDS, (samples, LENGTH + 1), generator=draw)
    if model.objective == "image":
        return {"images": torch.randn(samples, 3, 8, 8, generator=draw), "labels": words[:, 0] % 5}
    if model.objective == "span":
        read = torch.randint(WORDS, (samples, LENGTH), generator=draw)
        return {"tokens": read, "decoder_tokens": words[:, :-1], "labels": words[:, 1:]}
    positions = torch.arange(LENGTH).expand(samples, -1)
    return {"tokens": words[:, :-1], "labels": words[:, 1:], "positions": positions}


# The paper's own form, with its factors in the forward pass


def in_front(model: Model, base: Model) -> Network:
    """Return the network with the factors of table 1 in front of raw weights, which start as it says."""
    (width, depth), t5 = ratios(model, base), isinstance(model, T5)
    net = build(replace(model, parametrization="standard", base=None), 0, dtype=torch.float64)
    wide, narrow = model.sizes()["head_dim"], base.sizes()["head_dim"]
    for block in (*net.encoder, *net.decoder) if t5 else net.blocks:
        for branch in (block.attention, block.mlp, *([block.cross] if hasattr(block, "cross") else [])):
            branch.register_forward_hook(lambda module, args, out: out / depth)
            if branch is not block.mlp:
                # 1 / d, to which the base's own scale stays as it is: T5 has none.
                branch.scale = narrow / wide if t5 else narrow**0.5 / wide
    tied = "head.weight" not in net.state_dict()
    last = (net.decoder_norm if t5 else net.norm) if tied else net.head
    last.register_forward_hook(lambda module, args, out: out / width)
    # Hidden matrices have 1 / m_N of the base's variance; the rest starts as at the base.
    declared, drawn = base.params(), build(model, 0, dtype=torch.float64).state_dict()
    for name, p in net.named_parameters():
        template = next(t for t in declared if re.fullmatch(re.sub(r"\{\w+\}", r"\\d+", t), name))
        std = declared[template].std * (width**-0.5 if hidden(name, p) else 1.0)
        p.data = (
            p.data.fill_(declared[template].mean) if std == 0 else drawn[name] * (std / model.params()[template].std)
        )
    return net


def ratios(model: Model, base: Model) -> tuple[float, float]:
    """Return (width, depth) over those of the base."""
    return model.sizes()["embed"] / base.sizes()["embed"], model.sizes()["layer"] / base.sizes()["layer"]


def hidden(name: str, p: Tensor) -> bool:
    """Return whether a tensor is a matrix inside a block."""
    return inside(name) and p.ndim == 2


def inside(name: str) -> bool:
    return name.startswith(("blocks.", "encoder.", "decoder."))


def raw_muon(net: Network, model: Model, base: Model) -> list[torch.optim.Optimizer]:
    """Return Muon with orthogonal steps of the size that they have at the base, times sqrt(out / in) of the ratios."""
    wide, _ = ratios(model, base)
    matrices = [p for name, p in net.named_parameters() if hidden(name, p)]
    groups = [{"params": [p], "lr": LR / math.sqrt(wide)} for p in matrices]
    # Its decay is that of the run, not of the step.
    muon = Orthogonal(groups, LR, DECAY * math.sqrt(wide), 0.95, True, 5)
    adamw = raw_adamw(net, model, base)
    adamw.param_groups = [group for group in adamw.param_groups if not any(group["params"][0] is p for p in matrices)]
    return [muon, adamw]


def raw_adamw(net: Network, model: Model, base: Model) -> torch.optim.Optimizer:
    """Return AdamW with the rates, decays and epsilons of table 1."""
    width, depth = ratios(model, base)
    groups = []
    for name, p in net.named_parameters():
        # A bias of scores is made of heads, of which there are as many here.
        made = 1.0 if name.endswith("coder_bias.weight") else width
        groups.append(
            {
                "params": [p],
                "lr": LR / width if hidden(name, p) else LR,
                "weight_decay": (DECAY * width if hidden(name, p) else DECAY) if p.ndim == 2 else 0.0,
                "eps": EPS / made / (depth if inside(name) else 1.0),
            }
        )
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("name", ["gpt", "untied", *T5S])
def test_folded_factors_train_as_those_in_front_of_the_weights(name: str, kind: type[AdamW]) -> None:
    """Six steps, with an epsilon and a decay that matter: the same losses and logits.

    To float64's digits under AdamW; Muon's steps are orthogonalised in bfloat16, which rounds a gradient otherwise
    that is a factor apart.
    """
    base = EVERY[name]
    model = grown(completep(base), width=2, depth=3, head_dim=2)
    raw, folded = in_front(model, base), build(model, 0, dtype=torch.float64)
    optimizers = [raw_adamw(raw, model, base)] if kind is AdamW else raw_muon(raw, model, base)
    stepping = Stepping(kind(lr=LR, eps=EPS, weight_decay=DECAY), folded)
    stepping.set_rate(LR)
    for step in range(6):
        losses = [net(batch(model, step)) for net in (raw, folded)]
        assert abs(losses[0] - losses[1]).item() < (1e-12 if kind is AdamW else 1e-3)
        torch.autograd.backward(losses)
        for part in (*optimizers, stepping):
            part.step()
            part.zero_grad()
    last = batch(model, 99)
    start = build(model, 0, dtype=torch.float64).logits(last)
    far = (folded.logits(last) - start).abs().max().item()
    assert (raw.logits(last) - folded.logits(last)).abs().max().item() < (1e-11 if kind is AdamW else 0.02 * far)
    assert far > 0.1


@pytest.mark.parametrize("name", EVERY)
def test_at_the_base_it_is_the_standard_parametrisation(name: str) -> None:
    model = EVERY[name]
    assert completep(model).params() == model.params()
    assert grown(completep(model), 2, 2).resize(model.sizes()).params() == model.params()


# Coordinates


def spread(model: Model, kind: type[Optimizer], width: int, depth: int, of: Model | None = None) -> float:
    """Return how many times further five steps move the hidden states of a larger model than those of a smaller."""
    batches = [batch(model, seed) for seed in range(6)]
    return moved(grown(model, width, depth), batches, kind).hidden / moved(of or model, batches, kind).hidden


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_coordinates_are_flat_over_width_and_depth(kind: type[Optimizer], name: str) -> None:
    """Eight times as wide and eight times as deep: within a factor, which the standard parametrisation leaves."""
    bound = 1.6 if kind is AdamW else 1.15
    for size in ({"width": 8, "depth": 1}, {"width": 1, "depth": 8}):
        assert 1 / bound < spread(completep(FAMILIES[name]), kind, **size) < bound, size
    if name != "bert":  # whose norms hold its hidden states wherever they went
        assert spread(FAMILIES[name], kind, 8, 1) > (2.5 if kind is AdamW else 1.3)
        assert spread(FAMILIES[name], kind, 1, 8) > (2 if kind is AdamW else 1.4)


@pytest.mark.parametrize("name", T5S)
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_coordinates_of_a_t5_flatten_over_both_of_its_stacks(kind: type[Optimizer], name: str) -> None:
    """From four to sixteen times the base: they fall to a limit, as what T5's large random start adds dies out."""
    for width, depth in ((4, 1), (1, 4)):
        plain, scaled = T5S[name], completep(T5S[name])
        assert 0.5 < spread(scaled, kind, width**2, depth**2, grown(scaled, width, depth)) < 1.3
        assert spread(plain, kind, width**2, depth**2, grown(plain, width, depth)) > (1.4 if width > 1 else 2.5)


def test_the_base_of_an_encoder_is_that_of_its_decoder() -> None:
    model = replace(T5S["t5"], parametrization="completep", base={"layer": 1})
    assert model.base_sizes() == model.sizes() | {"layer": 1, "decoder_layer": 1}
    other = replace(model, base={"layer": 1, "decoder_layer": 2})
    assert other.base_sizes() == model.sizes() | {"layer": 1}
    assert grown(other, 1, 2).base_sizes()["decoder_layer"] == 2


# Levels


@pytest.mark.parametrize("name", TINY)
def test_given_weights_compute_the_same_in_every_parametrisation(name: str) -> None:
    """And an operator finds the same axes: so what it promises holds."""
    model = TINY[name]
    other = completep(model).resize({axis: 3 for axis in ("layer", "ffn")}).resize(model.sizes())
    other = replace(other, base={"embed": 2, "ffn": 11, "layer": 7, "head_dim": 2})
    state = test_operators.weights(model)
    assert torch.equal(test_operators.logits(model, state), test_operators.logits(other, state))
    shown = {t: (p.dims, p.residual) for t, p in model.params().items()}
    assert {t: (p.dims, p.residual) for t, p in other.params().items()} == shown
    assert {p.rate for p in other.params().values()} != {1.0}


@pytest.mark.parametrize("name", EVERY)
def test_width_keeps_the_function_between_levels_of_other_factors(name: str) -> None:
    fine = completep(EVERY[name])
    resize = Uniform(width=2, ffn=2, head=2).resize(fine.sizes())
    coarse = fine.resize(resize.coarse)
    assert {p.rate for p in coarse.params().values()} > {1.0}
    small = build(coarse, 0, dtype=torch.float64)
    large = build(fine, None, dtype=torch.float64)
    large.load_state_dict(operators.decoalesce(small.state_dict(), coarse.params(), resize))
    data = {key: t.double() if t.is_floating_point() else t for key, t in batch(fine, 0).items()}
    assert torch.allclose(small.logits(data), large.logits(data), rtol=0, atol=1e-13)


def config(**changes: object) -> object:
    return toy.make(model=completep(replace(toy.model(), layer=4)), **changes)


def test_levels_have_the_first_as_their_base_unless_one_is_named() -> None:
    plan = make_plan(config())
    assert plan.level(2).model.base == {"embed": 32, "ffn": 64, "head": 4, "head_dim": 8, "layer": 4}
    rates = {(at["kind"], at["rate"]) for at in as_dict(plan)["levels"][1]["rates"]}
    # Half the width and half the depth; a bias has no width to read.
    assert rates == {
        ("ends of branches", 4.0),
        ("ends of branches, biases", 2.0),
        ("head", 2.0),
        ("hidden matrices", 2.0),
        ("queries", 2.0),
        ("queries, biases", 1.0),
        ("tables and vectors", 1.0),
    }
    (first, second, *_) = notes(as_dict(plan))
    assert first == "  level 1: completep: lr x 1"
    assert "lr x 4 ends of branches; 2 ends of branches, biases; 2 head" in second
    named = toy.make(model=replace(toy.model(), layer=4, parametrization="completep", base={"layer": 2}))
    assert [level.model.base_sizes()["layer"] for level in make_plan(named).levels] == [2, 2]
    assert "rates" not in as_dict(make_plan(toy.make()))["levels"][0]


def test_a_level_without_layers_and_layers_that_are_new() -> None:
    """New layers start as those of their own level, whatever the one below has."""
    fine = completep(replace(toy.model(), layer=4))
    empty = fine.resize({"layer": 0})
    assert not any("blocks" in name for name, _ in expand(empty.params(), empty.sizes()))
    deep = grown(fine, 1, 2)
    down = "blocks.{layer}.mlp.down.weight"
    assert deep.params()[down].std == fine.params()[down].std / 2
    assert fine.params()[down].std == 0.02 / 8**0.5  # GPT-2's own start, at the base


def test_a_v_cycle_keeps_what_its_receipts_promise_and_resumes_bitwise(tmp_path: Path) -> None:
    cycle = Cycle(name="v", stages=list(toy.V_CYCLE), optimizer_policy="carry")
    settings = config(
        cycle=cycle, coarsening=Uniform(width=2, ffn=2, head=2), checkpoint=toy.Checkpoint(every="2 steps")
    )
    toy.run(tmp_path / "whole", settings)
    log = toy.records(tmp_path / "whole")
    up = [r for r in log if r["kind"] == "transfer"][-1]
    assert up["exact"]
    assert up["relative_logit_change"] < 1e-5
    losses = [r["loss"] for r in log if r["kind"] == "val"]
    assert losses[-1] < losses[0] - 0.1
    die(tmp_path / "killed", settings, 9)
    toy.run(tmp_path / "killed", settings)
    assert toy.records(tmp_path / "killed") == log


def test_growing_by_fresh_layers_runs_from_no_layer(tmp_path: Path) -> None:
    cycle = Cycle(name="late", stages=[Row(2, "50%"), Row(1, "50%")])
    toy.run(tmp_path, config(cycle=cycle, coarsening=Shallow(layers=0), growth=Fresh()))
    losses = [r["loss"] for r in toy.records(tmp_path) if r["kind"] == "val"]
    assert losses[-1] < losses[0] - 0.1


# The optimizer


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_the_rate_of_the_run_is_multiplied_and_all_matrices_decay_alike(kind: type[AdamW]) -> None:
    model = grown(completep(FAMILIES["untied"]), 2, 3)
    net = build(model, 0)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    stepping = Stepping(kind(lr=1.0, weight_decay=0.1), net)
    stepping.set_rate(0.5)
    wide = 2 if kind is AdamW else 2**0.5
    expected = {0.5, 0.5 / 2, 0.5 / wide, 0.5 / 3, 0.5 / 3 / wide}
    rates = {group["lr"] for part in stepping.parts for group in part.param_groups}
    assert sorted(rates) == pytest.approx(sorted(expected))
    stepping.step()
    for name, p in net.named_parameters():
        assert torch.allclose(p, torch.full_like(p, 0.95 if p.ndim >= 2 else 1.0)), name


# Mistakes, and folders


class Plain(AdamW):
    """One's own, which applies no factors."""

    parametrizations = ("standard",)


def refusal(**changes: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        make_plan(toy.make(**changes))
    return caught.value.problems


def test_what_it_cannot_do_is_one_line() -> None:
    model = completep(toy.model())
    assert refusal(model=model, optimizer=Plain(lr=1e-3)) == [
        "model.parametrization=completep: allowed: standard; Plain knows no other: choose it with model.base=null, "
        "or optimizer=adamw"
    ]
    assert refusal(model=replace(model, parametrization="mup")) == [
        "model.parametrization=mup: allowed: standard, completep; choose one"
    ]
    (line,) = refusal(model=replace(toy.model(), base={"layer": 2}))
    assert line.startswith("model.base={'layer': 2}: allowed: null with standard; set model.parametrization=completep")
    assert refusal(model=replace(model, base={"vocab": 2, "layer": 0})) == [
        "model.base=vocab: allowed: embed, ffn, head, head_dim, layer; name an axis that is scaled",
        "model.base.layer=0: allowed: an integer from 1 to 4194304; give the size that it had",
    ]


def test_weights_of_one_parametrisation_start_a_run_in_the_other() -> None:
    model = toy.model()
    assert initial.unlike("folder", model, completep(model)) == []
    assert initial.unlike("folder", grown(completep(model), 1, 2), grown(model, 1, 2)) == []
    assert len(initial.unlike("folder", model, grown(completep(model), 1, 2))) == 1
