"""Which units merge: every strategy's groups, every YAML, and one clear line for each ratio that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from composed import choice
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import mlrun
from mlrun.config.choices import build
from mlrun.errors import UserError, shown
from mlrun.models.axes import DEPTH, Merge, Resize
from mlrun.multilevel.coarsening.base import Coarsening, inexact
from mlrun.multilevel.coarsening.custom import Custom
from mlrun.multilevel.coarsening.kept import Kept
from mlrun.multilevel.coarsening.shuffled import Shuffled
from mlrun.multilevel.coarsening.uniform import Uniform

GPT = {"vocab": 50, "position": 8, "embed": 12, "head": 6, "head_dim": 4, "ffn": 24, "layer": 6}
LLAMA = {"vocab": 50, "embed": 12, "kv_head": 2, "group": 3, "head_dim": 4, "ffn": 24, "layer": 6}
T5 = {"vocab": 50, "embed": 12, "head": 6, "head_dim": 4, "ffn": 24, "layer": 6, "decoder_layer": 4}
CONF = Path(mlrun.__file__).parent.parent / "conf" / "coarsening"


def from_yaml(name: str, **overrides: object) -> Coarsening:
    node = OmegaConf.merge(choice("coarsening", name), OmegaConf.create(overrides))
    root = OmegaConf.create({"coarsening": node})
    OmegaConf.resolve(root)
    return build(root.coarsening, "coarsening")


def problems(coarsening: Coarsening, sizes: dict[str, int]) -> list[str]:
    with pytest.raises(UserError) as error:
        coarsening.resize(sizes)
    return error.value.problems


# Groups


def test_strided_merges_units_a_fixed_distance_apart() -> None:
    resize = Uniform(width=2, depth=3, units="strided", layers="strided").resize(GPT)
    assert resize.merges["embed"].groups == tuple((unit, unit + 6) for unit in range(6))
    assert resize.merges["layer"].groups == ((0, 2, 4), (1, 3, 5))


def test_adjacent_merges_neighbours() -> None:
    resize = Uniform(head=3, depth=2, units="adjacent", layers="adjacent").resize(GPT)
    assert resize.merges["head"].groups == ((0, 1, 2), (3, 4, 5))
    assert resize.merges["layer"].groups == ((0, 1), (2, 3), (4, 5))


def test_skip_keeps_every_third_layer() -> None:
    merge = Uniform(depth=3, layers="skip").resize(GPT).merges["layer"]
    assert merge.keep == "first"
    assert [group[0] for group in merge.groups] == [0, 3]


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        ([0], ((0, 1, 2, 3, 4, 5),)),
        ([2, 4], ((2, 0, 1, 3), (4, 5))),
        ([0, 1, 2, 3, 5], ((0,), (1,), (2,), (3, 4), (5,))),
    ],
)
def test_any_layers_may_be_kept_wherever_they_lie(layers: list[int], groups: tuple[tuple[int, ...], ...]) -> None:
    resize = Kept(layers=layers).resize(GPT)
    merge = resize.merges["layer"]
    assert (merge.groups, merge.keep, resize.coarse["layer"]) == (groups, "first", len(layers))
    assert not merge.problems() and {a: s for a, s in resize.coarse.items() if a != "layer"} == {
        a: s for a, s in GPT.items() if a != "layer"
    }


def test_none_may_be_kept() -> None:
    assert Kept(layers=[]).resize(GPT) == Resize(GPT, GPT | {"layer": 0}, {}, "copy")


@pytest.mark.parametrize("layers", [[6], [-1], [1, 0], [2, 2], [0, 1, 2, 3, 4, 5]])
def test_layers_that_cannot_be_kept_are_one_line(layers: list[int]) -> None:
    (line,) = problems(Kept(layers=layers), GPT)
    assert "fewer than 6 different layers from 0 to 5, in order" in line


def test_only_units_and_never_layers_follow_the_width_grouping() -> None:
    resize = Uniform(width=2, head=2, ffn=2, depth=2, units="strided", layers="skip").resize(T5)
    assert {axis: merge.keep for axis, merge in resize.merges.items()} == {
        "embed": "mean",
        "ffn": "mean",
        "head": "mean",
        "layer": "first",
        "decoder_layer": "first",
    }


def test_random_groups_follow_the_seed_the_axis_and_the_size_alone() -> None:
    one = Shuffled(width=2, ffn=2, seed=0).resize(GPT).merges
    assert one["embed"] == Shuffled(width=2, depth=2, seed=0).resize(T5).merges["embed"]
    assert one["embed"] != Shuffled(width=2, seed=1).resize(GPT).merges["embed"]
    assert one["embed"].groups != Uniform(width=2).resize(GPT).merges["embed"].groups
    firsts = [group[0] for group in one["ffn"].groups]
    assert firsts == sorted(firsts), "coarse units keep the order of their first members"


def test_custom_groups_repeat_along_the_axis() -> None:
    coarsening = Custom(groups={"layer": [[0], [1, 2]], "embed": [[0, 2], [1, 3]]}, keep="first")
    merges = coarsening.resize(GPT).merges
    assert merges["layer"] == Merge(((0,), (1, 2), (3,), (4, 5)), keep="first")
    assert merges["embed"] == Merge(tuple((u + s, u + s + 2) for s in (0, 4, 8) for u in (0, 1)))


def test_grouped_queries_merge_through_their_key_value_heads() -> None:
    resize = Uniform(width=2, head=2).resize(LLAMA)
    assert resize.merges["kv_head"].groups == ((0, 1),)
    assert resize.coarse["group"] == LLAMA["group"]


@given(st.data())
def test_sizes_and_merges_agree(data: st.DataObject) -> None:
    """Every unit is used once, coarse sizes are fine / ratio, and other axes stay."""
    kind = data.draw(st.sampled_from(("strided", "adjacent", "random")))
    ratios = {family: data.draw(st.integers(1, 4)) for family in ("width", "depth", "ffn", "head")}
    factor = data.draw(st.integers(1, 5))
    axes = {"width": "embed", "depth": "layer", "ffn": "ffn", "head": "head"}
    sizes = {axis: ratios[family] * factor for family, axis in axes.items()} | {"vocab": 7}
    made = Shuffled(**ratios) if kind == "random" else Uniform(**ratios, units=kind, layers=kind)
    resize = made.resize(sizes)
    assert resize.fine == sizes
    assert resize.coarse == {axis: factor for axis in axes.values()} | {"vocab": 7}
    assert set(resize.merges) == {axis for family, axis in axes.items() if ratios[family] > 1}
    for axis, merge in resize.merges.items():
        assert merge.problems() == []
        assert (merge.fine, merge.coarse, merge.equal_groups) == (sizes[axis], factor, True)
        assert all(unit in merge.groups[merge.coarse_of[unit]] for unit in range(merge.fine))


# YAMLs


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
@pytest.mark.parametrize("sizes", [GPT, LLAMA, T5])
def test_every_yaml_makes_a_smaller_level(name: str, sizes: dict[str, int]) -> None:
    resize = from_yaml(name).resize(sizes)
    assert all(resize.coarse[axis] == merge.coarse < merge.fine for axis, merge in resize.merges.items())
    assert resize.merges


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("paper", {"embed", "ffn", "head", "layer"}),
        ("mlp_only", {"ffn"}),
        ("width_only", {"embed", "ffn", "head"}),
        ("depth_only", {"layer"}),
        ("stack", {"layer"}),
    ],
)
def test_a_strategy_merges_what_its_name_says(name: str, axes: set[str]) -> None:
    assert set(from_yaml(name).resize(GPT).merges) == axes


def test_one_override_of_width_moves_heads_and_ffn_too() -> None:
    coarse = from_yaml("paper", width=3).resize(GPT).coarse
    assert (coarse["embed"], coarse["head"], coarse["ffn"], coarse["layer"]) == (4, 2, 8, 3)
    coarse = from_yaml("paper", width=3, head=1).resize(GPT).coarse
    assert (coarse["embed"], coarse["head"], coarse["ffn"]) == (4, 6, 8)


# Mistakes


def test_a_ratio_that_does_not_divide_names_those_that_do() -> None:
    (line,) = problems(Uniform(head=4), GPT)
    assert line.startswith("coarsening.head=4: allowed: 1, 2, 3, 6 (of head=6)")
    (line,) = problems(Uniform(depth=3), T5)
    assert "1, 2 (of layer=6, decoder_layer=4)" in line


def test_a_level_smaller_than_one_unit_is_refused() -> None:
    (line,) = problems(Uniform(head=3), LLAMA)
    assert "coarsening.head=3" in line and "kv_head=2" in line and "at least one kv_head" in line


def test_a_ratio_of_an_axis_that_the_model_has_not_is_refused() -> None:
    (line,) = problems(Uniform(ffn=2), {"embed": 4, "layer": 2})
    assert line.startswith("coarsening.ffn=2: allowed: 1; the model has no axis ffn")


@pytest.mark.parametrize("ratio", [0, -1, 1.5, True])
def test_a_ratio_is_an_integer_of_at_least_one(ratio: float) -> None:
    (line,) = problems(Uniform(width=ratio), GPT)  # type: ignore[arg-type]
    assert line.startswith(f"coarsening.width={shown(ratio)}: allowed: an integer of at least 1")


def test_all_mistakes_come_at_once() -> None:
    wrong = Uniform(width=5, depth=0, ffn=7, head=4, depth_scale="odd", units="odd", layers="odd")
    keys = [line.split("=")[0].removeprefix("coarsening.") for line in problems(wrong, GPT)]
    assert sorted(keys) == ["depth", "depth_scale", "ffn", "head", "layers", "units", "width"]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"layers": [[0, 1]]}, "did you mean layer"),
        ({"vocab": [[0, 1]]}, "no such axis to merge"),
        ({"layer": [[0], [0, 1]]}, "each unit in one group"),
        ({"layer": [[0], []]}, "a merge group is empty"),
        ({"layer": [[0, 1], [2, 3]]}, "a number that divides layer=6"),
        ({"layer": []}, "a number that divides layer=6"),
    ],
)
def test_wrong_custom_groups_are_refused(groups: dict[str, list[list[int]]], words: str) -> None:
    (line,) = problems(Custom(groups=groups), GPT)
    assert line.startswith("coarsening.groups") and words in line


def test_custom_keep_is_mean_or_first() -> None:
    (line,) = problems(Custom(groups={"layer": [[0, 1]]}, keep="last"), GPT)
    assert line.startswith("coarsening.keep=last: allowed: mean, first")


# Exactness


def test_what_cannot_keep_the_function_is_said() -> None:
    def step(depth_scale: str = "copy", **merges: Merge) -> Resize:
        return Resize({}, {}, merges, depth_scale)

    pair, odd = Merge(((0, 1),)), Merge(((0, 1), (2,)))
    assert inexact(step(embed=pair, head=odd, ffn=odd)) == []
    assert "equal groups" in inexact(step(embed=odd))[0]
    for axis in DEPTH:
        assert "depth_scale=identity" in inexact(step(**{axis: pair}))[0]
        assert inexact(step("identity", **{axis: pair})) == []
        assert len(inexact(step("identity", **{axis: pair}), post_norm=True)) == 1
