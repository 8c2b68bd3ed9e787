"""What a trained model says, against `transformers` on the same folder; and what is refused."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_folders import POSITIONS
from rich.console import Console
from test_own_data import Reference

from mlrun.cli import command, points
from mlrun.cli.tasks import perform
from mlrun.config.settings import Hardware, Sample
from mlrun.errors import UserError
from mlrun.evaluate.picture import halves, show
from mlrun.evaluate.sample import drawn, say

transformers = pytest.importorskip("transformers", reason="the reference is not installed")


def said(folder: Path, seed: int = 0, **ask: Any) -> str:
    return "".join(say(folder, "source", Sample(**ask), seed, Hardware()))


def refused(folder: Path, **ask: Any) -> str:
    with pytest.raises(UserError) as error:
        said(folder, **ask)
    return str(error.value)


# Text


def test_the_likeliest_text_is_that_of_transformers_also_beyond_its_positions(gpt: Path) -> None:
    reference = Reference(gpt, transformers.GPT2LMHeadModel)
    read = [reference.end, *reference.ids("The old king")]
    for _ in range(POSITIONS + 6):
        number = int(reference.logs(read[-POSITIONS:])[-1].argmax())
        if number == reference.end:
            break
        read.append(number)
    assert len(read) > POSITIONS, "the window must have moved"
    expected = reference.tokenizer.decode(read) + "\n"
    ask = {"prompt": "The old king", "tokens": POSITIONS + 6}
    assert said(gpt, temperature=0.0, **ask).replace("�", "") == expected.replace("�", "")
    assert said(gpt, seed=5, top_k=1, **ask) == said(gpt, temperature=0.0, **ask)


def test_a_text_ends_at_any_of_the_ends_that_its_publishers_name(
    gpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(gpt, tmp_path / "hf")
    drew: list[int] = []
    monkeypatch.setattr("mlrun.evaluate.sample.drawn", lambda *asked: drew.append(drawn(*asked)) or drew[-1])
    said(gpt, prompt="The old", tokens=8)
    whole, end = list(drew), drew[5]
    ends = {"generation_config.json": [0, end], "config.json": end}  # the first of them that is there decides
    for name, told in ends.items():
        path = tmp_path / "hf" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": told}))
        drew.clear()
        said(tmp_path / "hf", prompt="The old", tokens=8)
        assert drew == whole[: whole.index(end) + 1]
        if name == "generation_config.json":
            path.unlink()


def test_the_same_seed_says_the_same_and_another_something_else(gpt: Path) -> None:
    assert said(gpt, tokens=20) == said(gpt, tokens=20) != said(gpt, seed=1, tokens=20)
    assert said(gpt, prompt="Né, x=1", tokens=1).startswith("Né, x=1")


def test_draws_have_the_probabilities_of_the_logits() -> None:
    logits_V = torch.tensor([2.0, 0.0, 1.0, -3.0])
    generator = torch.Generator().manual_seed(0)
    counts = np.bincount([drawn(logits_V, 0.5, 2, generator) for _ in range(4000)], minlength=4) / 4000
    share = float((logits_V[[0, 2]] / 0.5).softmax(-1)[0])
    assert counts[0] == pytest.approx(share, abs=0.02) and counts[0] + counts[2] == 1


def test_the_command_prints_and_writes_the_text(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "said.txt"
    asked = ["task=sample", f"source={gpt}", "sample.prompt=The king, x=1: {old}", "sample.tokens=3", "seed=3"]
    (point,) = points.of(command.read([*asked, f"sample.file={file}"]))
    perform(point.settings, None)
    shown = capsys.readouterr().out
    assert shown == file.read_text() == said(gpt, seed=3, prompt="The king, x=1: {old}", tokens=3)
    with pytest.raises(UserError, match="allowed: a new file in a folder"):
        perform(point.settings, None)


# Masks


def test_masks_are_filled_as_transformers_fills_them(bert: Path) -> None:
    reference = Reference(bert, transformers.BertForMaskedLM)
    cls, sep, mask = (reference.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    ids = [cls, *reference.ids("The old"), mask, *reference.ids(" saw"), mask, *reference.ids("."), sep]
    logs = reference.logs(ids)
    lines = said(bert, prompt="The old [MASK] saw [MASK].").splitlines()
    assert len(lines) == 2
    for number, (line, place) in enumerate(zip(lines, [i for i, n in enumerate(ids) if n == mask], strict=True), 1):
        chance = logs[place].exp().topk(5)
        assert line.startswith(f"mask {number}: ") and line.count("%") == 5
        assert f"{chance.values[0].item():.1%}" in line and f"{chance.values[4].item():.1%}" in line
        first = reference.tokenizer.decode([int(chance.indices[0])], skip_special_tokens=False).strip()
        assert line.removeprefix(f"mask {number}: ").startswith(first)


# Pictures


def test_a_picture_has_the_classes_of_transformers(tmp_path: Path) -> None:
    from PIL import Image

    torch.manual_seed(0)
    dims = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    names = {number: f"kind {number}" for number in range(7)}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=7, id2label=names, **dims)
    model = transformers.ViTForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    shown = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(shown).save(tmp_path / "a.png")
    assert "preprocessor_config.json" in refused(tmp_path, image=str(tmp_path / "a.png"))
    ways = [{"size": {"height": 8, "width": 8}}, {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}]
    pixels = torch.from_numpy(shown).float().permute(2, 0, 1)[None] / 255 * 2 - 1
    with torch.no_grad():
        best = model(pixels).logits[0].softmax(-1).topk(5)
    expected = [f"{p:6.1%}  kind {i}" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    for way in ways:
        said_of_pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **way}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said_of_pixels))
        seen: list[np.ndarray] = []
        parts = say(tmp_path, "source", Sample(image=str(tmp_path / "a.png")), 0, Hardware(), seen.append)
        assert next(parts) == f"{expected[0]}\n" and np.array_equal(seen[0], shown), "the picture comes first"
        assert [line.rstrip("\n") for line in parts] == expected[1:]
    assert "sample.image=nowhere: allowed: a picture's file" in refused(tmp_path, image="nowhere")
    assert "sample.image=null: allowed: a picture's file for a model of images" in refused(tmp_path)


def test_a_terminal_shows_the_picture_in_half_blocks_and_a_file_does_not() -> None:
    upper, lower = [[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]
    pixels_HWC = np.array([upper, lower, lower, upper], np.uint8)
    terminal, file = StringIO(), StringIO()
    show(pixels_HWC, Console(file=terminal, force_terminal=True, color_system="truecolor", width=80))
    first, second = terminal.getvalue().splitlines()
    assert first.startswith("\x1b[38;2;255;0;0;48;2;0;0;255m▀") and "38;2;0;255;0;48;2;9;8;7m▀" in first
    assert second.startswith("\x1b[38;2;0;0;255;48;2;255;0;0m▀") and first.count("▀") == second.count("▀") == 2
    show(pixels_HWC, Console(file=file))
    assert file.getvalue() == ""


@pytest.mark.parametrize(("shape", "size"), [((28, 28, 1), (28, 14)), ((224, 224, 3), (40, 20)), ((3, 9, 3), (9, 2))])
def test_a_picture_is_no_wider_than_the_terminal(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    rows = halves(np.full(shape, 7, np.uint8), 40).plain.splitlines()
    assert ({len(row) for row in rows}, len(rows)) == ({size[0]}, size[1])


# What is refused


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        ({"temperature": -1.0}, "sample.temperature=-1.0: allowed: finite and at least 1e-06; 0: the likeliest"),
        ({"temperature": 1e-320}, "sample.temperature=1e-320: allowed: finite and at least 1e-06"),
        ({"temperature": float("inf")}, "sample.temperature=inf: allowed: finite and at least 1e-06"),
        ({"file": "no/such/folder/a.txt"}, "sample.file=no/such/folder/a.txt: allowed: a new file"),
        ({"file": "/proc/a.txt"}, "sample.file=/proc/a.txt: allowed: a new file in a folder to write into"),
        ({"file": "~nobody9/a.txt"}, "~nobody9/a.txt: allowed: a path whose ~ is a home that is known here"),
        ({"top_k": 0}, "sample.top_k=0: allowed: null or at least 1"),
        ({"tokens": 0}, "sample.tokens=0: allowed: at least 1"),
        ({"image": "a.png"}, "sample.image=a.png: allowed: null for a model of text"),
        ({"temperature": 0.0, "top_k": 5}, "sample.top_k=5: allowed: left out; sample.temperature=0 takes the likeli"),
    ],
)
def test_a_wrong_setting_is_one_line(gpt: Path, ask: dict[str, Any], why: str) -> None:
    assert refused(gpt, **ask).startswith(why)


def test_a_masked_model_needs_a_mask_and_room(bert: Path) -> None:
    assert "a text with [MASK] for a masked model" in refused(bert)
    assert "sample.prompt=The king: allowed: a text with [MASK]" in refused(bert, prompt="The king")
    assert f"at most the {POSITIONS} tokens" in refused(bert, prompt="[MASK]" + " the king" * POSITIONS)
    assert refused(bert, prompt="[MASK]", tokens=5).startswith("sample.tokens=5: allowed: left out; only a causal")


def test_a_model_of_spans_and_a_folder_without_a_tokenizer_are_refused(gpt: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((gpt / name).read_bytes())
    assert "a model with its tokenizer" in refused(tmp_path)
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    assert "task=sample: allowed: a causal, masked or image model" in refused(tmp_path / "t5")
