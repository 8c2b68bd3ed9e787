"""What special tokens are called in published tokenizers, by objective and by Hugging Face's word for the role."""

from __future__ import annotations

from collections.abc import Mapping

# The first that a tokenizer has is taken.
NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "causal": {"eos_token": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")},
    "mlm": {
        "unk_token": ("[UNK]", "<unk>"),
        "sep_token": ("[SEP]", "</s>"),
        "pad_token": ("[PAD]", "<pad>"),
        "cls_token": ("[CLS]", "<s>"),
        "mask_token": ("[MASK]", "<mask>"),
    },
    "span": {
        "pad_token": ("<pad>", "[PAD]"),
        "eos_token": ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "[SEP]"),
        "unk_token": ("<unk>", "[UNK]"),
    },
    "image": {},
}
# The roles that an objective needs for its windows, and our word for each.
NEEDED: Mapping[str, Mapping[str, str]] = {
    "causal": {"end": "eos_token"},
    "mlm": {"start": "cls_token", "end": "sep_token", "mask": "mask_token"},
    "span": {"pad": "pad_token", "end": "eos_token"},
}
