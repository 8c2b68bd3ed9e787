"""Looking at the layers changes no bit of a training, and what is seen is what is there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pair
import pytest
import torch
import toy
from pair import Part

from mlrun.config.settings import Hardware
from mlrun.log import console
from mlrun.log.sink import series
from mlrun.models.base import Model
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.llama import Llama
from mlrun.models.network import Network, build
from mlrun.models.t5 import T5
from mlrun.report import layers
from mlrun.train import health
from mlrun.train.parallel.processes import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
QUANTITIES = ("gradient", "weight", "gain", "activation", "logit")


def looks(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "health"]


def rest(folder: Path) -> list[dict[str, Any]]:
    return [line for line in toy.records(folder) if line["kind"] != "health"]


def test_losses_and_weights_are_bitwise_those_without_it(tmp_path: Path) -> None:
    dropping = {"model": replace(toy.model(), dropout=0.1), **toy.BRANCHED}
    plain = toy.run(tmp_path / "plain", toy.make(**dropping))
    seen = toy.run(tmp_path / "seen", toy.make(**dropping, health=True))
    assert rest(tmp_path / "seen") == rest(tmp_path / "plain") and not looks(tmp_path / "plain")
    with_it, without = toy.weights(tmp_path / "seen"), toy.weights(tmp_path / "plain")
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    found = looks(tmp_path / "seen")
    vals = [line for line in rest(tmp_path / "seen") if line["kind"] == "val"]
    assert [(r["stage"], r["step"]) for r in found] == [(r["stage"], r["step"]) for r in vals]
    assert seen["ledger"]["health"] == {"looks": len(found), "flops": sum(r["health_flops"] for r in found)}
    assert "health" not in plain["ledger"] and all(r["health_flops"] > 0 for r in found)


def test_each_transition_has_a_look_before_and_after(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.make(health=True))
    found = [(r["stage"], r["level"], r["step"]) for r in looks(tmp_path)]
    moved = [(r["stage"], r["step"]) for r in toy.records(tmp_path) if r["kind"] == "transfer"]
    assert len(moved) == 2
    for stage, step in moved:
        assert {(s, at) for s, _, at in found} >= {(stage - 1, step), (stage, step)}


def test_recomputed_activations_change_nothing_of_it(tmp_path: Path) -> None:
    for name, again in (("stored", False), ("again", True)):
        toy.run(tmp_path / name, toy.make(health=True, hardware=Hardware(activation_checkpointing=again)))
    assert looks_alike(looks(tmp_path / "again"), looks(tmp_path / "stored"))


def looks_alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]], rel: float = 1e-5) -> bool:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        for quantity in QUANTITIES:
            assert one[quantity] == pytest.approx(other[quantity], rel=rel, abs=1e-6), quantity
        assert one["health_flops"] == other["health_flops"]
    return True


@pytest.mark.parametrize("hardware", [{}, {"sharding": "fsdp"}], ids=["DDP", "FSDP"])
def test_two_processes_see_what_one_sees(tmp_path: Path, hardware: dict[str, Any]) -> None:
    pair.live(Part(str(tmp_path / "one"), "health", {}))
    pair.together(tmp_path, [Part(str(tmp_path / "two"), "health", hardware)])
    assert looks_alike(looks(tmp_path / "two"), looks(tmp_path / "one"), rel=2e-3)


def test_compiled_blocks_are_seen_too_and_stay_compiled() -> None:
    net = build(toy.model(), 0)
    compiled = net.blocks[0].forward = lambda *given: pytest.fail("compiled code calls nobody")
    assert health.look(net, batch(toy.model()), Hardware(), ALONE) is not None
    assert net.blocks[0].forward is compiled and "forward" not in net.blocks[1].__dict__


SMALL = {"embed": 16, "head": 2, "head_dim": 8, "ffn": 32, "layer": 2}
FAMILIES: dict[str, Model] = {
    "gpt": toy.model(),
    "bert": BERT(vocab=toy.WORDS, position=toy.SEQUENCE, token_type=1, **SMALL),
    "t5": T5(vocab=toy.WORDS, decoder_layer=2, bucket=8, distance=10, **SMALL),
    "deit": DeiT(image=8, channel=3, patch=4, classes=6, **SMALL),
    "llama": Llama(toy.WORDS, toy.SEQUENCE, 16, kv_head=2, group=2, head_dim=8, ffn=32, layer=2),
}


def batch(model: Model) -> dict[str, torch.Tensor]:
    """Return a few samples that a model can read."""
    if model.objective == "image":
        drawn = torch.Generator().manual_seed(0)
        return {"images": torch.randn(3, 3, 8, 8, generator=drawn), "labels": torch.tensor([0, 5, 2])}
    if isinstance(model, T5):
        given = next(toy.Source(0, toy.SEQUENCE).validation(3))
        return {"tokens": given["tokens"], "decoder_tokens": given["tokens"][:, :7], "labels": given["labels"][:, :7]}
    return dict(next(toy.Source(0, toy.SEQUENCE).validation(3)))


def net_of(model: Model) -> Network:
    net = build(model, 0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)  # so that scores are far from 0
    return net


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_and_scores_are_those_that_are_worked_out_by_hand(name: str) -> None:
    model = FAMILIES[name]
    net, given = net_of(model), batch(model)
    found = health.look(net, given, Hardware(), ALONE)
    assert found is not None and net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    net.eval()(given).backward()
    for quantity, of in (("gradient", lambda p: p.grad), ("weight", lambda p: p)):
        squares: dict[str, float] = {}
        for of_, parameter in net.named_parameters():
            square = of(parameter).double().square().sum().item()
            squares[health.layer(of_)] = squares.get(health.layer(of_), 0.0) + square
        assert found[quantity] == pytest.approx({key: math.sqrt(s) for key, s in squares.items()}, rel=1e-5)
    norms = {
        name: p.square().mean().sqrt().item() for name, p in net.named_parameters() if name.endswith("norm.weight")
    }
    least = {key: min(v for name, v in norms.items() if health.layer(name) == key) for key in map(health.layer, norms)}
    assert found["gain"] == pytest.approx(least, rel=1e-5)
    of_blocks = {key for key in found["weight"] if "." in key}
    assert set(found["logit"]) == set(found["activation"]) == of_blocks and len(of_blocks) == (4 if name == "t5" else 2)


def test_the_largest_score_counts_only_what_is_not_hidden() -> None:
    q, k = torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[[1.0], [9.0]]]])
    seen = health._Seen(inside="here")
    seen.attention(q, k, None, True, 1.0)
    assert seen.logits["here"].item() == 18.0 and seen.flops == 2 * 2 * 2
    seen = health._Seen(inside="here")
    seen.attention(q, k, torch.tensor([[[[True, False], [True, False]]]]), False, 1.0)
    assert seen.logits["here"].item() == 2.0
    seen = health._Seen(inside="here")
    seen.attention(q, k, torch.tensor([[[[0.0, -torch.inf], [5.0, -torch.inf]]]]), False, None)
    assert seen.logits["here"].item() == 7.0


def test_dashboards_have_a_section_a_quantity_and_a_panel_a_layer() -> None:
    place = {"kind": "health", "stage": 1, "level": 2, "step": 3, "tokens": 1, "flops": 2.0, "flops_body": 1.0}
    named = series({**place, "seconds": 0.5, "gradient": {"blocks.0": 0.25}, "logit": {}, "health_flops": 7})
    assert named["health_level2_gradient/blocks.0"] == 0.25 and named["health_level2/flops"] == 7
    assert "health_gradient/blocks.0" in series({**place, "level": 1, "gradient": {"blocks.0": 1.0}, "health_flops": 7})


def test_the_terminal_names_the_layer_of_each_extreme_and_the_page_takes_looks_without_gains() -> None:
    record = {"kind": "health", "gradient": {"token": 2.0, "blocks.0": 3.0}, "logit": {}}
    record |= {"gain": {"blocks.0": 0.9, "blocks.1": 0.004}}
    told = console.what(record, cast(console.Pace, None))
    assert told == "layers | largest gradient 3 in blocks.0 | no logit | least gain 0.004 in blocks.1"
    looks = [{"flops": 1.0, "gradient": {"token": 2.0}}, {"flops": 2.0, "gain": {"blocks.1": 0.5}}]
    assert layers._layers(looks, "gain") == [{"name": "blocks.1", "points": [[1, None], [2, 0.5]]}]
