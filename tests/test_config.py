"""Every YAML file composes, builds and plans; every key is explained; foreign classes and keys are refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from mlrun.cli import command, points
from mlrun.config.load import conf_dir, load
from mlrun.config.settings import ALONE, ARGUMENTS, Settings
from mlrun.errors import UserError
from mlrun.plan.make import make_plan

CONF = conf_dir()
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
# What the files of a group share.
BASES = sorted(path.relative_to(CONF) for path in CONF.glob("*.yaml") if path.stem != "config")
# Values that only the user can give.
OWN = {
    "data.files": "data.files=[x.parquet]",
    "data.classes": "data.classes=1000",
    "evaluation.cloze.files": "evaluation.cloze.files=[x.jsonl]",
    "evaluation.glue.tasks": "evaluation.glue.tasks={rte: hub}",
    "evaluation.harness.tasks": "evaluation.harness.tasks=[x]",
    "evaluation.text_perplexity.files": "evaluation.text_perplexity.files=[x.txt]",
    "evaluation.transfer.data.files": "evaluation.transfer.data.files=[x.parquet]",
}


def choices(group: str, *early: str) -> list[str]:
    """Return every choice of a group, the likely partners first."""
    names = [file.stem for file in FILES if file.parts[0] == group]
    return [f"{group}={name}" for name in sorted(names, key=lambda name: name not in early)]


# What a file may need beside it: a model its kind and length of data and an end without levels (deit_tiny has three
# heads), data its kind of model, a coarsening that saves little a shorter end.
PARTNERS = {
    "model": [
        [data, *more]
        for more in ([], ["cycle=scratch"], ["data.sequence=64"])
        for data in choices("data", "sotu", "imagenet")
    ],
    "data": [[model] for model in choices("model", "gpt_tiny", "gpt_base", "deit_s", "deit_digits")],
    "coarsening": [[], ["cycle.lengths.final=rest"]],
    "growth": [[], ["coarsening=stack"], ["coarsening=kept"], ["coarsening=depth_only", "optimizer.ema=0.9"]],
    "recipe": [
        [],
        *(
            [model]
            for model in choices(
                "model", "bert_base", "roberta_base", "t5_base", "deit_s", "deit_digits", "gpt_base", "llama_1b"
            )
        ),
    ],
    "cycle": [[], ["optimizer.schedule.shape=wsd"]],
    "method": [[], ["optimizer.ema=0.9"], ["optimizer.schedule.shape=wsd"]],
    # A grid is for -m; here its values are tried, not what it varies.
    "experiment": [[], ["scale=tiny"], ["scale=tiny", "hydra.sweeper.params=null"], ["method=scratch"]],
    # A choice of a list; training needs this one in it.
    "evaluation": [["evaluation=[held_out,{}]"]],
}


def plan_problems(overrides: list[str]) -> list[str]:
    """Return why a command line has no plan, or nothing."""
    try:
        (point,) = points.of(command.read(overrides))
        make_plan(load(point.settings), sources=False)
    except UserError as error:
        return error.problems
    return []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_yaml_file_composes_builds_and_plans(file: Path) -> None:
    """With a stand-in for each value that the message says only the user can give."""
    group, name = file.parts[0], file.stem
    found = {}
    for partner in PARTNERS.get(group, [[]]):
        overrides = [f"{group}={name}", *(text.format(name) for text in partner)]
        problems = plan_problems(overrides)
        if asked := [line.partition("=???")[0] for line in problems if "=???" in line]:
            problems = plan_problems([*overrides, *(OWN[key] for key in asked)])
        if not problems:
            return
        found[tuple(partner)] = problems
    raise AssertionError(found)


def keys(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield every key at the left edge that has a value, and whether a comment stands above it."""
    for above, line in pairwise((CONF / file).read_text().partition("\nhydra:")[0].splitlines()):
        if key := re.match(r"(\w+):.", line):
            yield key[1], above.startswith("#")


def bases(file: Path) -> list[Path]:
    """Return the files that a file is a diff on: those of its defaults, and theirs."""
    defaults = yaml.safe_load((CONF / file).read_text()).get("defaults", [])
    names = [name.partition("@")[0] for name in defaults if isinstance(name, str) and file != Path("config.yaml")]
    found = [Path(f"{name}.yaml".lstrip("/")) if name[0] == "/" else file.parent / f"{name}.yaml" for name in names]
    return found + [below for base in found for below in bases(base)]


@pytest.mark.parametrize("file", [Path("config.yaml"), *BASES, *FILES], ids=str)
def test_every_key_is_explained_once_in_its_file_or_in_that_it_is_a_diff_on(file: Path) -> None:
    """But `_target_`, names, keys that hold others, the second of a pair; experiments, scales, recipes are diffs."""
    lines = (CONF / file).read_text().splitlines()
    assert lines[0].startswith("#"), "the first line says what the file is"
    untold = {"_target_", "name", "beta2", "entity", "tags"}
    explained = {key for base in bases(file) for key, comment in keys(base) if comment}
    for key, comment in keys(file):
        if file.parts[0] not in ("experiment", "method", "recipe", "scale") and key not in untold:
            assert comment or key in explained, f"{file}: {key}"


def test_what_files_share_is_no_choice_of_a_group() -> None:
    """A file at the top of conf/ is in no group: help and completion do not list it."""
    assert BASES and all(base.stem.startswith("_") for base in BASES)
    used = {below for file in FILES for below in bases(file)}
    assert set(BASES) <= used


@pytest.mark.parametrize("file", [Path("config.yaml"), *BASES, *FILES], ids=str)
def test_no_line_is_too_long_but_for_commands(file: Path) -> None:
    lines = (CONF / file).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and "mlrun " not in line] == []


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "method"], ids=str)
def test_every_method_has_a_card(file: Path) -> None:
    """What is claimed of it, who says so, whose settings these are, and what was measured here; but the baseline."""
    head = (CONF / file).read_text().partition("\ndefaults:")[0]
    if file.stem != "scratch":
        assert [
            word for word in ("Claim: ", "Source: ", "Settings: ", "Measured here") if f"\n# {word}" not in head
        ] == []


def test_experiments_are_diffs_that_win_over_the_defaults() -> None:
    (point,) = points.of(command.read(["experiment=gpt_base"]))
    assert point.settings.batch == 512 and point.settings.cycle.alpha == 0.25
    (point,) = points.of(command.read(["experiment=gpt_base", "batch=8"]))
    assert point.settings.batch == 8


# What a grid varies of the model, where it is about that.
OF_THE_MODEL = {"transfer": ("parametrization", "base", "layer")}


def kept(grid: str, model: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what a grid leaves of the model as its scale has it."""
    return [(str(key), value) for key, value in model.items() if key not in OF_THE_MODEL.get(grid, ())]


# Of those of conf/experiment that are grids, those that take rates and endings from a scale.
GRIDS = [f.stem for f in FILES if f.parts[0] == "experiment" and "${scale." in (CONF / f).read_text()]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scale", ["tiny", "thin", "small", "bert"])
def test_every_grid_can_be_tried_at_every_scale(grid: str, scale: str) -> None:
    found = points.of(command.read(["-m", f"scale={scale}", f"experiment={grid}"]))
    alone = points.of(command.read([f"scale={scale}"]))[0].settings
    rates = {float(rate) for swept in alone.scale.rates.values() for rate in swept.split(",")}
    assert {point.settings.optimizer.lr for point in found} <= rates
    wanted = {(alone.budget, *kept(grid, alone.model))}
    assert {(point.settings.budget, *kept(grid, point.settings.model)) for point in found} == wanted


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_without_rates_is_one_line(grid: str) -> None:
    with pytest.raises(UserError) as caught:
        points.of(command.read(["-m", f"experiment={grid}"]))
    (line,) = caught.value.problems
    assert line.startswith("scale: allowed: a choice that gives scale.rates.") and "give scale=" in line


def test_the_grid_for_ones_own_model_needs_no_scale() -> None:
    words = ["experiment=savings", "model=gpt_tiny", "optimizer.lr=2e-3"]
    found = points.of(command.read(["-m", *words]))
    assert [point.settings.cycle.name for point in found] == [
        "scratch",
        "scratch",
        "scratch",
        "one_layer",
        "late_copies",
        "vcycle",
        "scratch",
        "scratch",
    ]
    assert [point.settings.alone for point in found[-2:]] == [{"layer": 1}, {"layer": "middle"}]
    assert {point.settings.optimizer.schedule.shape for point in found} == {"wsd"}
    completep = [point.settings.model.parametrization == "completep" for point in found]
    assert completep == [False, True, True] + [False] * 5
    muon = [hasattr(point.settings.optimizer, "ns_steps") for point in found]
    assert muon == [False, False, True] + [False] * 5
    assert all(point.shares_machine for point in found)
    (one,) = points.of(command.read([*words, "method=vcycle"]))
    assert one.launcher is None, "one of its runs is a run"
    with pytest.raises(UserError, match=r"^experiment=savings: allowed: with -m"):
        points.of(command.read(words))


def test_arguments_of_tasks_and_grids_are_no_part_of_a_run() -> None:
    (point,) = points.of(command.read(["scale=tiny"]))
    resolved = load(point.settings).resolved
    assert set(resolved) == set(Settings.__dataclass_fields__) - {*ARGUMENTS, ALONE}


def test_the_schema_and_the_yaml_have_the_same_keys() -> None:
    written = yaml.safe_load((CONF / "config.yaml").read_text())
    chosen = {key for entry in written["defaults"] if isinstance(entry, dict) for key in entry}
    groups = chosen - {"method", "experiment"}
    groups = {key for key in groups if not key.startswith("override")}
    assert set(Settings.__dataclass_fields__) == (set(written) - {"defaults", "hydra"}) | groups


def settings(*overrides: str) -> None:
    (point,) = points.of(command.read(overrides))
    load(point.settings)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model._target_=os.system", "MLRUN_PACKAGES"),
        ("model._target_=mlrun.models.gpt.Nothing", "an importable class"),
        ("model._target_=mlrun.nothing.GPT", "an importable class"),
        ("model._target_=mlrun.plan.make.make_plan", "a class"),
        ("~model._target_", "model._target_=missing"),
        ("+model.hed=3", "did you mean head?"),
        ("+optimizer.momentum=0.9", "allowed: lr, clip, ema, schedule, beta1"),
        ("+optimizer.schedule.warmpu=1%", "did you mean warmup?"),
        ("optimizer.schedule=cosine", "allowed: optimizer.schedule.shape, optimizer.schedule.warmup"),
        ("optimizer.lr=true", "a number"),
        ("~optimizer.lr", "optimizer.lr=missing: allowed: a value; give optimizer.lr="),
        ("model.embed=wide", "a whole number"),
        ("optimizer.schedule.shape=cosin", "did you mean cosine?"),
        ("cycle.lengths=null", "cycle.lengths"),
    ],
)
def test_what_no_schema_sees_is_told_too(override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(override)
    (line,) = caught.value.problems
    assert told in line and "\n" not in line


def test_a_package_that_the_user_trusts_may_bring_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = ["from dataclasses import dataclass", "from mlrun.models.gpt import GPT"]
    lines += ["@dataclass(frozen=True)", "class Mine(GPT): ..."]
    (tmp_path / "trusted.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError):
        settings("model._target_=trusted.Mine")
    monkeypatch.setenv("MLRUN_PACKAGES", "trusted")
    settings("model._target_=trusted.Mine")


def test_hydra_copies_its_one_store_never_and_composing_leaves_it_alone() -> None:
    store = ConfigStore.instance()
    before = _stored(store.repo)
    assert copy.deepcopy(store) is store
    given = ["-m", "hydra/launcher=local", "hydra.sweep.dir=there", "model=gpt_tiny,bert_tiny", "run=unused", "seed=3"]
    assert len(points.of(command.read(given))) == 2
    assert _stored(store.repo) == before


def _stored(repo: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _stored(node) if isinstance(node, dict) else OmegaConf.to_yaml(node.node) for name, node in repo.items()
    }
