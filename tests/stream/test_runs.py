"""Runs of records: what is fetched at once is what is fetched one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.store import Store
from pipeline.stream.record import LINE
from pipeline.stream.runs import can_take_runs, lined_up, take_runs
from tests.stream.test_loader import stream, take


@given(
    lines=st.integers(1, 3),
    rows=st.integers(1, 40),
    count=st.integers(1, 5),
    shift=st.sampled_from([0, 4, 60]),
    shape=st.sampled_from([(0,), (1,), (9,), (3, 4)]),
    seed=st.integers(0, 99),
)
def test_runs_are_the_records_one_by_one(
    lines: int, rows: int, count: int, shift: int, shape: tuple[int, ...], seed: int
) -> None:
    random = np.random.default_rng(seed)
    memory = lined_up(random.integers(0, 256, (1, LINE + rows * lines * LINE), np.uint8))[0]
    # Also from where records do not begin with a line.
    records = memory[shift:][: rows * lines * LINE].view(np.int32).reshape(rows, -1)
    if not can_take_runs(records, count):
        assert count > rows
        return
    first = random.integers(0, rows - count, shape, endpoint=True)
    found = take_runs(records, first, count)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert np.array_equal(found, records[first[..., None] + np.arange(count)])


def test_a_run_may_be_too_wide_for_one_item() -> None:
    records = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.int32), (2**20, 2**10), (2**12, 0), writeable=False
    )
    assert can_take_runs(records, 2**18)
    assert not can_take_runs(records, 2**18 + 1)


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_copy_begins_with_a_line(rows: int) -> None:
    records = np.arange(rows * 16, dtype=np.int32).reshape(rows, 16)
    found = lined_up(records)
    assert found.ctypes.data % LINE == 0
    assert np.array_equal(found, records)


@pytest.mark.parametrize("settings", [{}, {"sampler": "window", "window": 4, "frame_stack": 1}])
def test_batches_share_nothing_to_write_to(store: Store, settings: dict[str, Any]) -> None:
    first, second = take(stream(store.version(), **settings), 2)
    _, expected = take(stream(store.version(), **settings), 2)
    for array in first.values():
        array[...] = 0
    for name, array in second.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)


def test_fields_of_transitions_share_nothing_to_write_to(store: Store) -> None:
    (batch,) = take(stream(store.version()), 1)
    for written in batch:
        before = {name: array.copy() for name, array in batch.items()}
        batch[written][...] = 1 - before[written]
        for name, array in batch.items():
            if name != written:
                np.testing.assert_array_equal(array, before[name], strict=True)
