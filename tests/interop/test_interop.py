"""Claims on the way to Hugging Face and back: equal logits both ways, tokenizers too, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_models import SPAN, TINY, a_batch, everywhere, reference, reference_logits, scatter, widen
from torch import Tensor

from mlrun.convert import coalesce_folder
from mlrun.errors import UserError
from mlrun.interop import published, tokenizers
from mlrun.interop.families.registry import find_family
from mlrun.interop.folders import export_hf, import_hf
from mlrun.interop.read import open_folder
from mlrun.interop.write import ours
from mlrun.models.base import Model
from mlrun.models.network import build
from mlrun.models.t5 import T5
from mlrun.multilevel.coarsening.uniform import Uniform

transformers = pytest.importorskip("transformers")

CLASSES = {
    "gpt": "AutoModelForCausalLM",
    "gpt untied": "AutoModelForCausalLM",
    "gpt gelu": "AutoModelForCausalLM",
    "gpt relu": "AutoModelForCausalLM",
    "bert": "AutoModelForMaskedLM",
    "roberta": "AutoModelForMaskedLM",
    "deit": "AutoModelForImageClassification",
    "deit distilled": "DeiTForImageClassificationWithTeacher",
    "deit one head": "DeiTForImageClassification",
    "llama": "AutoModelForCausalLM",
    "llama stretched": "AutoModelForCausalLM",
    "qwen2": "AutoModelForCausalLM",
    "llama biased": "AutoModelForCausalLM",
    "qwen3 biased": "AutoModelForCausalLM",
    "llama tied qk": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "t5 v1.1": "AutoModelForSeq2SeqLM",
}
EVERY = pytest.mark.parametrize("name", CLASSES)
WORDS = ("the state of the union is strong", "my fellow citizens", "the union, the states & 1790")


def unusual(model: Model) -> Model:
    """Return the model with settings that no configuration has by default."""
    rates = {"dropout": 0.25, "attention_dropout": 0.125, "drop_path": 0.0625}
    return replace(model, eps=1e-2, **rates, **({"theta": 50.0} if hasattr(model, "theta") else {}))


def ours_at(folder: Path, model: Model, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Write a run-like folder with random weights, and return them."""
    net = build(model, 0, dtype=torch.float64)
    scatter(net)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in net.state_dict().items()}
    (folder / "model").mkdir(parents=True)
    save_file(state, folder / "model" / "model.safetensors")
    (folder / "model" / "config.json").write_text(json.dumps(ours(model)))
    return state


def logits(state: dict[str, Tensor], model: Model, dtype: torch.dtype) -> Tensor:
    net = build(model, None, dtype=dtype).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        return net.logits(inputs(model, dtype))


def inputs(model: Model, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return everywhere(a_batch(model, dtype))


def load(folder: Path, name: str, dtype: torch.dtype) -> torch.nn.Module:
    """Load a folder with transformers, nothing missing and nothing left over."""
    theirs, info = getattr(transformers, CLASSES[name]).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return theirs.eval()


def problems(call: Callable[[], None], target: Path) -> list[str]:
    """Return the lines of a refusal, having seen that it left nothing behind."""
    before = set(target.parent.iterdir())
    with pytest.raises(UserError) as caught:
        call()
    assert set(target.parent.iterdir()) == before
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


# Both ways


@EVERY
def test_an_exported_folder_loads_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model = unusual(TINY[name])
    state = ours_at(tmp_path / "run", model)
    export_hf(tmp_path / "run", tmp_path / "hf")
    single = load(tmp_path / "hf", name, torch.float32)
    state32 = {key: tensor.float() for key, tensor in state.items()}
    off = logits(state32, model, torch.float32) - reference_logits(single, inputs(model, torch.float32))
    assert off.abs().max() < 1e-4
    double = load(tmp_path / "hf", name, torch.float64)
    widen(double)
    expected = logits(state, model, torch.float64)
    assert expected.std() > 0.1
    assert (expected - reference_logits(double, inputs(model))).abs().max() < 1e-10


@EVERY
def test_export_then_import_is_the_identity(name: str, tmp_path: Path) -> None:
    model = unusual(TINY[name])
    state = ours_at(tmp_path / "run", model, torch.bfloat16)
    export_hf(tmp_path / "run" / "model", tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model" / "model.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert open_folder(tmp_path / "back").model == model


@EVERY
def test_shards_of_hugging_face_are_imported_alike(name: str, tmp_path: Path) -> None:
    model = unusual(TINY[name])
    state = ours_at(tmp_path / "run", model)
    export_hf(tmp_path / "run", tmp_path / "hf")
    load(tmp_path / "hf", name, torch.float64).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    import_hf(tmp_path / "shards", tmp_path / "back")
    found = open_folder(tmp_path / "back")
    assert found.model == model
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_parametrisation_is_no_part_of_what_is_exported(tmp_path: Path) -> None:
    """Whatever a coarser level's factors are: no byte differs; what is imported is the standard one."""
    model = TINY["gpt"]
    scaled = replace(model, parametrization="completep", base={"embed": 48, "layer": 9, "head_dim": 3})
    for name, each in (("standard", model), ("completep", scaled)):
        ours_at(tmp_path / name, each)  # with the same random weights
        export_hf(tmp_path / name, tmp_path / f"hf {name}")
    for file in ("model.safetensors", "config.json"):
        written = [(tmp_path / f"hf {name}" / file).read_bytes() for name in ("standard", "completep")]
        assert written[0] == written[1]
    import_hf(tmp_path / "hf completep", tmp_path / "back")
    assert open_folder(tmp_path / "back").model == model
    assert open_folder(tmp_path / "completep").model == scaled
    coalesce_folder(tmp_path / "completep", tmp_path / "coarse", Uniform(width=2, head=2, ffn=2))
    assert open_folder(tmp_path / "coarse").model.base_sizes()["embed"] == 48


RATES_THERE: dict[str, dict[str, float]] = {
    "gpt": {"resid_pdrop": 0.25, "embd_pdrop": 0.25, "attn_pdrop": 0.125},
    "bert": {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.125},
    "roberta": {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.125},
    "deit": {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.125, "drop_path_rate": 0.0625},
    "llama": {"attention_dropout": 0.125},
    "t5": {"dropout_rate": 0.25},
}


@pytest.mark.parametrize("name", RATES_THERE)
def test_what_is_dropped_is_said_under_the_keys_that_the_class_reads(name: str, tmp_path: Path) -> None:
    ours_at(tmp_path / "run", unusual(TINY[name]))
    export_hf(tmp_path / "run", tmp_path / "hf")
    theirs = load(tmp_path / "hf", name, torch.float32)
    assert {key: getattr(theirs.config, key) for key in RATES_THERE[name]} == RATES_THERE[name]
    rates = {module.p for module in theirs.modules() if isinstance(module, torch.nn.Dropout)}
    assert name == "llama" or 0.25 in rates  # its class drops attention weights alone, without a module

    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for key in ("dropout", "attention_dropout", "drop_path_rate", *RATES_THERE[name]):
        config.pop(key, None)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    import_hf(tmp_path / "hf", tmp_path / "back")
    back, rate = open_folder(tmp_path / "back").model, 0.0 if name in ("deit", "llama") else 0.1
    assert (back.dropout, back.attention_dropout, back.drop_path) == (rate, rate, 0.0), "what the class takes then"


# The padding token's id: of a tokenizer of ours, of the published layout, and where there is no tokenizer.
PADDED = {
    "ours": (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), 0),
    "published": (("<s>", "<pad>", "</s>", "<unk>", "<mask>"), 1),
}


@pytest.mark.parametrize("layout", PADDED)
def test_roberta_counts_positions_from_its_padding(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlrun.data.text import tokenizer as ours_tokenizer

    special, pad = PADDED[layout]
    monkeypatch.setitem(ours_tokenizer.SPECIAL, "mlm", special)
    model = unusual(replace(TINY["roberta"], vocab=300, position=40))
    state = ours_at(tmp_path / "run", model)
    words = a_tokenizer("mlm")
    words.save(str(tmp_path / "run" / "model" / "tokenizer.json"))
    export_hf(tmp_path / "run", tmp_path / "hf")
    rows = load_file(tmp_path / "hf" / "model.safetensors")["roberta.embeddings.position_embeddings.weight"]
    assert len(rows) == 40 + pad + 1 and not rows[: pad + 1].any()

    theirs = load(tmp_path / "hf", "roberta", torch.float64)
    assert type(theirs).__name__ == "RobertaForMaskedLM" and theirs.config.pad_token_id == pad
    padded = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(
        list(WORDS[:2]), padding=True, return_tensors="pt"
    )
    net = build(model, None, dtype=torch.float64).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        found = theirs(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
        for row, text in enumerate(WORDS[:2]):
            ids = padded["input_ids"][row][padded["attention_mask"][row] == 1].tolist()
            assert ids[1:-1] == words.encode(text).ids
            batch = {"tokens": torch.tensor([ids]), "positions": torch.arange(len(ids))[None]}
            off = net.logits(batch)[0] - found[row, : len(ids)]
            assert off.abs().max() < 1e-10
    assert padded["attention_mask"].sum() < padded["attention_mask"].numel()
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert open_folder(tmp_path / "back").model == model


def test_a_roberta_vocabulary_without_tokenizer_json_becomes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer

    from mlrun.data.text import tokenizer as ours_tokenizer

    monkeypatch.setitem(ours_tokenizer.SPECIAL, "mlm", PADDED["published"][0])
    words = a_tokenizer("mlm")
    ours_at(tmp_path / "run", replace(TINY["roberta"], vocab=300))
    export_hf(tmp_path / "run", tmp_path / "hf")
    words.model.save(str(tmp_path / "hf"))
    import_hf(tmp_path / "hf", tmp_path / "back")
    made = Tokenizer.from_file(str(tmp_path / "back" / "model" / "tokenizer.json"))
    assert all(made.encode(text, add_special_tokens=False).ids == words.encode(text).ids for text in WORDS)
    assert made.encode("a", "b").tokens == ["<s>", "a", "</s>", "</s>", "b", "</s>"]
    special = {token.content for token in made.get_added_tokens_decoder().values() if token.special}
    assert special == set(PADDED["published"][0])
    export_hf(tmp_path / "back", tmp_path / "again")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (theirs.pad_token, theirs.cls_token, theirs.mask_token) == ("<pad>", "<s>", "<mask>")


def test_a_coarser_t5_keeps_its_scale_when_exported(tmp_path: Path) -> None:
    model = T5(**SPAN, mlp="relu", tied=True, head_scale=0.1)
    state = ours_at(tmp_path / "run", model)
    export_hf(tmp_path / "run", tmp_path / "hf")
    double = load(tmp_path / "hf", "t5", torch.float64)
    widen(double)
    off = logits(state, model, torch.float64) - reference_logits(double, inputs(model))
    assert off.abs().max() < 1e-10


def test_published_spellings_are_understood(tmp_path: Path) -> None:
    renamings: dict[str, Callable[[str], str]] = {
        "gpt": lambda name: name.removeprefix("transformer."),
        "bert": lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    }
    extras = {"gpt": ["h.0.attn.bias"], "bert": ["bert.pooler.dense.bias", "cls.seq_relationship.weight"]}
    for name, rename in renamings.items():
        state = ours_at(tmp_path / name, TINY[name])
        export_hf(tmp_path / name, tmp_path / f"{name}-hf")
        file = tmp_path / f"{name}-hf" / "model.safetensors"
        stored = {rename(key): tensor for key, tensor in load_file(file).items()}
        assert rename("transformer.wte.weight") in stored or name == "bert"
        save_file(stored | {extra: torch.ones(2) for extra in extras[name]}, file)
        import_hf(tmp_path / f"{name}-hf", tmp_path / f"{name}-back")
        back = dict(open_folder(tmp_path / f"{name}-back"))
        assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_second_copy_of_a_tied_table_must_be_equal(tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY["gpt"])
    export_hf(tmp_path / "run", tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    stored = load_file(file)
    table = stored["transformer.wte.weight"]
    save_file(stored | {"lm_head.weight": table.clone()}, file)
    import_hf(tmp_path / "hf", tmp_path / "same")
    save_file(stored | {"lm_head.weight": table + 1}, file)
    assert (
        "tensor lm_head.weight"
        in problems(lambda: import_hf(tmp_path / "hf", tmp_path / "other"), tmp_path / "other")[0]
    )


def test_the_core_never_imports_transformers(tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY["llama"])
    script = (
        "import sys; from pathlib import Path; from mlrun.interop.folders import export_hf, import_hf\n"
        "a, b, c = map(Path, sys.argv[1:]); export_hf(a, b); import_hf(b, c)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    paths = [str(tmp_path / name) for name in ("run", "hf", "back")]
    subprocess.run([sys.executable, "-c", script, *paths], check=True, cwd=Path(__file__).resolve().parents[2])


# Tokenizers


def a_tokenizer(objective: str, size: int = 300) -> Any:
    from mlrun.data.text import tokenizer

    return tokenizer.train(WORDS * 20, size, objective)


@pytest.mark.parametrize(
    ("name", "objective"),
    [("gpt", "causal"), ("llama", "causal"), ("bert", "mlm"), ("roberta", "mlm"), ("t5", "span")],
)
def test_a_tokenizer_travels_out_and_back(name: str, objective: str, tmp_path: Path) -> None:
    tokenizer = a_tokenizer(objective)
    ours_at(tmp_path / "run", replace(TINY[name], vocab=300))
    tokenizer.save(str(tmp_path / "run" / "model" / "tokenizer.json"))
    export_hf(tmp_path / "run", tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    before, after = {"causal": ([], []), "mlm": (["[CLS]"], ["[SEP]"]), "span": ([], ["</s>"])}[objective]
    ids = lambda names: [tokenizer.token_to_id(name) for name in names]  # noqa: E731
    for text in WORDS:
        assert theirs(text).input_ids == [*ids(before), *tokenizer.encode(text).ids, *ids(after)]
        assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == text
    roles = {"causal": ["eos_token"], "mlm": ["mask_token", "pad_token"], "span": ["pad_token", "eos_token"]}[objective]
    assert all(getattr(theirs, f"{role}_id") == tokenizer.token_to_id(getattr(theirs, role)) for role in roles)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert all(config.get(f"{role}_id", theirs.mask_token_id) == getattr(theirs, f"{role}_id") for role in roles)
    import_hf(tmp_path / "hf", tmp_path / "back")
    back = type(tokenizer).from_file(str(tmp_path / "back" / "model" / "tokenizer.json"))
    assert all(back.encode(t, add_special_tokens=False).ids == tokenizer.encode(t).ids for t in WORDS)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_mask_takes_the_blank_in_front_of_it(name: str, tmp_path: Path) -> None:
    tokenizer = a_tokenizer("mlm")
    ours_at(tmp_path / "run", replace(TINY[name], vocab=300))
    tokenizer.save(str(tmp_path / "run" / "model" / "tokenizer.json"))
    export_hf(tmp_path / "run", tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    # In a run the blank in front of a word belongs to its token, which the mask stands for; that behind it stays.
    cls, sep, mask = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    told = [cls, *tokenizer.encode("the union").ids, mask, *tokenizer.encode(" union").ids, mask, sep]
    assert theirs("the union [MASK] union [MASK]").input_ids == told
    theirs.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("the union [MASK] union [MASK]").input_ids == told


def test_a_mask_of_word_pieces_stays_as_it_is(tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY["bert"])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##ion"]
    (tmp_path / "run" / "model" / "vocab.txt").write_text("\n".join(words))
    export_hf(tmp_path / "run", tmp_path / "hf")
    added = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())["added_tokens"]
    assert [token["lstrip"] for token in added if token["content"] == "[MASK]"] == [False]


def test_a_vocabulary_without_tokenizer_json_becomes_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    ours_at(tmp_path / "run", TINY["bert"])
    export_hf(tmp_path / "run", tmp_path / "hf")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##ion"]
    (tmp_path / "hf" / "vocab.txt").write_text("\n".join(words))
    import_hf(tmp_path / "hf", tmp_path / "back")
    tokenizer = Tokenizer.from_file(str(tmp_path / "back" / "model" / "tokenizer.json"))
    assert tokenizer.encode("The union").tokens == ["[CLS]", "the", "un", "##ion", "[SEP]"]
    assert tokenizer.encode("The", "union").type_ids == [0, 0, 0, 1, 1, 1]


# What config.json says beside sizes

SAID: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": None},
    "gpt": {"eos_token_id": 7},
    "t5": {"pad_token_id": 3, "eos_token_id": 1, "decoder_start_token_id": 4},
    "bert": {"pad_token_id": 5},
    "roberta": {"bos_token_id": 9, "eos_token_id": 8, "pad_token_id": 1},
    "deit": {"id2label": {str(i): f"class {i}" for i in range(6)}, "label2id": {f"class {i}": i for i in range(6)}},
}


def said(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    return {key: config[key] for key in (*published.IDS, "id2label", "label2id") if key in config}


@pytest.mark.parametrize("name", SAID)
def test_ends_and_classes_travel_word_for_word(name: str, tmp_path: Path) -> None:
    model = replace(TINY[name], decoder_layer=4) if hasattr(TINY[name], "decoder_layer") else TINY[name]
    ours_at(tmp_path / "run", model)
    export_hf(tmp_path / "run", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if not key.endswith("token_id")}
    path.write_text(json.dumps(config | SAID[name]))
    generation = {"eos_token_id": [1, 2], "temperature": 0.5}
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(generation))
    half = Uniform(width=2, ffn=2, head=2, depth=2)
    import_hf(tmp_path / "hf", tmp_path / "ours")
    coalesce_folder(tmp_path / "ours", tmp_path / "small", half)
    coalesce_folder(tmp_path / "hf", tmp_path / "small hf", half)
    export_hf(tmp_path / "small", tmp_path / "exported")
    for folder in ("small hf", "exported"):
        assert said(tmp_path / folder) == SAID[name]
        assert json.loads((tmp_path / folder / "generation_config.json").read_text()) == generation


def test_generation_stops_where_the_published_model_does(tmp_path: Path) -> None:
    model = TINY["llama"]
    state = ours_at(tmp_path / "run", model)
    export_hf(tmp_path / "run", tmp_path / "hf")
    net = build(model, None, dtype=torch.float64).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        likeliest = int(net.logits({"tokens": torch.tensor([[5, 6]])})[0, -1].argmax())
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [47, likeliest], "pad_token_id": 0}))
    import_hf(tmp_path / "hf", tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "again")
    theirs = load(tmp_path / "again", "llama", torch.float64)
    out = theirs.generate(torch.tensor([[5, 6]]), max_new_tokens=5, do_sample=False)
    assert out.tolist() == [[5, 6, likeliest]]


def test_what_a_run_knows_of_its_ends_is_exported(tmp_path: Path) -> None:
    model = replace(TINY["gpt"], vocab=300)
    ours_at(tmp_path / "run", model)
    words = a_tokenizer("causal", 290)
    words.add_special_tokens(["<|im_end|>"])
    folder = tmp_path / "run" / "model"
    words.save(str(folder / "tokenizer.json"))
    end = words.token_to_id("<|im_end|>")
    published.write(folder, tokenizers.facts_of_run(folder, model, end))
    export_hf(tmp_path / "run", tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|im_end|>", end)
    assert said(tmp_path / "hf") == {"bos_token_id": end, "eos_token_id": end}
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == end


def test_damaged_facts_are_a_line(tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY["gpt"])
    for content in ("[", "[]", '{"wings": 2}'):
        (tmp_path / "run" / "model" / "published.json").write_text(content)
        assert "published.json" in problems(lambda: export_hf(tmp_path / "run", tmp_path / "new"), tmp_path / "new")[0]


# Mistakes: each is one line, and the target stays as it was


def spoil(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def fill(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state[name].view(-1)[3:4].fill_(value) and None


QUERY = "model.layers.1.self_attn.q_proj.weight"
SPOILED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda state: state.pop(QUERY), f"tensor {QUERY}: missing"),
    "shape": (lambda state: state.update({QUERY: torch.ones(2, 3)}), f"tensor {QUERY}: shape (2, 3)"),
    "extra": (lambda state: state.update({"model.wings": torch.ones(2)}), "tensor model.wings: the model has no such"),
    "nan": (fill(QUERY, float("nan")), f"tensor {QUERY}: holds NaN"),
    "infinite": (fill(QUERY, float("-inf")), f"tensor {QUERY}: holds infinite"),
    "integers": (lambda state: state.update({QUERY: state[QUERY].long()}), f"tensor {QUERY}: not in float64"),
    "two dtypes": (lambda state: state.update({QUERY: state[QUERY].half()}), f"tensor {QUERY}: torch.float16"),
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Return an exported Llama."""
    ours_at(tmp_path / "run", TINY["llama"])
    export_hf(tmp_path / "run", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_tensor_is_named(kind: str, llama: Path, tmp_path: Path) -> None:
    change, line = SPOILED[kind]
    spoil(llama / "model.safetensors", change)
    found = problems(lambda: import_hf(llama, tmp_path / "new"), tmp_path / "new")
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize("kind", ["missing", "shape", "extra", "nan"])
def test_our_own_folders_are_checked_alike(kind: str, tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY["llama"])
    ours_name = "blocks.1.attention.query.weight"
    changes: dict[str, Callable[[dict[str, Tensor]], Any]] = {
        "missing": lambda state: state.pop(ours_name),
        "shape": lambda state: state.update({ours_name: torch.ones(2, 3)}),
        "extra": lambda state: state.update({f"{ours_name}s": torch.ones(2)}),
        "nan": fill(ours_name, float("nan")),
    }
    spoil(tmp_path / "run" / "model" / "model.safetensors", changes[kind])
    found = problems(lambda: export_hf(tmp_path / "run", tmp_path / "new"), tmp_path / "new")
    assert len(found) == 1
    assert found[0].startswith(f"tensor {ours_name}")


def tensors_by_place(file: Path) -> list[str]:
    with open(file, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    del header["__metadata__"]
    return sorted(header, key=lambda name: header[name]["data_offsets"])


def test_a_truncated_file_names_the_first_tensor_that_is_cut_off(llama: Path, tmp_path: Path) -> None:
    file = llama / "model.safetensors"
    whole = file.read_bytes()
    last = tensors_by_place(file)[-1]
    for size, line in (
        (len(whole) - 1, f"tensor {last}: cut off"),
        (40, f"{file}: no safetensors"),
        (0, f"{file}: no"),
    ):
        file.write_bytes(whole[:size])
        found = problems(lambda: import_hf(llama, tmp_path / "new"), tmp_path / "new")
        assert len(found) == 1
        assert found[0].startswith(line)


def test_a_changed_byte_is_noticed(llama: Path, tmp_path: Path) -> None:
    file = llama / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    assert "checksum" in problems(lambda: import_hf(llama, tmp_path / "new"), tmp_path / "new")[0]


def test_a_missing_shard_names_a_tensor(tmp_path: Path) -> None:
    theirs = reference(TINY["llama"])
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())["weight_map"]
    gone = index[QUERY]
    (tmp_path / "hf" / gone).unlink()
    found = problems(lambda: import_hf(tmp_path / "hf", tmp_path / "new"), tmp_path / "new")
    assert found[0].startswith(f"tensor {next(name for name in index if index[name] == gone)}: missing")


def test_an_index_must_tell_the_truth(llama: Path, tmp_path: Path) -> None:
    names = {name: "model.safetensors" for name in [QUERY, "model.wings"]}
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    found = problems(lambda: import_hf(llama, tmp_path / "new"), tmp_path / "new")
    assert len(found) == 1
    assert found[0].startswith("tensor model.wings: not in")


def test_tensors_of_two_dtypes_are_not_packed_into_one(tmp_path: Path) -> None:
    state = ours_at(tmp_path / "run", TINY["gpt"])
    halves = {name: tensor.half() for name, tensor in state.items() if name.endswith("attention.key.weight")}
    save_file(state | halves, tmp_path / "run" / "model" / "model.safetensors")
    found = problems(lambda: export_hf(tmp_path / "run", tmp_path / "new"), tmp_path / "new")
    assert found == [
        line for line in found if line.startswith("tensor transformer.h.{layer}.attn.c_attn.weight: it packs")
    ]


def test_a_full_disk_is_known_beforehand(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    found = problems(lambda: import_hf(llama, tmp_path / "new"), tmp_path / "new")
    assert "1,000 are free" in found[0]


def test_an_index_cannot_lead_out_of_its_folder(llama: Path, tmp_path: Path) -> None:
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {QUERY: "../hf/model.safetensors"}}))
    assert "not the name of a file" in problems(lambda: import_hf(llama, tmp_path / "new"), tmp_path / "new")[0]


STRETCHED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
OPTIONS: Iterable[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "rope_parameters"),
    ("llama stretched", {"rope_scaling": {"rope_type": "llama3"} | STRETCHED | {"factor": "8"}}, "factor=8"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("llama", {"model_type": "mistral"}, "model_type=mistral: allowed: llama"),
    ("llama", {"architectures": None}, "name LlamaForCausalLM, if it is one"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window=true"),
    ("llama", {"attention_bias": "yes"}, "attention_bias=yes"),
    ("llama", {"mlp_bias": True}, "mlp_bias=true"),
    ("llama", {"hidden_act": "relu"}, "hidden_act=relu"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"hidden_size": None}, "hidden_size=missing"),
    ("llama", {"hidden_size": "16"}, "hidden_size=16"),
    ("llama", {"architectures": ["MistralForCausalLM"]}, "model_type=llama: allowed: mistral"),
    ("gpt", {"activation_function": "silu"}, "activation_function=silu"),
    ("gpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
    ("bert", {"architectures": ["ElectraForMaskedLM"]}, "architectures=ElectraForMaskedLM"),
    ("bert", {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0"),
    ("gpt", {"embd_pdrop": 0.3}, "embd_pdrop=0.3"),
    ("t5", {"dropout_rate": -0.1}, "dropout_rate=-0.1"),
    ("roberta", {"pad_token_id": None}, "pad_token_id=null"),
    ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings=2"),
    ("deit", {"qkv_bias": False}, "qkv_bias=false"),
    ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj=gated-silu"),
    # What transformers takes for another key, or works out of one and takes where it is given.
    ("gpt", {"num_attention_heads": 1}, "num_attention_heads=1: allowed: 2, which is n_head"),
    ("t5", {"num_attention_heads": 1}, "num_attention_heads=1: allowed: 2, which is num_heads"),
    ("t5", {"dense_act_fn": "silu"}, "dense_act_fn=silu: allowed: relu"),
    ("t5 v1.1", {"is_gated_act": False}, "is_gated_act=false: allowed: true"),
    ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder=false: allowed: true"),
    # Values of another kind.
    ("llama", {"rope_scaling": 2}, "rope_scaling=2: allowed: an object, or null"),
    ("llama", {"rope_parameters": ["default"]}, "rope_parameters=['default']"),
    ("llama", {"rope_parameters": {"rope_theta": "500000"}}, "rope_theta=500000: allowed: a number above 0"),
    ("llama", {"rope_scaling": {"rope_theta": 5.0}, "rope_parameters": {"rope_theta": 6.0}}, "rope_scaling="),
    ("llama", {"layer_types": 2}, "layer_types=2"),
    ("llama", {"architectures": [["LlamaForCausalLM"]]}, "name LlamaForCausalLM, if it is one"),
]


@pytest.mark.parametrize(("name", "options", "said"), OPTIONS)
def test_options_without_counterpart_are_refused(name: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY[name])
    export_hf(tmp_path / "run", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    found = problems(lambda: import_hf(tmp_path / "hf", tmp_path / "new"), tmp_path / "new")
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_keys_are_read_by_their_other_names_too(name: str, tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY[name])
    export_hf(tmp_path / "run", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    names = {key: other for other, key in find_family(json.loads(path.read_text()), path).also.items()}
    assert len(names) == 4
    config = {names.get(key, key): value for key, value in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(config))
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert open_folder(tmp_path / "back").model == TINY[name]
    theirs = load(tmp_path / "hf", name, torch.float64)
    state = dict(open_folder(tmp_path / "hf"))
    widen(theirs)
    off = logits(state, TINY[name], torch.float64) - reference_logits(theirs, inputs(TINY[name]))
    assert off.abs().max() < 1e-10


def test_pickles_are_refused(tmp_path: Path) -> None:
    ours_at(tmp_path / "run", TINY["gpt"])
    export_hf(tmp_path / "run", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    found = problems(lambda: import_hf(tmp_path / "hf", tmp_path / "new"), tmp_path / "new")
    assert found[0].startswith(f"{tmp_path}/hf/pytorch_model.bin: allowed: weights as safetensors")


def test_what_hugging_face_cannot_express_is_refused(tmp_path: Path) -> None:
    cases = {
        "vit mean": (TINY["vit mean"], "model.pooling=mean"),
        "three biases": (replace(TINY["llama tied qk"], qkv_bias=True), "model.qkv_bias=True"),
        "one bias": (replace(TINY["llama"], output_bias=True), "model.output_bias=True"),
        "narrow heads": (replace(TINY["bert"], head_dim=4), "head * head_dim"),
    }
    for name, (model, said) in cases.items():
        ours_at(tmp_path / name, model)
        assert said in problems(lambda: export_hf(tmp_path / name, tmp_path / "new"), tmp_path / "new")[0]  # noqa: B023


def test_places_that_cannot_serve_are_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").write_text("mine")
    (tmp_path / "nothing").mkdir()
    refused: list[tuple[Callable[[], None], str]] = [
        (lambda: import_hf(llama, tmp_path / "used"), "a new or an empty folder"),
        (lambda: import_hf(llama, tmp_path / "used" / "notes" / "new"), "a place to write to"),
        (lambda: import_hf(tmp_path / "absent", tmp_path / "new"), "name a folder that exists"),
        (lambda: import_hf(tmp_path / "nothing", tmp_path / "new"), "no model is there yet"),
        (lambda: import_hf(tmp_path / "run", tmp_path / "new"), "a model of ours already"),
        (lambda: export_hf(llama, tmp_path / "new"), "a Hugging Face folder already"),
    ]
    for call, said in refused:
        assert said in problems(call, tmp_path / "new")[0]
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes"]
    assert "it is a file" in problems(lambda: open_folder(tmp_path / "used" / "notes"), tmp_path / "new")[0]
    import_hf(llama, tmp_path / "nothing")
    assert (tmp_path / "nothing" / "model" / "config.json").exists()


def test_a_folder_of_runs_says_which_of_them_have_models(tmp_path: Path) -> None:
    for place in ("runs/a/model", "runs/b", "runs/sweep/0-seed=1/model", "runs/hub", "runs/z/model"):
        (tmp_path / place).mkdir(parents=True)
        if place != "runs/b":
            (tmp_path / place / "config.json").write_text("{}")
    (found,) = problems(lambda: open_folder(tmp_path / "runs"), tmp_path / "new")
    said = ", ".join(str(tmp_path / "runs" / name) for name in ("a", "hub", "sweep/0-seed=1"))
    assert found.endswith(f"; models are in {said} and 1 more: name one of them")


def test_files_are_as_hugging_face_writes_them(llama: Path) -> None:
    with safe_open(llama / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert json.loads((llama / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
