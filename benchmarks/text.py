"""Text tokenised and packed into the cache, beside what `tokenizers` alone takes for the same documents in memory.

Each measurement is a process of its own, since a peak of memory is that of a process's whole life.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.resident import peak
from benchmarks.table import table

MB, TIMES = 10**6, 5
# The documents are made of these many different words, each of about six letters.
WORDS, VOCAB = 20_000, 8_000


def write(file: Path, megabytes: int) -> None:
    """Write paragraphs of about a thousand characters, the same at every call, in as many words as they come."""
    import numpy as np

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 11))) for _ in range(WORDS)])
    share = 1 / np.arange(1, WORDS + 1)
    written = 0
    with file.open("w") as stream:
        while written < megabytes * MB:
            drawn = words[rng.choice(WORDS, 150_000, p=share / share.sum())]
            text = "\n\n".join(" ".join(drawn[n : n + 150]) for n in range(0, len(drawn), 150)) + "\n\n"
            stream.write(text)
            written += len(text)


def prepared(file: str, tokenizer: str, cache: str) -> tuple[float, int]:
    """Return the processor's seconds and the peak bytes of the preparation of a file, from its text to the cache."""
    import datasets  # noqa: F401 - its import takes seconds, and no longer with more text
    import torch  # noqa: F401

    from mlrun.data.text.files import Files
    from mlrun.models.gpt import GPT

    data = Files(files=[file], format="text", sequence=256, tokenizer=tokenizer)
    model = GPT(VOCAB, position=256, embed=8, head=1, head_dim=8, ffn=8, layer=1)
    began = time.process_time()
    data.open(model, 0, cache)
    return time.process_time() - began, peak()


def alone(file: str, tokenizer: str) -> tuple[float, int]:
    """Return the same of `tokenizers`, for the documents of the file in batches of a thousand; nothing is kept."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(tokenizer)
    documents = _documents(file)
    spent = 0.0
    while batch := list(islice(documents, 1000)):
        began = time.process_time()
        made.encode_batch_fast(batch, add_special_tokens=False)
        spent += time.process_time() - began
    return spent, peak()


def _documents(file: str) -> Iterator[str]:
    with open(file) as stream:
        for line in stream:
            if line.strip():
                yield line.rstrip("\n")


def apart(function: Any, *arguments: str) -> tuple[float, int]:
    """Return what a function returns in a process of its own, on one thread."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: tuple[float, int] = pool.apply(function, arguments)
        return found


def main(megabytes: str = "10,200") -> str:
    """Return the table, a line for each size of text; the two ways in turn, medians."""
    from mlrun.data.text.tokenizer import train

    found = []
    with tempfile.TemporaryDirectory(prefix="mlrun-text-") as place:
        file, tokenizer = f"{place}/text.txt", f"{place}/tokenizer.json"
        for size in map(int, megabytes.split(",")):
            write(Path(file), size)
            if not found:
                train(islice(_documents(file), 2000), VOCAB, "causal").save(tokenizer)
            ours, theirs = [], []
            for turn in range(TIMES):
                theirs.append(apart(alone, file, tokenizer))
                ours.append(apart(prepared, file, tokenizer, f"{place}/cache-{size}-{turn}"))
            (mine, most), (other, _) = ((median(s for s, _ in x), max(m for _, m in x)) for x in (ours, theirs))
            found.append(
                [str(size), f"{size / mine:.2f}", f"{size / other:.2f}", f"{other / mine:.2f}", f"{most / MB:.0f}"]
            )
    head = ["MB of text", "ours, MB/s of a core", "tokenizers alone, MB/s", "ratio", "ours, peak resident MB"]
    return table(head, found)
