"""The files of a table of steps: Parquet, Arrow or Feather, read in bounded pieces.

A part is a file, a group one of its row groups (record batches, in Arrow files). A group is read in
batches of bounded size, whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.arrow_files import open_ipc, open_parquet, read_parquet
from schemas.errors import NotFoundError, SourceError

SUFFIXES = (".parquet", ".arrow", ".feather")
BATCH_BYTES = 32 * 2**20
BATCH_ROWS = 65_536
STEPS, EPISODES = "steps", "episodes"


@dataclass(frozen=True)
class Files:
    """The files of one dataset."""

    root: Path
    steps: tuple[Path, ...]
    episodes: Path | None


class Part:
    """One open file of steps."""

    def __init__(self, path: Path, opened: Any) -> None:
        self.path = path
        self._file = opened
        self._is_parquet = path.suffix == ".parquet"
        self.schema: pa.Schema = opened.schema_arrow if self._is_parquet else opened.schema

    @property
    def groups(self) -> int:
        """Row groups or record batches."""
        return self._file.num_row_groups if self._is_parquet else len(self._file.messages)

    @property
    def size(self) -> int:
        """Bytes of all groups, decoded, as far as the file says."""
        if not self._is_parquet:
            return self.path.stat().st_size
        metadata = self._file.metadata
        return sum(metadata.row_group(at).total_byte_size for at in range(self.groups))

    def batches(self, group: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields one group in pieces of at most about `BATCH_BYTES`.

        Raises:
            SourceError: if it is damaged.
        """
        if not self._is_parquet:
            table = self._file.read(group)
            yield table if columns is None else table.select(list(columns))
            return
        metadata = self._file.metadata.row_group(group)
        width = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
        try:
            for batch in self._file.iter_batches(
                batch_size=max(1, min(BATCH_ROWS, BATCH_BYTES // width)),
                row_groups=[group],
                columns=None if columns is None else list(columns),
                use_threads=False,
            ):
                batch.validate(full=True)
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"Expected a whole Parquet file, {self.path} cannot be read: "
                f"{str(error).splitlines()[0]}.",
                where=str(self.path),
            ) from error


def find_files(where: str) -> Files:
    """Returns the files of the dataset at a path, a file or a folder of them.

    Raises:
        NotFoundError: if there is nothing there.
        SourceError: if there are no files of steps, or links among them.
    """
    path = Path(where)
    if not path.exists():
        raise NotFoundError(
            f"Expected Parquet or Arrow files, there is nothing at {where}.", where=where
        )
    if path.is_file():
        return Files(path.parent, (path,), None)
    below = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    episodes = [p for p in below if p.stem == EPISODES]
    named = [p for p in below if p.stem == STEPS]
    folder = path / STEPS
    if not named and folder.is_dir() and not folder.is_symlink():
        named = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)
    steps = named or [p for p in below if p.stem != EPISODES]
    links = [p for p in (*steps, *episodes) if p.is_symlink() or not p.is_file()]
    if not steps or links or len(episodes) > 1:
        raise SourceError(
            f"Expected steps.parquet or parts of it in {where}, and at most one {EPISODES}.parquet "
            f"beside it, all plain files, came {', '.join(p.name for p in below) or 'none'}"
            f"{': links are not followed' if links else ''}.",
            where=where,
        )
    return Files(path, tuple(steps), episodes[0] if episodes else None)


@contextmanager
def open_part(path: Path) -> Iterator[Part]:
    """Opens one file of steps whose sizes are as they may be.

    Raises:
        SourceError: if it is not a whole Parquet or Arrow file, or claims more than it may.
    """
    if path.suffix not in SUFFIXES:
        raise SourceError(f"Expected a file {', '.join(SUFFIXES)}, came {path}.", where=str(path))
    if path.suffix != ".parquet":
        yield Part(path, open_ipc(path))
        return
    with open_parquet(path) as file:
        yield Part(path, file)


def read_table(path: Path) -> pa.Table:
    """Returns a whole small table, as of episodes."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    file = open_ipc(path)
    tables = [file.read(index) for index in range(len(file.messages))]
    return pa.concat_tables(tables) if tables else file.schema.empty_table()


def common_schema(files: Files) -> pa.Schema:
    """Returns the schema that all parts have.

    Raises:
        SourceError: if one differs: Arrow would read nulls where a column has another name.
    """
    schema = _schema(files.steps[0])
    mine = {field.name: field.type for field in schema}
    for path in files.steps[1:]:
        other = {field.name: field.type for field in _schema(path)}
        differing = sorted(n for n in mine | other if mine.get(n) != other.get(n))
        if differing:
            said = ", ".join(
                f"{n} {mine.get(n, 'absent')} against {other.get(n, 'absent')}" for n in differing
            )
            raise SourceError(
                f"Expected parts with the columns of {files.steps[0].name}, {path.name} has others "
                f"({said}); nulls would stand in for what is not there.",
                where=str(path),
            )
    return schema


def _schema(path: Path) -> pa.Schema:
    with open_part(path) as part:
        schema = part.schema
    if len(set(schema.names)) != len(schema.names):
        raise SourceError(f"Expected columns of different names in {path}.", where=str(path))
    return schema
