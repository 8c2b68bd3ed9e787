"""Nothing that a configuration or a file names runs as code unless the user said so; secrets stay where they are."""

from __future__ import annotations

import ast
import os
import pickle
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import toy

from mlrun import files
from mlrun.cli import command, points, preflight
from mlrun.config import choices, load, settings
from mlrun.data import cache
from mlrun.errors import UserError
from mlrun.interop.read import open_folder

PACKAGE = Path(files.__file__).parent


class Opened:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        preflight.check(points.of(command.read(list(arguments))))
    return str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "model._target_=os.system",
        "data._target_=subprocess.Popen",
        "+logger.mine._target_=mlrun.config.load.conf_dir",
        "+hydra.callbacks.evil._target_=os.system",
        "+hydra.callbacks.evil={_target_:mlrun.cli.tasks.AfterSweep,inner:{_target_:os.system}}",
        "hydra.launcher._target_=os.system",
        "hydra.sweeper._target_=builtins.exec",
        "hydra.callbacks.sweep._target_=os.system",
        "hydra/job_logging=none +hydra.job_logging.handlers.x={class:os.system}",
        "+hydra.job_logging.handlers.x={'()':os.system}",
        "hydra.callbacks.sweep._target_=${oc.decode:os.system}",
        "hydra.callbacks.sweep._target_=mlrunx.evil",
        "hydra.callbacks.sweep._target_=mlrun.files.os.system",
        "hydra.callbacks.sweep._target_=mlrun.files.os",
        "hydra.callbacks.sweep._target_=mlrun.files.Path",
        "hydra.callbacks.sweep._target_=mlrun.errors.UserError.__base__",
        "+hydra.callbacks.evil={_target_:hydra_plugins.mlrun_launchers.local.subprocess.Popen,args:[touch,x]}",
        "+hydra.callbacks.evil._target_=hydra_plugins.mlrun_launchers.local.Started",
        "+hydra.callbacks.evil._target_=logging.os.system",
        "+hydra.job_logging.handlers.x={class:logging.LogRecord}",
        "+hydra.callbacks.evil=${model} model._target_=os.system",
        "hydra.callbacks.sweep._target_=mlrun.${name}",
        "model._target_=mlrun.files.os.system",
        "model._target_=mlrun.files.Path",
        "data._target_=mlrun.config.load.OmegaConf",
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_target_outside_of_the_allowed_packages_is_refused(override: str, sweep: list[str]) -> None:
    parts = override.split(" ")
    assert "allowed: " in refused(*parts, "run=unused", *sweep)


def test_a_class_that_a_module_of_ours_only_imports_is_foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such a class may be a dataclass too: where it was defined decides."""
    (tmp_path / "theirs.py").write_text("from dataclasses import dataclass\n@dataclass\nclass Theirs: ...\n")
    (tmp_path / "mine.py").write_text("from theirs import Theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLRUN_PACKAGES", "mine")
    assert "it comes from theirs" in refused("model._target_=mine.Theirs", "run=unused")


def test_no_hydra_is_allowed_that_calls_what_it_does_not_judge() -> None:
    """Before 1.3.6 a name was judged by its beginning."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    (bound,) = [text for text in project["dependencies"] if text.startswith("hydra-core")]
    least = tuple(int(part) for part in bound.removeprefix("hydra-core>=").partition(",")[0].split("."))
    assert least >= (1, 3, 6)


def test_what_hydra_and_the_plugins_bring_may_be_made() -> None:
    """The basic choices, log handlers of logging and colorlog, and our own launchers."""
    for choice in ("default", "none", "disabled"):
        points.of(command.read([f"hydra/job_logging={choice}", f"hydra/hydra_logging={choice}"]))
    for launcher in ("basic", "local"):
        points.of(command.read(["-m", f"hydra/launcher={launcher}"]))


def shipped() -> dict[str, set[str]]:
    """Return the classes that our YAML files name, by group."""
    found: dict[str, set[str]] = {group: set() for group in choices.SERVES}
    for path in load.conf_dir().rglob("*.yaml"):
        for name in re.findall(r"^ {0,2}_target_: (mlrun\.\S+)", path.read_text(), re.MULTILINE):
            group = next((g for g in found if path.parent.name == g or path.stem in BASES.get(g, ())), None)
            if group is not None:
                found[group].add(name)
    return found


BASES = {"model": ("_gpt", "_bert", "_llama", "_t5", "_deit"), "data": ("_text", "_images")}


def test_a_class_serves_in_its_own_group_alone() -> None:
    """One of another group would end in a traceback, or only once the run has begun."""
    classes = shipped()
    assert all(classes.values())
    for group, own in classes.items():
        for name in set.union(*classes.values()) | {"mlrun.config.settings.Settings"}:
            key = f"{group}.mine" if group in settings.LISTS else group
            if name in own:
                choices.serves(choices.locate(name, key), key)
                continue
            with pytest.raises(UserError, match=f"^{key}._target_={name}: allowed: a class that serves as {group}"):
                choices.serves(choices.locate(name, key), key)
    said = refused("cycle=auto", "cycle.auto.probe=[{_target_:mlrun.log.wandb.WandbLogger}]", "run=unused")
    assert "serves as growth" in said
    assert "serves as logger" in refused("+logger.mine._target_=mlrun.evaluate.held_out.HeldOut", "run=unused")


def test_a_folder_of_others_reads_no_variable_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "12345678")
    (tmp_path / "config.json").write_text('{"_target_": "mlrun.models.gpt.GPT", "vocab": "${oc.env:TOKEN}"}')
    with pytest.raises(UserError, match=r"config\.json: vocab=.*write the value itself") as caught:
        open_folder(tmp_path)
    assert "12345678" not in str(caught.value)
    with pytest.raises(UserError, match=r"tokenizer=.*write the value itself"):
        choices.literal({"data": {"tokenizer": ["${oc.env:TOKEN}"]}}, tmp_path / "config.yaml")


def test_a_target_inside_a_part_is_no_key_of_it() -> None:
    assert "allowed: " in refused("+model.extra={_target_:os.system}", "run=unused")


def test_a_swept_target_is_refused_too() -> None:
    assert "os.system" in refused("-m", "run=unused", "data._target_=mlrun.data.text.sotu.Sotu,os.system")


def test_no_code_of_ours_unpickles_or_trusts_remote_code() -> None:
    """torch.load, pickle.load and the like appear nowhere; trust_remote_code is nowhere switched on.

    One file names `pickle`, for copies of what it has just composed.
    """
    copies = PACKAGE / "cli/points.py"
    calls = re.findall(r"pickle\.\w+\([^()]*\)", copies.read_text())
    assert calls == ["pickle.loads(chosen.settings)", "pickle.dumps(settings)"]
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                allowed = {"pickle"} if path == copies else set()
                assert not (names - allowed) & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "eval", "exec", "os.system", "yaml.unsafe_load"), path
                if called == "yaml.load":
                    assert 'yaml, "CSafeLoader", yaml.SafeLoader' in path.read_text(), path
                for keyword in node.keywords:
                    given = ast.unparse(keyword.value)
                    assert (keyword.arg, given) != ("trust_remote_code", "True"), path
                    assert (keyword.arg, given) != ("allow_pickle", "True"), path
                    assert (keyword.arg, given) != ("shell", "True"), path


def test_a_pickle_in_the_place_of_a_checkpoint_is_not_opened(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.safetensors").write_bytes(pickle.dumps(Opened(mark)))
    with pytest.raises(UserError, match="cannot be read"):
        toy.run(tmp_path, toy.make())
    assert not mark.exists()


def test_the_key_of_wandb_is_in_no_file_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "f" * 7 + "0123456789abcdef" * 2 + "e"
    monkeypatch.setenv("WANDB_API_KEY", key)
    toy.run(tmp_path, toy.make())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if key.encode() in path.read_bytes()]


@pytest.mark.parametrize(("mask", "files", "folders"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_get_the_permissions_that_the_umask_asks_for(tmp_path: Path, mask: int, files: int, folders: int) -> None:
    before = os.umask(mask)
    try:
        toy.run(tmp_path / "run", toy.make())
    finally:
        os.umask(before)
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        expected = folders if path.is_dir() else files
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_config_file_is_data_and_not_code(tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine/model/evil.yaml").write_text("!!python/object/apply:os.system ['true']\n")
    assert "model=evil" in refused("model=evil", "run=unused", "--config-dir", str(tmp_path / "mine"))


def test_the_allow_list_is_ours_until_the_user_adds_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choices.PACKAGES_VARIABLE, raising=False)
    assert choices.allowed_packages() == ["mlrun"]
    monkeypatch.setenv(choices.PACKAGES_VARIABLE, "mine, yours")
    assert choices.allowed_packages() == ["mlrun", "mine", "yours"]


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_the_cache_can_be_shared_as_the_umask_says(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        made = cache.build(tmp_path / "prepared", lambda folder: files.write_json(folder / "facts.json", {}))
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((made / "facts.json").stat().st_mode) == 0o666 & ~mask
