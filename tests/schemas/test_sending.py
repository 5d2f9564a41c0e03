"""Rows as a sender makes them: the columns of `rows_to_table`, and no heavy library for them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
from hypothesis import given, settings

from schemas.arrow import rows_to_table
from schemas.episode import Episode
from schemas.packed import TEXT, Packed
from schemas.puts import cut_rows
from schemas.rows import layout_of, to_rows
from schemas.sending import batch_of
from schemas.spec import FieldSpec
from tests.strategies import episodes


def assert_as_a_table(one: Episode) -> None:
    layout = layout_of(one)
    (expected,) = rows_to_table(to_rows(one), layout).combine_chunks().to_batches()
    found, of = batch_of(one)
    assert of == layout
    assert found.schema.equals(expected.schema, check_metadata=True)
    found.validate(full=True)
    # As bytes: NaN are not equal to themselves.
    assert found.serialize().equals(expected.serialize())


@settings(max_examples=150)
@given(episodes())
def test_the_columns_are_those_of_tables(one: Episode) -> None:
    assert_as_a_table(one)


def test_encoded_rows_are_too() -> None:
    pictures = Packed.of(FieldSpec("|u1", (8, 8, 3), "frames"), [b"\x89PNG" * n for n in (1, 9)])
    seen = {"say": Packed.texts(["", "ä", "b" * 90]), "points": np.zeros((3, 0, 2), "<f2")}
    assert_as_a_table(Episode("e", seen, extras={"camera": pictures}, terminated=True))


def test_rows_stay_as_they_were_when_the_episodes_buffers_are_used_again() -> None:
    """Whole fields, those that are padded, encoded ones and truth values."""
    numbers, actions = np.arange(12, dtype="<f4").reshape(4, 3), np.ones((3, 2), "<f8")
    flags, letters = np.ones(4, bool), np.frombuffer(b"abcd", np.uint8).copy()
    texts = Packed(TEXT, np.array([0, 1, 3, 3, 4]), letters)
    short = Packed(TEXT, np.array([0, 1, 3, 4]), letters)
    extras = {"flags": flags, "texts": texts, "short": short}
    one = Episode("e", {"observations": numbers}, actions, extras=extras, terminated=True)
    found, _ = batch_of(one)
    before = found.serialize().to_pybytes()
    for array in (numbers, actions, flags, letters):
        array[:] = 0
    assert found.serialize().to_pybytes() == before


def test_layouts_that_differ_in_little_are_told_apart() -> None:
    """One plan for each: dtype, shape, whether an extra has its last row, and the order."""
    rows = np.arange(5, dtype="<f4")
    for seen, extra in [
        ({"a": rows, "b": rows}, rows),
        ({"b": rows, "a": rows}, rows),
        ({"a": rows, "b": rows}, rows[:-1]),
        ({"a": rows, "b": rows.astype("<f8")}, rows),
        ({"a": rows, "b": rows[:, None]}, rows),
    ]:
        assert_as_a_table(Episode("e", seen, extras={"x": extra}, terminated=np.zeros(4, bool)))


def test_pieces_are_as_large_as_puts_may_be() -> None:
    one = Episode("e", np.zeros((1000, 4), "<f8"))
    (whole,) = cut_rows(one)
    pieces = cut_rows(one, 3600)
    assert [piece.num_rows for piece in pieces] == [100] * 10
    assert pa.Table.from_batches(pieces).equals(pa.Table.from_batches([whole]))


def test_neither_pandas_nor_the_store_is_loaded_to_send() -> None:
    """An actor starts with what it needs."""
    code = """
import sys
import numpy as np
from pipeline.service.client.client import RolloutClient
from schemas.episode import Episode
from schemas.puts import puts_of
from schemas.pulls import decode_episode, encode_episode

one = Episode("e", np.zeros((9, 3), "f4"), np.zeros((8, 2), "f4"), np.zeros(8, "f4"))
(put,) = puts_of(one, producer="a", epoch=1)
put.header.encoded()
with RolloutClient("grpc://127.0.0.1:1"):
    pass
print(sorted({"pandas", "zarr", "torch", "duckdb", "fastapi", "gymnasium"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
