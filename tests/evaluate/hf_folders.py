"""Hugging Face folders with random weights, to measure."""

from __future__ import annotations

from pathlib import Path

import torch

from mlrun.data.text import tokenizer as tokenizers
from mlrun.evaluate import grammar

POSITIONS = 24
TEXT = "The old king saw the ships. Nobody in the città had seen the river, and the ships were old.\n\nThe end of it.\n"
DIMS = {"causal": {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": POSITIONS},
        "mlm": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32,
                "max_position_embeddings": POSITIONS}}  # fmt: skip


def make(folder: Path, objective: str) -> Path:
    """Write a Hugging Face folder with random weights, large enough to disagree, and a tokenizer."""
    import transformers

    made = tokenizers.train(
        [TEXT, *(s for pairs in grammar.pairs().values() for p in pairs for s in p)], 300, objective
    )
    size = made.get_vocab_size()
    torch.manual_seed(0)
    if objective == "causal":
        ids = {role: made.token_to_id("<|endoftext|>") for role in ("bos_token_id", "eos_token_id")}
        config = transformers.GPT2Config(vocab_size=size, initializer_range=0.3, **ids, **DIMS[objective])
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(vocab_size=size, initializer_range=0.3, **DIMS[objective])
        model = transformers.BertForMaskedLM(config)
    model.save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    return folder
