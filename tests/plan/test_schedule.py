"""Lengths with units, the shapes of the learning rate, and what the policies do between stages."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from mlrun.config.settings import Schedule
from mlrun.models.layers import Flops
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.schedule import factor, rate
from mlrun.plan.stages import Level, Plan, Samples, Stage
from mlrun.plan.table import notes
from mlrun.train.optimizers.adamw import AdamW
from mlrun.units import UNITS, Length, Rates, human, parse

RATES = Rates(samples=16, tokens=2048, flops=10**12, whole=1000)
SHAPES = ("constant", "cosine", "linear", "wsd")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("5%", Length(5.0, "%")),
        ("1500 steps", Length(1500.0, "steps")),
        ("1 step", Length(1.0, "steps")),
        ("20M tokens", Length(20e6, "tokens")),
        ("1.5B tokens", Length(1.5e9, "tokens")),
        ("64k samples", Length(64e3, "samples")),
        ("3e18 flops", Length(3e18, "flops")),
        ("2.5Eflops", Length(2.5e18, "flops")),
        ("rest", Length(0.0, "rest")),
    ],
)
def test_a_length_is_a_number_with_its_unit(text: str, length: Length) -> None:
    assert parse(text) == length


@pytest.mark.parametrize(
    ("policy", "warmup", "lines"),
    [
        ("restart", "10%", []),
        ("restart", "6 steps", ["stage 1 ends in its warm-up: 6 steps of it, 4 in all; it reaches 67% of its rate"]),
        ("continue", "6 steps", []),
        (
            "continue",
            "40 steps",
            ["the run ends in its warm-up: 40 steps of it, 22 in all; it reaches 55% of its rate"],
        ),
    ],
)
def test_a_warm_up_longer_than_its_stage_is_said_in_the_plan(policy: str, warmup: str, lines: list[str]) -> None:
    cycle = toy.Cycle(name="2level", stages=list(toy.V_CYCLE), lr_policy=policy)
    plan = make_plan(toy.make(cycle=cycle, optimizer=AdamW(lr=1e-2, schedule=Schedule(warmup=warmup))))
    assert list(plan.notes) == lines
    assert notes(as_dict(plan))[: len(lines)] == [f"  {line}" for line in lines]


@pytest.mark.parametrize("text", ["100", "5", "", "5 percent", "k steps", "5k%", "-5%", "1e999 steps", "20M", 20, None])
def test_anything_else_is_no_length(text: object) -> None:
    assert parse(text) is None


@given(st.integers(0, 10**6), st.sampled_from(UNITS))
def test_every_unit_reads_back(number: int, unit: str) -> None:
    assert parse(f"{number} {unit}") == Length(float(number), unit)


@given(st.integers(0, 10**6))
def test_steps_of_each_unit_agree(steps: int) -> None:
    for length in (
        Length(steps, "steps"),
        Length(steps * RATES.tokens, "tokens"),
        Length(steps * RATES.samples, "samples"),
        Length(steps * float(RATES.flops), "flops"),
        Length(steps * 100 / RATES.whole, "%"),
    ):
        assert RATES.steps(length) == steps


@given(st.floats(1e-3, 1e24))
def test_a_count_for_people_is_right_to_three_digits(number: float) -> None:
    text = human(number)
    prefix = text[-1] if text[-1].isalpha() else ""
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}[prefix]
    assert math.isclose(float(text.removesuffix(prefix)) * scale, number, rel_tol=0.006)
    assert "e+" not in text or number >= 0.9995e24


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_is_linear_and_ends_at_the_peak(shape: str) -> None:
    schedule = Schedule(shape=shape, warmup="10 steps", floor=0.0)
    assert [factor(schedule, step, 100, RATES) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]


@given(st.sampled_from(SHAPES), st.integers(0, 20), st.integers(30, 300), st.floats(0, 1))
def test_after_the_warm_up_the_rate_never_rises_and_ends_at_the_floor(
    shape: str, warmup: int, span: int, floor: float
) -> None:
    schedule = Schedule(shape=shape, warmup=f"{warmup} steps", decay="10 steps", floor=floor)
    factors = [factor(schedule, step, span, RATES) for step in range(span)]
    falling = factors[max(warmup - 1, 0) :]
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert math.isclose(factors[-1], 1.0 if shape == "constant" else floor, abs_tol=1e-9)


def test_shapes_half_way() -> None:
    """Of 101 steps the 50th is half way."""
    half = {
        shape: factor(Schedule(shape=shape, warmup="0 steps", decay="20 steps", floor=0.0), 50, 101, RATES)
        for shape in SHAPES
    }
    assert half == pytest.approx({"constant": 1.0, "cosine": 0.5, "linear": 0.5, "wsd": 1.0})


def test_wsd_is_stable_until_its_decay_then_linear() -> None:
    schedule = Schedule(shape="wsd", warmup="0 steps", decay="20 steps", floor=0.0)
    assert [factor(schedule, step, 100, RATES) for step in (0, 79, 80)] == [1.0, 1.0, 1.0]
    assert factor(schedule, 90, 100, RATES) == pytest.approx(9 / 19)


def plan() -> Plan:
    """Return a V-cycle: 20 steps at level 1, 60 at level 2, 20 at level 1; level 2 has twice the rate."""
    levels = tuple(Level(n, None, 1, Flops(10**9 // n, 0)) for n in (1, 2))
    fine, coarse = (((level.flops,), Flops(0, 0)) for level in levels)
    samples = Samples(128, 128, 16, 128)
    stages = (
        Stage(0, 1, samples, *fine, 1.0, first=0, steps=20),
        Stage(1, 2, samples, *coarse, 2.0, "coalesce", first=20, steps=60),
        Stage(2, 1, samples, *fine, 1.0, "decoalesce", first=80, steps=20),
    )
    return Plan("v", 16, 128, 128, 100, levels, stages)


def rates(policy: str) -> list[float]:
    """Return the rate of each step over its level's peak."""
    whole, optimizer = plan(), AdamW(lr=0.1, schedule=Schedule(shape="linear", warmup="10%", floor=0.0))
    return [
        rate(whole, optimizer, policy, stage, step) / 0.1 / stage.lr_scale
        for stage in whole.stages
        for step in range(stage.first, stage.end)
    ]


def test_restart_gives_every_stage_a_schedule_of_its_own() -> None:
    found = rates("restart")
    assert found[0] == 0.5 and found[19] == 0.0
    assert found[20] == pytest.approx(1 / 6) and found[25] == 1.0 and found[79] == 0.0
    assert found[80] == 0.5 and found[81] == 1.0 and found[99] == 0.0


def test_continue_runs_one_schedule_through_all_stages() -> None:
    found = rates("continue")
    assert found[9] == 1.0 and found[99] == 0.0
    assert all(a > b for a, b in pairwise(found[10:]))


def test_rewarm_is_continue_with_a_warm_up_at_each_transfer() -> None:
    found, smooth = rates("rewarm"), rates("continue")
    assert found[:20] == smooth[:20]
    assert found[20] == pytest.approx(smooth[20] / 6) and found[25:80] == smooth[25:80]
    assert found[80] == pytest.approx(smooth[80] / 2) and found[81:] == smooth[81:]


def test_a_level_has_its_own_factor_on_the_rate() -> None:
    whole, optimizer = plan(), AdamW(lr=0.1, schedule=Schedule(shape="constant", warmup="0%"))
    assert [rate(whole, optimizer, "restart", stage, stage.first) for stage in whole.stages] == [0.1, 0.2, 0.1]
