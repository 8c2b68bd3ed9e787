"""Random numbers are a function of key and counter."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlrun.data import counter_rng


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_every_epoch_visits_every_window_once(size: int, seed: int, epoch: int) -> None:
    order = counter_rng.epoch_order(epoch * size + np.arange(size), size, seed)
    assert sorted(order) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [counter_rng.permute(np.arange(100), 100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert max(np.mean(order == np.arange(100)) for order in orders) < 0.1


def test_order_has_random_access() -> None:
    whole = counter_rng.epoch_order(np.arange(70), 23, 5)
    assert [int(counter_rng.epoch_order(np.array([i]), 23, 5)[0]) for i in range(70)] == whole.tolist()


def test_draws_look_uniform_and_uncorrelated() -> None:
    chance = counter_rng.uniform(counter_rng.key(1), np.arange(2000), 50)
    assert abs(chance.mean() - 0.5) < 0.005 and abs(chance.std() - 12**-0.5) < 0.005
    for other in (
        counter_rng.uniform(counter_rng.key(2), np.arange(2000), 50),
        np.roll(chance, 1, 0),
        np.roll(chance, 1, 1),
    ):
        assert abs(np.corrcoef(chance.ravel(), other.ravel())[0, 1]) < 0.02
