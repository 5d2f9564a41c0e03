"""Episodes as puts and back; what is no put is refused, whoever made it."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import LAYOUT_KEY
from schemas.episode import Episode
from schemas.errors import EpisodeError, PenstockError, PutError, TooLargeError
from schemas.identity import digest
from schemas.packed import Packed, Video
from schemas.puts import Put, PutLimits, check_rows, check_schema, episode_of, puts_of
from schemas.rollouts import HEADER_BYTES, EpisodeFacts, PutHeader, read_header
from schemas.spec import FieldSpec
from tests.episodes import episode
from tests.reliability.sizes import size
from tests.strategies import assert_same_episode, episodes

LIMITS = PutLimits()


def back(puts: list[Put]) -> Episode:
    """What a receiver makes of puts, through their bytes."""
    layout = check_schema(puts[0].rows.schema, LIMITS)
    rows = []
    for put in puts:
        schema = pa.ipc.read_schema(pa.py_buffer(put.rows.schema.serialize()))
        received = pa.ipc.read_record_batch(pa.py_buffer(put.rows.serialize()), schema)
        assert check_schema(schema, LIMITS) == layout
        check_rows(received, layout, LIMITS)
        rows.append(received)
    last = read_header(puts[-1].header.encoded())
    assert last.facts is not None
    return episode_of(last.episode_id, layout, last.facts, rows)


@settings(max_examples=150)
@given(episodes(), st.sampled_from((1, 64, 1 << 20)))
def test_nothing_is_lost_on_the_way(one: Episode, put_bytes: int) -> None:
    try:
        puts = list(puts_of(one, producer="a", epoch=1, put_bytes=put_bytes))
    except PenstockError:
        assert not one.episode_id or any(  # what a header does not hold
            isinstance(v, int) and not -(2**63) <= v < 2**63 for v in one.columns.values()
        )
        return
    assert [put.header.sequence for put in puts] == list(range(len(puts)))
    assert sum(put.rows.num_rows for put in puts) == one.length + 1
    found = back(puts)
    assert_same_episode(found, one)
    assert digest(found) == digest(one)
    assert found.spec == one.spec == found.replace().spec


@settings(max_examples=60)
@given(episodes(), st.integers(0, 9))
def test_the_short_way_to_an_episode_is_that_of_all_rows(one: Episode, before: int) -> None:
    """Rows of one put, some of a larger batch, against the same rows by the general way."""
    try:
        (put,) = puts_of(one, producer="a", epoch=1, put_bytes=1 << 30)
    except PenstockError:
        return
    layout = check_schema(put.rows.schema, LIMITS)
    several = [put.rows.slice(0, 1)] * before + [put.rows, put.rows.slice(0, 1)]
    whole = pa.Table.from_batches(several).combine_chunks().to_batches()[0]
    rows = whole.slice(before, put.rows.num_rows)
    facts = put.header.facts
    assert facts is not None
    short = episode_of(one.episode_id, layout, facts, [rows])
    general = episode_of(one.episode_id, layout, facts, [rows.slice(0, 1), rows.slice(1)])
    assert_same_episode(short, general)
    assert vars(short).keys() >= {field.name for field in dataclasses.fields(Episode)}
    assert (short.spec, digest(short)) == (general.spec, digest(general))


def encoded() -> Episode:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    pictures = Packed.of(FieldSpec("|u1", (8, 8, 3), "frames"), [b"\x89PNG" * n for n in (1, 9, 2)])
    ragged = Packed.ragged([np.arange(n, dtype="<f4") for n in (0, 3, 1, 2)])
    return Episode(
        "e/ü",
        {"pixels": pixels, "say": Packed.texts(["", "ä", "b" * 90, "c"]), "points": ragged},
        np.zeros((3, 2), np.float32),
        extras={"camera": pictures},
        terminated=True,
    )


@pytest.mark.parametrize("put_bytes", [1, 300, 1 << 20])
def test_pictures_texts_and_ragged_rows_are_sent_as_they_are(put_bytes: int) -> None:
    assert_same_episode(
        back(list(puts_of(encoded(), producer="a", epoch=1, put_bytes=put_bytes))), encoded()
    )


def test_puts_are_of_the_size_that_is_asked_for() -> None:
    sizes = [p.rows.num_rows for p in puts_of(episode("e", length=999), producer="a", epoch=1)]
    assert sizes == [1000]
    puts = list(puts_of(episode("e", length=999), producer="a", epoch=1, put_bytes=3200))
    assert max(put.rows.nbytes for put in puts) <= 3200
    assert min(put.rows.num_rows for put in puts[:-1]) > 50


def test_numbers_come_without_a_copy() -> None:
    (put,) = puts_of(episode("e"), producer="a", epoch=1)
    assert put.header.facts is not None
    layout = check_schema(put.rows.schema, LIMITS)
    found = episode_of("e", layout, put.header.facts, [put.rows])
    states = put.rows.column("observations").flatten().to_numpy()
    assert np.shares_memory(found.observations["observations"], states)


def test_a_video_is_not_sent() -> None:
    spec = FieldSpec("|u1", (4, 4, 3), "video")
    video = Video(spec, (), np.full(3, -1, np.int32), np.full(3, np.nan))
    with pytest.raises(EpisodeError, match="came a video in 'observations/camera'"):
        next(puts_of(Episode("e", {"camera": video}), producer="a", epoch=1))


# -- what is refused -----------------------------------------------------------------------------

HEADER = {"producer": "a", "epoch": 1, "sequence": 0, "episode_id": "e", "start": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"producer": ""},
        {"producer": "../x"},
        {"producer": "a" * 129},
        {"epoch": -1},
        {"epoch": 2**63},
        {"epoch": "1"},
        {"sequence": 1.0},
        {"sequence": True},
        {"episode_id": ""},
        {"episode_id": "x" * 1025},
        {"start": None},
        {"end": True},
        {"end": 1},
        {"facts": {"final_observation": "present"}},
        {"end": True, "facts": {"final_observation": "gone"}},
        {"end": True, "facts": {"final_observation": "present", "columns": {"x": [1]}}},
        {"end": True, "facts": {"final_observation": "present", "collected_at": "2020-01-01"}},
        {"more": 1},
    ],
)
def test_a_header_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(PutError, match="Expected a put's header"):
        read_header(json.dumps({**HEADER, **change}).encode())


def test_a_header_is_read_as_it_was_written() -> None:
    facts = EpisodeFacts(final_observation="copied", columns={"a": 1, "b": 1.0, "c": True})
    header = PutHeader(**HEADER, end=True, facts=facts)  # type: ignore[arg-type]
    found = read_header(header.encoded())
    assert found == header
    assert found.facts is not None
    assert [type(v) for v in found.facts.columns.values()] == [int, float, bool]
    with pytest.raises(TooLargeError):
        read_header(b" " * (HEADER_BYTES + 1))


def schema_with(**changes: Any) -> pa.Schema:
    """The schema of a small episode with its stated layout changed."""
    (put,) = puts_of(episode("e"), producer="a", epoch=1)
    layout = json.loads(put.rows.schema.metadata[LAYOUT_KEY])
    text = json.dumps({**layout, **changes}).encode()
    return put.rows.schema.with_metadata({LAYOUT_KEY: text})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"observations": ["<f4", [5], "raw"]},
        {"observations": ["|O", [4], "raw"]},
        {"observations": ["<f4", [-1], "raw"]},
        {"observations": ["<f4", [2**40], "raw"]},
        {"observations": ["<f4", [4], "pickle"]},
        {"observations": ["|u1", [4, 4, 3], "video"]},
        {"rewards": ["str", [], "text"]},
        {"valid": ["|b1", [], "raw"]},
        {"secrets": ["<f4", [], "raw"]},
        {"extras/x": ["<f4", [], "raw"]},
        {"observations": "<f4"},
    ],
)
def test_a_schema_that_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(PutError):
        check_schema(schema_with(fields=fields), LIMITS)


def test_other_schemas_are_refused() -> None:
    (put,) = puts_of(episode("e"), producer="a", epoch=1)
    for schema in (
        pa.schema([]),
        pa.schema([("observations", pa.dictionary(pa.int8(), pa.string()))]),
        put.rows.schema.remove_metadata(),
        put.rows.schema.append(pa.field("more", pa.int8())),
        put.rows.schema.with_metadata({**put.rows.schema.metadata, b"x": b"y"}),
        schema_with(full_extras=["extras/none"]),
    ):
        with pytest.raises(PutError):
            check_schema(schema, LIMITS)


def test_sizes_are_refused_before_rows_are_looked_at() -> None:
    (put,) = puts_of(encoded(), producer="a", epoch=1)
    layout = check_schema(put.rows.schema, LIMITS)
    for limits in (PutLimits(fields=3), PutLimits(row_bytes=100), PutLimits(schema_bytes=10)):
        with pytest.raises(TooLargeError):
            check_schema(put.rows.schema, limits)
    for limits in (PutLimits(put_rows=3), PutLimits(put_bytes=200), PutLimits(put_bytes=1024)):
        with pytest.raises(TooLargeError):
            check_rows(put.rows, layout, limits)


def test_nulls_and_empty_batches_are_refused() -> None:
    (put,) = puts_of(episode("e"), producer="a", epoch=1)
    layout = check_schema(put.rows.schema, LIMITS)
    rewards = pa.array([None, *[1.0] * 20], pa.float32())
    inner = pa.FixedSizeListArray.from_arrays(pa.array([None] * 84, pa.float32()), 4)
    for name, column in (("rewards", rewards), ("observations", inner)):
        at = put.rows.schema.get_field_index(name)
        columns = [*put.rows.columns[:at], column, *put.rows.columns[at + 1 :]]
        with pytest.raises(PutError, match="without nulls"):
            check_rows(pa.RecordBatch.from_arrays(columns, schema=put.rows.schema), layout, LIMITS)
    with pytest.raises(PutError, match="came none"):
        check_rows(put.rows.slice(0, 0), layout, LIMITS)


@pytest.mark.parametrize("rows", [slice(0, 20), slice(0, 0), slice(5, 21)])
def test_rows_that_make_no_episode(rows: slice) -> None:
    (put,) = puts_of(episode("e", length=20), producer="a", epoch=1)
    assert put.header.facts is not None
    layout = check_schema(put.rows.schema, LIMITS)
    pieces = [put.rows, put.rows.slice(rows.start, rows.stop - rows.start)]
    with pytest.raises(EpisodeError, match="Expected every row but the last"):
        episode_of("e", layout, put.header.facts, [p for p in pieces if p.num_rows] + [put.rows])


def test_a_final_observation_that_the_facts_deny() -> None:
    (put,) = puts_of(episode("e"), producer="a", epoch=1)
    layout = check_schema(put.rows.schema, LIMITS)
    with pytest.raises(EpisodeError, match="as the facts say"):
        episode_of("e", layout, EpisodeFacts(final_observation="missing"), [put.rows])


# -- whatever comes ------------------------------------------------------------------------------


def test_broken_bytes_never_get_through_as_anything_else() -> None:
    """Bits of headers, schemas and batches are changed: an error of ours, or sound rows."""
    rng = random.Random(0)
    taken, count = 0, size(3000, 20_000)
    for one in (episode("e", length=6), encoded()):
        (put,) = puts_of(one, producer="a", epoch=1)
        layout = check_schema(put.rows.schema, LIMITS)
        header = put.header.encoded()
        schema, rows = put.rows.schema.serialize().to_pybytes(), put.rows.serialize().to_pybytes()
        for _ in range(count):
            try:
                facts = read_header(mutated(header, rng) if rng.random() < 0.3 else header).facts
                if rng.random() < 0.3:
                    check_schema(pa.ipc.read_schema(pa.py_buffer(mutated(schema, rng))), LIMITS)
                buffer = pa.py_buffer(mutated(rows, rng))
                batch = pa.ipc.read_record_batch(buffer, put.rows.schema)
                check_rows(batch, layout, LIMITS)
                episode_of("e", layout, facts or EpisodeFacts(final_observation="present"), [batch])
                taken += 1
            except (PenstockError, pa.ArrowException, OSError, EOFError):
                continue
    assert taken > count / 4, "changed numbers are numbers"


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed))
        changed[at] = rng.choice((0, 0xFF, 0x7F, changed[at] ^ (1 << rng.randrange(8))))
    return bytes(changed if rng.random() < 0.9 else changed[: rng.randrange(len(changed))])
