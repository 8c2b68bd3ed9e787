"""A loss is the mean over labels, however they are cut into batches; evaluations are a list that users add to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy

from mlrun.cli import command, points, preflight
from mlrun.config.choices import build
from mlrun.config.load import conf_dir, load
from mlrun.config.settings import Eval, Hardware
from mlrun.errors import UserError
from mlrun.evaluate import harness
from mlrun.evaluate.accuracy import Accuracy
from mlrun.evaluate.base import Context, Evaluation, Result, Results, as_dict, measure
from mlrun.evaluate.cloze import Cloze
from mlrun.evaluate.held_out import HeldOut
from mlrun.evaluate.perplexity import Perplexity
from mlrun.log.console import Lines
from mlrun.log.wandb import WandbLogger
from mlrun.models.base import IGNORED
from mlrun.models.network import build as network
from mlrun.multilevel.growth import stage_losses
from mlrun.multilevel.growth.inherit import Inherit
from mlrun.multilevel.growth.ligo import LiGO
from mlrun.plan import check
from mlrun.train.parallel.processes import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
RAGGED = toy.Toy(ragged=True)


def losses(folder: Path, kind: str) -> list[float]:
    return [record["loss"] for record in toy.records(folder) if record["kind"] == kind]


def point(*overrides: str) -> Any:
    (one,) = points.of(command.read(["run=unused", *overrides]))
    return one


# Uneven labels


@pytest.mark.parametrize("growth", [None, LiGO(steps=2), Inherit()])
def test_losses_are_means_over_labels_whatever_the_micro_batch(tmp_path: Path, growth: Any) -> None:
    stages = toy.V_CYCLE if growth is None else toy.V_CYCLE[1:]
    cycle = toy.Cycle(name="cycle", stages=list(stages))
    for micro in (None, 4, 1):
        config = toy.make(growth=growth, cycle=cycle, data=RAGGED, hardware=Hardware(micro_batch=micro))
        toy.run(tmp_path / str(micro), config)
    for kind in ("train", "val"):
        whole = losses(tmp_path / "None", kind)
        assert None not in whole, "a window without labels must not give nan"
        for micro in ("4", "1"):
            # The first values tell by themselves; later ones grow apart by rounding, as those of equal labels do.
            assert losses(tmp_path / micro, kind)[:3] == pytest.approx(whole[:3], rel=1e-6)
            assert losses(tmp_path / micro, kind) == pytest.approx(whole, rel=1e-4)


def test_the_held_out_loss_is_that_of_all_labels_at_once(tmp_path: Path) -> None:
    source, net = RAGGED.open(None, 0, ""), network(toy.model(), 0)
    found = [
        measure([HeldOut(), Perplexity()], net, Context(source, size, Hardware(), ALONE)) for size in (1, 3, 5, 16)
    ]
    whole = next(source.validation(16))
    kept = whole["labels"] != IGNORED
    expected = torch.nn.functional.cross_entropy(net.eval().logits(whole)[kept], whole["labels"][kept]).item()
    for numbers in found:
        assert numbers["held_out"].value == pytest.approx(expected, rel=1e-6)
        assert numbers["perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)


def test_the_standard_error_of_the_held_out_loss_is_that_of_its_samples() -> None:
    source, net = toy.Toy().open(None, 0, ""), network(toy.model(), 0)
    losses = [net.eval()(batch).item() for batch in source.validation(1)]
    expected = statistics.stdev(losses) / math.sqrt(len(losses))
    for size in (3, 4, 16):  # however they are read
        found = HeldOut().measure(net, Context(source, size, Hardware(), ALONE))
        assert found["held_out"].stderr == pytest.approx(expected, rel=1e-4)
        assert found["held_out"].n == len(losses)


def test_a_teacher_counts_per_label_and_a_batch_without_any_gives_zero() -> None:
    student, teacher = torch.randn(2, 2, 3, 5)
    student.requires_grad_()
    labels = torch.tensor([[1, IGNORED, 2], [IGNORED] * 3])
    both = stage_losses.divergence(student, teacher, labels, 2.0)
    one = stage_losses.divergence(student[:1], teacher[:1], labels[:1], 2.0)
    assert both.item() == pytest.approx(one.item(), rel=1e-6)
    none = stage_losses.divergence(student, teacher, torch.full_like(labels, IGNORED), 2.0)
    none.backward()
    assert none.item() == 0.0 and bool(student.grad.isfinite().all())


def test_a_held_out_set_without_labels_has_no_loss() -> None:
    batch = next(RAGGED.open(None, 0, "").validation(2)) | {"labels": torch.full((2, toy.SEQUENCE), IGNORED)}
    source = SimpleNamespace(validation=lambda size: iter([batch]), describe=dict)
    assert math.isnan(
        HeldOut().measure(network(toy.model(), 0), Context(source, 2, Hardware(), ALONE))["held_out"].value
    )


# The group


@dataclass(frozen=True)
class Norm(Evaluation):
    """A user's own: nothing of it is known to mlrun."""

    power: float = 2.0

    def measure(self, net: Any, context: Context) -> Results:
        return {"norm": Result("norm", sum(float(p.detach().norm(self.power)) for p in net.parameters()))}


def test_an_evaluation_of_ones_own_is_logged_beside_the_held_out_loss(tmp_path: Path) -> None:
    config = toy.make()
    config.evaluation["norm"] = Norm()
    toy.run(tmp_path, config)
    values = [record for record in toy.records(tmp_path) if record["kind"] == "val"]
    assert all(value["norm"] > 0 and value["loss"] > 0 for value in values)


def test_one_pass_over_the_held_out_set_serves_all_means() -> None:
    passes = 0

    def validation(size: int) -> Iterator[Any]:
        nonlocal passes
        passes += 1
        yield from RAGGED.open(None, 0, "").validation(size)

    context = Context(SimpleNamespace(validation=validation, describe=dict), 8, Hardware(), ALONE)
    found = measure([HeldOut(), Perplexity(), Accuracy()], network(toy.model(), 0), context)
    assert passes == 1 and list(found) == ["held_out", "perplexity"], "accuracy is of images"


def test_a_run_tells_its_listeners_how_far_its_evaluations_are_and_logs_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int | None]] = []
    config = toy.make(**toy.BRANCHED)
    toy.run(tmp_path / "quiet", config)
    monkeypatch.setattr(toy.Source, "describe", lambda self: {"name": "toy", "validation_samples": 16})
    monkeypatch.setattr(Lines, "doing", lambda self, *how: told.append(how))
    toy.run(tmp_path / "told", config)
    count = math.ceil(16 / config.settings.eval.batch)
    assert count > 1
    parts = [(0, None), *((done, count) for done in range(count))]
    one = [(f"evaluating {name}", *part) for name in ("held_out", "ema_held_out") for part in parts]
    values = [record for record in toy.records(tmp_path / "told") if record["kind"] == "val"]
    assert [how for how in told if how[0].startswith("evaluating")] == one * len(values)
    assert toy.records(tmp_path / "told") == toy.records(tmp_path / "quiet")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([], ["held_out", "perplexity", "accuracy"]),
        (["evaluation=held_out"], ["held_out"]),
        (["evaluation=[held_out,accuracy]"], ["held_out", "accuracy"]),
    ],
)
def test_the_command_line_names_one_or_a_list(given: list[str], names: list[str]) -> None:
    assert list(load(point(*given).settings).evaluation) == names


@pytest.mark.parametrize("given", ["accuracy", "[]"])
def test_training_without_the_held_out_loss_is_refused(given: str) -> None:
    with pytest.raises(UserError) as refused:
        preflight.check([point(f"evaluation={given}")])
    (line,) = refused.value.problems
    assert line.startswith("evaluation=") and "a list with held_out" in line


@pytest.mark.parametrize("path", sorted((conf_dir() / "evaluation").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_choice_is_a_key_of_its_own_name(path: Path) -> None:
    from omegaconf import DictConfig, OmegaConf

    from mlrun.cli import command, points

    (point,) = points.of(command.read([f"evaluation=[{path.stem}]"]))
    ((name, node),) = OmegaConf.to_container(point.settings.evaluation).items()
    given = {"tasks": {"x": "hub"} if name == "glue" else ["x"], "files": ["x"]}
    for part in (node, node.get("data", {})):
        part.update({key: given[key] for key, value in part.items() if value == "???"})
    assert name == path.stem and isinstance(build(DictConfig(node), f"evaluation.{name}"), Evaluation)


def test_eval_batch_changes_nothing(tmp_path: Path) -> None:
    for size in (3, 16):
        toy.run(tmp_path / str(size), toy.make(data=RAGGED, eval=Eval(every="20%", batch=size)))
    assert losses(tmp_path / "3", "train") == losses(tmp_path / "16", "train")
    assert losses(tmp_path / "3", "val") == pytest.approx(losses(tmp_path / "16", "val"), rel=1e-6)


@dataclass(frozen=True)
class Asked(Evaluation):
    """Says always the same, and has a setting."""

    times: int = 1

    def measure(self, net: Any, context: Context) -> dict[str, Result]:
        return {"asked": Result("accuracy", 0.5)}


def test_a_result_says_by_which_settings_it_was_measured() -> None:
    source, net = toy.Toy().open(None, 0, ""), network(toy.model(), 0)
    found = [as_dict(measure([HeldOut(), Asked(n)], net, Context(source, 4, Hardware(), ALONE))) for n in (1, 1, 2)]
    assert found[0]["asked"]["settings"] == found[1]["asked"]["settings"] != found[2]["asked"]["settings"]
    assert "settings" not in found[0]["held_out"], "there is one way to read the held-out set"


def test_choices_of_ones_own_are_told_by_the_names_that_they_have(tmp_path: Path) -> None:
    chosen = {"mine": Cloze(files=["nowhere.txt"]), "cloze": Cloze(files=["nowhere.txt"])}
    keys = [line.partition("=")[0] for line in check.of_choices("evaluation", chosen)]
    assert keys == ["evaluation.mine.files", "evaluation.cloze.files"]
    assert check.of_choices("logger", {"wb": WandbLogger(x="hours")})[0].startswith("logger.wb.x=hours: ")


def test_tasks_of_lm_eval_may_lie_in_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(harness, "_loaded", lambda tasks, include, online: looked.append(include))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tasks").mkdir()
    assert harness.Harness(["own"], include="~/tasks").problems() == []
    assert looked == [str(tmp_path / "tasks")]
