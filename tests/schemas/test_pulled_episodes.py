"""Episodes as the data port sends them: the same from the episode and from its puts."""

from __future__ import annotations

import contextlib
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.episode import Episode
from schemas.errors import EpisodeError, PenstockError
from schemas.identity import digest
from schemas.pulls import decode_episode, encode_episode, encode_puts
from schemas.puts import Put, puts_of
from tests.episodes import episode
from tests.reliability.sizes import size
from tests.strategies import assert_same_episode, episodes


def encoded(puts: list[Put]) -> pa.Buffer:
    facts = puts[-1].header.facts
    assert facts is not None
    return encode_puts(puts[0].header.episode_id, facts, [put.rows for put in puts])


@settings(max_examples=40)
@given(episodes(), st.sampled_from((1, 64, 1 << 20)))
def test_an_episode_is_pulled_as_it_was_put(one: Episode, put_bytes: int) -> None:
    assert_same_episode(decode_episode(encode_episode(one)), one)
    try:
        puts = list(puts_of(one, producer="a", epoch=1, put_bytes=put_bytes))
    except PenstockError:
        return  # what a header does not hold
    found = decode_episode(encoded(puts))
    assert_same_episode(found, one)
    assert digest(found) == digest(one)


def test_slices_of_rows_are_sent_as_what_they_are() -> None:
    one = episode("sliced", length=40)
    puts = list(puts_of(one, producer="a", epoch=1, put_bytes=200))
    assert len(puts) > 3
    data = encoded(puts)
    assert data.size < 40_000
    assert_same_episode(decode_episode(data), one)


def test_damaged_bytes_are_an_episode_or_an_error_of_ours() -> None:
    chance = random.Random(0)
    whole = encoded(list(puts_of(episode("e", length=5), producer="a", epoch=1))).to_pybytes()
    refused = 0
    for _ in range(size(2_000, 100_000)):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            decode_episode(pa.py_buffer(bytes(damaged)))
        except EpisodeError:
            refused += 1
    assert refused > 100


def test_other_documents_are_no_episode() -> None:
    table = pa.table({"a": [1]})
    sink = pa.BufferOutputStream()
    with contextlib.closing(pa.ipc.new_stream(sink, table.schema)) as writer:
        writer.write_table(table)
    for data in (sink.getvalue(), pa.py_buffer(b""), pa.py_buffer(b"x" * 100)):
        with pytest.raises(EpisodeError):
            decode_episode(data)
