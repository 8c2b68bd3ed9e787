"""Model folders loaded, and to and from Hugging Face's, without `transformers`: name tables, dicts, safetensors."""

from __future__ import annotations

from pathlib import Path

from mlrun.errors import UserError, mistake
from mlrun.files import expanded
from mlrun.interop.families.registry import family_of
from mlrun.interop.read import open_folder
from mlrun.interop.target import judge
from mlrun.interop.write import save, special_ids
from mlrun.models.network import Network, build


def export_hf(model_folder: Path, target: Path, licence: str | None = None) -> None:
    """Write a run's model, or a model folder of ours, as a folder that `transformers` loads.

    `licence` is that of the data, as the hub calls it, where the data does not say it itself.

    Raises:
        UserError: no model is there, it has no counterpart, a tensor is wrong, or `target` is in use; nothing is
            written then.
    """
    judge(target, model_folder)
    source = open_folder(model_folder, "run")
    if source.family is not None:
        remedy = "it is a Hugging Face folder already"
        raise UserError(mistake("run", model_folder, "a run folder or a model folder of ours", remedy))
    family = family_of(source.model, special_ids(source))
    save(target, family, source.model, source.stream, source, licence=licence)


def load(folder: Path | str) -> Network:
    """Return the network of a run, or of a model folder, ours or Hugging Face's, with its weights.

    It is in float32 on the CPU, dropping nothing: `net.model` declares it, `net(batch)` is the loss of a batch,
    `net.logits(batch)` are its logits.

    Raises:
        UserError: no model is there, or it cannot be read.
    """
    found = open_folder(expanded(folder), "folder")
    net = build(found.model, None)
    net.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    return net.eval()


def import_hf(source: Path, target: Path) -> None:
    """Write a Hugging Face folder as `target`/model, as a run has it.

    Raises:
        UserError: as `export_hf`, or an option of the published model has no counterpart here.
    """
    judge(target, source)
    found = open_folder(source)
    if found.family is None:
        remedy = "this is a model of ours already; use it as it is"
        raise UserError(mistake("source", source, "a Hugging Face folder", remedy))
    save(target, None, found.model, found.stream, found)
