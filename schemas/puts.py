"""Episodes as puts, and back: rows of one episode in Arrow record batches of bounded size.

A batch holds some of the T+1 rows of `schemas.rows`, in the columns that `schemas.arrow` gives
them: numbers as primitive values and fixed-size lists, which become arrays again without a copy,
pictures, texts and ragged rows as runs of bytes. Row t is step t; the last row holds the final
observation with `valid` false. An actor may send rows as they happen, and end the episode later.

Only a schema that follows from a row layout, to the letter, is taken: so there are no dictionaries,
extension types, views or nested surprises, and what a row may weigh is known before any row is
looked at. Videos are not sent: they are files of their own.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field, ValidationError

from schemas.arrow import (
    LAYOUT_KEY,
    arrow_schema,
    episode_from_rows,
    layout_from_json,
    table_to_rows,
)
from schemas.document import Document
from schemas.episode import Episode
from schemas.errors import EpisodeError, PutError, TooLargeError
from schemas.packed import Packed
from schemas.put_rows import Plan, flags_of
from schemas.rollouts import EpisodeFacts, PutHeader, utc
from schemas.rows import RowLayout
from schemas.sending import batch_of
from schemas.spec import Encoding, FieldSpec

PUT_BYTES = 1 << 20
"""How many bytes of rows a put has by default."""


@dataclass(frozen=True)
class PutLimits:
    """What a receiver takes."""

    put_bytes: int = 64 << 20
    """Bytes of one put's rows."""
    put_rows: int = 1 << 16
    row_bytes: int = 16 << 20
    """Bytes of the plain arrays of one row."""
    fields: int = 512
    schema_bytes: int = 1 << 18
    episode_rows: int = 1 << 22
    episode_bytes: int = 1 << 30


@dataclass(frozen=True)
class Put:
    """One put: what is sent at a time."""

    header: PutHeader
    rows: pa.RecordBatch


# -- episode to puts ---------------------------------------------------------------------------


def puts_of(
    episode: Episode,
    *,
    producer: str,
    epoch: int,
    sequence: int = 0,
    put_bytes: int = PUT_BYTES,
) -> Iterator[Put]:
    """Yields a whole episode as puts; their numbers follow one another.

    Args:
        episode: without videos.
        producer: who sends it.
        epoch: see `schemas.rollouts`.
        sequence: number of the first put.
        put_bytes: about how many bytes of rows a put may have; at least one row is in each.

    Raises:
        EpisodeError: with code `bad_dtype`, for an episode with a video.
        PutError: if a fact is too long to be sent.
    """
    facts = EpisodeFacts.of(episode)
    pieces = cut_rows(episode, put_bytes)
    start = 0
    for number, rows in enumerate(pieces):
        is_last = number == len(pieces) - 1
        header = PutHeader.of(
            producer=producer,
            epoch=epoch,
            sequence=sequence + number,
            episode_id=episode.episode_id,
            start=start,
            end=is_last,
            facts=facts if is_last else None,
        )
        yield Put(header, rows)
        start += rows.num_rows


def cut_rows(episode: Episode, put_bytes: int = PUT_BYTES) -> list[pa.RecordBatch]:
    """Returns the T+1 rows of an episode in pieces that are as large as puts may be.

    Args:
        episode: without videos.
        put_bytes: see `puts_of`.

    Raises:
        EpisodeError: with code `bad_dtype`, for an episode with a video.
    """
    whole, layout = batch_of(episode)
    if not layout.has_packed and whole.num_rows * layout.plain_bytes <= put_bytes:
        return [whole]
    cuts = _cuts(episode, layout, put_bytes)
    return [whole.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]


def _cuts(episode: Episode, layout: RowLayout, put_bytes: int) -> list[int]:
    """Returns where puts begin, and the number of rows."""
    rows = episode.length + 1
    sizes = np.full(rows, layout.plain_bytes)
    for packed in episode.arrays.values():
        if isinstance(packed, Packed):
            own = np.diff(packed.offsets)
            sizes[: len(own)] += own
    ends = np.cumsum(sizes)
    cuts = [0]
    while cuts[-1] < rows:
        before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        reached = int(np.searchsorted(ends, before + put_bytes, "right"))
        cuts.append(max(cuts[-1] + 1, reached))
    return cuts


# -- checks ------------------------------------------------------------------------------------


class _FieldDocument(Document):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dtype: str = Field(pattern=r"\A(\|b1|\|[iu]1|<[iuf][248]|str)\z")
    shape: Annotated[tuple[Annotated[int, Field(ge=-1, lt=2**31)], ...], Field(max_length=16)]
    encoding: Encoding


_Name = Annotated[str, Field(max_length=512)]
_Listed = tuple[str, list[int], str]


class _LayoutDocument(Document):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: dict[_Name, _Listed]
    extras: dict[_Name, _Listed]
    full_extras: list[_Name]


def check_schema(schema: pa.Schema, limits: PutLimits) -> RowLayout:
    """Returns the row layout that a put's schema states.

    Raises:
        TooLargeError: for more fields or larger rows than the limits say.
        PutError: for any schema that is not exactly that of a row layout.
    """
    text = (schema.metadata or {}).get(LAYOUT_KEY, b"")
    if len(text) > limits.schema_bytes or len(schema) > limits.fields:
        raise TooLargeError(
            f"Expected rows of at most {limits.fields} fields, described in at most "
            f"{limits.schema_bytes} bytes, came {len(schema)} and {len(text)}."
        )
    layout = _layout(text)
    width = layout.plain_bytes
    if width > limits.row_bytes:
        raise TooLargeError(
            f"Expected rows of at most {limits.row_bytes} bytes, came {width}; send pictures "
            f"encoded, or leave fields out."
        )
    if not _schema(text).equals(schema, check_metadata=True):
        raise PutError(
            f"Expected the columns of [{layout.spec}] with its flags and nothing else, came "
            f"others; make batches with schemas.puts."
        )
    return layout


def plain_layout(schema: pa.Schema) -> RowLayout | None:
    """Returns the layout of rows that become an episode by a plan; None for any others.

    Raises:
        PutError: if the schema states no layout that a put may have.
    """
    text = (schema.metadata or {}).get(LAYOUT_KEY, b"")
    plan = _plan(text)
    return plan.layout if plan.is_plain and _schema(text).equals(schema) else None


@functools.lru_cache(maxsize=64)
def _schema(text: bytes) -> pa.Schema:
    """Returns the schema of a layout whose rows are not too large."""
    return arrow_schema(_layout(text))


@functools.lru_cache(maxsize=64)
def _layout(text: bytes) -> RowLayout:
    try:
        document = _LayoutDocument.model_validate_json(text)
        for name, (dtype, shape, encoding) in (*document.fields.items(), *document.extras.items()):
            _FieldDocument(dtype=dtype, shape=tuple(shape), encoding=encoding)  # type: ignore[arg-type]
            fault = _fault(name, FieldSpec(dtype, tuple(shape), encoding))  # type: ignore[arg-type]
            if fault or name.startswith("extras/") != (name in document.extras):
                raise PutError(f"Expected fields as documented, came {name!r:.200}: {fault}.")
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise PutError(
            f"Expected a schema that states its row layout, came one without ({said['msg']:.200})."
        ) from None
    if not set(document.full_extras) <= document.extras.keys():
        raise PutError("Expected full extras among the extras, came others.")
    return layout_from_json(json.loads(text))


@functools.lru_cache(maxsize=64)
def _plan(text: bytes) -> Plan:
    return Plan(_layout(text))


def _fault(name: str, field: FieldSpec) -> str:
    root = name.partition("/")[0]
    if root not in ("observations", "actions", "rewards", "extras"):
        return "neither an observation, an action, the rewards nor an extra"
    if name.startswith("rewards") and (name != "rewards" or field.shape or field.dtype == "str"):
        return "rewards are one number per step"
    if field.encoding == "video":
        return "videos are not sent"
    if field.encoding == "raw":
        wrong = field.dtype == "str" or min(field.shape, default=0) < 0
        return "plain arrays have numbers and fixed axes" if wrong else ""
    if root in ("actions", "rewards"):
        return "actions are plain arrays"
    if field.encoding == "text":
        return "" if field.dtype == "str" and not field.shape else "texts have no axes"
    return "pictures and ragged rows are of numbers" if field.dtype == "str" else ""


def check_rows(rows: pa.RecordBatch, layout: RowLayout, limits: PutLimits) -> None:
    """Makes sure that a batch, whose schema is that of a layout, is sound and not too large.

    Raises:
        TooLargeError: for more rows or bytes than the limits say.
        PutError: for a batch that contradicts itself, has nulls, or no rows.
    """
    count = rows.num_rows
    width = layout.plain_bytes
    if count > limits.put_rows or count * width > limits.put_bytes:
        raise TooLargeError(
            f"Expected at most {limits.put_rows} rows and {limits.put_bytes} bytes in a put, came "
            f"{count} rows of {width} bytes; send smaller ones."
        )
    try:
        rows.validate(full=True)
    except pa.ArrowException as error:
        raise PutError(f"Expected a sound record batch, came {str(error)[:200]}.") from None
    if layout.has_packed and rows.nbytes > limits.put_bytes:
        raise TooLargeError(
            f"Expected at most {limits.put_bytes} bytes in a put, came {rows.nbytes}; send "
            f"smaller ones."
        )
    if not count:
        raise PutError("Expected rows without nulls, came none.")
    for number, column in enumerate(rows.columns):
        if _has_nulls(column):
            name = rows.schema.names[number]
            raise PutError(f"Expected rows without nulls, came nulls in {name!r}.")


def _has_nulls(column: pa.Array) -> bool:
    if column.null_count:
        return True
    if not isinstance(column, pa.FixedSizeListArray) or not column.values.null_count:
        return False
    return bool(column.flatten().null_count)  # of these rows, not of those beside them


# -- puts to episode ---------------------------------------------------------------------------


def episode_of(
    episode_id: str, layout: RowLayout, facts: EpisodeFacts, batches: Sequence[pa.RecordBatch]
) -> Episode:
    """Returns the episode that the checked rows of all its puts make.

    Args:
        episode_id: its id.
        layout: of the rows.
        facts: of its last put.
        batches: in order, all of one schema; together T+1 rows.

    Raises:
        EpisodeError: if the rows do not make an episode.
    """
    whole = batches[0] if len(batches) == 1 else pa.Table.from_batches(batches)
    plan = _plan(batches[0].schema.metadata[LAYOUT_KEY]) if len(batches) == 1 else None
    flags = flags_of(whole)
    is_step, is_seen = flags["valid"], flags["observation_valid"]
    has_final = facts.final_observation == "present"
    steps = len(is_step) - 1
    if is_step[-1] or np.count_nonzero(is_step) != steps:
        raise EpisodeError(
            "Expected every row but the last to be a step, came others; the last put of an "
            "episode ends with the row of the final observation.",
            code="flags_inconsistent",
            where=episode_id,
        )
    if bool(is_seen[-1]) != has_final or np.count_nonzero(is_seen) != steps + has_final:
        raise EpisodeError(
            f"Expected observations in every row, and in the last one as the facts say "
            f"({facts.final_observation}), came others.",
            code="flags_inconsistent",
            where=episode_id,
        )
    if plan is not None:
        made = plan.episode(episode_id, facts, batches[0], flags)
        if made is not None:
            return made
    rows = table_to_rows(whole, layout.fields)
    stated = {name: getattr(facts, name) for name in EpisodeFacts.model_fields}
    collected_at = utc(facts.collected_at)
    stated["collected_at"] = collected_at.isoformat() if collected_at else None
    return episode_from_rows(rows, layout, {**stated, "episode_id": episode_id})
