"""What the data port sends: the tail of the log, episodes, whole blocks, the history."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.service.flight_put import Streams
from pipeline.service.recent import sealed_since
from pipeline.service.seal import sealed_in
from pipeline.service.state import ControlState
from pipeline.service.tail import Tail
from pipeline.store.reader import Version
from schemas.document import DataFile
from schemas.episode import Episode
from schemas.errors import NotFoundError, OutOfTimeError, UsageError
from schemas.pulls import (
    EPISODES,
    FILES,
    VERSIONS,
    BlockFiles,
    BlockTicket,
    EpisodesTicket,
    Place,
    TailTicket,
    VersionsTicket,
    encode_episode,
)
from schemas.version import Block

BATCH_BYTES = 1 << 20
"""About how much one message of episodes holds."""
PIECE_BYTES = 4 << 20
"""How much of a file one message holds."""
REMEMBERED = 100_000
"""Ids that a stream of the tail remembers, so that it sends none twice."""
_LOOK_SECONDS = 0.5

_NO_EPISODES = pa.RecordBatch.from_pylist([], EPISODES)

Messages = Iterator[tuple[pa.RecordBatch, Place | None]]
"""Batches, and where the log stands if they are of its tail."""


def tail(state: ControlState, streams: Streams, ticket: TailTicket) -> Messages:
    """Yields episodes in the order of their ends, each once, with where the log stands.

    Raises:
        UsageError: if the ticket's offsets are of another server.
        OutOfTimeError: if `min_offset` is not durable in time.
    """
    log = state.log
    asks_for_place = ticket.after >= 0 or ticket.min_offset is not None
    if asks_for_place and ticket.server not in (None, log.server):
        raise UsageError(
            f"Expected offsets of the server {log.server}, came those of {ticket.server}; begin "
            f"with after=-1 there, ids tell what you have."
        )
    if ticket.min_offset is not None:
        log.wait_durable(ticket.min_offset, ticket.wait_seconds)
    sent = _Sent()
    after, until = _begin(state, ticket), time.monotonic() + ticket.wait_seconds
    while True:
        through = after
        for batch, through in _tail_once(state, after, sent):
            state.metrics.pull_bytes.inc(batch.nbytes)
            yield batch, Place(server=log.server, through=through)
            if batch.num_rows:
                until = time.monotonic() + ticket.wait_seconds
        after = max(after, through)
        while ticket.follow:
            if time.monotonic() >= until or streams.is_draining:
                return
            try:
                log.wait_durable(after + 1, min(_LOOK_SECONDS, max(until - time.monotonic(), 0)))
            except OutOfTimeError:
                continue
            break
        else:
            return


def _begin(state: ControlState, ticket: TailTicket) -> int:
    if ticket.version is None:
        return ticket.after
    version = state.store.version(ticket.version)
    return max(ticket.after, sealed_in(version.state, state.log.server))


def _tail_once(
    state: ControlState, after: int, sent: _Sent
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yields what the log has after an offset, with the offset through which it has come then."""
    log = state.log
    with log.tail(after) as found:
        last, through = _NO_EPISODES, after
        for batch, offset in _batches(_found(state, found, after, sent)):
            if last.num_rows:
                yield last, through
            last, through = batch, min(offset, found.through)
        yield last, found.through


def _found(
    state: ControlState, found: Tail, after: int, sent: _Sent
) -> Iterator[tuple[int, pa.Buffer]]:
    if found.version is not None and found.sealed > after:
        for offset, episode in sealed_since(state.store, found.version, state.log.server, after):
            if sent.is_new(episode.episode_id):
                yield offset, encode_episode(episode)
    yield from found.encoded(sent.is_new)


class _Sent:
    """The ids that a stream has sent."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def is_new(self, episode_id: str) -> bool:
        """True the first time that it is asked about an id."""
        if episode_id in self._ids:
            return False
        self._ids[episode_id] = None
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        return True


def episodes(state: ControlState, ticket: EpisodesTicket) -> Messages:
    """Yields episodes of a version, in its order.

    Raises:
        NotFoundError: if there is no such version or episode.
    """
    version = state.store.version(ticket.ref)
    found: Iterable[Episode]
    if ticket.episode_id is not None:
        found = [version.episode(ticket.episode_id)]
    else:
        found = version.iter_episodes(ticket.where)
    for batch, _ in _batches((-1, encode_episode(episode)) for episode in found):
        state.metrics.pull_bytes.inc(batch.nbytes)
        yield batch, None


def _batches(episodes: Iterable[tuple[int, pa.Buffer]]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yields messages of encoded episodes, each with the offset of its last one."""
    offsets: list[int] = []
    encoded: list[pa.Buffer] = []
    size = 0
    for offset, data in episodes:
        offsets.append(offset)
        encoded.append(data)
        size += data.size
        if size >= BATCH_BYTES:
            yield _batch(offsets, encoded), offset
            offsets, encoded, size = [], [], 0
    if offsets:
        yield _batch(offsets, encoded), offsets[-1]


def _batch(offsets: list[int], encoded: list[pa.Buffer]) -> pa.RecordBatch:
    # By buffers: an array made of memoryviews never lets go of them.
    ends = np.cumsum([0, *(one.size for one in encoded)], dtype=np.int64)
    data = encoded[0] if len(encoded) == 1 else pa.py_buffer(b"".join(encoded))
    columns = [
        pa.Array.from_buffers(pa.int64(), len(offsets), [None, _int64(offsets)], 0),
        pa.Array.from_buffers(pa.large_binary(), len(offsets), [None, pa.py_buffer(ends), data], 0),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=EPISODES)


def _int64(numbers: list[int]) -> pa.Buffer:
    return pa.py_buffer(np.array(numbers, np.int64))


def block_of(state: ControlState, ticket: BlockTicket) -> tuple[Version, Block, BlockFiles]:
    """Returns a block of a version, and its files.

    Raises:
        NotFoundError: if there is none.
        UsageError: if its arrays are not in the store.
    """
    version = state.store.version(ticket.ref)
    for part in version.state.parts:
        for block in part.blocks:
            if block.id == ticket.block:
                if block.container == "link":
                    raise UsageError(
                        f"Expected a block with its arrays in the store, came {block.id}, which is "
                        f"linked; run `penstock materialise`, or ask for its episodes."
                    )
                return version, block, files_of(version, block)
    raise NotFoundError(
        f"Expected a block of {version.branch}:{version.number}, came {ticket.block!r}."
    )


def files_of(version: Version, block: Block) -> BlockFiles:
    """Returns the files that a block is made of, media files of videos included."""
    catalog = version.store
    found = {one.key: one for one in catalog.block_files(block)}
    return BlockFiles(
        block=block.id, rows=block.rows, container=block.container, files=tuple(found.values())
    )


def files(state: ControlState, version: Version, wanted: Iterable[DataFile]) -> Messages:
    """Yields files in pieces; each was held against its checksum."""
    for file in wanted:
        data = pa.py_buffer(version.store.read(file))
        for at in range(0, max(data.size, 1), PIECE_BYTES):
            piece = data.slice(at, min(PIECE_BYTES, data.size - at))
            state.metrics.pull_bytes.inc(piece.size)
            yield piece_of(file.key, piece), None


def piece_of(key: str, data: pa.Buffer | bytes | memoryview) -> pa.RecordBatch:
    """Returns a message of one row around some bytes, which are not copied."""
    piece = pa.py_buffer(data)
    offsets = pa.py_buffer(pa.array([0, piece.size], pa.int64()).buffers()[1])
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, piece])
    return pa.record_batch([pa.array([key]), column], FILES)


def versions(state: ControlState, ticket: VersionsTicket) -> pa.Table:
    """Returns the history of a reference, newest first."""
    rows = [
        {
            **{"version": one.id, "branch": one.branch, "number": one.number},
            **{"episodes": one.commit.totals.episodes, "steps": one.commit.totals.steps},
            **{"created_at": one.created_at, "message": one.message},
        }
        for one in state.store.log(ticket.ref)[: ticket.limit]
    ]
    return pa.Table.from_pylist(rows, VERSIONS)
