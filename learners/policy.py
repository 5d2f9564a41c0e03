"""Policies as learners publish them and actors take them up: the part of a learner that acts.

A published policy is a checkpoint with the tensors of the networks that act alone, without
optimisers and, for most, critics: a safetensors file of some hundred kilobytes, or of megabytes
where it sees pictures. Nothing in it can be run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from learners.base import Learner, make_learner
from learners.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint, snapshot
from pipeline.store.policies import read_header
from schemas.errors import PenstockError, UntrustedError

MAX_PARAMETERS = 1 << 26


def encode_policy(learner: Learner, run: str, step: int) -> bytes:
    """Returns the policy of a learner as a file to publish.

    Args:
        learner: as it is now.
        run: name of the run.
        step: updates that made it.
    """
    whole = snapshot(learner, step, {"kind": "policy", "run": run})
    return encode_checkpoint(replace(whole, tensors=_of_policy(learner, whole.tensors)))


def decode_policy(data: bytes, run: str) -> tuple[Learner, int]:
    """Returns a learner that acts by a published policy, and the updates that made it.

    Args:
        data: the file.
        run: that is to have published it.

    Raises:
        UntrustedError: if it is no policy of this run, or not whole.
    """
    document = read_header(data)
    try:
        tensors = safetensors.torch.load(data)
        checkpoint = decode_checkpoint(document, tensors, f"policy of {run}")
        if checkpoint.document.get("run") != run:
            raise _unfit(f"a policy of {str(checkpoint.document.get('run'))[:128]!r}")
        return _acting(checkpoint), int(checkpoint.step)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unfit(f"{type(error).__name__}: {error}"[:300]) from None


def _of_policy(learner: Learner, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the networks that act."""
    return {name: t for name, t in tensors.items() if name.split("/")[0] in learner.acting}


def _acting(checkpoint: Checkpoint) -> Learner:
    """A learner whose other networks are as they were initialised: they do not act."""
    came = checkpoint.tensors
    if sum(tensor.numel() for tensor in came.values()) > MAX_PARAMETERS:
        raise _unfit("one that is too large")
    learner = _blank(checkpoint)
    state = learner.state()
    wanted = _of_policy(learner, state)
    shapes = [{name: (t.shape, t.dtype) for name, t in one.items()} for one in (wanted, came)]
    if shapes[0] != shapes[1]:
        raise _unfit("tensors of other shapes than its settings say")
    learner.load_state({**state, **came})
    return learner


def _blank(checkpoint: Checkpoint) -> Learner:
    # Settings that are none of these tensors' could ask for any amount of memory.
    for name in ("hidden", "policy_hidden"):
        sizes = [int(size) for size in checkpoint.settings.get(name, ())]
        if sum(a * b for a, b in itertools.pairwise([1, *sizes])) > MAX_PARAMETERS:
            raise _unfit("settings of networks that are too large")
    try:
        return make_learner(checkpoint.algo, checkpoint.settings, checkpoint.normaliser)
    except PenstockError as error:
        raise _unfit(error.message) from None


def _unfit(what: str) -> UntrustedError:
    return UntrustedError(f"Expected a policy that a learner published, came {what}.")
