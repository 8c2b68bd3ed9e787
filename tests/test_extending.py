"""docs/extending.md, section by section: its files are written down as printed and its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mlrun
from mlrun.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text(), re.M | re.S))
FILE = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", re.M | re.S)
COMMANDS = re.compile(r"^```console\n(.*?)^```", re.M | re.S)


def commands(section: str) -> list[str]:
    """Return the lines of a section's console blocks."""
    return [line for block in COMMANDS.findall(section) for line in block.splitlines() if line]


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_runs_as_printed(title: str, tmp_path: Path) -> None:
    for name, text in FILE.findall(SECTIONS[title]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "MLRUN_PACKAGES": "mylab", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    assert commands(SECTIONS[title])
    for line in commands(SECTIONS[title]):
        program, *words = shlex.split(line)
        assert program == "mlrun"
        run = [sys.executable, "-m", "mlrun", *words]
        done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder,) = [Path(word.removeprefix("run=")) for word in words if word.startswith("run=")]
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        assert summary["status"] == "finished" and summary["val_loss"] > 0


# A slip in the file of an example, what is asked for then, and what the line says.
SLIPS = [
    ("model/nope", "@dataclass(frozen=True)", "", "plan", "a dataclass of its own; its settings (vocab, embed,"),
    ("model/nope", 'objective = "causal"', 'objective = "casual"', "plan", "objective=casual: allowed: causal, mlm"),
    ("model/nope", 'objective = "causal"', "", "plan", "this one has no objective"),
    ("model/nope", '"ffn", "layer")', '"ffn")', "plan", "model=axis layer of a part: allowed: vocab, embed"),
    ("model/nope", '"embed.out", 0.02', '"embd.out", 0.02', "plan", "model=axis embd of a part"),
    ("model/nope", "net, batch):", "net, batch)", "plan", "an importable class; expected ':'"),
    ("coarsening/mirrored", "size - 1 - unit)", "unit)", "plan", "coarsening=Mirrored: embed: groups must use each"),
    ("coarsening/mirrored", "size // 2)", "size // 2 - 1)", "plan", "embed: groups must use each unit"),
    ("coarsening/mirrored", "size // 2)", "1)", "plan", "embed: groups must use each unit"),
    ("coarsening/mirrored", "(size // 2)", "(0)", "plan", "embed: groups of 0 units, but the axis has 64"),
    (
        "coarsening/mirrored",
        "return Merge",
        "return",
        "plan",
        "coarsening=tuple of tuple of int from Mirrored.merge: allowed: Merge",
    ),
    (
        "coarsening/mirrored",
        "def merge(",
        "def problems(self, sizes):\n        return None\n\n    def merge(",
        "plan",
        "None from Mirrored.p",
    ),
    ("optimizer/lion", '"gradient"', '"grad"', "plan", "Lion.state['exp_avg']=grad: allowed: weight, gradient, square"),
    ("optimizer/lion", 'state = {"exp_avg": "gradient"}', "", "plan", "a class whose `state` is"),
    ("optimizer/lion", '"exp_avg"', '"average"', "run", "to keep average, as it declares; declare exp_avg"),
    ("optimizer/lion", "return [", "return [None, ", "run", "allowed: list[torch.optim.Optimizer]"),
    ("optimizer/lion", ', {"params": vectors, "decay": 0.0}]', "]", "run", "attention_norm.weight is in none"),
    ("evaluation/hits", '{"hits"', '{"loss"', "run", "evaluation=loss: allowed: a name of its own"),
    ("evaluation/hits", '{"hits"', '{"held_out"', "run", "evaluation=held_out: allowed: a name of its own"),
    (
        "evaluation/hits",
        "(float(right.float().mean()), right.numel())",
        "1.0",
        "run",
        "dict of str to float from Hits.of_batch",
    ),
    (
        "evaluation/hits",
        "return {",
        "return None and {",
        "run",
        "None from Hits.of_batch: allowed: Mapping[str, tuple[float",
    ),
    (
        "evaluation/hits",
        "batch, loss, logits):",
        "batch, loss):",
        "plan",
        "Hits.of_batch(self, model, batch, loss): allowed",
    ),
    ("growth/jitter", "return grown", "return None", "run", "growth=None from Jitter.grow: allowed: Snapshot"),
    ("growth/jitter", "return grown", "return coarse", "run", "key.bias is [32] and not [64] (and "),
    (
        "growth/jitter",
        "return grown",
        "del grown.weights['norm.bias']; return grown",
        "run",
        "it has weights without norm.b",
    ),
    (
        "growth/jitter",
        '["jitter moves every weight"]',
        "None",
        "plan",
        "growth=None from Jitter.inexact: allowed: list[str]",
    ),
    (
        "growth/jitter",
        '["jitter moves every weight"]',
        "'jitter'",
        "plan",
        "growth=str from Jitter.inexact: allowed: list",
    ),
    (
        "growth/jitter",
        'def inexact(self, resize, post_norm):\n        return ["jitter moves every weight"]',
        "@torch.no_grad()\n    def inexact(self, resize, post_norm):\n        return None",
        "plan",
        "growth=None from Jitter.inexact: allowed: list[str]",
    ),
    ("growth/jitter", "makes_equal_copies = False", "makes_equal_copies = None", "plan", "copies=None: allowed: bool"),
    ("logger/table", "return sink", "return None", "run", "logger=None from Table.start: allowed: Sink"),
    ("logger/table", "return []", "return None", "plan", "logger=None from Table.problems: allowed: list[str]"),
    (
        "data/sums",
        "return Additions(self.pages)",
        "return [1]",
        "run",
        "data=list of int from Sums.corpus: allowed: Corpus",
    ),
    ("data/sums", '"version": 1}', '"version": {1}}', "run", "data=facts of the corpus: allowed: what JSON can hold"),
    (
        "data/sums",
        "return (self.page(number) for",
        "return (number for",
        "run",
        "data=int from Additions.documents: allowed: Iter",
    ),
    (
        "model/nope",
        "return net.token.unembed(net.norm(x))",
        "return net.norm(x)",
        "run",
        "64, 64] from NoPositions.forward",
    ),
    (
        "model/nope",
        "return net.token.unembed(net.norm(x))",
        "return None",
        "run",
        "model=None from NoPositions.forward",
    ),
    ("model/nope", "return Flops(", "return None and Flops(", "plan", "None from NoPositions.flops: allowed: Flops"),
    ("model/nope", '"ffn", "layer")', '"ffn", "layer", "depth")', "plan", "NoPositions.axes has depth: allowed: "),
    ("optimizer/lion", "return [", "return None and [", "run", "optimizer=None from Lion.build: allowed: list["),
    ("optimizer/lion", "state = {", "counted = 'step'\n    state = {", "plan", "Lion.counted=step: allowed: exp_avg"),
    (
        "model/nope",
        "return Flops(",
        "return Flops(-1, 5) or Flops(",
        "plan",
        "body=-1, head=5) from NoPositions.flops: allowed: whole numbers",
    ),
    (
        "model/nope",
        "return Flops(",
        "return Flops(float('nan'), 5) or Flops(",
        "plan",
        "head=5) from NoPositions.flops: allowed: whole",
    ),
    (
        "model/nope",
        "return Flops(",
        "return Flops(0, 0) or Flops(",
        "plan",
        "from NoPositions.flops: allowed: at least 1 FLOP",
    ),
    ("model/nope", "return Flops(", "return Flops(1.5, 0) or Flops(", "plan", "from NoPositions.flops: allowed: whole"),
    (
        "growth/jitter",
        "    makes_equal",
        "    def step_flops(self, model, resize, samples):\n        from mlrun.models.layers import Flops\n"
        "        return ()\n\n    makes_equal",
        "plan",
        "growth=() from Jitter.step_flops: allowed: at least one",
    ),
    (
        "growth/jitter",
        "    makes_equal",
        "    def step_flops(self, model, resize, samples):\n        from mlrun.models.layers import Flops\n"
        "        return (Flops(-3, 3),)\n\n    makes_equal",
        "plan",
        "body=-3, head=3) from Jitter.step_flops: allowed: whole",
    ),
    (
        "growth/jitter",
        "    makes_equal",
        "    def entry_flops(self, model, resize, samples):\n        from mlrun.models.layers import Flops\n"
        "        return Flops(-1, 0)\n\n    makes_equal",
        "plan",
        "head=0) from Jitter.entry_flops: allowed: whole",
    ),
    (
        "evaluation/hits",
        "    def applies",
        "    def measure(self, net, context):\n        return {}\n\n    def applies",
        "plan",
        "evaluation=Hits.measure: allowed: that of HeldOutMeans; nothing calls it there: remove it",
    ),
    (
        "logger/table",
        "def write(self, record):",
        "def write(self):",
        "plan",
        "Losses.write(self): allowed: (self, record)",
    ),
    (
        "logger/table",
        "def close(self, exit_code):",
        "def close(self):",
        "plan",
        "Losses.close(self): allowed: (self, exit",
    ),
    (
        "optimizer/lion",
        "    state = {",
        "    def update_flops(self, model):\n        return -1\n\n    state = {",
        "plan",
        "from Lion.update_flops: allowed: whole",
    ),
    ("method/widened", "noise:", "noises:", "plan", "Key 'noises' not in 'Cycle'"),
]


@pytest.mark.parametrize(("choice", "right", "slip", "asked", "told"), SLIPS)
def test_a_slip_is_one_line_that_names_it(
    choice: str, right: str, slip: str, asked: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, name = choice.split("/")
    found = {path: text for section in SECTIONS.values() for path, text in FILE.findall(section)}
    package = f"mylab{abs(hash((choice, right, slip)))}"  # each is imported anew
    for path, text in found.items():
        place = tmp_path / path.replace("mylab", package)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text.replace("mylab", package))
    module = re.search(rf"_target_: {package}\.(\w+)", (tmp_path / f"conf/{choice}.yaml").read_text())
    slipped = tmp_path / (f"{package}/{module[1]}.py" if module else f"conf/{choice}.yaml")
    assert right in slipped.read_text()
    slipped.write_text(slipped.read_text().replace(right, slip))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLRUN_PACKAGES", package)
    words = [f"{group}=[held_out,{name}]" if group == "evaluation" else f"{group}={name}", "data.sequence=64"]
    words += ["budget=20 steps", "batch=2", "data.validation_samples=4", "eval.every=100%", "hardware=cpu"]
    words += ["model=gpt_micro"] if group != "model" else []
    cycle = "cycle=grow2" if group == "growth" else "cycle=scratch"
    with pytest.raises(UserError) as caught:
        mlrun.plan(words) if asked == "plan" else mlrun.run([*words, cycle, "cache=cache", "run=outputs/x"])
    assert all("\n" not in line for line in caught.value.problems)
    assert told in caught.value.problems[0]


def test_every_part_that_can_be_added_has_an_example() -> None:
    parts = ("model", "coarsening", "growth method", "cycle", "method")
    parts += ("data source", "optimizer", "evaluation", "logger")
    assert {title.split(" ", 1)[1] for title in SECTIONS} == set(parts)


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_is_about_thirty_lines(title: str) -> None:
    assert sum(len(text.splitlines()) for _, text in FILE.findall(SECTIONS[title])) <= 60
