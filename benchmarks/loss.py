"""Memory and seconds of a training step whose logits are all held, and of one that takes its loss in chunks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from benchmarks.resident import peak
from benchmarks.table import table
from mlrun.models import vocabulary_loss
from mlrun.models.gpt import GPT
from mlrun.models.network import build

MODEL = GPT(vocab=32768, position=512, embed=128, head=2, head_dim=64, ffn=512, layer=1)
ROWS, LENGTH = 8, 512
WAYS = ("whole", "chunked")
MB = 2**20
# Rows, words and width of heads, around `vocabulary_loss.PAGED` logits.
HEADS = (
    (1024, 2048, 128),
    (1024, 4096, 128),
    (1024, 8192, 128),
    (8192, 1024, 128),
    (4096, 4096, 128),
    (1024, 8192, 768),
)
TURNS = 7


def saved(way: str, model: GPT = MODEL) -> int:
    """Take one step's forward and backward pass; return the bytes that were kept for the backward pass."""
    if way == "whole":
        vocabulary_loss.WHOLE = vocabulary_loss.PAGED = sys.maxsize
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


def timed(rows: int, words: int, width: int, turns: int = TURNS) -> dict[str, float]:
    """Return processor seconds of a head's forward and backward pass by each way, medians in turn."""
    x = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(words, width).mul_(0.02).requires_grad_()
    labels = torch.randint(words, (rows,))
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(turns + 1):
        for way, seconds in found.items():
            x.grad = weight.grad = None
            begun = time.process_time()
            if way == "whole":
                F.cross_entropy(F.linear(x, weight), labels, reduction="sum").backward()
            else:
                vocabulary_loss.total(x, weight, None, labels).backward()
            seconds.append(time.process_time() - begun)
    return {way: median(seconds[1:]) for way, seconds in found.items()}


def of_heads(heads: Sequence[tuple[int, int, int]] = HEADS, turns: int = TURNS) -> str:
    """Return the table of seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = [(head, timed(*head, turns)) for head in heads]
    torch.set_num_threads(threads)
    rows = [
        [" x ".join(map(str, head)), f"{head[0] * head[1] / MB:g}", *(f"{1e3 * took[way]:.1f}" for way in WAYS),
         f"{took['chunked'] / took['whole']:.2f}"]
        for head, took in found
    ]  # fmt: skip
    header = ["rows x words x width", "logits, 2^20", *(f"{way}: ms" for way in WAYS), "chunked over whole"]
    return f"{table(header, rows)}\n\nOne thread, processor time, medians of {turns} in turn, float32."


def main() -> str:
    """Return the tables."""
    rows = [[way, *(f"{size:.1f}" for size in measure(way))] for way in WAYS]
    how = f"GPT, vocabulary {MODEL.vocab}, {ROWS} x {LENGTH} tokens, {MODEL.layer} layer of {MODEL.embed}, float32"
    memory = f"{table(['loss', 'kept for the backward pass, MiB', 'peak resident, MiB'], rows)}\n\n{how}."
    return f"{memory}\n\n{of_heads()}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = saved(sys.argv[1])
    print(kept / MB, peak() / MB)
