"""Seeds are numbers that no release may change: a run that is resumed makes them again."""

from __future__ import annotations

from mlrun.models.seeds import seed_of


def test_a_path_of_names_gives_the_number_that_it_always_gave() -> None:
    assert seed_of(0, "token.weight") == seed_of("0/token.weight") == 53711750744194430
    assert seed_of("dropout", 0, 1, 2, 3) != seed_of("dropout", 0, 1, 3, 2)
