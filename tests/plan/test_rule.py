"""The rule that ends a stage, on invented curves."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlrun.plan.rule import WINDOW, Course, Look, Verdict, decide, fitted

COURSE = Course(latest=1000, cost=0.4)


def looks(law: Callable[[int], float], until: int = 1000, noise: float = 0.0, seed: int = 0) -> list[Look]:
    """Return a look every 50 batches from 200 on; `noise` is a standard deviation in nats."""
    draw = random.Random(seed)
    return [Look(n, law(n) + draw.gauss(0, noise)) for n in range(200, until + 1, 50)]


def straight(n: int) -> float:
    return 9 - 0.6 * math.log(n)


def flattening(n: int) -> float:
    """A size that can learn no more after 400 batches."""
    return straight(min(n, 400)) - 0.01 * math.log(max(n, 400) / 400)


def ends(curve: list[Look], early: float = 0.5, course: Course = COURSE) -> tuple[int, Verdict]:
    """Return where a curve makes the rule grow, and its verdict there."""
    for count in range(1, len(curve) + 1):
        verdict = decide(curve[:count], course, early)
        if verdict.grow:
            return curve[count - 1].batches, verdict
    raise AssertionError("it never grew")


def test_a_level_that_goes_on_learning_is_left_at_its_latest_end() -> None:
    at, verdict = ends(looks(straight))
    assert at == COURSE.latest and "latest end" in verdict.reason and verdict.numbers() == {}


def test_a_level_that_flattens_is_left_once_the_flat_part_fills_the_window() -> None:
    at, verdict = ends(looks(flattening))
    assert at == 550  # looks 400, 450, 500, 550
    assert verdict.slope == pytest.approx(0.01) and verdict.steepest == pytest.approx(0.6)
    assert verdict.gain_here == pytest.approx(0.01 * math.log(1000 / 550), rel=1e-6)
    assert verdict.gain_next == pytest.approx(0.6 * math.log(1 + 0.4 * 450 / 550), rel=1e-6)
    assert f"{verdict.gain_here:.4f} nats, less than 0.5 of the {verdict.gain_next:.4f}" in verdict.reason


@pytest.mark.parametrize("seed", range(20))
def test_noise_ends_no_level_that_learns(seed: int) -> None:
    """At a tenth of what the curve falls between two looks at the latest end, and five times it in between."""
    assert ends(looks(straight, noise=0.003, seed=seed))[0] >= 900
    assert ends(looks(straight, until=1000, noise=0.03, seed=seed))[0] >= 550


@pytest.mark.parametrize("seed", range(20))
def test_a_flat_level_is_left_in_spite_of_some_noise(seed: int) -> None:
    assert 500 <= ends(looks(flattening, noise=0.003, seed=seed))[0] <= 650


def test_a_level_that_gets_worse_is_left() -> None:
    rising = [*looks(straight, 400), *(Look(n, 5.6 + n / 1000) for n in range(450, 1001, 50))]
    at, verdict = ends(rising)
    assert at <= 600 and verdict.slope is not None and verdict.slope < 0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_decides_nothing_but_time_does(loss: float) -> None:
    curve = looks(flattening)
    broken = [*curve[:6], Look(500, loss), *curve[7:]]
    assert [decide(broken[:n], COURSE, 0.5).grow for n in (7, 8, 9, 10)] == [False] * 4
    assert ends(broken)[0] == 700  # the window 550 to 700 is the first without it
    assert ends([Look(n, loss) for n, _ in curve])[0] == COURSE.latest


def test_no_slope_of_fewer_looks_than_the_window() -> None:
    flat = [Look(n, 5.0) for n in range(200, 1001, 50)]
    assert [decide(flat[:n], COURSE, 0.5).grow for n in range(1, WINDOW)] == [False] * (WINDOW - 1)
    assert decide([Look(1000, 5.0)], COURSE, 0.5).grow, "the latest end needs no slope"


def test_0_never_grows_early_and_a_larger_share_grows_no_later() -> None:
    assert ends(looks(flattening), early=0)[0] == COURSE.latest
    found = [ends(looks(lambda n: 4 + 90 / n, noise=0.002), early=early)[0] for early in (0.1, 0.25, 0.5, 1, 2, 4)]
    assert found == sorted(found, reverse=True) and len(set(found)) > 2


def test_a_level_that_costs_nearly_as_much_as_the_next_is_left_sooner() -> None:
    law = looks(lambda n: 4 + 90 / n)
    found = [ends(law, course=Course(1000, cost))[0] for cost in (0.1, 0.4, 0.9)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


@given(st.lists(st.floats(3, 9), min_size=3, max_size=8))
def test_the_slope_and_its_error_are_those_of_least_squares(losses: list[float]) -> None:
    curve = [Look(100 + 37 * i, loss) for i, loss in enumerate(losses)]
    x = np.log([look.batches for look in curve])
    design = np.stack([x, np.ones(len(x))], axis=1)
    (rise, _), *_ = np.linalg.lstsq(design, np.array(losses), rcond=None)
    left = np.array(losses) - design @ np.linalg.lstsq(design, np.array(losses), rcond=None)[0]
    error = math.sqrt(left @ left / (len(x) - 2) * np.linalg.inv(design.T @ design)[0, 0])
    assert fitted(curve) == (pytest.approx(-rise, abs=1e-8), pytest.approx(error, abs=1e-8))
