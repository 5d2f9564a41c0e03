"""Nested spaces become named arrays and come back, whatever their keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from schemas.nesting import escape, flatten, nest, unescape
from tests.strategies import ODD_KEYS, TEXTS, same_array, spaces


def assert_same_space(one: Any, two: Any) -> None:
    assert isinstance(one, type(two)) or isinstance(two, type(one))
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same_space(one[key], two[key])
    elif isinstance(one, tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same_space(left, right)
    else:
        assert same_array(one, two)


@given(space=spaces(2))
def test_nesting_round_trips(space: Any) -> None:
    flat = flatten("observations", space)
    assert all(isinstance(array, np.ndarray) for array in flat.values())
    assert_same_space(nest("observations", flat), space)


@settings(max_examples=300)
@given(key=TEXTS)
def test_escaped_keys_come_back_and_hold_no_slash(key: str) -> None:
    assert "/" not in escape(key)
    assert unescape(escape(key)) == key
    assert escape(key) != ""


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_come_back(key: str) -> None:
    assert unescape(escape(key)) == key
    assert_same_space(nest("a", flatten("a", {key: np.zeros(1)})), {key: np.zeros(1)})


def test_names_as_documented() -> None:
    flat = flatten("observations", {"state": np.zeros(2), "arms": (np.ones(2), np.ones(3))})
    assert list(flat) == ["observations/state", "observations/arms/0", "observations/arms/1"]
    assert list(flatten("actions", np.zeros(3))) == ["actions"]
    assert list(flatten("o", {"7": np.zeros(1), "a/b": np.zeros(1)})) == ["o/~27", "o/a~1b"]


def test_a_tuple_of_more_than_ten_keeps_its_order() -> None:
    space = tuple(np.full(1, k) for k in range(12))
    flat = dict(sorted(flatten("a", space).items()))
    back = nest("a", flat)
    assert [int(array[0]) for array in back] == list(range(12))
