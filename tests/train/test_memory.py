"""Where memory runs out, micro-batches are halved, or a line says which fits. A network that wants much stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pair
import pytest
import torch
import toy

from mlrun.config.settings import Hardware
from mlrun.errors import UserError
from mlrun.train.memory import halved


def config(**hardware: Any) -> Any:
    return toy.make(hardware=Hardware(**hardware))


def told(folder: Path) -> list[tuple[int, int, int]]:
    """Return (level, step, samples) of each halving in the log."""
    found = [r for r in toy.records(folder) if r["kind"] == "micro_batch"]
    return [(r["level"], r["step"], r["samples"]) for r in found]


def told_otherwise(folder: Path) -> list[Any]:
    return [r for r in toy.records(folder) if r["kind"] != "micro_batch"]


def test_auto_halves_until_it_fits_and_the_losses_are_those_of_that_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(tmp_path / "given", config(micro_batch=2))
    toy.run(tmp_path / "whole", config())
    toy.memory_for(monkeypatch, 3)
    toy.run(tmp_path / "auto", config(micro_batch="auto"))
    assert [(level, samples) for level, _, samples in told(tmp_path / "auto")] == [(1, 2), (2, 2)]
    assert told_otherwise(tmp_path / "auto") == toy.records(tmp_path / "given")
    trained = [[r["loss"] for r in told_otherwise(tmp_path / n) if r["kind"] == "train"] for n in ("auto", "whole")]
    assert trained[0] == pytest.approx(trained[1], abs=1e-5)


def test_a_resumed_run_goes_on_with_the_micro_batch_that_its_log_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.memory_for(monkeypatch, 3)
    toy.run(tmp_path / "whole", config(micro_batch="auto"))
    with monkeypatch.context() as patch:
        toy.stop_at(patch, 12)
        with pytest.raises(toy.loop.Stopped):
            toy.run(tmp_path / "stopped", config(micro_batch="auto"))
    toy.memory_for(monkeypatch, 8)  # as on a larger GPU: the last digits would be others
    toy.run(tmp_path / "stopped", config(micro_batch="auto"))
    assert toy.records(tmp_path / "stopped") == toy.records(tmp_path / "whole")
    assert all(map(torch.equal, toy.weights(tmp_path / "stopped").values(), toy.weights(tmp_path / "whole").values()))


@pytest.mark.parametrize("given", [None, 8])
def test_a_micro_batch_that_was_given_and_does_not_fit_is_a_line_that_says_which_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None
) -> None:
    toy.memory_for(monkeypatch, 3)
    with pytest.raises(UserError, match=r"^hardware\.micro_batch=8: allowed: at most 2, which fits; "):
        toy.run(tmp_path, config(micro_batch=given))


def test_where_no_sample_fits_the_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.memory_for(monkeypatch, 0)
    with pytest.raises(UserError, match="not one sample does"):
        toy.run(tmp_path, config(micro_batch="auto"))


def test_memory_that_runs_out_elsewhere_is_a_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("mlrun.running.assessment.measure", full)
    with pytest.raises(UserError, match=r"the memory of the GPU ran out \(CUDA out of memory\): lower .*eval\.batch"):
        toy.run(tmp_path, config())


def test_processes_halve_together_though_one_has_more_room(tmp_path: Path) -> None:
    parts = [
        pair.Part(str(tmp_path / "auto"), "reset", {"micro_batch": "auto"}, room=(4, 1)),
        pair.Part(str(tmp_path / "given"), "reset", {"micro_batch": 1}),
    ]
    pair.together(tmp_path, parts)
    assert {samples for _, _, samples in told(tmp_path / "auto")} == {1}
    assert told_otherwise(tmp_path / "auto") == toy.records(tmp_path / "given")


@pytest.mark.parametrize(("size", "rows", "wanted"), [(8, 8, 4), (3, 3, 1), (1, 8, 1), (12, 12, 6), (6, 18, 3)])
def test_half_of_a_micro_batch_divides_the_share(size: int, rows: int, wanted: int) -> None:
    assert halved(size, rows) == wanted
