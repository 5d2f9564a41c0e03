"""Episodes out of the log: from memory where their rows still are, else from the segments."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.service import payload
from pipeline.service.assemble import Ended, Piece
from pipeline.service.segments import Segments
from schemas.arrow import table_layout
from schemas.episode import Episode
from schemas.identity import digest
from schemas.pulls import encode_puts
from schemas.puts import episode_of
from schemas.rollouts import EpisodeFacts


def rows_of(piece: Piece, schema: pa.Schema, segments: Segments) -> pa.RecordBatch:
    """Returns the rows of one put.

    Raises:
        DamagedLogError: if they must be read, and are not whole.
    """
    batch = piece.batch
    if batch is not None:
        return batch
    place = piece.found_at
    assert place is not None, "rows are let go of only once they are written"
    return payload.read_rows(payload.decode(segments.read(place)), schema)


def episode_of_pieces(
    episode_id: str,
    schema: pa.Schema,
    facts: EpisodeFacts,
    pieces: Sequence[Piece],
    segments: Segments,
) -> Episode:
    """Returns the episode that all its puts make.

    Raises:
        EpisodeError: if they make none.
        DamagedLogError: see `rows_of`.
    """
    batches = [rows_of(piece, schema, segments) for piece in pieces]
    return episode_of(episode_id, table_layout(batches[0]), facts, batches)


def read_ended(ended: Ended, segments: Segments) -> Episode:
    """Returns an ended episode.

    Raises:
        EpisodeError, DamagedLogError: see `episode_of_pieces`.
    """
    if ended.episode is not None:
        return ended.episode
    return episode_of_pieces(ended.episode_id, ended.schema, ended.facts, ended.pieces, segments)


def encode_ended(ended: Ended, segments: Segments) -> pa.Buffer:
    """Returns an ended episode as it is sent, without making it.

    Raises:
        DamagedLogError: see `rows_of`.
    """
    rows = [rows_of(piece, ended.schema, segments) for piece in ended.pieces]
    return encode_puts(ended.episode_id, ended.facts, rows)


def digest_of(ended: Ended, segments: Segments) -> str:
    """Returns the digest of an ended episode's content, known or worked out."""
    return ended.digest or digest(read_ended(ended, segments))
