"""Values that somebody gave and that can have no effect: refused, or said in the plan where runs share them."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import mlrun
from mlrun.cli import command, points, preflight, said
from mlrun.config.load import conf_dir
from mlrun.errors import UserError
from mlrun.plan import unused

WSD = "optimizer.schedule.shape=wsd"
PROBES = "cycle.auto.probe=[{place: above}, {place: below}]"
GROW, NO_WIDTH, NO_DEPTH = "cycle=grow", "coarsening=depth_only", "coarsening=width_only"
FILES = ["data=text", "data.files=[a.txt]"]
PICTURES = ["model=deit_digits", "recipe=digits"]
FOLDERS = ["model=deit_digits", "recipe=none", "data=imagefolder", "data.files=[a]", "data.classes=10"]
FOLDERS += ["data.mean=[0.1]", "data.std=[0.3]"]
HUB = ["data=openwebtext", "data.tokenizer=null", "data.sequence=64"]
INHERIT = [GROW, "growth=inherit"]

# Key: (a value, where it does nothing, where it does something).
REFUSED = {
    "optimizer.schedule.floor": ("0.2", [["optimizer.schedule.shape=constant"]], []),
    "optimizer.schedule.decay": ("9%", [[]], [WSD]),
    "find.prune_after": ("3", [[]], ["find.prune=0.3"]),
    "cycle.auto.probe_length": (
        "2%",
        [["cycle=auto", WSD]],
        ["method=auto", WSD, PROBES],
    ),
    "cycle.noise": ("0.1", [[GROW, NO_WIDTH], [GROW, "coarsening=shallow"]], [GROW, "coarsening=mlp_only"]),
    "coarsening.units": ("adjacent", [[NO_WIDTH], INHERIT], ["growth=decoalesce"]),
    "coarsening.layers": ("strided", [[NO_DEPTH], INHERIT], [NO_WIDTH]),
    "coarsening.seed": (
        "3",
        [["coarsening=fpi", "coarsening.width=1"], ["coarsening=random", *INHERIT]],
        ["coarsening=random", "coarsening.width=1"],
    ),
    "coarsening.keep": (
        "first",
        [["coarsening=custom", "~coarsening.groups.layer"]],
        ["coarsening=custom"],
    ),
    "coarsening.depth_scale": ("ode", [[NO_DEPTH], INHERIT], [NO_WIDTH]),
    "growth.state": (
        "reset",
        [["coarsening=kept", "growth=restore"], ["method=restore", GROW, "cycle.optimizer_policy=carry"]],
        ["method=restore"],
    ),
    "growth.place": ("below", [["method=zero_layer"]], ["method=one_layer"]),
    "growth.noise": ("0.1", [["method=ligo", "coarsening.depth=1"]], ["method=ligo"]),
    "growth.lr": ("0.1", [["method=ligo", "growth.steps=0"]], ["method=ligo"]),
    "data.mask_rate": ("0.2", [[]], ["model=bert_tiny"]),
    "data.mask_span": ("2", [[], ["model=bert_tiny"]], ["model=t5_tiny"]),
    "data.tokenizer_characters": ("1000", [["data.tokenizer=vocab.txt"]], []),
    "data.held_out": (
        "0.1",
        [[*FILES, "data.validation_files=[b.txt]"], [*HUB, "data.validation_sources=[{path: x}]"]],
        FILES,
    ),
    "data.document": ("line", [["data=json", "data.files=[a.json]"]], FILES),
    "data.encoding": ("latin-1", [["data=parquet", "data.files=[a.parquet]"]], FILES),
    "data.image": ("x", [FOLDERS], [*FOLDERS, "data.format=parquet"]),
    "data.label": ("x", [FOLDERS], [*FOLDERS, "data.format=parquet"]),
    "data.block": ("16", [HUB], [*HUB, "data.streaming=true"]),
    "data.augment.magnitude": ("3", [PICTURES], [*PICTURES, "data.augment.operations=1"]),
    "data.augment.magnitude_std": ("1", [PICTURES], [*PICTURES, "data.augment.operations=1"]),
    "data.mix.probability": ("0.5", [PICTURES], [*PICTURES, "data.mix.mixup=1"]),
    "data.mix.switch": (
        "0.3",
        [PICTURES, [*PICTURES, "data.mix.mixup=1"]],
        [*PICTURES, "data.mix.mixup=1", "data.mix.cutmix=1"],
    ),
    "model.rope_low": ("0.5", [["model=llama_tiny"]], ["model=llama_tiny", "model.rope_factor=2"]),
    "model.rope_high": ("8", [["model=llama_tiny"]], ["model=llama_tiny", "model.rope_factor=2"]),
    "model.rope_position": ("64", [["model=llama_tiny"]], ["model=llama_tiny", "model.rope_factor=2"]),
    "model.distillation_head": ("false", [PICTURES], [*PICTURES, "model.distillation=true"]),
}
SCRATCH = ["cycle=scratch"]
SHARED = {
    "cycle.alpha": ("0.3", [SCRATCH, [GROW]], []),
    "cycle.noise": ("0.1", [SCRATCH], []),
    "cycle.optimizer_policy": ("carry", [SCRATCH], []),
    "cycle.lr_policy": ("continue", [SCRATCH], [GROW]),
    "coarsening": ("stack", [SCRATCH], []),
    "growth": ("aki", [SCRATCH], []),
    "optimizer.schedule.decay": ("9%", [[WSD, "cycle.decay=5%"]], [WSD]),
    "model.drop_path": ("0.1", [["model.layer=1", NO_DEPTH]], []),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))


def test_every_rule_has_a_case() -> None:
    assert {rule.key for rule in unused.RULES if not rule.shared} == REFUSED.keys()
    assert {rule.key for rule in unused.RULES if rule.shared} == SHARED.keys()


@pytest.mark.parametrize("key", REFUSED)
def test_a_value_that_can_do_nothing_is_a_line(key: str) -> None:
    value, idle, read = REFUSED[key]
    for words in idle:
        with pytest.raises(UserError) as refused:
            mlrun.plan([*words, f"{key}={value}"])
        assert [line.partition("; ")[0] for line in refused.value.problems] == [f"{key}={value}: allowed: left out"]
    assert not [note for note in mlrun.plan([*read, f"{key}={value}"]).notes if "no effect" in note]


@pytest.mark.parametrize("key", SHARED)
def test_a_value_that_a_baseline_shares_is_a_note(key: str) -> None:
    value, idle, read = SHARED[key]
    for words in idle:
        notes = mlrun.plan([*words, f"{key}={value}"]).notes
        assert sum(note.startswith(f"{key}={value}: no effect here, ") for note in notes) == 1
    assert not [note for note in mlrun.plan([*read, f"{key}={value}"]).notes if "no effect" in note]


def test_an_evaluation_that_a_model_is_not_measured_by_is_a_note() -> None:
    words = ["evaluation=[held_out,cloze]", "evaluation.cloze.files=[a.txt]"]
    told = [note for note in mlrun.plan([*words, "model=bert_tiny"]).notes if "no effect" in note]
    assert [note.partition("=")[0] for note in told] == ["evaluation", "evaluation.cloze.files"]
    assert not [note for note in mlrun.plan(words).notes if "no effect" in note]


def test_values_below_a_mapping_and_those_of_ones_own_diffs_are_judged() -> None:
    with pytest.raises(UserError, match=r"^optimizer.schedule.floor=0.2: allowed: left out"):
        mlrun.plan(["optimizer.schedule={shape: constant, floor: 0.2}"])
    for group, text in {
        "experiment": "# @package _global_\noptimizer:\n  schedule:\n    decay: 9%\n",
        "optimizer": "defaults: [adamw]\nschedule: {decay: 9%}\n",
    }.items():
        Path("conf", group).mkdir(parents=True)
        Path("conf", group, "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"experiment/mine.yaml: optimizer.schedule.decay=9%: allowed: left out"):
        mlrun.plan(["experiment=mine"])
    mlrun.plan(["experiment=mine", WSD])
    mlrun.plan(["experiment=mine", "~optimizer.schedule.decay"])
    Path("conf", "scale").mkdir()
    Path("conf", "scale", "mine.yaml").write_text((conf_dir() / "scale" / "thin.yaml").read_text())
    mlrun.plan(["scale=mine"])  # what is for grids stands in it whether this run is one of theirs or not
    mlrun.plan(["optimizer=mine"])  # a choice has a value for every key, read or not


def test_a_run_that_has_begun_and_one_of_a_sweep_that_was_judged_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sweep, or an earlier version, took the value; another run of the sweep may read it."""
    idle = ["optimizer.schedule.shape=constant", "optimizer.schedule.floor=0.2", "run=begun"]
    with monkeypatch.context() as patch:
        patch.setenv(said.JUDGED, "1")
        (started,) = preflight.check(points.of(command.read(idle)))
    assert started.planned is not None
    config, plan = started.planned
    assert any(note.startswith("optimizer.schedule.floor=0.2: no effect here, ") for note in plan.notes)
    Path("begun").mkdir()
    Path("begun", "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config.resolved)))
    preflight.check(points.of(command.read(idle)))
    with pytest.raises(UserError, match=r"^optimizer.schedule.floor=0.2: allowed: left out"):
        preflight.check(points.of(command.read([*idle, "run=another"])))


def test_it_is_enough_that_one_run_of_a_sweep_reads_a_value() -> None:
    sweep = ["-m", "optimizer.schedule.shape=constant,cosine", "optimizer.schedule.floor=0.2", "run=sweep"]
    told = [one.planned[1].notes for one in preflight.check(points.of(command.read(sweep))) if one.planned is not None]
    assert [sum("no effect" in note for note in notes) for notes in told] == [1, 0]


def test_a_grid_whose_keys_are_all_given_is_one_of_its_runs() -> None:
    """So its launcher starts it, and so a report's command makes it again."""
    grid = ["scale=tiny", "experiment=alpha", "cycle.alpha=0.5", "optimizer.lr=2e-3", "scale.rates.ablations=1e-3"]
    assert mlrun.plan(grid).stages[2].alpha == 0.5
    with pytest.raises(UserError, match=r"^experiment=alpha: allowed: with -m"):
        mlrun.plan(grid[:-2])
