"""A generated checkpoint goes down and up again a tensor at a time: seconds, and peak memory against its bound.

The bound on what is added to the process: 1.2 x the largest shard + the two largest tensors.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.resident import peak
from benchmarks.table import table
from mlrun.convert import coalesce_folder, decoalesce_folder, interpolate_folders
from mlrun.errors import UserError
from mlrun.interop.families.registry import family_of
from mlrun.interop.read import Checkpoint, names
from mlrun.interop.write import save
from mlrun.models.base import Model
from mlrun.models.gpt import GPT
from mlrun.models.llama import Llama
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.train.checkpoint.tensor_files import Entry, Shards

HALF = Uniform(width=2, ffn=2, head=2, depth=2)
GB = 10**9
DTYPE = torch.bfloat16


class Nowhere(Checkpoint):
    """A checkpoint without files, of which only the dtype is asked."""

    def dtype(self, template: str) -> torch.dtype:
        return DTYPE


def model_of(kind: str, embed: int, layer: int, vocab: int) -> Model:
    """Return a model with heads of 128: a GPT, or a Llama with the proportions of Llama 2."""
    heads = embed // 128
    if kind == "gpt":
        return GPT(vocab, position=1024, embed=embed, head=heads, head_dim=128, ffn=4 * embed, layer=layer)
    return Llama(vocab, 4096, embed, kv_head=heads, group=1, head_dim=128, ffn=embed * 43 // 16, layer=layer)


def generate(folder: Path, kind: str, shard_bytes: int, **sizes: int) -> list[int]:
    """Write a Hugging Face folder of random bfloat16 weights; return the bytes of its tensors, largest first."""
    model = model_of(kind, **sizes)
    params, family = model.params(), family_of(model, {})
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(DTYPE)

    def stream(template: str) -> Iterator[Tensor]:
        shape = params[template].shape(model.sizes())
        count = torch.Size(shape).numel()
        for _ in names(template, model):
            yield block.repeat(-(-count // len(block)))[:count].reshape(shape)

    source = Nowhere(Path("/nonexistent"), None, model, {}, {}, Shards([]))
    save(folder, family, model, stream, source, shard_bytes=shard_bytes)
    return sorted((bytes_of(entry) for entry in scan(folder)), reverse=True)


def scan(folder: Path) -> list[Entry]:
    """Return what the headers of a folder's files say."""
    return list(Shards(sorted(folder.glob("*.safetensors"))).entries.values())


def bytes_of(entry: Entry) -> int:
    """Return a tensor's bytes."""
    return torch.Size(entry.shape).numel() * DTYPE.itemsize


def steps(folder: Path, limit: int) -> dict[str, Callable[[], None]]:
    """Return the operators to be measured, in order; each needs what those before it wrote."""
    a, b, c, d = (folder / name for name in "abcd")
    return {
        "coalesce": lambda: coalesce_folder(a, b, HALF, shard_bytes=limit),
        "decoalesce": lambda: decoalesce_folder(b, c, HALF, shard_bytes=limit),
        "interpolate": lambda: interpolate_folders(a, c, 0.5, d, shard_bytes=limit),
    }


def measure(folder: Path, limit: int, name: str, threads: int) -> tuple[float, int]:
    """Return (seconds, bytes by which the peak memory rose) of one operator in this process."""
    torch.set_num_threads(threads)
    torch.ones(2**10) @ torch.ones(2**10)
    before, start = peak(), time.perf_counter()
    steps(folder, limit)[name]()
    return time.perf_counter() - start, peak() - before


def main(kind: str = "llama", threads: int = 2, shard_bytes: int = 5 * GB, **sizes: int) -> str:
    """Return the report of one checkpoint; the default is Llama 2 7B, 13.5 GB in bfloat16.

    Raises:
        UserError: the disk has no room for four such checkpoints.
    """
    sizes = {"embed": 4096, "layer": 32, "vocab": 32000} | sizes
    with tempfile.TemporaryDirectory(prefix="mlrun-streaming-") as place:
        folder = Path(place)
        tensors = generate(folder / "a", kind, shard_bytes, **sizes)
        total, free = sum(tensors), shutil.disk_usage(folder).free
        if free < 3 * total:
            raise UserError(f"{place}: {3 * total:,} bytes are needed and {free:,} are free; set TMPDIR")
        largest = max(file.stat().st_size for file in (folder / "a").glob("*.safetensors"))
        bound = 1.2 * largest + sum(tensors[:2])
        rows = []
        for name in steps(folder, shard_bytes):
            # A process of its own, since a peak is that of a process's whole life.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, used = pool.apply(measure, (folder, shard_bytes, name, threads))
            rows.append(
                [name, f"{seconds:.0f}", f"{used / GB:.2f}", f"{bound / GB:.2f}", "yes" if used < bound else "NO"]
            )
        head = ["operator", "seconds", "peak GB", "bound GB", "within"]
        what = f"{kind}, {total / GB:.2f} GB in bfloat16, largest shard {largest / GB:.2f} GB, two largest tensors"
        return f"{what} {sum(tensors[:2]) / GB:.2f} GB, {threads} threads:\n\n" + table(head, rows)
