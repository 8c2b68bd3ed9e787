"""Pictures decoded and augmented as DeiT's: ours beside torchvision's v2 transforms in a DataLoader.

Both crop, resize (bicubic), mirror, take two operations of RandAugment with a probability of one half each, normalise,
erase, and mix the batch. torchvision's way is measured on Pillow's pictures and on tensors; the faster one counts.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.table import table
from mlrun.data.images.collections import Stored
from mlrun.data.images.files import ImageFiles

BATCH, TIMES = 64, 5
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# torchvision has 31 steps of strength; ours is 9 of 10.
MAGNITUDE, BINS = 27, 31


@dataclass(frozen=True)
class Kind:
    """Pictures of one size: how large the model reads them, the least share of one that is cut out, batches a turn."""

    name: str
    side: int
    crop: float
    batches: int


CIFAR, JPEG = Kind("CIFAR-10", 32, 0.35, 24), Kind("JPEG of 224 x 224", 224, 0.08, 6)


def jpegs(folder: Path, number: int = 256, side: int = 224) -> None:
    """Write generated pictures, smooth with some noise, in two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for place in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (side, side, 3))
        where = folder / str(place % 2)
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(where / f"{place:04d}.jpg", quality=90)


def ours(data: ImageFiles, kind: Kind, cache: str, workers: int) -> Iterator[Any]:
    """Return our batches."""
    source: Any = data.open(deit_of(data, kind), 0, cache)
    found: Iterator[Any] = source.with_workers(workers).batches(0, BATCH)
    return found


class Theirs:
    """The pictures of our source as a data set of torchvision's kind."""

    def __init__(self, pictures: Any, kind: Kind, tensors: bool) -> None:
        self.pictures, self.transform = pictures, transforms(kind, tensors)

    def __getitem__(self, number: int) -> Any:
        from PIL import Image

        stored: Stored = self.pictures[number]
        source = BytesIO(stored.content) if isinstance(stored.content, bytes) else stored.content
        return self.transform(Image.open(source).convert("RGB")), stored.label

    def __len__(self) -> int:
        return len(self.pictures)


def transforms(kind: Kind, tensors: bool) -> Any:
    """Return torchvision's transforms of one picture."""
    import torch
    from torchvision.transforms import InterpolationMode, v2

    fill = [round(255 * mean) for mean in MEAN]
    turned = InterpolationMode.BILINEAR if tensors else InterpolationMode.BICUBIC  # all that tensors can be turned by
    operation = v2.RandAugment(1, MAGNITUDE, BINS, turned, fill)
    return v2.Compose([
        *([v2.PILToTensor()] if tensors else []),
        v2.RandomResizedCrop(kind.side, (kind.crop, 1), interpolation=InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        *[v2.RandomApply([operation], 0.5) for _ in range(2)],
        *([] if tensors else [v2.PILToTensor()]),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
        v2.RandomErasing(0.25, value="random"),
    ])  # fmt: skip


def theirs(data: ImageFiles, kind: Kind, cache: str, workers: int, tensors: bool) -> Iterator[Any]:
    """Yield torchvision's batches without end."""
    from torch.utils.data import DataLoader, default_collate
    from torchvision.transforms import v2

    source: Any = data.open(deit_of(data, kind), 0, cache)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=data.classes), v2.CutMix(num_classes=data.classes)])
    held = Theirs(source.train, kind, tensors)
    loader: Any = DataLoader(
        held,  # type: ignore[arg-type]
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=lambda samples: mix(*default_collate(samples)),
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
    )
    for _ in count():
        yield from loader


def deit_of(data: ImageFiles, kind: Kind) -> Any:
    """Return a model that reads such pictures."""
    from mlrun.models.deit import DeiT

    width = {"embed": 8, "head": 1, "head_dim": 8, "ffn": 8, "layer": 1}
    return DeiT(image=kind.side, channel=3, patch=kind.side // 2, classes=data.classes, **width)


def spent() -> float:
    """Return the processor's seconds of this process and of those that it has started and not yet waited for."""
    fields = [
        Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split() for p in multiprocessing.active_children()
    ]
    return time.process_time() + sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def rates(ways: dict[str, Callable[[], Iterator[Any]]], batches: int) -> dict[str, float]:
    """Return the pictures per second of a core of each way: medians of turns, one way after the other in each."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TIMES):
        for name, way in ways.items():
            with closing(way()) as made:  # type: ignore[type-var]
                list(islice(made, 2))
                before = spent()
                list(islice(made, batches))
                seen[name].append(batches * BATCH / (spent() - before))
    return {name: median(values) for name, values in seen.items()}


def missing() -> str | None:
    """Return why there is no torchvision to compare with, None if there is one."""
    try:
        importlib.import_module("torchvision.transforms.v2")
    except Exception as error:  # one that was built for another torch fails in its own ways
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def rows(data: ImageFiles, kind: Kind, cache: str, workers: int) -> list[list[str]]:
    """Return the lines of one kind of pictures with so many workers."""
    ways: dict[str, Callable[[], Iterator[Any]]] = {"ours": partial(ours, data, kind, cache, workers)}
    if missing() is None:
        ways |= {n: partial(theirs, data, kind, cache, workers, n == "tensors") for n in ("Pillow", "tensors")}
    found = rates(ways, kind.batches)
    best = max((rate for name, rate in found.items() if name != "ours"), default=None)
    shown = [f"{found[name]:.0f}" if name in found else "n/a" for name in ("ours", "Pillow", "tensors")]
    return [[kind.name, str(workers), *shown, "n/a" if best is None else f"{found['ours'] / best:.2f}"]]


def main(pictures: str | None = None, workers: str = "0,1") -> str:
    """Return the table; `pictures` is a Parquet file of CIFAR-10, or nothing."""
    import torch

    torch.set_num_threads(1)
    found = []
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlrun-images-"))
        jpegs(Path(place) / "jpeg")
        sets = [(JPEG, ImageFiles(files=[f"{place}/jpeg"], format="imagefolder", classes=2, mean=MEAN, std=STD))]
        if pictures is not None:
            cifar = ImageFiles(files=[pictures], format="parquet", classes=10, mean=MEAN, std=STD)
            cifar.augment.crop = CIFAR.crop
            sets.append((CIFAR, cifar))
        for kind, data in sets:
            for number in map(int, workers.split(",")):
                found += rows(data, kind, place, number)
    head = ["pictures", "workers", "ours, pictures/s of a core", "torchvision, Pillow", "torchvision, tensors", "ratio"]
    why = missing()
    return table(head, found) + ("" if why is None else f"\n\ntorchvision is not measured: {why}")
