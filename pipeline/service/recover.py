"""From the segments back to the state that they amount to."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.service.assemble import Episodes, Growing, Piece
from pipeline.service.payload import StoredHead, decode_head, plain, read_schema
from pipeline.service.producers import Producers
from pipeline.service.records import Kind, Record, record_bytes
from pipeline.service.segments import Place, Segments
from schemas.errors import DamagedLogError
from schemas.puts import PutLimits

FORMAT = 1


@dataclass
class Recovered:
    """What a log held when it was opened."""

    producers: Producers
    episodes: Episodes
    server: str | None = None
    """The log's own id; None for an empty folder."""
    following: int = 0
    """Offset of the next record."""
    sealed: int = -1
    """Episodes that ended at this offset or before it are in the store, and the log says so."""
    stored: int = -1
    """Those up to this one are in the store, as the store says: a crash may have come between."""
    seconds: float = 0.0
    orphans: dict[int, str] = field(default_factory=dict)
    """Ends of episodes whose begins are gone, which is right once they are sealed."""
    schemas: dict[bytes, pa.Schema] = field(default_factory=dict)
    """Those read so far; most episodes share one."""


def recover(segments: Segments, limits: PutLimits, sealed_by: Callable[[str], int]) -> Recovered:
    """Replays a log.

    Args:
        segments: the log's.
        limits: of episodes.
        sealed_by: says through which offset the store has the episodes of a log, by its id; -1 for
            none.

    Raises:
        DamagedLogError: if records are missing or damaged, or are older than the store knows.
    """
    begun = time.perf_counter()
    with _without_collection():
        found = _replay(segments, limits, sealed_by)
    found.seconds = time.perf_counter() - begun
    return found


@contextmanager
def _without_collection() -> Iterator[None]:
    """Stops the search for circles meanwhile.

    A replay makes very many objects that stay, and no circles: looking through them again and again
    took more than half of its time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _replay(segments: Segments, limits: PutLimits, sealed_by: Callable[[str], int]) -> Recovered:
    found = Recovered(Producers(), Episodes(limits))
    for first, record in segments.recover():
        if record.kind is Kind.SEGMENT:
            if found.server is None:
                _begin(found, record, sealed_by)
            elif json.loads(bytes(record.payload))["server"] != found.server:
                raise DamagedLogError(
                    "Expected the segments of one log, came those of several; keep only one "
                    "log's in a folder.",
                    where=str(segments.folder),
                )
        elif record.kind is Kind.PUT:
            _put(found, record, first)
        elif record.kind is Kind.SEAL:
            found.sealed = max(found.sealed, json.loads(bytes(record.payload))["through"])
            found.episodes.seal(found.sealed)
        else:
            gone = json.loads(bytes(record.payload))
            found.episodes.drop((gone["producer"], gone["episode_id"]))
        found.following = record.offset + 1
    for offset, episode_id in found.orphans.items():
        if offset > max(found.sealed, found.stored):
            raise DamagedLogError(
                f"Expected the begin of the episode {episode_id!r}, which ended at offset "
                f"{offset}, it is missing; restore the log's oldest segments from a copy.",
                where=str(segments.folder),
            )
    if found.stored >= found.following:
        raise DamagedLogError(
            f"Expected the log up to offset {found.stored}, which the store has episodes of, came "
            f"one that ends before {found.following}: an old copy? Start with an empty folder.",
            where=str(segments.folder),
        )
    return found


def segment_payload(server: str, sealed: int, producers: Producers) -> bytes:
    """Returns what the first record of a segment says."""
    says = {
        "format": FORMAT,
        "server": server,
        "sealed": sealed,
        "producers": producers.snapshot(),
    }
    return plain(says)


def _begin(found: Recovered, record: Record, sealed_by: Callable[[str], int]) -> None:
    says = json.loads(bytes(record.payload))
    if says["format"] != FORMAT:
        raise DamagedLogError(
            f"Expected a log of format {FORMAT}, came {says['format']}; start it with the release "
            f"that wrote it, let that seal everything, then use this one."
        )
    found.server = says["server"]
    found.producers.restore(says["producers"])
    found.stored = sealed_by(says["server"])
    found.sealed = says["sealed"]


def _put(found: Recovered, record: Record, segment: int) -> None:
    offset, _, _, payload, position = record
    put, episodes = decode_head(payload), found.episodes
    header = put.header
    producer, epoch = header["producer"], header["epoch"]
    if found.producers.take(producer, epoch, header["sequence"], offset, None):
        episodes.drop_older(producer, epoch)
    growing = _growing(found, put, payload)
    if growing is not None:
        length = len(payload)
        place = Place(segment, position, length)
        episodes.grow(growing, Piece(offset, put.rows, record_bytes(length), None, None, place))
    if not header.get("end"):
        return
    if put.is_copy or offset <= found.sealed:
        episodes.drop((producer, header["episode_id"]))
    elif growing is None:
        found.orphans[offset] = header["episode_id"]
    else:
        episodes.end(growing, put.facts, None)


def _growing(found: Recovered, put: StoredHead, payload: bytes | memoryview) -> Growing | None:
    """Returns the open episode that a put belongs to; None if its begin is sealed and gone."""
    header = put.header
    producer, epoch, episode_id = header["producer"], header["epoch"], header["episode_id"]
    start = header["start"]
    if start == 0:
        text = bytes(payload[put.schema_at : put.schema_at + put.schema_bytes])
        if text not in found.schemas:
            found.schemas[text] = read_schema(text)
        return Growing(producer, epoch, episode_id, found.schemas[text], time.monotonic())
    known = found.episodes.growing.get((producer, episode_id))
    is_next = known is not None and known.rows == start and known.epoch == epoch
    return known if is_next else None
