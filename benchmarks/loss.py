"""Memory of a training step whose logits are all held, and of one that takes its loss in chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.resident import peak
from benchmarks.table import table
from mlrun.models import vocabulary_loss
from mlrun.models.gpt import GPT
from mlrun.models.network import build

MODEL = GPT(vocab=32768, position=512, embed=128, head=2, head_dim=64, ffn=512, layer=1)
ROWS, LENGTH = 8, 512
WAYS = ("whole", "chunked")
MB = 2**20


def saved(way: str, model: GPT = MODEL) -> int:
    """Take one step's forward and backward pass; return the bytes that were kept for the backward pass."""
    if way == "whole":
        vocabulary_loss.WHOLE = sys.maxsize
    tokens = torch.randint(model.vocab, (ROWS, LENGTH))
    net, storages = build(model, 0), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net({"tokens": tokens, "labels": tokens})
    for parameter in net.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    return sum(storages.values())


def measure(way: str) -> tuple[float, float]:
    """Return MiB kept for the backward pass, and the most that a process of its own was resident with."""
    command = [sys.executable, "-m", "benchmarks.loss", way]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
    kept, resident = map(float, done.stdout.split())
    return kept, resident


def main() -> str:
    """Return the table."""
    rows = [[way, *(f"{size:.1f}" for size in measure(way))] for way in WAYS]
    how = f"GPT, vocabulary {MODEL.vocab}, {ROWS} x {LENGTH} tokens, {MODEL.layer} layer of {MODEL.embed}, float32"
    return f"{table(['loss', 'kept for the backward pass, MiB', 'peak resident, MiB'], rows)}\n\n{how}."


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = saved(sys.argv[1])
    print(kept / MB, peak() / MB)
