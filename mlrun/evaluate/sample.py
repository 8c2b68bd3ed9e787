"""What a trained model says: text from a causal one, filled masks from a masked one, classes from an image one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlrun import files
from mlrun.config.settings import Hardware, Sample
from mlrun.errors import UserError, mistake, mistakes
from mlrun.evaluate import words
from mlrun.evaluate.base import Context
from mlrun.evaluate.finished import network
from mlrun.evaluate.pixels import pixels
from mlrun.evaluate.scoring import predictions
from mlrun.evaluate.words import Words
from mlrun.interop.read import Checkpoint, open_folder
from mlrun.models.base import Model
from mlrun.models.network import Network
from mlrun.train.loop import autocast
from mlrun.train.parallel import environment, processes

# Guesses that are shown for a mask or a picture.
BEST = 5
# Below it, quotients of logits may be too large for float32; nobody can tell it from 0.
COLDEST = 1e-6
# What a prompt may call the mask, whatever the tokenizer calls it.
MASK = "[MASK]"
# Whoever wants to see the picture that is asked about.
Look = Callable[[np.ndarray], None]


def say(
    folder: Path, key: str, ask: Sample, seed: int, hardware: Hardware, look: Look = lambda pixels: None
) -> Iterator[str]:
    """Yield the parts of what the model in a folder says, as they come; `key` is the setting that named the folder.

    `look` is given the picture that is asked about, before the first part: as the model sees it, uint8 (H, W, C).

    Raises:
        UserError: no model is there, it cannot do this, or a setting is wrong; before the first part.
    """
    found = open_folder(folder, key)
    if problems := wrong(ask, found.model):
        raise UserError(problems)
    config = folder / files.CONFIG
    data = files.read_yaml(config).get("data") if config.is_file() else None
    sequence = data.get("sequence") if isinstance(data, dict) else None
    known = words.of_folder(found, sequence) if found.model.objective != "image" else None
    if known is None and found.model.objective != "image":
        raise UserError(mistake(key, folder, "a model with its tokenizer", "put tokenizer.json beside it"))
    if environment.process().world > 1:
        raise UserError(mistake("task", "sample", "one process", "start it without torchrun or srun"))
    ranks = processes.start(hardware)
    try:
        net = network(found, ranks, hardware).eval()
        yield from _said(net, found, ask, seed, Context(None, 1, hardware, ranks, words=known), look)
    finally:
        processes.stop(ranks)


def wrong(ask: Sample, model: Model) -> list[str]:
    """Return what is wrong with the settings for a model, a line each."""
    if model.objective == "span":
        return [mistake("task", "sample", "a causal, masked or image model", "a model of spans has no sampler here")]
    image, masked = model.objective == "image", model.objective == "mlm"
    checks = [
        ("temperature", ask.temperature, _divides(ask.temperature), f"finite and at least {COLDEST}; 0: the likeliest"),
        ("top_k", ask.top_k, ask.top_k is None or ask.top_k >= 1, "null or at least 1"),
        ("tokens", ask.tokens, ask.tokens >= 1, "at least 1"),
        ("image", ask.image, image or ask.image is None, "null for a model of text"),
        ("image", ask.image, not image or ask.image is not None, "a picture's file for a model of images"),
        ("prompt", ask.prompt, not image or ask.prompt is None, "null for a model of images"),
        ("prompt", ask.prompt, not masked or ask.prompt is not None, f"a text with {MASK} for a masked model"),
        ("file", ask.file, ask.file is None or _new(files.expanded(ask.file)), "a new file in a folder to write into"),
    ]
    return mistakes("sample.", checks) + _idle(ask, model)


def _divides(temperature: float) -> bool:
    """Return whether logits divided by a temperature are numbers; 0 divides none."""
    return temperature == 0 or COLDEST <= temperature < math.inf


def _new(file: Path) -> bool:
    """Return whether a file is not there and can be made: only to try it tells, and a long text would be lost."""
    if os.path.lexists(file):
        return False
    try:
        with files.whole_file(file, lambda temporary, _: temporary.unlink()) as temporary:
            temporary.touch()
    except OSError:
        return False
    return True


def _idle(ask: Sample, model: Model) -> list[str]:
    """Return a line for each setting of a drawn text that was given where nothing is drawn."""
    if model.objective != "causal":
        keys, why = ["tokens", "temperature", "top_k"], "only a causal model writes a text"
    elif ask.temperature == 0:
        keys, why = ["top_k"], "sample.temperature=0 takes the likeliest token"
    else:
        return []
    given = [key for key in keys if getattr(ask, key) != getattr(Sample, key)]
    return [mistake(f"sample.{key}", getattr(ask, key), "left out", why) for key in given]


def _said(net: Network, found: Checkpoint, ask: Sample, seed: int, context: Context, look: Look) -> Iterator[str]:
    if found.model.objective == "image":
        assert ask.image is not None
        yield from _classes(net, found, ask.image, context, look)
    elif found.model.objective == "mlm":
        assert ask.prompt is not None
        yield from _filled(net, ask.prompt, context)
    else:
        yield from _text(net, ask, seed, context)


# Text


def _text(net: Network, ask: Sample, seed: int, context: Context) -> Iterator[str]:
    """Yield a prompt and what follows it, until the document ends or there are `tokens` of it."""
    from tokenizers.decoders import DecodeStream

    known = context.words
    assert known is not None
    prompt, stream = ask.prompt or "", DecodeStream(skip_special_tokens=True)
    yield prompt
    ids = known.ids(prompt)
    for number in ids:
        stream.step(known.tokenizer, number)  # what follows is written as it follows these
    for number in continued(net, ids, ask, seed, context):
        if (part := stream.step(known.tokenizer, number)) is not None:
            yield part
    yield "\n"


def continued(net: Network, ids: Sequence[int], ask: Sample, seed: int, context: Context) -> Iterator[int]:
    """Yield the ids that follow a document's beginning; each is drawn from what the last `longest` ids predict.

    The draws depend on the seed alone: the generator is the CPU's, whatever the device.
    """
    known = context.words
    assert known is not None
    generator = torch.Generator().manual_seed(seed)
    read = [known.before, *ids]
    for _ in range(ask.tokens):
        seen = read[-known.longest :]
        logits_V = predictions(net, [seen], [[len(seen) - 1]], context)[0, 0]
        # The model may have more ids than its tokenizer, which have no text.
        number = drawn(logits_V.float().cpu()[: known.vocabulary.size], ask.temperature, ask.top_k, generator)
        if number in {known.vocabulary.end, known.before, *known.ends}:
            return
        read.append(number)
        yield number


def drawn(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Return an id: the likeliest at temperature 0, else drawn among the `top_k` likeliest, None for all."""
    if temperature == 0:
        return int(logits_V.argmax())
    best_K = logits_V.topk(len(logits_V) if top_k is None else min(top_k, len(logits_V)))
    chance_K = (best_K.values / temperature).softmax(-1)
    return int(best_K.indices[torch.multinomial(chance_K, 1, generator=generator)])


# Masks


def _filled(net: Network, prompt: str, context: Context) -> Iterator[str]:
    """Yield for each mask of a text a line with the likeliest tokens and their probabilities."""
    known = context.words
    assert known is not None
    ids, places = _with_masks(prompt, known)
    probabilities_MV = predictions(net, [ids], [places], context)[0].float().softmax(-1)[:, : known.vocabulary.size]
    for number, probability_V in enumerate(probabilities_MV, start=1):
        best = probability_V.topk(min(BEST, len(probability_V)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        guesses = [f"{known.text([i]).strip() or known.tokenizer.id_to_token(i)} {chance:.1%}" for i, chance in pairs]
        yield f"mask {number}: {', '.join(guesses)}\n"


def _with_masks(prompt: str, known: Words) -> tuple[list[int], list[int]]:
    """Return the ids of a text, special ones around it, and where its masks are; UserError without one, or no room."""
    own, vocabulary = str(known.tokenizer.id_to_token(known.vocabulary.mask)), known.vocabulary
    parts = prompt.replace(own, MASK).split(MASK)
    if len(parts) == 1:
        raise UserError(mistake("sample.prompt", prompt, f"a text with {MASK}", "put one where a word is missing"))
    ids = [vocabulary.start]
    for part in parts[:-1]:
        # The blank in front of a word belongs to its token.
        ids += [*known.ids(part.rstrip(" ")), vocabulary.mask]
    ids += [*known.ids(parts[-1]), vocabulary.end]
    if len(ids) > known.longest:
        fine = f"at most the {known.longest} tokens that the model reads at once"
        raise UserError(mistake("sample.prompt", f"{len(ids)} tokens", fine, "shorten it"))
    # A mask in the text is hidden text; the tokenizer itself reads none as such.
    return ids, [place for place, number in enumerate(ids) if number == vocabulary.mask]


# Pictures


def _classes(net: Network, found: Checkpoint, image: str, context: Context, look: Look) -> Iterator[str]:
    """Yield the likeliest classes of a picture, a line each with its probability."""
    picture_CHW, frame = pixels(found.folder, image, found.model.sizes())
    look(frame.visible(picture_CHW))
    images_BCHW = torch.from_numpy(np.ascontiguousarray(picture_CHW))[None].to(context.ranks.device)
    with torch.no_grad(), autocast(context.hardware, context.ranks.device):
        probability_V = net.logits({"images": images_BCHW})[0].float().softmax(-1)
    names = (found.facts or {}).get("id2label", {})
    best = probability_V.topk(min(BEST, len(probability_V)))
    for probability, index in zip(best.values, best.indices, strict=True):
        yield f"{probability:6.1%}  {names.get(str(int(index)), f'class {int(index)}')}\n"
