"""Rollouts as their data name and shape what an environment gives.

Formats keep the same thing in different ways: an unnamed observation under a name of theirs
(`observations/flat`), a discrete action as an integer or as an array of one. Where it is beyond
doubt that both are the same, rollouts take the data's way, so that the two can be mixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.episode import Episode
from schemas.packed import Rows, plain
from schemas.spec import DatasetSpec, FieldSpec

OBSERVATIONS, ACTIONS = "observations", "actions"


def laid_out(episode: Episode, spec: DatasetSpec) -> Episode:
    """Returns a rollout with the names and shapes of a spec, where they stand for the same.

    An observation without a name takes the spec's only one, if shape and kind of dtype are equal;
    a discrete action, () or (1,), takes the spec's shape and integer dtype. All else stays as it
    is.
    """
    came = episode.spec.fields
    name = _only_name(spec)
    found = dict(episode.observations)
    if name is not None and set(found) == {OBSERVATIONS}:
        mine, wanted = came[OBSERVATIONS], spec.fields[name]
        if mine.shape == wanted.shape and mine.numpy_dtype.kind == wanted.numpy_dtype.kind:
            found = {name: found[OBSERVATIONS]}
    actions: Any = episode.actions
    if is_choice(came.get(ACTIONS)) and is_choice(spec.fields.get(ACTIONS)):
        actions = _as_choices(episode.flat_actions[ACTIONS], spec.fields[ACTIONS])
    return episode.replace(observations=found, actions=actions)


def is_choice(field: FieldSpec | None) -> bool:
    """Returns whether a field of actions is one integer each."""
    return field is not None and field.shape in ((), (1,)) and field.numpy_dtype.kind in "iu"


def _only_name(spec: DatasetSpec) -> str | None:
    """The name of the one observation field; None if there are several, or it has none."""
    names = [name for name in spec.fields if name.split("/")[0] == OBSERVATIONS]
    return names[0] if len(names) == 1 and names[0] != OBSERVATIONS else None


def _as_choices(actions: Rows, field: FieldSpec) -> np.ndarray:
    rows = plain(actions)
    return rows.reshape(len(rows), *field.shape).astype(field.numpy_dtype, copy=False)
