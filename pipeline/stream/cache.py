"""The packed cache: one append-only file of records per (store, spec, fields, dtype) and machine.

Every process that streams the same fields maps the same file. An index beside it says which block
of the store lies at which row, with a checksum; it is replaced atomically after the records it
speaks of are on disk, and only what it names exists for readers. So a process killed while filling
leaves at most unused bytes at the end, which the next one overwrites. One writer at a time holds a
lock that the kernel frees when its process dies; it packs several blocks at once, each straight to
its place, so that the file is the same however many threads pack. Who maps the file holds a shared
lock on it as long as the mapping lives, so that eviction leaves it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import google_crc32c
import numpy as np

from pipeline.stream.cache_index import (
    INDEX,
    LOCK,
    RECORDS,
    CachedBlock,
    damaged,
    disk_errors,
    locked,
    read_index,
    remove_records,
    write_index,
)
from pipeline.stream.record import WORD, RecordLayout
from schemas.errors import DamagedStoreError

SAVE_EVERY = 256 << 20  # bytes of records between two replacements of the index while filling


class _EvictedError(Exception):
    """The file was deleted between reading its index and locking it."""


Progress = Callable[[int, int], None]
"""Called with the number of blocks packed and the number to pack."""

Pack = Callable[[str], Iterable[np.ndarray]]
"""Makes the records of a block in pieces, (n, words) int32 each; called from several threads."""


class PackedCache:
    """One cache file with its index.

    Args:
        folder: its own folder, made if absent.
        layout: the record.
        verified: blocks whose checksums need not be compared again; grows.
        threads: how many blocks are packed at once.
        files: key of the store's file that each block is packed from.
    """

    def __init__(
        self,
        folder: Path,
        layout: RecordLayout,
        verified: set[str] | None = None,
        threads: int = 1,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.path = folder / RECORDS
        self._verified = set() if verified is None else verified
        self._threads = threads
        self._files = files or {}

    def hold(
        self,
        rows: Mapping[str, int],
        pack: Pack,
        progress: Progress | None = None,
    ) -> tuple[dict[str, CachedBlock], np.ndarray]:
        """Packs what is missing and maps it: `ensure` and `open`, with no eviction in between.

        Returns:
            Where the blocks lie, and the records up to the end of the last of them.
        """
        while True:
            known = self.ensure(rows, pack, progress)
            wanted = {name: known[name] for name in rows}
            with contextlib.suppress(_EvictedError):
                return wanted, self.open(list(wanted.values()))

    def ensure(
        self,
        rows: Mapping[str, int],
        pack: Pack,
        progress: Progress | None = None,
    ) -> dict[str, CachedBlock]:
        """Returns where some blocks lie, after packing those that are not there yet.

        Args:
            rows: blocks of the store, and how many rows each has.
            pack: makes the records of a block in pieces, (n, words) int32 each; called from
                several threads at once.
            progress: told after each block.

        Raises:
            DiskFullError: if there is no room; blocks packed so far stay usable.
            DamagedCacheError: if the index cannot be read.
        """
        known = self.blocks()
        if known.keys() >= rows.keys():
            return known
        with locked(self.folder):
            return self._fill(rows, pack, progress)

    def blocks(self) -> dict[str, CachedBlock]:
        """Returns which blocks the cache holds."""
        return read_index(self.folder)[0]

    def open(self, wanted: Sequence[CachedBlock]) -> np.ndarray:
        """Returns the records up to the end of the wanted blocks, (rows, words) int32, read-only.

        Raises:
            DamagedCacheError: if the file is shorter than its index says.
        """
        rows = max((block.start + block.rows for block in wanted), default=0)
        if rows == 0:
            return np.zeros((0, self.layout.words), WORD)
        try:
            with self.path.open("rb") as file:
                # The mapping keeps a duplicate of this descriptor, and with it the lock.
                fcntl.flock(file, fcntl.LOCK_SH)
                if not os.fstat(file.fileno()).st_nlink or not self._has(wanted):
                    raise _EvictedError
                size = os.fstat(file.fileno()).st_size
                if size < rows * self.layout.size:
                    raise damaged(self.folder, f"{rows * self.layout.size} bytes", f"{size}")
                mapped = mmap.mmap(file.fileno(), rows * self.layout.size, prot=mmap.PROT_READ)
        except FileNotFoundError:
            if not (self.folder / INDEX).exists():
                raise _EvictedError from None
            raise damaged(self.folder, "the records that the index names", "none") from None
        with contextlib.suppress(OSError):  # of another user, perhaps; then it looks unused
            os.utime(self.folder / LOCK)
        return np.frombuffer(mapped, WORD).reshape(rows, self.layout.words)

    def _has(self, wanted: Sequence[CachedBlock]) -> bool:
        """False if the file was replaced, or deleted, since its index was read."""
        return set(wanted) <= set(self.blocks().values())

    def verify(self, records: np.ndarray, wanted: dict[str, CachedBlock]) -> None:
        """Compares blocks with their checksums, each once.

        Raises:
            DamagedCacheError: naming the first block that differs.
        """
        for name, block in wanted.items():
            if name not in self._verified:
                came = checksum(records[block.start : block.start + block.rows])
                if came != block.crc32c:
                    raise damaged(
                        self.folder, f"the checksum {block.crc32c:08x} for {name}", f"{came:08x}"
                    )
                self._verified.add(name)

    # -- writing -------------------------------------------------------------------------------

    def _fill(
        self,
        rows: Mapping[str, int],
        pack: Pack,
        progress: Progress | None,
    ) -> dict[str, CachedBlock]:
        known, said = read_index(self.folder)  # again: another process may have filled it
        if not known:  # whoever maps a file that was here before keeps it as it is
            remove_records(self.folder)
        missing = {name: count for name, count in rows.items() if name not in known}
        start = max((block.start + block.rows for block in known.values()), default=0)
        starts = list(itertools.accumulate(missing.values(), initial=start))[: len(missing)]
        unsaved = 0
        pool = ThreadPoolExecutor(max(1, min(self._threads, len(missing))), "penstock-pack")
        try:
            packed = [
                pool.submit(self._write_block, pack, name, start, count)
                for (name, count), start in zip(missing.items(), starts, strict=True)
            ]
            # In their order, so that the index never names what lies after a gap.
            for done, (name, written) in enumerate(zip(missing, packed, strict=True), start=1):
                known[name] = block = written.result()
                unsaved += block.rows * self.layout.size
                if unsaved >= SAVE_EVERY or done == len(missing):
                    with disk_errors(self.folder), self._writable() as file:
                        self._save(file, known, said.get("erased", 0))
                        unsaved = 0
                self._verified.add(name)
                if progress is not None:
                    progress(done, len(missing))
        finally:
            pool.shutdown(cancel_futures=True)
        return known

    def _write_block(self, pack: Pack, name: str, start: int, rows: int) -> CachedBlock:
        """Packs one block to its place."""
        at, crc = 0, 0
        for records in pack(name):
            at += len(records)
            if at > rows:
                break
            with disk_errors(self.folder), self._writable() as file:
                _write(file, records, (start + at - len(records)) * self.layout.size)
            crc = checksum(records, crc)
        if at != rows:
            raise DamagedStoreError(f"Expected {rows} rows of the block {name}, came {at}.")
        return CachedBlock(start, rows, crc, self._files.get(name, ""))

    @contextlib.contextmanager
    def _writable(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield file
        finally:
            os.close(file)

    def _save(self, file: int, known: Mapping[str, CachedBlock], erased: int) -> None:
        os.fdatasync(file)
        write_index(self.folder, asdict(self.layout), known, erased)


def cache_root(cache_dir: str | None) -> Path:
    """Returns the folder of all caches: what was asked for, `$PENSTOCK_CACHE`, or the default."""
    chosen = cache_dir or os.environ.get("PENSTOCK_CACHE") or "~/.cache/penstock"
    return Path(chosen).expanduser()


def checksum(records: np.ndarray, before: int = 0) -> int:
    """Returns the CRC-32C of records, or of what has the CRC-32C `before` and records after it."""
    data = np.ascontiguousarray(records).reshape(-1).view(np.uint8)
    return int(google_crc32c.extend(before, data))


def _write(file: int, records: np.ndarray, position: int) -> None:
    data = np.ascontiguousarray(records).reshape(-1).view(np.uint8).data
    while data:
        written = os.pwrite(file, data, position)
        data, position = data[written:], position + written
