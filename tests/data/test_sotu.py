"""The embedded corpus: what is held out stays out, and a changed speech is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from corpora import error_of, gpt

from mlrun.data.held_out import held_out
from mlrun.data.text import sotu
from mlrun.data.text.sotu import Sotu


def test_held_out_speeches_never_appear_in_training(cache: str) -> None:
    data = Sotu(sequence=64, tokenizer_characters=300_000)
    source = data.open(gpt(512), seed=0, cache=cache)
    made, speeches = source.made, data.corpus()
    text = {name: np.fromfile(source.folder / f"{name}.bin", made.dtype) for name in ("train", "validation")}
    ends = {name: np.flatnonzero(ids == made.vocabulary.end) for name, ids in text.items()}
    parts = {name: [t.tobytes() for t in np.split(ids, ends[name] + 1)[:-1]] for name, ids in text.items()}
    held = list(speeches.documents("validation"))
    decoded = [made.tokenizer.decode(np.frombuffer(ids, made.dtype)[:-1].tolist()) for ids in parts["validation"]]
    assert decoded == held
    assert not set(parts["train"]) & set(parts["validation"])
    assert len(parts["train"]) + len(held) == len(list((sotu.folder() / "speeches").glob("*.txt")))


def test_held_out_speeches_are_a_twentieth_spread_over_time() -> None:
    speeches = Sotu().corpus()
    sizes = {part: [len(t) for t in speeches.documents(part)] for part in ("train", "validation")}
    assert 0.04 < sum(sizes["validation"]) / sum(sizes["train"] + sizes["validation"]) < 0.06
    places = [number / 249 for number in range(249) if held_out(number, 0.05)]
    assert max(np.diff([0, *places, 1])) < 0.1


def test_a_speech_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speeches").mkdir()
    (tmp_path / "speeches" / "a.txt").write_text("changed")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"a": {"parsed_text_sha256": "00"}}}))
    assert "such as a" in error_of(sotu.Speeches(tmp_path, 0.05).facts)


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 2.0, float("nan")])
def test_a_share_that_holds_out_nothing_or_all_is_refused(share: float) -> None:
    (line,) = Sotu(held_out=share).source_problems()
    assert line.startswith("data.held_out=") and "over 0 and under 1" in line
    assert not Sotu(held_out=0.05).source_problems()
