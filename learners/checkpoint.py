"""Checkpoints: one file with all a run needs to go on, or a policy to act.

A safetensors file holds the learner's tensors; its header holds a JSON document with the settings,
the normaliser, the versions and the streams' positions. Nothing in it is executable, its tensors
are checksummed, and it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from learners.base import Learner, make_learner
from learners.files import write_whole
from learners.normaliser import Normaliser, Picture
from schemas.errors import ConfigError, NotFoundError, UntrustedError
from schemas.version import SpecDocument, dataset_spec, spec_document

FORMAT = 1
FOLDER = "checkpoints"
NAME = re.compile(r"(\d{12})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after some updates."""

    algo: str
    settings: Mapping[str, Any]
    """The learner's hyperparameters, all of them."""
    normaliser: Normaliser
    tensors: Mapping[str, Tensor]
    """`Learner.state()`."""
    step: int
    """Updates taken."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """What the kind of run adds, as plain JSON: its configuration, versions, streams, counters."""


def snapshot(
    learner: Learner, step: int, document: Mapping[str, Any], agent: int = 0
) -> Checkpoint:
    """Returns a checkpoint of one agent as it is, whoever trains beside it; tensors are copies."""
    tensors = {name: t.detach().cpu().clone() for name, t in learner.state(agent).items()}
    settings = learner.settings.model_dump(mode="json")
    return Checkpoint(learner.name, settings, learner.normaliser, tensors, step, document)


def restore(
    checkpoint: Checkpoint, device: str = "cpu", changes: Mapping[str, Any] | None = None
) -> Learner:
    """Makes the learner that a checkpoint holds.

    Args:
        checkpoint: as loaded.
        device: where its networks go.
        changes: settings that differ from now on.

    Raises:
        ConfigError: if networks of those settings have other shapes than the checkpoint's.
    """
    settings = {**checkpoint.settings, **(changes or {})}
    learner = make_learner(checkpoint.algo, settings, checkpoint.normaliser, device=device)
    if changes and _shapes(learner.state()) != _shapes(checkpoint.tensors):
        raise ConfigError(
            f"Expected settings that leave the networks as they were trained, came "
            f"{', '.join(f'{name}={value}' for name, value in changes.items())}; leave out what "
            f"shapes them, or train another run.",
            where=checkpoint.algo,
        )
    learner.load_state(checkpoint.tensors)
    return learner


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Of all but the generator's, whose size is the device's affair."""
    return {name: tensor.shape for name, tensor in state.items() if name != "noise"}


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Returns a checkpoint as a safetensors file."""
    normaliser = checkpoint.normaliser
    tensors = {f"learner/{name}": tensor for name, tensor in checkpoint.tensors.items()}
    for name in ("mean", "scale", "action_scale"):
        tensors[f"normaliser/{name}"] = torch.from_numpy(getattr(normaliser, name).copy())
    for name in ("action_range", "action_centre"):
        if (known := getattr(normaliser, name)) is not None:
            tensors[f"normaliser/{name}"] = torch.from_numpy(known.copy())
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    document = {
        "format": FORMAT,
        "algo": checkpoint.algo,
        "settings": dict(checkpoint.settings),
        "fields": list(normaliser.fields),
        "pictures": {one.name: list(one.shape) for one in normaliser.pictures},
        "choices": normaliser.choices,
        **_said_of_spec(normaliser),
        "step": checkpoint.step,
        "sha256": _digest(tensors),
        "document": dict(checkpoint.document),
    }
    found: bytes = save(tensors, {"penstock": json.dumps(document)})
    return found


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint into a run's folder and drops older ones; returns its path."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{checkpoint.step:012d}.safetensors"
    write_whole(path, encode_checkpoint(checkpoint))
    for older in _listed(run):
        if older != path:
            older.unlink()
    return path


def last_checkpoint(run: Path) -> Path | None:
    """Returns the newest checkpoint of a run's folder, or None."""
    return max(_listed(run), default=None)


def load_checkpoint(run: Path) -> Checkpoint:
    """Loads the last checkpoint of a run's folder, or the file itself.

    Raises:
        NotFoundError: if there is none.
        UntrustedError: if the file is damaged or of another format.
    """
    path = run if run.is_file() else last_checkpoint(run)
    if path is None:
        raise NotFoundError(
            f"Expected a run with a checkpoint, came none; {_what_instead(run)}.", where=str(run)
        )
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})["penstock"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    return decode_checkpoint(document, tensors, str(path))


def decode_checkpoint(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> Checkpoint:
    """Returns the checkpoint that a file's document and tensors are.

    Raises:
        UntrustedError: if they are not as they were written, or of another format.
    """
    if document.get("format") != FORMAT or document.get("sha256") != _digest(tensors):
        raise _damaged(where, "another format, or contents that fail their checksum")
    mean, scale, action_scale = (
        tensors[f"normaliser/{name}"].numpy() for name in ("mean", "scale", "action_scale")
    )
    ranged, centre = (tensors.get(f"normaliser/action_{name}") for name in ("range", "centre"))
    spec = document.get("spec")
    start = "learner/"
    return Checkpoint(
        algo=document["algo"],
        settings=document["settings"],
        normaliser=Normaliser(
            tuple(document["fields"]),
            mean,
            scale,
            action_scale,
            tuple(Picture(n, tuple(shape)) for n, shape in document.get("pictures", {}).items()),
            document.get("choices"),
            action_range=None if ranged is None else ranged.numpy(),
            spec=None if spec is None else dataset_spec(SpecDocument.model_validate(spec)),
            action_centre=None if centre is None else centre.numpy(),
        ),
        tensors={n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)},
        step=document["step"],
        document=document["document"],
    )


def _said_of_spec(normaliser: Normaliser) -> dict[str, Any]:
    if normaliser.spec is None:
        return {}
    return {"spec": spec_document(normaliser.spec).model_dump(mode="json")}


def _what_instead(run: Path) -> str:
    """What may have been meant: one of the runs in a folder of several."""
    inside = sorted(path.name for path in run.glob("*/") if _listed(path))
    if not inside:
        return "train one first"
    return f"it holds several, name one of them ({', '.join(inside)})"


def _listed(run: Path) -> list[Path]:
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].numpy())
        sha.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _damaged(path: Path | str, why: str) -> UntrustedError:
    return UntrustedError(f"Expected a whole checkpoint, came: {why}.", where=str(path))
