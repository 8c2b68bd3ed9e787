"""A smaller model alone gets the FLOPs that the budget costs the whole one, and is kept as what it is."""

from __future__ import annotations

import pytest

import mlrun
from mlrun.cli import command, points, preflight
from mlrun.config.load import Config
from mlrun.errors import UserError
from mlrun.units import flops, parse

TINY = ["scale=tiny", "run=one"]


def kept(words: list[str]) -> Config:
    """Return the configuration that a run of these words keeps."""
    (checked,) = preflight.check(points.of(command.read(words)))
    assert checked.planned is not None
    return checked.planned[0]


@pytest.mark.parametrize("budget", ["500k tokens", "200 steps", "3k samples", "300G flops"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_spends_what_the_whole_model_would(budget: str, optimizer: str) -> None:
    given = [*TINY, f"budget={budget}", f"optimizer={optimizer}"]
    whole, small = mlrun.plan([*given, "method=scratch"]), mlrun.plan([*given, "method=alone"])
    a_step = small.stages[0].flops_of_a_step
    assert abs(small.total.flops - whole.total.flops) <= a_step / 2
    assert a_step < whole.stages[0].flops_of_a_step, "so it takes more steps"
    assert small.levels[0].sizes == whole.levels[0].sizes | {"layer": 1}


def test_it_is_kept_as_that_model_and_its_flops() -> None:
    """So the run is read, resumed and paired as any other of its size."""
    asked = kept([*TINY, "method=alone", "alone.layer=2"])
    budget = asked.settings.budget
    assert budget.endswith("G flops")
    given = kept([*TINY, "method=scratch", "model.layer=2", f"budget={budget}"])
    assert asked.resolved == given.resolved
    assert "alone" not in asked.resolved and asked.settings.alone == {}


@pytest.mark.parametrize("number", [5, 999_999, 10**6, 423993802752, 7.08e12, 3e21])
def test_a_budget_is_written_in_six_digits(number: float) -> None:
    read = parse(flops(number))
    assert read is not None and read.unit == "flops" and read.amount == pytest.approx(number, rel=1e-5)
    assert len(flops(number)) <= len("423.994G flops")


def test_without_it_nothing_changes_and_with_it_the_plan_says_so() -> None:
    assert not any("alone" in note for note in mlrun.plan([*TINY, "method=scratch"]).notes)
    said = "a smaller model alone (layer 1 of 4), for the FLOPs that 500k tokens cost the whole one"
    assert said in mlrun.plan([*TINY, "method=alone"]).notes


def test_a_t5_has_both_of_its_stacks_cut() -> None:
    """As growth from one layer begins; a control with all of the decoder would flatter it."""
    tiny = ["model=t5_tiny", "budget=200k tokens", "method=alone"]
    assert mlrun.plan(tiny).levels[0].sizes["decoder_layer"] == 1
    assert mlrun.plan([*tiny, "+alone.decoder_layer=3"]).levels[0].sizes["decoder_layer"] == 3
    short = mlrun.plan([*tiny, "model.decoder_layer=1", "alone.layer=2"]).levels[0].sizes
    assert (short["layer"], short["decoder_layer"]) == (2, 1)


@pytest.mark.parametrize(("share", "layers", "size"), [("50%", 8, 4), ("50%", 12, 6), ("25%", 6, 2), ("1%", 4, 1)])
def test_a_size_may_be_a_share_of_the_whole_ones(share: str, layers: int, size: int) -> None:
    words = [*TINY, f"model.layer={layers}", "method=alone"]
    shared, counted = kept([*words, f"alone.layer={share}"]), kept([*words, f"alone.layer={size}"])
    assert shared.resolved == counted.resolved and shared.model.sizes()["layer"] == size


@pytest.mark.parametrize(("layers", "few"), [(2, 1), (3, 2), (4, 2), (6, 2), (8, 3), (12, 3), (24, 5), (48, 7)])
def test_the_middle_between_one_layer_and_all_is_a_method(layers: int, few: int) -> None:
    words = [*TINY, f"model.layer={layers}"]
    whole, small = mlrun.plan([*words, "method=scratch"]), mlrun.plan([*words, "method=alone_middle"])
    assert small.levels[0].sizes["layer"] == few
    assert abs(small.total.flops - whole.total.flops) <= small.stages[0].flops_of_a_step / 2


def test_a_grid_over_the_depth_gives_each_its_own_control() -> None:
    plans = [mlrun.plan([*TINY, "method=alone", f"model.layer={layers}"]) for layers in (4, 8)]
    assert plans[1].total.flops > 1.5 * plans[0].total.flops
    assert [plan.levels[0].sizes["layer"] for plan in plans] == [1, 1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["alone.layer=4"], "alone.layer=4: allowed: 1 to 3, a share as 50%, or middle; the whole model has 4"),
        (["alone.layer=0"], "alone.layer=0: allowed: 1 to 3"),
        (["alone.layer=100%"], "alone.layer=100%: allowed: 1 to 3, a share as 50%, or middle; the whole model has 4"),
        (["alone.layer=0%"], "alone.layer=0%: allowed: 1 to 3, a share as 50%, or middle"),
        (["alone.layer=half"], "alone.layer=half: allowed: 1 to 3, a share as 50%, or middle"),
        (["alone.layer=1.5"], "alone.layer=1.5: allowed: 1 to 3, a share as 50%, or middle"),
        (["alone.layer=true"], "alone.layer=[Tt]rue: allowed: 1 to 3, a share as 50%, or middle"),
        (["alone.layer=null"], "alone.layer=(null|None): allowed: 1 to 3, a share as 50%, or middle"),
        (["alone.layer=20 steps"], "alone.layer=20 steps: allowed: 1 to 3, a share as 50%, or middle"),
        (["model.layer=1", "alone.layer=middle"], "alone.layer=middle: allowed: left out; the whole model has 1"),
        (["model.layer=1"], "alone.layer=1: allowed: left out; the whole model has 1"),
        (["+alone.layers=2"], "alone.layers=2: allowed: vocab, .*did you mean layer"),
        (["~alone.layer", "alone.embed=8"], "alone.embed=8: allowed: nothing; .*[+]alone.embed=... adds it"),
        (["budget=10"], "budget=10: allowed: 1500 steps"),
    ],
)
def test_what_is_wrong_is_a_line(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        mlrun.plan([*TINY, "method=alone", *words])
