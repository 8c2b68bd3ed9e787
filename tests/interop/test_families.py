"""Kin of our families are read and written as such; every family trains from the shipped YAML files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_interop import inputs
from test_models import TINY, reference, reference_logits, scatter, widen

from mlrun import run
from mlrun.cli import command, points
from mlrun.config.load import load
from mlrun.convert import coalesce_folder
from mlrun.data.text import sotu
from mlrun.errors import UserError
from mlrun.interop.folders import import_hf
from mlrun.interop.read import open_folder
from mlrun.models.network import build
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.plan.make import make_plan

transformers = pytest.importorskip("transformers")

# The same models under the names of other published classes, with what each wants of its configuration.
KIN: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "mistral": ("llama", "Mistral", "ForCausalLM", {"sliding_window": None, "bos_token_id": 0, "eos_token_id": 0}),
    "wide window": ("llama", "Mistral", "ForCausalLM", {"sliding_window": 12, "bos_token_id": 0, "eos_token_id": 0}),
    "xlm-roberta": ("roberta", "XLMRoberta", "ForMaskedLM", {"pad_token_id": 1}),
    "mt5": ("t5 v1.1", "MT5", "ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"}),
}


def kin(name: str) -> torch.nn.Module:
    """Return a published class of the sizes of one of ours, with random weights."""
    base, prefix, suffix, settings = KIN[name]
    config = reference(TINY[base]).config.to_dict()
    for key in ("architectures", "model_type", "transformers_version", "scale_decoder_outputs"):
        config.pop(key, None)
    theirs = getattr(transformers, f"{prefix}{suffix}")(getattr(transformers, f"{prefix}Config")(**config | settings))
    if name == "mt5" and theirs.lm_head.weight is theirs.shared.weight:  # tied when fresh, whatever its config says
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().clone())
    scatter(theirs.double().eval())
    return theirs


@pytest.mark.parametrize("name", KIN)
def test_kin_of_our_families_give_the_same_logits_and_come_back(name: str, tmp_path: Path) -> None:
    model, theirs = TINY[KIN[name][0]], kin(name)
    theirs.save_pretrained(tmp_path / "theirs")
    import_hf(tmp_path / "theirs", tmp_path / "ours")
    found = open_folder(tmp_path / "ours")
    assert found.model.as_evaluated() == model
    net = build(model, None, dtype=torch.float64)
    net.load_state_dict(dict(found))
    batch = inputs(model)
    single = reference_logits(theirs, batch)
    widen(theirs)
    assert (net.logits(batch) - reference_logits(theirs, batch)).abs().max() < 1e-10
    assert (net.logits(batch) - single).abs().max() < 1e-4

    same = Uniform()
    coalesce_folder(tmp_path / "theirs", tmp_path / "again", same)  # of one unit each: the same weights
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__] and config["model_type"] == theirs.config.model_type
    again = type(theirs).from_pretrained(tmp_path / "again", dtype=torch.float64).eval()
    widen(again)
    assert (reference_logits(again, batch) - net.logits(batch)).abs().max() < 1e-10


@pytest.mark.parametrize("window", [4, "absent"])
def test_a_window_narrower_than_the_text_is_refused(window: object, tmp_path: Path) -> None:
    kin("mistral").save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text()) | {"sliding_window": window}
    if window == "absent":  # which the class takes for 4096
        del config["sliding_window"]
        config["max_position_embeddings"] = 5000
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="sliding_window="):
        import_hf(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize(("kind", "heads"), [("Mistral", 8), ("Qwen2", 32), ("Qwen3", 32)])
def test_an_absent_number_of_heads_is_that_of_the_class(kind: str, heads: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "num_attention_heads": 64, "num_hidden_layers": 1, "intermediate_size": 8}
    ids = {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "sliding_window": None}
    config = getattr(transformers, f"{kind}Config")(**sizes, **ids, head_dim=2, max_position_embeddings=16)
    assert config.num_key_value_heads == heads
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    said = json.loads(path.read_text())
    del said["num_key_value_heads"]
    path.write_text(json.dumps(said))
    assert open_folder(tmp_path / "theirs").model.sizes()["kv_head"] == heads
    # Null is the number of query heads, so that the stored tensors do not fit any more.
    path.write_text(json.dumps(said | {"num_key_value_heads": None}))
    with pytest.raises(UserError, match="k_proj"):
        open_folder(tmp_path / "theirs")


SPEECHES = sorted((sotu.folder() / "speeches").glob("*.txt"))[:20]  # type: ignore[operator]
TEXT = ["data=text", f"data.files=[{','.join(map(str, SPEECHES))}]", "data.document=file", "data.held_out=0.2"]
NARROW = ["model.embed=64", "model.ffn=128", "model.layer=2"]
FAMILIES = {
    "gpt": ["model=gpt_tiny", *TEXT, *NARROW, "model.head=2"],
    "bert": ["model=bert_tiny", *TEXT, *NARROW, "model.head=2"],
    "llama": ["model=llama_tiny", *TEXT, *NARROW, "model.kv_head=2"],
    "t5": ["model=t5_tiny", *TEXT, *NARROW, "model.head=2", "model.decoder_layer=2"],
    "deit": ["model=deit_digits", "data=digits", *NARROW, "model.head=2"],
    "vit": ["model=deit_digits", "data=digits", *NARROW, "model.head=2", "model.pooling=mean"],
}
SHORT = [
    "budget=40 steps",
    "batch=16",
    "optimizer.lr=4e-3",
    "eval.every=100%",
    "data.validation_samples=64",
    "hardware=cpu",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_through_a_cycle(family: str, tmp_path: Path, cache: Path) -> None:
    overrides = [*FAMILIES[family], *SHORT, f"run={tmp_path}/r", f"cache={cache}"]
    (point,) = points.of(command.read(overrides))
    config = load(point.settings)
    summary = run.train(config, make_plan(config), tmp_path / "r")
    records = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    first, *later = [r["loss"] for r in records if r["kind"] == "val"]
    assert [r["operator"] for r in summary["receipts"]] == ["coalesce", "decoalesce"]
    assert math.isfinite(summary["val_loss"]) and min(later) < first - 0.03
