"""`task=evaluate` reads the data as its run did, and no other data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from called import call
from PIL import Image

Command = Callable[..., list[str]]
SMALL = [
    "model.embed=16", "model.head=2", "model.head_dim=8", "model.ffn=32", "model.layer=2", "batch=4", "budget=6 steps",
    "cycle=scratch", "eval.every=100%", "hardware.threads=1",
]  # fmt: skip


@pytest.fixture
def mlrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `mlrun` in an empty folder and returns the lines on standard error of a mistake."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> list[str]:
        # A run has a cache of its own.
        reads = "task=evaluate" not in arguments or any(one.startswith("source=") for one in arguments)
        outcome = call(capfd, *arguments, *(["cache=cache"] if reads else []))
        assert outcome.code in (0, 2)
        return outcome.err if outcome.code else []

    return run


def pictures(root: Path) -> None:
    """Write three classes of twelve grey pictures, each of its own brightness."""
    for number, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for index in range(12):
            grey = np.full((16, 16), 60 * number + index, np.uint8)
            Image.fromarray(grey).save(root / name / f"{index}.png")


def test_a_class_that_was_renamed_after_the_run_is_refused(mlrun: Command) -> None:
    pictures(Path("pets"))
    data = ["data=imagefolder", "data.files=[pets]", "data.classes=3", "data.held_out=0.25"]
    sizes = ["model=deit_digits", "model.image=16", "model.classes=3"]
    assert mlrun(*SMALL, *sizes, *data, "data.mean=[0.5]", "data.std=[0.25]", "run=A") == []
    assert mlrun("task=evaluate", "run=A") == []
    told = json.loads(Path("A/evaluate.json").read_text())
    assert told["held_out"]["value"] == pytest.approx(
        json.loads(Path("A/summary.json").read_text())["val_loss"], rel=1e-6
    )
    Path("A/evaluate.json").unlink()
    Path("pets/ant").rename("pets/dog")  # now the last class: every label would be another
    (line,) = mlrun("task=evaluate", "run=A")
    assert line.startswith("mlrun: data=") and "the data that this run was trained on" in line
    assert not Path("A/evaluate.json").exists()


def test_documents_are_kept_apart_as_in_the_run(mlrun: Command) -> None:
    Path("x.txt").write_text("\n".join(f"line {n} of a text that goes on for {n * 7 % 31} words" for n in range(200)))
    data = ["data=text", "data.files=[x.txt]", "data.document=line", "data.sequence=32", "data.within_documents=true"]
    assert mlrun(*SMALL, "model.vocab=280", "model.position=32", *data, "run=A") == []
    assert mlrun("task=evaluate", "run=A") == []
    told = json.loads(Path("A/evaluate.json").read_text())
    assert told["held_out"]["value"] == pytest.approx(
        json.loads(Path("A/summary.json").read_text())["val_loss"], rel=1e-6
    )
    assert told["perplexity"]["value"] == pytest.approx(np.exp(told["held_out"]["value"]))
    # It is the run's setting that is read; with the other one the windows are no longer those of the run.
    config = yaml.safe_load(Path("A/config.yaml").read_text())
    config["data"]["within_documents"] = False
    Path("A/config.yaml").write_text(yaml.safe_dump(config))
    (line,) = mlrun("task=evaluate", "run=A")
    assert "the data that this run was trained on" in line


def test_pictures_have_no_documents(mlrun: Command) -> None:
    (line,) = mlrun("task=plan", "data=digits", "model=deit_digits", "data.within_documents=true", "run=A")
    assert line.startswith("mlrun: data.within_documents=true: allowed: ") and not Path("A").exists()


def test_fine_tuning_in_a_run_is_that_of_its_folder(mlrun: Command) -> None:
    Path("x.txt").write_text("\n".join(f"line {n} of a text that goes on for {n * 7 % 31} words" for n in range(200)))
    for part, first in (("train", 0), ("dev", 40)):
        rows = [f"{'text' if n % 2 else 'words'} {n}\t{n % 2}" for n in range(first, first + 40)]
        Path(f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    glue = ["evaluation.glue.tasks={sst2: {train: train.tsv, dev: dev.tsv}}", "evaluation.glue.rates=[5e-3]",
            "evaluation.glue.seeds=[0,1]", "evaluation.glue.epochs=1"]  # fmt: skip
    data = ["data=text", "data.files=[x.txt]", "data.document=line", "data.sequence=32"]
    sizes = [*SMALL, "model.vocab=280", "model.position=32"]
    assert mlrun(*sizes, *data, "evaluation=[held_out,glue]", *glue, "run=runs/a") == []
    logged = [json.loads(line) for line in Path("runs/a/log.jsonl").read_text().splitlines()]
    (ended,) = [record["results"] for record in logged if "results" in record]
    assert mlrun("task=evaluate", "run=runs/a", "evaluation=glue", *glue) == []
    told = json.loads(Path("runs/a/evaluate.json").read_text())
    assert told["glue/sst2"] == ended["glue/sst2"] and told["glue/sst2"]["guess"] == 0.5
    (line,) = mlrun("task=evaluate", "source=runs/a", "run=runs/a", "evaluation=glue", *glue)
    assert line.startswith("mlrun: run=runs/a: allowed: a folder that is no run, with source=")
    assert json.loads(Path("runs/a/evaluate.json").read_text()) == told
