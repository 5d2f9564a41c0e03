"""Arrays of one row per step that are added later: relabelled rewards, masks, returns.

They are kept by episode id in overlays, as labels are, so they outlive compaction and go with a
revert. `rewards` stands in for the rewards of the episodes it speaks of; any other name reads as
an extra.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.catalog import Catalog
from pipeline.store.derive import write_overlay
from pipeline.store.labels import commit_overlays
from pipeline.store.tables import episode_table, overlay_rows
from schemas.episode import Episode
from schemas.errors import DamagedStoreError, NotFoundError, UsageError
from schemas.spec import RAW_KINDS, FieldSpec
from schemas.version import Block, Commit, FieldDocument, State

REWARDS = "rewards"


class StepArrays(Mapping[str, np.ndarray]):
    """The arrays of one name that a version has, by episode id."""

    def __init__(self, field: FieldSpec, tables: Iterable[tuple[pa.Array, pa.Array]]) -> None:
        """Args: what a row is, and `(ids, arrays)` of the overlays, newest first."""
        self.field = field
        self._found: dict[str, tuple[pa.Array, int]] = {}
        for ids, arrays in tables:
            for at, name in enumerate(ids.to_pylist()):
                self._found.setdefault(name, (arrays, at))

    def __getitem__(self, episode_id: str) -> np.ndarray:
        arrays, at = self._found[episode_id]
        values = arrays[at].values.to_numpy(zero_copy_only=False)
        return np.asarray(values.reshape(-1, *self.field.shape).astype(self.field.numpy_dtype))

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def of(self, episode_id: str, length: int) -> np.ndarray:
        """Returns the array of an episode of a length.

        Raises:
            DamagedStoreError: if it has another.
        """
        values = self[episode_id]
        if len(values) != length:
            raise DamagedStoreError(
                f"Expected {length} rows of an array of {episode_id!r}, came {len(values)}."
            )
        return values


def step_arrays(catalog: Catalog, commit: Commit) -> dict[str, StepArrays]:
    """Returns the arrays that were added to a version's episodes, by name."""
    state = catalog.refs.state(commit)
    said = [overlay for overlay in state.overlays if overlay.steps]
    if not said:
        return {}

    def make() -> dict[str, StepArrays]:
        found: dict[str, list[tuple[pa.Array, pa.Array]]] = {}
        fields: dict[str, FieldSpec] = {}
        for overlay in reversed(said):
            table = overlay_rows(catalog, overlay).combine_chunks()
            ids = table["episode_id"].combine_chunks()
            for name, field in overlay.steps.items():
                fields.setdefault(name, FieldSpec(field.dtype, field.shape))
                found.setdefault(name, []).append((ids, table[name].combine_chunks()))
        return {name: StepArrays(fields[name], tables) for name, tables in found.items()}

    return catalog.tables.get(f"steps {commit.id}-{len(catalog.erased())}", make)


def with_steps(episodes: Iterable[Episode], arrays: Mapping[str, StepArrays]) -> Iterator[Episode]:
    """Yields episodes with the arrays that were added to them."""
    for episode in episodes:
        found = {
            name: mine.of(episode.episode_id, episode.length)
            for name, mine in arrays.items()
            if episode.episode_id in mine
        }
        rewards = found.pop(REWARDS, None)
        if rewards is not None:
            kept = rewards if episode.rewards is None else rewards.astype(episode.rewards.dtype)
            episode = episode.replace(rewards=kept)
        yield episode.replace(extras={**episode.extras, **found}) if found else episode


def commit_steps(
    catalog: Catalog,
    branch: str,
    name: str,
    arrays: Mapping[str, object],
    *,
    base: Commit,
    message: str,
    how: str = "",
) -> Commit:
    """Commits arrays of one row per step for some episodes.

    Relabelled rewards bring the episodes' returns with them, as a column of the episode table.

    Args:
        catalog: the store.
        branch: where.
        name: `rewards`, or that of an extra.
        arrays: (T, ...) by episode id, all of one dtype and row shape.
        base: the version they speak of.
        message: one line for the log.
        how: where they came from, for the record.

    Raises:
        NotFoundError: if an episode is not in the version, or the branch is not there.
        UsageError: if an array is not one of numbers with a row per step, if rewards are not
            finite numbers, or if the name is that of an extra the episodes came with.
    """
    shown = episode_table(catalog, base)
    state = catalog.refs.state(base)
    lengths = _lengths(shown, arrays)
    taken = {key: _numbers(key, value, lengths[key]) for key, value in arrays.items()}
    kinds = {(array.dtype.str, array.shape[1:]) for array in taken.values()}
    known = step_arrays(catalog, base).get(name)
    if known is not None:
        kinds.add((known.field.dtype, known.field.shape))
    if len(kinds) != 1:
        raise UsageError(
            f"Expected arrays of {name!r} of one dtype and row shape, came "
            f"{', '.join(f'{dtype} {shape}' for dtype, shape in sorted(kinds)) or 'none'}."
        )
    field = FieldSpec(*kinds.pop())
    if name == REWARDS:
        _check_rewards(field, taken)
    else:
        _check_extra(catalog, state, name, shown, list(taken))
    document = FieldDocument(dtype=field.dtype, shape=field.shape)
    overlays = [write_overlay(catalog, _table(name, taken), steps={name: document})]
    if name == REWARDS:
        returns = [float(np.sum(array, dtype=np.float64)) for array in taken.values()]
        column = pa.table({"episode_id": list(taken), "episode_return": returns})
        overlays.append(write_overlay(catalog, column))

    def fits(head: Commit) -> None:
        there = step_arrays(catalog, head).get(name)
        if there is not None and there.field != field:
            raise UsageError(
                f"Expected arrays of {name!r} as {there.field}, came {field}; choose another name."
            )

    return commit_overlays(catalog, branch, tuple(overlays), base, message, how, fits)


def _lengths(shown: pa.Table, arrays: Mapping[str, object]) -> dict[str, int]:
    wanted = pa.array(list(arrays), pa.string())
    at = pc.index_in(wanted, value_set=shown["episode_id"].combine_chunks())
    unknown = wanted.filter(pc.is_null(at)).to_pylist()
    if unknown:
        raise NotFoundError(
            f"Expected ids of the version's episodes, came {len(unknown)} unknown, the first "
            f"{unknown[0]!r}."
        )
    lengths = shown["length"].combine_chunks().take(at).to_pylist()
    return dict(zip(arrays, lengths, strict=True))


def _numbers(key: str, value: object, length: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in RAW_KINDS or array.dtype.itemsize > 8:
        raise UsageError(f"Expected numbers or truth values for {key!r}, came {array.dtype}.")
    if array.ndim < 1 or len(array) != length:
        raise UsageError(
            f"Expected an array of {length} rows, one per step, for {key!r}, came one of shape "
            f"{array.shape}."
        )
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))


def _check_rewards(field: FieldSpec, arrays: Mapping[str, np.ndarray]) -> None:
    if field.shape or field.numpy_dtype.kind == "b":
        raise UsageError(f"Expected one number per step as reward, came {field}.")
    wrong = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if wrong:
        raise UsageError(
            f"Expected finite rewards, came {len(wrong)} episodes with others, the first "
            f"{wrong[0]!r}."
        )


def _check_extra(
    catalog: Catalog, state: State, name: str, shown: pa.Table, wanted: list[str]
) -> None:
    if not name or name.startswith(("observations", "actions", "extras")) or "\0" in name:
        raise UsageError(f"Expected `rewards` or the name of an extra, came {name!r}.")
    blocks: dict[str, Block] = {b.id: b for part in state.parts for b in part.blocks}
    mine = shown.filter(pc.is_in(shown["episode_id"], value_set=pa.array(wanted, pa.string())))
    for block in pc.unique(mine["_block"]).to_pylist():
        if f"extras/{name}" in catalog.block_layout(blocks[block]).extras:
            raise UsageError(
                f"Expected the name of a new extra, came {name!r}, which episodes came with; "
                f"choose another name."
            )


def _table(name: str, arrays: Mapping[str, np.ndarray]) -> pa.Table:
    flat = [array.reshape(-1) for array in arrays.values()]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in flat])]).astype(np.int64)
    values = pa.array(np.concatenate(flat))
    column = pa.LargeListArray.from_arrays(pa.array(offsets), values)
    return pa.table({"episode_id": pa.array(list(arrays), pa.string()), name: column})
