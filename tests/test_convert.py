"""Claims on the operators alone: folders give what the operators give, in little memory, and evaluation of a run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pair
import pytest
import torch
import toy
import yaml
from safetensors.torch import load_file
from test_interop import ours_at, problems
from test_models import TINY
from torch import Tensor

from mlrun.config.settings import Hardware
from mlrun.convert import coalesce_folder, decoalesce_folder, interpolate_folders
from mlrun.errors import UserError
from mlrun.evaluate.accuracy import Accuracy
from mlrun.evaluate.base import Context, as_dict
from mlrun.evaluate.finished import evaluate
from mlrun.evaluate.held_out import HeldOut
from mlrun.evaluate.perplexity import Perplexity
from mlrun.interop.folders import export_hf, import_hf
from mlrun.interop.read import open_folder
from mlrun.models.base import Model
from mlrun.multilevel import operators
from mlrun.multilevel.coarsening.custom import Custom
from mlrun.multilevel.coarsening.uniform import Uniform

HALF = Uniform(width=2, ffn=2, head=2, depth=2)
FAMILIES = pytest.mark.parametrize("name", ["gpt", "bert", "deit", "llama", "llama tied qk", "t5", "t5 v1.1"])


def even(model: Model) -> Model:
    """Return a model whose depths halve."""
    return replace(model, decoder_layer=4) if hasattr(model, "decoder_layer") else model


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_folders_give_what_the_operators_give(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = even(TINY[name])
    state = ours_at(tmp_path / "fine", model, dtype)
    params, resize = model.params(), HALF.resize(model.sizes())

    coalesce_folder(tmp_path / "fine", tmp_path / "coarse", HALF)
    coarse = open_folder(tmp_path / "coarse")
    expected = operators.coalesce(state, params, resize)
    assert equal(dict(coarse), expected)
    assert coarse.model == model.resize(resize.coarse)

    decoalesce_folder(tmp_path / "coarse", tmp_path / "grown", HALF)
    grown = open_folder(tmp_path / "grown")
    expected = operators.decoalesce(expected, params, resize)
    assert equal(dict(grown), expected)
    assert grown.model == model

    interpolate_folders(tmp_path / "fine", tmp_path / "grown", 0.25, tmp_path / "mixed")
    assert equal(dict(open_folder(tmp_path / "mixed")), operators.interpolate(state, expected, 0.25))


@FAMILIES
def test_hugging_face_folders_stay_so_and_give_the_same(name: str, tmp_path: Path) -> None:
    model = even(TINY[name])
    ours_at(tmp_path / "ours", model)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    for kind in ("ours", "theirs"):
        coalesce_folder(tmp_path / kind, tmp_path / f"{kind}-coarse", HALF)
        decoalesce_folder(tmp_path / f"{kind}-coarse", tmp_path / f"{kind}-grown", HALF)
        interpolate_folders(tmp_path / kind, tmp_path / f"{kind}-grown", 0.5, tmp_path / f"{kind}-mixed")
    for step in ("coarse", "grown", "mixed"):
        assert (tmp_path / f"theirs-{step}" / "config.json").exists()
        import_hf(tmp_path / f"theirs-{step}", tmp_path / f"back-{step}")
        back, direct = (dict(open_folder(tmp_path / f"{kind}-{step}")) for kind in ("back", "ours"))
        if name == "t5" and step == "coarse":  # its class scales by another width, for which its last norm makes up
            back["decoder_norm.weight"] *= 8**-0.5 / 16**-0.5
        assert all(torch.allclose(back[key], direct[key], rtol=1e-12, atol=0) for key in direct)


def test_the_way_back_is_known_over_several_levels(tmp_path: Path) -> None:
    model = replace(TINY["gpt"], embed=24, head=4, head_dim=6, layer=4)
    ours_at(tmp_path / "1", model)
    third = Uniform(width=3, ffn=3, depth=2)
    coalesce_folder(tmp_path / "1", tmp_path / "2", HALF)
    coalesce_folder(tmp_path / "2", tmp_path / "3", third)
    decoalesce_folder(tmp_path / "3", tmp_path / "2 again", third)
    decoalesce_folder(tmp_path / "2 again", tmp_path / "1 again", HALF)
    assert open_folder(tmp_path / "1 again").model == model
    assert not (tmp_path / "1 again" / "model" / "fine.json").exists()
    sizes = [open_folder(tmp_path / folder).model.embed for folder in ("2", "3", "2 again")]  # type: ignore[attr-defined]
    assert sizes == [12, 4, 12]


def test_without_a_note_the_fine_sizes_follow_or_must_be_given(tmp_path: Path) -> None:
    ours_at(tmp_path / "coarse", TINY["gpt"])
    decoalesce_folder(tmp_path / "coarse", tmp_path / "grown", HALF)
    grown = open_folder(tmp_path / "grown").model
    wide = {"embed": 32, "head": 4, "ffn": 48, "layer": 4}
    assert grown == replace(TINY["gpt"], **wide)

    groups = Custom(groups={"ffn": [[0, 1], [2]]})
    call = lambda: decoalesce_folder(tmp_path / "coarse", tmp_path / "new", groups)  # noqa: E731
    assert problems(call, tmp_path / "new")[0].startswith("fine=null")
    ours_at(tmp_path / "fine", replace(TINY["gpt"], ffn=36))
    decoalesce_folder(tmp_path / "coarse", tmp_path / "grown again", groups, tmp_path / "fine")
    assert open_folder(tmp_path / "grown again").model == replace(TINY["gpt"], ffn=36)


DAMAGED = ["{}", '{"model": 3, "fine": null}', '{"model": {}}', '{"model": {}, "fine": 3}', "["]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_note_is_a_line(content: str, tmp_path: Path) -> None:
    ours_at(tmp_path / "a", TINY["gpt"])
    (tmp_path / "a" / "model" / "fine.json").write_text(content)
    with pytest.raises(UserError, match=r"fine\.json: ") as caught:
        decoalesce_folder(tmp_path / "a", tmp_path / "b", Uniform(width=2))
    assert len(caught.value.problems) == 1 and not (tmp_path / "b").exists()


def test_mistakes_are_lines_and_leave_nothing(tmp_path: Path) -> None:
    model, new = TINY["gpt"], tmp_path / "new"
    ours_at(tmp_path / "a", model)
    ours_at(tmp_path / "other eps", replace(model, eps=1e-3))
    ours_at(tmp_path / "wide", replace(model, ffn=48))
    a, other, wide = (tmp_path / name for name in ("a", "other eps", "wide"))
    refused = [
        (lambda: coalesce_folder(a, new, Uniform(width=3)), "coarsening.width=3"),
        (lambda: decoalesce_folder(a, new, Uniform(width=2), wide), "coarsening: it leads from embed=16 to 8"),
        (lambda: decoalesce_folder(a, new, Uniform(), other), "fine: eps is 0.001"),
        (lambda: interpolate_folders(a, wide, 0.5, new), f"grown={wide}: ffn is 48"),
        (lambda: interpolate_folders(a, a, 1.5, new), "alpha=1.5"),
        (lambda: interpolate_folders(a, tmp_path / "absent", 0.5, new), "grown="),
        (lambda: coalesce_folder(a, wide, HALF), "target="),
    ]
    for call, said in refused:
        assert problems(call, new)[0].startswith(said)


def test_bad_values_met_on_the_way_leave_nothing(tmp_path: Path) -> None:
    state = ours_at(tmp_path / "a", TINY["gpt"])
    (tmp_path / "a" / "model" / "model.safetensors").unlink()
    (tmp_path / "a" / "model").rename(tmp_path / "spare")
    state["norm.bias"][0] = math.nan
    from safetensors.torch import save_file

    save_file(state, tmp_path / "spare" / "model.safetensors")
    found = problems(lambda: coalesce_folder(tmp_path / "spare", tmp_path / "new", HALF), tmp_path / "new")
    assert found[0].startswith("tensor norm.bias: holds NaN")


# Memory

MEASURE = """
import resource, sys
from pathlib import Path
import torch
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.convert import coalesce_folder, decoalesce_folder, interpolate_folders

torch.set_num_threads(1)
a, b, c, d = map(Path, sys.argv[1:5])
limit, half = int(sys.argv[5]), Uniform(width=2, ffn=2, head=2, depth=2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
coalesce_folder(a, b, half, shard_bytes=limit)
decoalesce_folder(b, c, half, shard_bytes=limit)
interpolate_folders(a, c, 0.5, d, shard_bytes=limit)
print(peak() - before)
"""


def test_memory_is_bounded_by_a_shard_and_two_tensors(tmp_path: Path) -> None:
    from benchmarks.streaming import generate

    shard = 64 * 10**6
    sizes = generate(tmp_path / "a", "llama", shard, embed=1024, layer=16, vocab=8192)
    files = [file.stat().st_size for file in (tmp_path / "a").glob("*.safetensors")]
    assert sum(files) > 300 * 10**6
    assert max(files) <= 1.01 * shard
    paths = [str(tmp_path / name) for name in "abcd"]
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", MEASURE, *paths, str(shard)]
    used = int(subprocess.run(command, check=True, cwd=root, capture_output=True, text=True).stdout)
    largest, second = sizes[:2]
    assert used < 1.2 * max(files) + largest + second
    assert len(list((tmp_path / "d").glob("*.safetensors"))) == len(files)


# Evaluation


def a_run(folder: Path) -> dict:
    """Train the toy, and write its settings as a real run would."""
    config = toy.make()
    summary = toy.run(folder, config)
    data, settings = {"_target_": "toy.Toy", "sequence": config.data.sequence}, config.settings
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "data": data,
                "seed": settings.seed,
                "cache": "unused",
                "eval": {"batch": 4},
                "hardware": asdict(Hardware()),
            }
        )
    )
    model = {"_target_": "mlrun.models.gpt.GPT", **asdict(config.model)}
    (folder / "model" / "config.json").write_text(json.dumps(model))
    return summary


def measured(folder: Path, **hardware: Any) -> dict[str, Any]:
    return evaluate(folder, Hardware(**hardware), (HeldOut(), Perplexity(), Accuracy()))


def test_evaluate_repeats_the_runs_last_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLRUN_PACKAGES", "toy")
    summary = a_run(tmp_path)
    result = measured(tmp_path)
    assert result["held_out"].value == pytest.approx(summary["val_loss"], rel=1e-6)
    assert result["perplexity"].value == math.exp(result["held_out"].value)
    assert json.loads((tmp_path / "evaluate.json").read_text()) == as_dict(result)


def test_shards_are_evaluated_as_the_whole_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.needs({"sharding": "fsdp"})
    monkeypatch.setenv("MLRUN_PACKAGES", "toy")
    a_run(tmp_path)
    assert measured(tmp_path, sharding="fsdp") == measured(tmp_path)


def test_evaluate_is_strict_about_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLRUN_PACKAGES", "toy")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        measured(tmp_path)
    a_run(tmp_path)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"layer": 2', '"layer": 1'))
    with pytest.raises(UserError, match=r"tensor blocks\.1\."):
        measured(tmp_path)
    assert not (tmp_path / "evaluate.json").exists()
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no model yet"):
        measured(tmp_path)


def test_accuracy_counts_the_likeliest_class() -> None:
    from mlrun.models.network import build
    from mlrun.train.parallel.processes import Ranks

    net = build(TINY["deit"], 0)
    images = torch.randn(6, 3, 8, 8)
    guesses = net.logits({"images": images}).argmax(-1)
    labels = torch.where(torch.arange(6) < 2, (guesses + 1) % 6, guesses)
    batches = [{"images": images[:4], "labels": labels[:4]}, {"images": images[4:], "labels": labels[4:]}]

    def accuracy(batches: list[dict[str, torch.Tensor]]) -> float:
        source = SimpleNamespace(validation=lambda size: iter(batches), describe=dict)
        context = Context(source, 4, Hardware(), Ranks(0, 1, torch.device("cpu")))
        return Accuracy().measure(net, context)["accuracy"].value

    assert accuracy(batches) == pytest.approx(4 / 6)
    soft = [{**batch, "labels": torch.nn.functional.one_hot(batch["labels"], 6).float()} for batch in batches]
    assert accuracy(soft) == pytest.approx(4 / 6)


def test_a_flipped_bit_in_a_run_is_noticed(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.make())
    file = tmp_path / "model" / "model.safetensors"
    assert load_file(file)
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"_target_": "mlrun.models.gpt.GPT", **asdict(toy.model())})
    )
    with pytest.raises(UserError, match="checksum"):
        open_folder(tmp_path)
