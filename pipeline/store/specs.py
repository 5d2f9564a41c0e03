"""Which spec of a branch episodes join, and which of their arrays may be cast so that they do.

Blocks are written before the head that they are committed on is known, so the choice is made when
the commit is planned, and made again on every other head. It follows from the specs of that head
and from what came alone: jobs that race agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from schemas.episode import Episode
from schemas.errors import ConfigError, NameTakenError, SpecMismatchError
from schemas.packed import Rows
from schemas.spec import DatasetSpec, FieldSpec, differences

FIRST = "default"
"""The name of a branch's first spec, where no other is asked for."""
OF_SPEC = "spec"
"""Asks for the dtypes of the branch's spec, in place of a dtype's name."""
FLOATS = ("float16", "float32", "float64")
INGEST_ADVICE = (
    "--new-spec NAME lets them join as a spec of their own, --dtype spec casts what differs in "
    "dtype only"
)


def join(
    specs: Mapping[str, DatasetSpec],
    came: DatasetSpec,
    new: str | None,
    where: str,
    advice: str = INGEST_ADVICE,
) -> tuple[str, DatasetSpec]:
    """Returns the name of the spec that episodes join, and that spec as it must be to hold them.

    Args:
        specs: those of the branch by name.
        came: the episodes' own spec.
        new: name of the spec to make where none fits; it also decides where several fit.
        where: the store, for errors.
        advice: what whoever has episodes that fit none can do.

    Raises:
        SpecMismatchError: if no spec fits and no name for a new one is given, or several fit.
        NameTakenError: if the name for a new one belongs to a spec that does not fit.
    """
    fitting = {n: m for n, s in specs.items() if (m := s.merged(came)) is not None}
    equal = [name for name in fitting if specs[name] == came]
    chosen = equal or [name for name in fitting if name == new] or list(fitting)
    if len(chosen) > 1:
        raise SpecMismatchError(
            f"Expected episodes that fit one spec of the branch, came [{came}], which fits "
            f"{', '.join(map(repr, chosen))}; name one with --new-spec.",
            where=where,
        )
    if chosen:
        return chosen[0], fitting[chosen[0]]
    if not specs:
        return new or FIRST, came
    if new is None:
        apart = {name: differences(spec, came) for name, spec in specs.items()}
        near = min(apart, key=lambda name: apart[name].count(";"))
        others = [name for name in specs if name != near]
        known = f"{near!r} [{specs[near]}]" + f", or {', '.join(others)}" * bool(others)
        raise SpecMismatchError(
            f"Expected episodes of the spec {known}, came [{came}] (against {near!r}: "
            f"{apart[near]}); {advice}.",
            where=where,
        )
    if new in specs:
        raise NameTakenError(
            f"Expected a name for a new spec, came {new!r}, which is that of [{specs[new]}] "
            f"({differences(specs[new], came)}); choose another name.",
            where=where,
        )
    return new, came


def cast_target(specs: Mapping[str, DatasetSpec], came: DatasetSpec) -> DatasetSpec | None:
    """Returns what episodes must be cast to so that they fit the one spec they can be cast to.

    None if they fit a spec as they are, or none or several by casting. Casting is of floats to
    floats, and of whole numbers to what holds all of them; names and shapes must be equal.
    """
    if any(spec.merged(came) is not None for spec in specs.values()):
        return None
    targets = {
        target
        for spec in specs.values()
        if (target := _cast_spec(spec, came)) is not None and spec.accepts(target)
    }
    return targets.pop() if len(targets) == 1 else None


def cast_episode(episode: Episode, target: DatasetSpec) -> Episode:
    """Returns an episode with its arrays in the dtypes of a spec; extras stay as they are.

    Raises:
        SpecMismatchError: if a value does not fit its new dtype.
    """
    if episode.spec == target:
        return episode

    def cast(name: str, rows: Rows) -> Rows:
        wanted = target.fields[name]
        if not isinstance(rows, np.ndarray) or rows.dtype == wanted.numpy_dtype:
            return rows
        try:
            with np.errstate(over="raise", under="ignore", invalid="ignore"):
                return rows.astype(wanted.numpy_dtype)
        except FloatingPointError:
            raise SpecMismatchError(
                f"Expected values of {name!r} within {wanted.numpy_dtype.name}, came larger ones; "
                f"bring them in as they are, as a spec of their own (--new-spec NAME).",
                where=episode.source_key or episode.episode_id,
            ) from None

    actions = {name: cast(name, array) for name, array in episode.flat_actions.items()}
    is_named = isinstance(episode.actions, Mapping)
    return episode.replace(
        observations={name: cast(name, rows) for name, rows in episode.observations.items()},
        actions=actions if is_named else actions.get("actions"),
        rewards=None if episode.rewards is None else cast("rewards", episode.rewards),
    )


def with_floats(spec: DatasetSpec, dtype: str) -> DatasetSpec:
    """Returns a spec with all its plain floats of one dtype."""
    wanted = np.dtype(dtype).newbyteorder("<").str
    return DatasetSpec(
        {
            name: FieldSpec(wanted, field.shape)
            if field.encoding == "raw" and field.numpy_dtype.kind == "f"
            else field
            for name, field in spec.fields.items()
        }
    )


def check_dtype(text: str | None) -> str | None:
    """Returns `spec`, the name of a float dtype, or None.

    Raises:
        ConfigError: for anything else.
    """
    if text is None or text == OF_SPEC or text in FLOATS:
        return text
    raise ConfigError(
        f"Expected the dtype {', '.join(FLOATS)}, or {OF_SPEC!r} for those of the branch's spec, "
        f"came {text!r}: only floats are cast, and only to floats.",
        where="dtype",
    )


def casts_between(came: DatasetSpec, stored: DatasetSpec) -> dict[str, str]:
    """Says by field what was cast: `float64 to float32`."""
    return {
        name: f"{field.numpy_dtype.name} to {stored.fields[name].numpy_dtype.name}"
        for name, field in came.fields.items()
        if field != stored.fields[name]
    }


def _cast_spec(spec: DatasetSpec, came: DatasetSpec) -> DatasetSpec | None:
    """Returns what came in the dtypes of a spec; None if that is no cast we make."""
    fields = {}
    for name, field in came.fields.items():
        wanted = spec.fields.get(name)
        if wanted is None or (wanted != field and not _is_castable(field, wanted)):
            return None
        fields[name] = wanted
    return DatasetSpec(fields)


def _is_castable(came: FieldSpec, wanted: FieldSpec) -> bool:
    if came.shape != wanted.shape or (came.encoding, wanted.encoding) != ("raw", "raw"):
        return False
    one, two = came.numpy_dtype, wanted.numpy_dtype
    if one.kind == two.kind == "f":
        return True
    return {one.kind, two.kind} <= {"i", "u"} and np.can_cast(one, two, "safe")
