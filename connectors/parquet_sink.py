"""Writes a plain table of steps: a folder with `steps.parquet` and `episodes.parquet`.

One row per step; any Parquet reader can use it without us. The final observation is
`next_observation` of an episode's last row, null in every other row, because there it would only
repeat the next row; an extra's last row of T+1 likewise goes to `next_extra/<name>`. What an
episode lacks (rewards, actions, an extra) is null in its rows. Facts, columns and labels are in
`episodes.parquet`. Of all formats this one loses least.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.base import Loss
from connectors.files import new_dataset
from connectors.parquet_facts import row_of, to_table
from connectors.step_columns import (
    FLAGS,
    ID,
    STEP,
    arrow_field,
    column_name,
    next_name,
    stored_spec,
    to_arrow,
)
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.packed import Rows
from schemas.spec import FieldSpec

GROUP_STEPS = 65_536
GROUP_BYTES = 64 * 2**20


class ParquetSink:
    """A table of steps as a sink."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what a table of steps cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "a bare table has no identity: its episodes are named by content"),
            Loss("encodings", "videos are written as decoded frames"),
            Loss("specs", "episodes of different fields", refused=True),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {}

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one folder; see `connectors.base.Sink`. No metadata has a place in it."""
        with new_dataset(where) as draft:
            draft.mkdir()
            table = _Table(draft / "steps.parquet")
            try:
                rows = []
                for number, episode in enumerate(episodes):
                    rows.append(row_of(episode, number))
                    table.add(episode, number)
                if not rows:
                    raise UsageError("Expected at least one episode to write, came none.")
                table.flush()
            finally:
                table.close()
            pq.write_table(to_table(rows), draft / "episodes.parquet", compression="zstd")
        return len(rows)


class _Table:
    """Gathers rows up to a row group, then writes them; the first group decides the columns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fields: dict[str, pa.Field] = {ID: pa.field(ID, pa.int64())}
        self._fields[STEP] = pa.field(STEP, pa.int32())
        self._observed: set[str] = set()
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[dict[str, pa.Array]] = []
        self._rows = self._bytes = 0

    def add(self, episode: Episode, number: int) -> None:
        self._check(episode)
        for piece in _pieces(episode, self._fields):
            count = len(piece[STEP])
            piece[ID] = pa.array(np.full(count, number, np.int64))
            self._pending.append(piece)
            self._rows += count
            self._bytes += sum(array.nbytes for array in piece.values())
            if self._rows >= GROUP_STEPS or self._bytes >= GROUP_BYTES:
                self.flush()

    def flush(self) -> None:
        """Writes what was gathered as one row group."""
        if not self._pending:
            return
        schema = pa.schema(list(self._fields.values()))
        if self._writer is None:
            texts = [field.name for field in schema if pa.types.is_string(field.type)]
            self._writer = pq.ParquetWriter(
                self._path, schema, compression="zstd", use_dictionary=[ID, *texts]
            )
        tables = [
            pa.Table.from_arrays(
                [
                    piece[f.name] if f.name in piece else pa.nulls(len(piece[STEP]), f.type)
                    for f in schema
                ],
                schema=schema,
            )
            for piece in self._pending
        ]
        self._writer.write_table(pa.concat_tables(tables), row_group_size=GROUP_STEPS)
        self._pending, self._rows, self._bytes = [], 0, 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _check(self, episode: Episode) -> None:
        """Fits an episode's arrays to the columns; adds columns while none are written yet."""
        if not episode.length:
            raise _refused(episode, "at least one step")
        observed = set(episode.observations)
        self._observed = self._observed or observed
        if observed != self._observed:
            raise _refused(episode, f"the observations {', '.join(sorted(self._observed))}")
        for field in _columns(episode):
            known = self._fields.get(field.name)
            if not field.name.isprintable():
                raise _refused(episode, f"printable names, not {field.name!r},")
            if known is None and self._writer is None:
                self._fields[field.name] = field
            elif known is None:
                raise _refused(
                    episode, f"no array that the first {GROUP_STEPS:,} steps lack, {field.name},"
                )
            elif not known.equals(field, check_metadata=True):
                raise _refused(episode, f"{field.name} as {_said(known)}, not {_said(field)},")


def _columns(episode: Episode) -> Iterator[pa.Field]:
    """The columns of an episode, those of last rows included."""
    for name, rows in episode.arrays.items():
        spec = stored_spec(rows)
        yield arrow_field(column_name(name), spec)
        if name.startswith("observations") or len(rows) > episode.length:
            yield arrow_field(next_name(name), spec)
    for flag in FLAGS:
        yield arrow_field(flag, FieldSpec("|b1", ()))


def _pieces(episode: Episode, fields: Mapping[str, pa.Field]) -> Iterator[dict[str, pa.Array]]:
    """Cuts an episode into pieces of at most a row group, so that a long one fits in memory."""
    arrays: dict[str, Rows] = {
        **episode.arrays,
        "terminated": np.asarray(episode.terminated),
        "truncated": np.asarray(episode.truncated),
    }
    step_bytes = sum(spec.row_bytes for spec in map(stored_spec, arrays.values()))
    size = max(1, min(GROUP_STEPS, GROUP_BYTES // max(1, step_bytes)))
    for start in range(0, episode.length, size):
        stop = min(start + size, episode.length)
        piece = {STEP: pa.array(np.arange(start, stop, dtype=np.int32))}
        for name, rows in arrays.items():
            field = fields[name if name in FLAGS else column_name(name)]
            piece[field.name] = to_arrow(rows[start:stop], field)
            if stop == episode.length < len(rows):
                after = fields[next_name(name)]
                last = to_arrow(rows[stop : stop + 1], after)
                nulls = pa.nulls(stop - start - 1, after.type)
                piece[after.name] = pa.concat_arrays([nulls, last.cast(after.type)])
        yield piece


def _said(field: pa.Field) -> str:
    return " ".join(value.decode() for value in (field.metadata or {}).values())


def _refused(episode: Episode, expected: str) -> UsageError:
    return UsageError(
        f"Expected {expected} in {episode.episode_id!r} like in the episodes before it; a table "
        f"has one schema.",
        where=episode.episode_id,
    )
