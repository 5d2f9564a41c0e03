"""Which fields of which specs are streamed, and as what: settings held against a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.store.reader import Version
from pipeline.store.step_arrays import REWARDS, StepArrays
from pipeline.stream.added import Added
from pipeline.stream.record import RecordLayout
from schemas.errors import UnknownNameError, UsageError, suggest
from schemas.spec import FieldSpec
from schemas.stream import StreamConfig
from schemas.version import Block


def chosen_specs(version: Version, config: StreamConfig) -> tuple[str, ...]:
    """Names of the specs to stream: one, or all if the wanted fields are common to them."""
    specs = version.specs
    asked = config.spec
    if asked is not None:
        if asked not in specs:
            raise UnknownNameError(f"Expected a spec, came {asked!r}; {suggest(asked, specs)}")
        return (asked,)
    names = tuple(sorted(specs))
    if len(names) == 1:
        return names
    common = common_fields(version, names)
    wanted = {name for name in config.fields or () if not name.startswith("extras/")}
    if wanted and wanted <= common.keys():
        return names
    raise UsageError(
        f"Expected one spec to stream, came a version with {len(names)} "
        f"({', '.join(names) or 'none'}); choose one with spec=, or with fields= some that they "
        f"have in common ({', '.join(common) or 'there are none'}).",
        where=version.store.url,
    )


def episodes_of(version: Version, specs: tuple[str, ...]) -> np.ndarray | None:
    """Which episodes are of some specs, (E,) bool; None if all are."""
    if len(version.specs) == len(specs):
        return None
    named = version.episodes(columns=["spec"])["spec"].to_numpy(zero_copy_only=False)
    return np.isin(named.astype(str), specs)


def common_fields(version: Version, specs: tuple[str, ...]) -> dict[str, FieldSpec]:
    """The fields that some specs have in common, equal in dtype and shape."""
    fields = [version.specs[name].fields for name in specs]
    shared = fields[0].items() if fields else ()
    return {n: f for n, f in shared if all(one.get(n) == f for one in fields)}


def record_fields(
    version: Version,
    specs: tuple[str, ...],
    blocks: Mapping[str, Block],
    config: StreamConfig,
    added: Mapping[str, StepArrays],
) -> dict[str, FieldSpec]:
    """The fields of a record by full name; extras only where they are asked for."""
    known = common_fields(version, specs)
    if config.fields is None:
        return {name: field for name, field in known.items() if field.is_regular}
    asked = [name for name in config.fields if name in known or name not in added]
    extras = [name for name in asked if name.startswith("extras/")]
    if extras and blocks:
        known.update(_extras([version.store.block_layout(b).extras for b in blocks.values()]))
    for name in asked:
        if name not in known:
            raise UnknownNameError(
                f"Expected a field that all episodes have, came {name!r}; {suggest(name, known)}"
            )
    return {name: known[name] for name in sorted(set(asked))}


def added_arrays(version: Version, config: StreamConfig) -> dict[str, StepArrays]:
    """What was added to the version's steps and is streamed, by full name.

    As with `record_fields`, extras come only where they are asked for.
    """
    named = {
        name if name == REWARDS else f"extras/{name}": mine
        for name, mine in version.step_arrays().items()
    }
    wanted = (REWARDS,) if config.fields is None else config.fields
    return {name: mine for name, mine in named.items() if name in wanted}


def streamed_dtype(
    name: str, mine: StepArrays, layout: RecordLayout, config: StreamConfig
) -> np.dtype[Any]:
    """What an added array is streamed as: as records hold the field, if they do."""
    if name in layout.by_name:
        return np.dtype(layout.by_name[name].dtype)
    cast = config.dtype != "keep" and mine.field.numpy_dtype.kind == "f"
    return np.dtype(config.dtype) if cast else mine.field.numpy_dtype


def lacking_with(
    lacks: frozenset[str], layout: RecordLayout, added: Mapping[str, Added]
) -> frozenset[str]:
    """Which roots some episodes lack once what was added is laid over the records."""
    if REWARDS not in added:
        return lacks
    if added[REWARDS].has is None:
        return lacks - {REWARDS}
    return lacks if layout.names(REWARDS) else lacks | {REWARDS}


def _extras(layouts: list[Mapping[str, FieldSpec]]) -> dict[str, FieldSpec]:
    """Extras that every block has, equal in dtype and shape."""
    return {
        name: field
        for name, field in layouts[0].items()
        if all(layout.get(name) == field for layout in layouts)
    }
