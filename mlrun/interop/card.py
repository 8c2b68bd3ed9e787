"""The model card of an exported folder: README.md with the front matter that the hub reads.

Every number comes from the ledger beside the weights and from the files of the run; what they do not say is "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlrun.interop.ledger import AMOUNTS, Ledger, source
from mlrun.interop.told import UNKNOWN, Told
from mlrun.models.axes import parameter_count
from mlrun.models.base import Model
from mlrun.units import duration, human

FILE = "README.md"
PIPELINES = {
    "causal": "text-generation",
    "mlm": "fill-mask",
    "span": "text2text-generation",
    "image": "image-classification",
}
READERS = (
    ("tokenizer.json", "tokenizer", "AutoTokenizer"),
    ("preprocessor_config.json", "processor", "AutoImageProcessor"),
)
# The hub takes a licence of its own list; public domain is none of these. It is that of the data: of the weights
# whoever publishes them decides.
LICENCES = {
    UNKNOWN: {"license": "unknown"},
    "public domain": {"license": "other", "license_name": "public-domain-data"},
}


def write(folder: Path, model: Model, architecture: str, spent: Ledger, told: Told | None) -> None:
    """Write README.md into a folder that holds all else of the export; `told` is None where no run made the weights."""
    name = str(spent[-1].name)
    head = yaml.safe_dump(front(name, model, told), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---", f"# {name}", *_body(folder, model, architecture, spent, told)]
    (folder / FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def front(name: str, model: Model, told: Told | None) -> dict[str, Any]:
    """Return the front matter: licence of the data, library, tags, data sets, and results as the hub lists them."""
    licence = UNKNOWN if told is None else told.licence
    head: dict[str, Any] = {
        **LICENCES.get(licence, {"license": licence}),
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[model.objective],
        "tags": ["mlrun", *(["multi-level"] if told is not None and len(told.trunk) > 1 else [])],
    }
    if told is None:
        return head
    if told.hub_sets:
        head["datasets"] = told.hub_sets
    if results := [_result(PIPELINES[model.objective], task, one, told) for task, one in _known(told)]:
        head["model-index"] = [{"name": name, "results": results}]
    return head


def _known(told: Told) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((task, one) for task, one in told.results.items() if one["value"] is not None)


def _result(pipeline: str, task: str, one: Mapping[str, Any], told: Told) -> dict[str, Any]:
    """Return one number as a `model-index` has it; nobody but us has verified it."""
    return {
        "task": {"type": pipeline},
        "dataset": {"type": task, "name": f"{task} ({told.data_class})"},
        "metrics": [{"type": one["metric"], "value": one["value"]}],
    }


def _body(folder: Path, model: Model, architecture: str, spent: Ledger, told: Told | None) -> Iterator[str]:
    sizes = ", ".join(f"{axis} {size}" for axis, size in model.sizes().items())
    yield f"`{architecture}` with {human(parameter_count(model.params(), model.sizes()))} parameters: {sizes}."
    yield from ("## How to load", _loading(folder, architecture))
    yield from ("## Cost", *_cost(spent, told))
    if told is None:
        yield "No run folder was beside these weights: data, cycle and results are unknown."
        return
    yield from ("## Training", cycle(told))
    yield f"Saving, as the report says it: {told.saving}"
    yield from ("## Data", _data(told))
    yield from ("## Transfers", _receipts(told))
    yield from ("## Evaluation", _results(told))
    yield from ("## Made with", _versions(told))


def _loading(folder: Path, architecture: str) -> str:
    readers = [(short, name) for file, short, name in READERS if (folder / file).is_file()]
    made = "".join(f'\n{short} = {name}.from_pretrained("FOLDER")' for short, name in readers)
    names = ", ".join([*(name for _, name in readers), architecture])
    return f'```python\nfrom transformers import {names}\n\nmodel = {architecture}.from_pretrained("FOLDER"){made}\n```'


def _cost(spent: Ledger, told: Told | None) -> Iterator[str]:
    """Yield what every training that led to the weights cost, then the stages of the last."""
    total = source("all", spent)
    rows = [(part.name + (" (declared)" if part.declared else ""), *_amounts(part.__dict__)) for part in spent]
    yield _table(("training", "FLOPs", "of the body", "seconds", "tokens"), [*rows, ("all", *_amounts(total))])
    free = [part.name for part in spent if part.flops is None]
    if len(spent) > 1:
        yield f"The trainings before the last are what it started from{'' if free else '; they are charged'}."
    if free:
        yield f"What {', '.join(free)} cost is unknown: no ledger.json lay beside it, so no sum is known, nor a saving."
    if told is None:
        return
    seconds = [stage["seconds"] for stage in told.summary.get("ledger", {}).get("stages", ())]
    taken = seconds or [None] * len(told.trunk)
    yield _table(
        ("stage", "level", "steps", "tokens", "FLOPs", "time"),
        [_stage(stage, took) for stage, took in zip(told.trunk, taken, strict=False)],
    )
    if aside := sum(stage["flops"] for stage in told.plan["stages"] if "branch" in stage):
        yield f"Branches of this run spent {human(aside)}FLOPs more; they are no part of these weights."


def _amounts(values: Mapping[str, Any]) -> list[str]:
    return [UNKNOWN if values[key] is None else f"{values[key]:.6g}" for key in AMOUNTS]


def _stage(stage: Mapping[str, Any], seconds: float | None) -> tuple[str, ...]:
    exact = [str(stage[key]) for key in ("steps", "tokens", "flops")]
    return str(stage["stage"] + 1), str(stage["level"]), *exact, duration(seconds)


def cycle(told: Told) -> str:
    """Return the cycle in one sentence."""
    return f"Cycle `{told.config['cycle']['name']}`: {', then '.join(_step(stage) for stage in told.trunk)}."


def _step(stage: Mapping[str, Any]) -> str:
    alpha = "" if stage.get("alpha") is None else f" with alpha {stage['alpha']:g}"
    moved = "" if stage["transfer"] is None else f"{stage['transfer']}d{alpha} to "
    return f"{moved}level {stage['level']} for {stage['steps']} steps ({human(stage['parameters'])} parameters)"


def _data(told: Told) -> str:
    epochs = UNKNOWN if told.epochs is None else f"{told.epochs:.3g}"
    tokens = sum(stage["tokens"] for stage in told.trunk)
    read = ", ".join([*told.hub_sets, *told.files])
    named = f"`{told.data_class}`" + (f": {read}" if read else "")
    return _bullets(
        ("source", named),
        ("licence of the data", told.licence),
        ("content", f"`{told.data.get('content', UNKNOWN)}`"),
        ("tokens read", f"{tokens}"),
        ("epochs", epochs),
        ("held-out samples", str(told.data.get("validation_samples", UNKNOWN))),
    )


def _receipts(told: Told) -> str:
    receipts = told.summary.get("receipts")
    if receipts is None:
        return f"Receipts: {UNKNOWN}, the run has not ended."
    if not receipts:
        return "None: one stage."
    header = ("stage", "operator", "alpha", "loss before", "loss after", "logits moved", "promised exact")
    rows = [
        (str(r["stage"] + 1), r["operator"], *(_number(r.get(k)) for k in ("alpha", "loss_before", "loss_after")),
         _number(r["relative_logit_change"]), "yes" if r["exact"] else "no")
        for r in receipts
    ]  # fmt: skip
    return _table(header, rows)


def _results(told: Told) -> str:
    if not told.results:
        return f"Results: {UNKNOWN}; `mlrun task=evaluate` measures them."
    rows = [
        (task, one["metric"], _number(one["value"]), _number(one["stderr"]), _number(one["n"]))
        for task, one in told.results.items()
    ]
    return _table(("task", "metric", "value", "standard error", "n"), rows)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.6g}"


def _versions(told: Told) -> str:
    commit = told.start.get("commit")
    named = [(key, str(told.start.get(key, UNKNOWN))) for key in ("mlrun", "torch", "python")]
    machine = told.summary.get("machine", UNKNOWN)
    return _bullets(*named, ("commit", UNKNOWN if commit is None else str(commit)), ("machine", str(machine)),
                    ("seed", str(told.config.get("seed", UNKNOWN))))  # fmt: skip


def _bullets(*items: tuple[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in items)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
