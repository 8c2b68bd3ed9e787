"""The measurements that need a machine of their own also run, small, on any other."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from benchmarks import gpu, images, startup, text
from mlrun.data.images.files import ImageFiles
from mlrun.data.text.tokenizer import train


def test_three_levels_and_a_bare_loop_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STEPS", 5)
    small = ["model=gpt_micro", "model.layer=4", "data.sequence=32", "batch=2", "hardware=cpu", "hardware.threads=1"]
    stages = [f"{{level: {level}, length: 2 steps}}" for level in (1, 2, 3, 2, 1)]
    cycle = ["cycle=3level", f"cycle.stages=[{','.join(stages)}]", "budget=10 steps", "log_every=1", "eval.every=100%"]
    found = gpu.rows("gpt", [*small, *cycle, "data.validation_samples=2"], None)
    assert [row[:2] for row in found] == [["gpt", "1"], ["gpt", "2"], ["gpt", "3"], ["gpt", "bare loop"]]
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
