"""Which runs may be compared, which are the same method, which is a baseline, and what to call them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mlrun.files import RUNTIME, UNNAMED
from mlrun.report.read import Run

# What does not make a method: runs that differ in the seed alone are repeats.
IGNORED = (*RUNTIME, "seed")
# These make a method. Every other key, known or not, must be equal for two runs to be compared.
METHOD = ("cycle", "coarsening", "growth", "init", "init_flops", "on_divergence")
# Keys of a section that may differ: branches leave the trunk as it is.
FREE_KEY = {"optimizer": "lr", "eval": "every", "cycle": "branches"}
# What may differ between two runs that had the same thing to learn, and could have been tuned for it.
TUNABLE = ("optimizer", "batch", "eval", "budget")
# Keys of a model that act in training alone (`mlrun.models.base.IN_TRAINING`): with others it is the same model.
IN_TRAINING = ("dropout", "attention_dropout", "drop_path", "parametrization", "base")
# Settings of a cycle that change nothing where one stage at level 1 is all there is.
WITHOUT_EFFECT = (
    "name",
    "lengths",
    "stages",
    "alpha",
    "noise",
    "lr_scale",
    "optimizer_policy",
    "lr_policy",
    "branches",
)
ROW = ("level", "length", "alpha")
# Settings of a cycle that change nothing at these values, which older runs do not have.
NEUTRAL = {"layer_dropout": 0}
PLURALS = {"level": "levels", "batch": "batches", "sequence": "sequences"}
# What a row takes from the run where it says nothing.
OF_THE_RUN = ("batch", "sequence")
# The share by which budgets of one amount may differ, since a batch is whole.
ROUNDING = 0.01
DIGESTS = ("train", "held_out", "tokenizer", "preprocessing")
# Settings of the data that its content hash covers.
HASHED = ("files", "validation_files", "tokenizer", "tokenizer_characters")
# Ratios that are that of the width unless a user sets them.
FOLLOWING = ("coarsening.ffn", "coarsening.head")


def matched(run: Run) -> dict[str, str]:
    """Return, by section, what must be equal for two runs to be compared, as text."""
    config = _but_chosen(run)
    sections = {k: _text(_without_own(k, v)) for k, v in config.items() if k not in IGNORED + METHOD}
    budget = {axis: run.plan["budget"].get(axis) for axis in ("steps", "tokens", "flops")}
    precision = (run.config.get("hardware") or {}).get("precision")
    return sections | {"data": data(run), "budget": _text(budget), "precision": _text(precision)}


def _but_chosen(run: Run) -> Mapping[str, Any]:
    """Return the settings; where a search chose how to train, for the baseline as for each method, that is left open.

    What a run was to learn stays: a search may not choose another model for one side.
    """
    if run.search is None:
        return run.config
    config: dict[str, Any] = json.loads(_text(run.config))
    chosen = {key for keys in run.search["space"].values() for key in keys}
    for key in sorted(filter(_of_training, chosen)):
        *above, name = key.split(".")
        node = config
        for part in above:
            node = node.get(part) or {}
        if name in node:
            node[name] = f"chosen in {run.folder.absolute().parent}"
    return config


def _of_training(key: str) -> bool:
    """Return whether a key says how a model is trained, and not which model that is."""
    section, _, name = key.partition(".")
    return name in IN_TRAINING if section == "model" else section in TUNABLE


def data(run: Run) -> str:
    """Return what the run read, as text: digests of its content, whatever its files are called.

    A run that has no digests is known by its settings and the hash that it has, if any.
    """
    identity, content = run.data.get("identity"), run.data.get("content")
    if identity is not None:
        return _text({name: identity.get(name) for name in DIGESTS})
    covered = () if content is None else HASHED
    settings = {key: value for key, value in (run.config.get("data") or {}).items() if key not in covered}
    return _text({"settings": settings, "content": content})


def setting(run: Run) -> str:
    """Return one key for everything that must be equal but for the seed."""
    return _text(matched(run))


def baseline(run: Run) -> bool:
    """Return whether a run is from scratch and spent the whole budget, plainly; branches aside."""
    return run.level_one and not unplain(run)


def unplain(run: Run) -> list[str]:
    """Return what tells a run apart from the plain one of its budget, in words, beside its stages and policies."""
    found = [] if run.source is None else [_start([run])]
    if not run.level_one:
        return found
    (stage,), cycle = run.trunk, _cycle(run)
    steps, budget = stage["steps"], run.plan["budget"].get("steps")
    rows = cycle.get("stages") or [{}]
    unknown = {k: v for k, v in cycle.items() if k not in WITHOUT_EFFECT} | {
        k: v for k, v in rows[0].items() if k not in ROW
    }
    acting = {key: value for key, value in unknown.items() if value not in (None, [], {})}
    stopped = not _spent(run, stage) if acting else steps != budget
    if stopped:
        found.append(f"{steps} steps" if not budget else f"stops at {100 * steps / budget:.3g}%")
    if skipped := (run.summary or {}).get("skipped_steps"):
        found.append(f"{skipped} steps skipped")
    return found + [f"{key}={value}" for key, value in acting.items()]


def _spent(run: Run, stage: Mapping[str, Any]) -> bool:
    """Return whether a run of one stage, whose steps are not its budget's, has spent it but for part of a step."""
    return 0 <= run.plan["budget"]["flops"] - stage["flops"] < 2 * stage["flops"] / stage["steps"]


def _cycle(run: Run) -> dict[str, Any]:
    """Return the settings of a run's cycle without what changes nothing.

    A cycle that decides on its way does so at the run's evaluations: how far they are apart is a setting of it.
    """
    cycle, data = dict(run.config["cycle"]), run.config.get("data") or {}
    own = {"batch": run.config.get("batch"), "sequence": data.get("sequence")}
    kept = {key: value for key, value in cycle.items() if key not in NEUTRAL or value != NEUTRAL[key]}
    if cycle.get("auto"):
        kept["auto"] = {**cycle["auto"], "looks": run.config["eval"]["every"]}
    rows = cycle.get("stages") or []
    idle = {key: (None, own[key]) for key in OF_THE_RUN}
    return kept | {"stages": [{k: v for k, v in row.items() if v not in idle.get(k, ())} for row in rows]}


def _start(runs: Sequence[Run]) -> str:
    """Return in a word where the runs of a method started from."""
    paths = dict.fromkeys(_short_path(run.source["name"]) for run in runs if run.source is not None)
    first, *others = paths
    return f"init={first}" + (f" and {len(others)} more" if others else "")


def origin(run: Run) -> Any:
    """Return what tells where a run started from: its path, or where that is known what had been done, in any seed.

    So seeds that each go on from a model of their own are repeats of one method, each charged with its own model.
    """
    recipes = [part.get("recipe") for part in (run.source or {}).get("parts", ())]
    return sorted(recipes) if recipes and None not in recipes else run.config.get("init")


def _short_path(path: Any) -> str:
    """Return the folder of a run that a path leads to or into, without those above it."""
    parts = [part for part in str(path).split("/") if part not in ("", ".", "model")]
    return parts[-1] if parts else str(path)


def family(run: Run, source: bool = True) -> str:
    """Return one key for the method: equal for runs that differ in seed and learning rate only.

    What a one-stage run at level 1 never uses (coarsening, the cycle's policies) does not tell baselines apart.
    Without `source` runs that began with other weights count as one method.
    """
    if baseline(run):
        return "baseline " + setting(run)
    return _text([setting(run), recipe(run, source)])


def recipe(run: Run, source: bool = True) -> str:
    """Return one key for what makes a method, whatever it is compared with: its cycle, operators and start."""
    keys = METHOD if source else tuple(key for key in METHOD if key != "init")
    return _text({k: origin(run) if k == "init" else _without_own(k, _method(run, k)) for k in keys})


def settings_tried(runs: Sequence[Run]) -> int:
    """Return at how many settings runs of one cycle's name were tried, by whatever key.

    Where each seed starts from a model of its own, these are one setting; several models of one seed are several, as
    are models that were made in ways that are known and differ.
    """
    found: dict[tuple[str, float], dict[int, set[str]]] = {}
    for run in runs:
        by_seed = found.setdefault((family(run, source=False), run.lr), {})
        by_seed.setdefault(run.seed, set()).add(_text(origin(run)))
    return sum(_origins(list(by_seed.values())) for by_seed in found.values())


def _origins(by_seed: Sequence[set[str]]) -> int:
    """Return how many kinds of models one setting was started from."""
    ways = {way for ways in by_seed for way in ways if way.startswith("[")}
    return max(len(ways), *map(len, by_seed))


def _method(run: Run, section: str) -> Any:
    """Return a section of the settings that make a method, without what changes nothing."""
    return _cycle(run) if section == "cycle" else run.config.get(section)


def differences(one: Run, other: Run) -> list[str]:
    """Return the names of what keeps two runs from being compared."""
    a, b = matched(one), matched(other)
    found = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    mine, theirs = one.data.get("identity"), other.data.get("identity")
    if "data" in found and mine is not None and theirs is not None:
        parts = [name for name in DIGESTS if mine.get(name) != theirs.get(name)]
        found[found.index("data")] = f"data ({', '.join(parts)})"
    return found + (["seed"] if one.seed != other.seed else [])


def told_apart(one: Run, other: Run) -> list[str]:
    """Return what keeps two runs from being compared: sections with their keys that differ, or both classes."""
    return [_told_section(name, one, other) for name in differences(one, other)]


def _told_section(name: str, one: Run, other: Run) -> str:
    a, b = (_without_own(name, _but_chosen(run).get(name)) for run in (one, other))
    if name == "data" or not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return name
    classes = [_last(str(section.get("_target_"))) for section in (a, b)]
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    told = [f"{classes[0]}, not {classes[1]}"] if classes[0] != classes[1] else keys
    return f"{name} ({', '.join(told)})" if told else name


def task(run: Run) -> str:
    """Return one key for what a run was to learn: model and data, whatever its optimizer and batch."""
    return _text({name: text for name, text in matched(run).items() if name not in TUNABLE})


def goal(run: Run) -> str:
    """Return one key for the model that a run was to end with, on its data, however it is trained."""
    aside = (*TUNABLE, "precision", "model")
    return _text([model(run), {name: text for name, text in matched(run).items() if name not in aside}])


def model(run: Run) -> dict[str, Any]:
    """Return the settings of the model, without those that act in training alone."""
    return {key: value for key, value in run.config["model"].items() if key not in IN_TRAINING}


def same_budget(one: Run, other: Run) -> bool:
    """Return whether two budgets are the same FLOPs, but for the rounding of a batch."""
    flops = [float(run.plan["budget"]["flops"]) for run in (one, other)]
    return abs(flops[0] - flops[1]) <= ROUNDING * max(flops)


def as_long(one: Run, other: Run) -> bool:
    """Return whether two budgets are the same FLOPs or the same tokens, which an optimizer's own work makes dearer."""
    tokens = [run.plan["budget"]["tokens"] for run in (one, other)]
    return tokens[0] == tokens[1] or same_budget(one, other)


def no_dearer(flops: float, run: Run) -> bool:
    """Return whether a cost is at most a run's budget, but for the rounding of a batch."""
    return flops <= (1 + ROUNDING) * float(run.plan["budget"]["flops"])


def smaller(one: Run, other: Run) -> bool:
    """Return whether the one trains a smaller model of the other's kind, on the same data."""
    kinds = {run.config["model"]["_target_"] for run in (one, other)}
    sizes = [run.plan["levels"][0]["parameters"] for run in (one, other)]
    return len(kinds) == 1 and sizes[0] < sizes[1] and data(one) == data(other)


def settings_apart(one: Run, other: Run) -> list[tuple[str, str]]:
    """Return (`key=value`, the other's value) for what two runs of one goal set otherwise, the learning rate included.

    A budget that is as many FLOPs in another unit is the same. Of another optimizer only its name is told, and what
    both have.
    """
    a, b = (dict(_flat(_training(run), own=True)) for run in (one, other))
    mine, theirs = (_last(str(flat.pop("optimizer._target_", None))) for flat in (a, b))
    if mine != theirs:
        a, b = _in_both(a, b), _in_both(b, a)
    apart_in = {k: [one.get(k, UNNAMED.get(k)) for one in (a, b)] for k in {**a, **b}}
    sizes = one.config["model"]
    return [(f"optimizer {mine}", theirs)] * (mine != theirs) + [
        (f"{_short(k, sizes)}={_written(mine)}", _written(theirs))
        for k, (mine, theirs) in apart_in.items()
        if mine != theirs and not (k == "budget" and same_budget(one, other))
    ]


def _in_both(flat: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those of an optimizer that the other one does not have."""
    return {key: value for key, value in flat.items() if not key.startswith("optimizer.") or key in other}


def _short(key: str, sizes: Mapping[str, Any]) -> str:
    """Return the last part of a key, and the one above where that alone is the name of a size of the model."""
    above, _, last = key.rpartition(".")
    return f"{_last(above)}.{last}" if last in sizes and above not in ("", "model") else last


def _written(value: Any) -> str:
    return "null" if value is None else str(value)


def _training(run: Run) -> dict[str, Any]:
    """Return what runs of one goal may set otherwise."""
    own = {key: run.config.get(key) for key in ("optimizer", "batch", "budget")}
    trained = {key: value for key, value in run.config["model"].items() if key in IN_TRAINING}
    return own | {
        "model": _without_own("model", trained),
        "precision": (run.config.get("hardware") or {}).get("precision"),
    }


def training(run: Run) -> str:
    """Return one key for how a run of one goal is trained."""
    return _text(_training(run))


def apart(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value of the one, of the other) of all settings that may change what two runs compute.

    The seed is left out; None is a key that is not there, too.
    """
    a, b = settings(one), settings(other)
    return [(key, a.get(key), b.get(key)) for key in sorted({**a, **b}) if a.get(key) != b.get(key)]


def settings(run: Run) -> dict[str, Any]:
    """Return what a run was given, by dotted key, without its seed, place, name and listeners."""
    return dict(_flat({key: value for key, value in run.config.items() if key not in IGNORED}, own=True))


def labels(families: Mapping[str, Sequence[Run]], baselines: Sequence[Run] = ()) -> dict[str, str]:
    """Return a short name for each method, given its runs: the user's, the cycle's, and what tells it apart.

    A method whose cycle is called as that of a baseline is told apart by its levels.
    """
    taken = {"scratch", *(str(run.config["cycle"]["name"]) for run in baselines)}
    by_name: dict[str, list[str]] = {}
    for key, runs in families.items():
        by_name.setdefault(called(runs, taken), []).append(key)
    found = {}
    for name, keys in by_name.items():
        flats = [dict(_flat({k: _method(families[key][0], k) or {} for k in METHOD})) for key in keys]
        chosen = _telling(flats)
        for key, flat in zip(keys, flats, strict=True):
            found[key] = " ".join([name, *(_said(c, flat.get(c), chosen) for c in chosen)])
    return found


def called(runs: Sequence[Run], taken: Collection[str] = ("scratch",)) -> str:
    """Return the cycle's name with what makes it no plain one; before it the user's name, if all runs share one."""
    run, names = runs[0], {run.name for run in runs}
    told = [_start(runs) if word == _start([run]) else word for word in unplain(run)] if run.source else unplain(run)
    parts = [run.config["cycle"]["name"], *told]
    if not run.level_one and parts[0] in taken:
        parts[1:1] = [f"{PLURALS[key]} {'-'.join(each)}" for key, each in _by_stage(run)]
    own = " ".join(map(plainly, parts))
    (name,) = names if len(names) == 1 else (None,)
    return own if name is None else f"{plainly(name)} ({own})"


def _by_stage(run: Run) -> Iterator[tuple[str, list[str]]]:
    """Yield what the stages of a run are told by: their levels, and batch and sequence where one has its own."""
    yield "level", [str(stage["level"]) for stage in run.trunk]
    for key in OF_THE_RUN:
        values = [stage.get(key, run.plan.get(key)) for stage in run.trunk]
        if any(value != run.plan.get(key) for value in values):
            yield key, list(map(str, values))


def plainly(text: Any) -> str:
    """Return a user's text as one line that breaks no table and moves no cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).replace("|", "/").split())


def _telling(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return few config keys whose values tell all of these apart, the plainest first."""
    every = {key for flat in flats for key in flat}
    keys = sorted(every, key=lambda key: ("stages" in key, "_target_" not in key, key in FOLLOWING, len(key), key))
    chosen: list[str] = []
    apart = 1
    for key in keys:
        now = len({tuple(_text(flat.get(k)) for k in [*chosen, key]) for flat in flats})
        if now > apart:
            chosen.append(key)
            apart = now
        if apart == len(flats):
            break
    return chosen


def varied(runs: Sequence[Run]) -> list[str]:
    """Return the last parts of the keys in which runs of a method differ, the learning rate first."""
    aside = (*IGNORED, "data", "init")
    flats = [dict(_flat({k: v for k, v in run.config.items() if k not in aside}, own=True)) for run in runs]
    every = dict.fromkeys(key for flat in flats for key in flat)
    keys = [key for key in every if len({_text(flat.get(key)) for flat in flats}) > 1]
    found = ["cycle.stages" if key.startswith(("cycle.stages.", "cycle.lengths.")) else key for key in keys]
    told = [_last(key.rstrip(".0123456789")) for key in found if not key.startswith(("cycle.branches", "eval.every"))]
    return sorted(dict.fromkeys(told), key=lambda name: name != "lr")


def _flat(node: Any, prefix: str = "", own: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all settings; without `own` none of those that each run may choose."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in items:
        path = f"{prefix}{key}"
        if not own and path in (f"{section}.{free}" for section, free in FREE_KEY.items()):
            continue
        if isinstance(value, Mapping | list):
            yield from _flat(value, path + ".", own)
        else:
            yield path, value


def _said(key: str, value: Any, others: Sequence[str]) -> str:
    """Return `key=value` in few words: of a class only its name, of a key only its last part where that is enough."""
    head, _, tail = key.rpartition(".")
    if tail == "_target_":
        return str(value).rpartition(".")[2]
    alone = sum(_last(other) == tail for other in others) == 1
    return f"{tail if alone or not head else key}={value}"


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _without_own(section: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    own = (FREE_KEY.get(section), *(key for key, v in value.items() if _as_before(f"{section}.{key}", v)))
    return {k: v for k, v in value.items() if k not in own and f"{section}.{k}" not in IGNORED}


def _as_before(key: str, value: Any) -> bool:
    """Return whether a setting is at what runs did that do not name it."""
    return key in UNNAMED and value == UNNAMED[key]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
