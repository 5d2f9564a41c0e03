"""One open store: its objects, its commits, and the verified reading of its files.

Everything else in this package is a function of a `Catalog`. Files never change, so whatever was
read and verified once is kept, within bounds.
"""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import blocks, ids, layout, linked
from pipeline.store.commit import Refs
from pipeline.store.erasures import Erasures
from pipeline.store.files import files_of_commit, new_parts, unit_of
from pipeline.store.marks import Marks
from pipeline.store.media import finder
from pipeline.store.objects import Objects
from pipeline.store.recent import Recent
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, FilesExpiredError, NotFoundError, UntrustedError
from schemas.link import Link, SourceFiles
from schemas.packed import Rows
from schemas.rows import RowLayout
from schemas.version import STORE_VERSION, Block, Commit, StoreDocument

T = TypeVar("T")
KEEP_FILES = 256
KEEP_TABLES = 8


class Catalog:
    """An open store."""

    def __init__(self, objects: Objects, *, create: bool) -> None:
        self.objects = objects
        self.url = objects.url
        self.document = _open_document(objects, create=create)
        self.refs = Refs(objects, guard=self._refuse_marked, index=self.id_index)
        self.tables = Recent(KEEP_TABLES)
        """Episode tables of recent versions, by commit id and erasures."""
        self._parsed = Recent(KEEP_FILES)
        self.erasures = Erasures(objects)
        self.marks = Marks(objects)

    def __reduce__(self) -> tuple[object, ...]:
        # Workers of other processes open the store themselves; caches do not travel.
        return (_reopen, (self.objects,))

    @property
    def id(self) -> str:
        """The store's uuid."""
        return self.document.store_id

    def read(self, file: DataFile) -> bytes:
        """Returns a file that is what its record says.

        Raises:
            DamagedStoreError: if it is missing, short or changed.
        """
        data = self._find(file)
        if data is None:  # perhaps it was rewritten meanwhile, without an erased episode
            self.erasures.refresh()
            data = self._find(file)
        if data is None:
            raise self._lost(file)
        return data

    def parsed(self, file: DataFile, parse: Callable[[bytes], T]) -> T:
        """Returns `parse` of a verified file, kept for the next call."""
        # By the key of what stands in for it: a rewritten file is parsed anew.
        key = self.erasures.resolve(file).key
        return self._parsed.get(key, lambda: parse(self.read(file)))

    def parquet(self, file: DataFile) -> pa.Table:
        """Returns a Parquet file as a table."""
        return self.parsed(file, parse_parquet)

    def id_index(self, file: DataFile) -> np.ndarray:
        """Returns a decoded id index."""
        return self.parsed(file, ids.decode)

    def keep_index(self, file: DataFile, data: bytes) -> None:
        """Remembers an id index that was just written, which the next append will ask for."""
        self._parsed.get(file.key, lambda: ids.decode(data))

    def erased(self) -> set[int]:
        """Returns the 64-bit id hashes of episodes that were erased for ever."""
        return self.erasures.refresh().hashes

    # -- blocks --------------------------------------------------------------------------------

    def block_layout(self, block: Block) -> RowLayout:
        """Returns what the rows of a block hold."""
        if block.container == "link":
            return linked.layout_of(self.link(block))
        if block.container == "tail":
            return blocks.open_tail(self.read(block.file))[0]
        return self._listing(block)[0]

    def block_files(self, block: Block) -> list[DataFile]:
        """Returns all files of a block: its list of files and its media are among them."""
        listed = [block.sources] if block.sources else []
        return [*self.own_files(block), *self.media_files(block), *listed]

    def own_files(self, block: Block) -> list[DataFile]:
        """Returns the files that belong to one block alone, the one it names first."""
        if block.container != "shard":
            return [block.file]
        return [block.file, *self._listing(block)[1].values()]

    def media_files(self, block: Block) -> list[DataFile]:
        """Returns a block's media files, without those that went with erased episodes."""
        dropped = self.erasures.dropped - self.erasures.rewrites.keys()
        return [file for file in block.media if file.key not in dropped]

    def link(self, block: Block) -> Link:
        """Returns what a linked block says of where its rows are."""
        return self.parsed(block.file, Link.model_validate_json)

    def source_files(self, file: DataFile) -> SourceFiles:
        """Returns a list of a source's files as they were when it was linked."""
        return self.parsed(file, SourceFiles.model_validate_json)

    def read_block(
        self, block: Block, names: Sequence[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, Rows]:
        """Returns fields of a block's rows, flags included, (rows, *shape) each.

        Encoded fields come as they are stored; a video's media files are read, and verified, when
        they are asked for.

        Args:
            block: which one.
            names: full field names; None takes all.
            rows: which rows; all by default.

        Raises:
            DamagedStoreError: if a file is missing or fails its checksum.
            LinkedSourceChangedError: if the block is a link and its source is not what it was.
        """
        if block.container == "link":
            sources = self.source_files(self._sources(block))
            place = self.erasures.resolve(block.file).key
            return linked.read_rows(place, self.link(block), sources, names, rows)
        if block.container == "tail":
            row_layout, table = blocks.open_tail(self.read(block.file))
            part = table.slice(rows.start or 0, _span(rows, table.num_rows))
            fields = blocks.pick_fields(row_layout, names)
            return blocks.decode_tail(part, fields, finder(self.read, block.media))
        before = self.erasures.resolve(block.file)
        try:
            return self._read_shard(block, names, rows)
        except UntrustedError:
            # Rewritten without an erased episode since its list of files was read?
            if self.erasures.refresh().resolve(block.file) == before:
                raise
        return self._read_shard(block, names, rows)

    def _read_shard(
        self, block: Block, names: Sequence[str] | None, rows: slice
    ) -> dict[str, Rows]:
        row_layout, listed = self._listing(block)
        fields = blocks.pick_fields(row_layout, names)
        paths = blocks.node_paths(row_layout.fields)
        find = finder(self.read, block.media)
        return blocks.decode_shard(_Files(self, listed), fields, paths, rows, find)

    def _sources(self, block: Block) -> DataFile:
        if block.sources is None:
            raise DamagedStoreError(
                "Expected a linked block to name its source's files, came one without.",
                where=block.file.key,
            )
        return block.sources

    def _find(self, file: DataFile) -> bytes | None:
        found = self.erasures.resolve(file)
        try:
            return blocks.check(found, self.objects.read(found.key))
        except FileNotFoundError:
            return None

    def _lost(self, file: DataFile) -> UntrustedError:
        where = f"{self.url}/{file.key}"
        if any(unit_of(file.key) in mark.units for mark in self.marks.all()):
            return FilesExpiredError(
                "Expected a version that is kept, came one whose files have expired; "
                "`penstock log` lists newer ones.",
                where=where,
            )
        return DamagedStoreError(
            "Expected a file that a version refers to, came none; restore it from a copy, or see "
            "`penstock doctor`.",
            where=where,
        )

    def _refuse_marked(self, commit: Commit) -> None:
        self.marks.refuse(files_of_commit(commit), "a commit")
        self._refuse_dropped(commit)

    def _refuse_dropped(self, commit: Commit) -> None:
        """Makes sure that no new block names a media file that went with erased episodes."""
        blocks = [block for part in new_parts(commit) for block in part.blocks]
        if not any(block.media for block in blocks):
            return
        self.erasures.refresh()
        for block in blocks:
            if len(self.media_files(block)) < len(block.media):
                raise FilesExpiredError(
                    "Expected a commit to refer to kept files only, came one with a media file "
                    "that was erased meanwhile; run the job again.",
                    where=block.file.key,
                )

    def _listing(self, block: Block) -> tuple[RowLayout, dict[str, DataFile]]:
        def parse(data: bytes) -> tuple[RowLayout, dict[str, DataFile]]:
            # The folder is that of the listing actually read: a rewritten shard has its own.
            folder = self.erasures.resolve(block.file).key.rpartition("/")[0]
            return blocks.parse_listing(data, folder)

        return self.parsed(block.file, parse)


class _Files(Mapping[str, bytes]):
    """The files of a shard by relative key, each read and verified when it is asked for."""

    def __init__(self, catalog: Catalog, listed: Mapping[str, DataFile]) -> None:
        self._catalog = catalog
        self._listed = listed

    def __getitem__(self, key: str) -> bytes:
        if key not in self._listed:
            raise DamagedStoreError(f"Expected the file {key!r} of a shard, came a list without.")
        return self._catalog.read(self._listed[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


def _reopen(objects: Objects) -> Catalog:
    return Catalog(objects, create=False)


def parquet_bytes(table: pa.Table) -> bytes:
    """Returns a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def parse_parquet(data: bytes) -> pa.Table:
    """Inverse of `parquet_bytes`."""
    return pq.read_table(pa.BufferReader(data))


def _span(rows: slice, count: int) -> int:
    start, stop, _ = rows.indices(count)
    return max(stop - start, 0)


def _open_document(objects: Objects, *, create: bool) -> StoreDocument:
    """Reads `penstock.json`, or writes it; racing creators agree on one."""
    for _ in range(2):
        try:
            data = objects.read(layout.STORE)
        except FileNotFoundError:
            if not create:
                raise NotFoundError(
                    "Expected a store here, came none; `penstock ingest ... --into` makes one.",
                    where=objects.url,
                ) from None
        else:
            return _parse_document(data, objects.url)
        document = StoreDocument(store_id=layout.new_id(), created_at=dt.datetime.now(dt.UTC))
        objects.put_if_absent(layout.STORE, document.model_dump_json(indent=1).encode())
    raise DamagedStoreError("Wrote penstock.json, but it cannot be read back.", where=objects.url)


def _parse_document(data: bytes, url: str) -> StoreDocument:
    try:
        number = json.loads(data)["store_version"]
        if isinstance(number, int) and number > STORE_VERSION:
            raise UntrustedError(
                f"Expected a store of format {STORE_VERSION} or older, came {number}; upgrade "
                f"Penstock.",
                where=url,
            )
        return StoreDocument.model_validate_json(data)
    except (ValueError, KeyError, TypeError):
        raise UntrustedError(
            "Expected penstock.json to describe a store, came something else.", where=url
        ) from None
