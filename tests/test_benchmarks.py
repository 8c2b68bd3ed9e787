"""The measurements that need a machine of their own also run, small, on any other."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import __main__, gpu, growth, images, levels, loop, startup, text
from benchmarks.table import Report, Target
from mlrun.data.images.files import ImageFiles
from mlrun.data.text.tokenizer import train

TINY = ["model.embed=32", "model.head=2", "model.head_dim=16", "model.ffn=64", "model.layer=2", "batch=4"]
TEXT = ["model.position=32", "data.sequence=32", "data.validation_samples=4", "eval.batch=4"]
DIGITS = ["model=deit_digits", "data=digits", "data.validation_samples=8", "eval.batch=8"]


def test_three_levels_a_bare_loop_and_the_trainer_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STEPS", 5)
    small = [
        "model=gpt_micro",
        "model.layer=4",
        "data.sequence=32",
        "batch=2",
        "hardware=cpu",
        "hardware.micro_batch=1",
        "hardware.threads=1",
    ]
    stages = [f"{{level: {level}, length: 2 steps}}" for level in (1, 2, 3, 2, 1)]
    cycle = ["cycle=3level", f"cycle.stages=[{','.join(stages)}]", "budget=10 steps", "log_every=1", "eval.every=100%"]
    found = gpu.rows("gpt", [*small, *cycle, "data.validation_samples=2"], None)
    assert [row[:2] for row in found] == [
        ["gpt", "1"],
        ["gpt", "2"],
        ["gpt", "3"],
        ["gpt", "bare loop"],
        ["gpt", "Trainer"],
    ]
    if not all(map(importlib.util.find_spec, loop.WANTED)):
        assert found.pop()[2] == "n/a"
    assert all(float(row[2].replace(",", "")) > 0 and row[3] == "n/a" for row in found)
    assert found[0][5] == found[0][6] == "1.000"
    assert float(found[2][6]) < float(found[1][6]) < 1


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_card_is_known_by_its_name_or_not_at_all(name: str, flops: float | None) -> None:
    assert gpu.peak(name) == flops
    assert gpu.mfu(100e12, name) == ("n/a" if flops is None else f"{100e12 / flops:.1%}")


def test_a_command_is_timed_until_it_ends_or_says_a_word() -> None:
    wall, processor = startup.once(["--help"], None)
    assert processor > 0 and wall > 0
    with pytest.raises(RuntimeError, match="ended without"):
        startup.once(["--help"], "no such word")


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_a_second_of_a_core_are_measured(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "TIMES", 1)
    images.jpegs(tmp_path / "jpeg", number=images.BATCH, side=16)
    mean = {"mean": images.MEAN, "std": images.STD}
    data = ImageFiles(files=[str(tmp_path / "jpeg")], format="imagefolder", classes=2, **mean)
    monkeypatch.setattr(images, "missing", lambda: "ImportError: none")
    (row,) = images.rows(data, images.Kind("small", 16, 0.35, 4), str(tmp_path), workers)
    assert row[:2] == ["small", str(workers)] and float(row[2]) > 0 and row[3:] == ["n/a"] * 3


def test_text_is_prepared_beside_tokenizers_alone(tmp_path: Path) -> None:
    file, tokenizer = str(tmp_path / "text.txt"), str(tmp_path / "tokenizer.json")
    text.write(tmp_path / "text.txt", 1)
    train(islice(text._documents(file), 50), 400, "causal").save(tokenizer)
    ours, _ = text.prepared(file, tokenizer, str(tmp_path / "cache"))
    theirs, _ = text.alone(file, tokenizer)
    assert ours > 0 and theirs > 0 and list((tmp_path / "cache").rglob("train.bin"))


@pytest.mark.parametrize(
    ("family", "said"),
    [("GPT-2", ["model=gpt_tiny", *TEXT]), ("BERT", ["model=bert_tiny", *TEXT]), ("ViT", DIGITS)],
)
def test_all_loops_do_the_same_work(family: str, said: list[str]) -> None:
    """Two steps from the same weights end at the same held-out loss, whoever takes them."""
    found = loop.turns(loop.work([*said, *TINY], steps=2), 1)
    trainer = ["Trainer"] if all(map(importlib.util.find_spec, loop.WANTED)) else []
    assert list(found) == ["ours", "bare", *trainer]
    losses = [taken[0].loss for taken in found.values()]
    assert all(loss == pytest.approx(losses[0], abs=1e-5) for loss in losses)
    assert all(taken[0].processor > 0 and taken[0].wall > 0 for taken in found.values())


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WANTED", ("no_such_library",))
    report = loop.main({"GPT-2": ["model=gpt_tiny", *TEXT, *TINY]}, count=1, steps=1)
    assert [target.held for target in report.targets][1] == "n/a"
    assert "Trainer: n/a without no_such_library" in report.text


def test_levels_are_compared_with_their_flops() -> None:
    report = levels.main({"tiny": ["model=gpt_tiny", *TEXT, *TINY]}, count=1, steps=1)
    (target,) = report.targets
    assert target.measured is not None and target.measured > 0 and "| tiny" in report.text


def test_what_grows_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four = ["model.layer=4", "model.head=4", "model.head_dim=8"]
    monkeypatch.setattr(growth, "SMALL", ("model=gpt_tiny", *TEXT, *TINY, *four))
    monkeypatch.setattr(growth, "SIZES", {"depth": ((1, 2), lambda n: (f"model.layer={n}",))})
    monkeypatch.setattr(growth, "LEVELS", (1, 2))
    monkeypatch.setattr(growth, "RUNS", (6, 12))
    monkeypatch.setattr(growth, "RECORDS", (10, 20))
    monkeypatch.setattr(growth, "FIGURE", tmp_path / "growth.png")
    report = growth.main()
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert [target.held for target in report.targets] == ["yes", "yes"]
    depth = [point for point in growth.points() if point.grows == "depth"]
    assert depth[0].gflops < depth[1].gflops and depth[0].mib < depth[1].mib


def test_the_targets_come_last_in_one_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = (
        Target("slow", 2, 2.5, unit=" s"),
        Target("fast", 2, 1.5, unit=" s"),
        Target("more", 1.15, 1.2, at_least=True),
        Target("less", 1.15, 1.1, at_least=True),
        Target("unknown", 1, None),
    )
    monkeypatch.setattr(startup, "main", lambda: Report("text", targets))
    monkeypatch.setattr(levels, "main", lambda: "text alone")
    assert __main__.main(["startup", "levels"]) == 0
    told = capsys.readouterr().out
    assert [target.held for target in targets] == ["no", "yes", "yes", "no", "n/a"]
    assert told.index("text alone") < told.index("## targets") < told.index("| slow ") < told.index("| unknown ")
    assert "at most 2 s" in told and "load " in told


def test_a_key_of_the_command_line_is_of_the_kind_that_a_benchmark_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def main(kind: str = "gpt", threads: int = 2, **sizes: int) -> str:
        given.update(sizes, kind=kind, threads=threads)
        return "done"

    monkeypatch.setattr(startup, "main", main)
    assert __main__.main(["startup", "kind=10", "threads=1", "layer=2"]) == 0
    assert given == {"kind": "10", "threads": 1, "layer": 2}
