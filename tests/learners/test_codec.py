"""Cells of actions: exact both ways, for any range, at its ends and beyond them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.codec import MOST_CELLS, Codec, middle
from learners.cqn import CQNSettings
from learners.grid import codec_of
from schemas.errors import ConfigError
from tests.learners.worked import normaliser


def _codec(levels: int, bins: int, low: float = -1.0, high: float = 1.0) -> Codec:
    return Codec(levels, bins, _double(low), _double(high))


def _double(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


SIZES = st.tuples(st.integers(1, 6), st.integers(2, 11)).filter(lambda s: s[1] ** s[0] <= 4096)
ENDS = st.tuples(st.floats(-100, 100, width=32), st.floats(1, 100, width=32)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)


def test_choices_by_hand() -> None:
    codec = _codec(2, 3)
    # Ninths of the range from -1 to 1: 0.4 lies in the 7th, number 6, which is 2 then 0.
    assert codec.cell(torch.tensor([[0.4]])).item() == 6
    assert codec.encode(torch.tensor([[0.4]])).flatten().tolist() == [2, 0]
    assert codec.decode(torch.tensor([[[2], [0]]])).item() == pytest.approx(-1 + 6.5 * 2 / 9)
    known = codec.midpoints(torch.tensor([[6]]))[0, :, 0]
    assert known.tolist() == pytest.approx([0.0, 2 / 3, 4 / 9])


@given(SIZES, ENDS)
def test_the_middle_of_every_cell_finds_its_cell(
    sizes: tuple[int, int], ends: tuple[float, float]
) -> None:
    codec = _codec(*sizes, *ends)
    every = torch.arange(codec.cells)[:, None]
    assert torch.equal(codec.cell(codec.centre(every)), every)
    choices = codec.choices(every)
    assert choices.shape == (codec.cells, codec.levels, 1)
    assert int(choices.min()) == 0
    assert int(choices.max()) == codec.bins - 1
    assert torch.equal(codec.joined(choices), every)
    assert torch.equal(codec.encode(codec.decode(choices)), choices)


@given(SIZES, ENDS)
def test_a_cell_holds_where_it_begins_but_not_where_the_next_does(
    sizes: tuple[int, int], ends: tuple[float, float]
) -> None:
    codec = _codec(*sizes, *ends)
    every = torch.arange(codec.cells)[:, None]
    begins = codec.begins(every)
    assert torch.equal(codec.cell(begins), every)
    below = torch.nextafter(begins[1:], torch.tensor(-math.inf, dtype=torch.float64))
    assert torch.equal(codec.cell(below), every[:-1])


@given(SIZES, ENDS, st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_an_action_is_at_most_half_a_cell_from_what_it_becomes(
    sizes: tuple[int, int], ends: tuple[float, float], actions: list[float]
) -> None:
    codec = _codec(*sizes, *ends)
    given = torch.tensor(actions)[:, None]
    cut = given.double().clamp(*ends)
    half = (ends[1] - ends[0]) / codec.cells / 2
    became = codec.decode(codec.encode(given)).double()
    rounding = 1e-6 * max(abs(ends[0]), abs(ends[1]), 1.0)
    assert float((became - cut).abs().max()) <= half + rounding


@given(SIZES, ENDS)
def test_ends_and_what_is_beyond_belong_to_the_outer_cells(
    sizes: tuple[int, int], ends: tuple[float, float]
) -> None:
    codec = _codec(*sizes, *ends)
    low, high = ends
    actions = _double(low, low - 1, -1e30, -math.inf, high, high + 1, 1e30, math.inf)[:, None]
    found = codec.cell(actions)[:, 0].tolist()
    assert found == [0] * 4 + [codec.cells - 1] * 4


@given(SIZES, st.integers(0, 2**31))
def test_levels_narrow_the_range_as_intervals_do(sizes: tuple[int, int], seed: int) -> None:
    """Against plain intervals: the part chosen is cut anew at each level."""
    codec = _codec(*sizes)
    cell = torch.tensor([[seed % codec.cells]])
    known, low, high = codec.midpoints(cell)[0, :, 0].tolist(), -1.0, 1.0
    for level, choice in enumerate(codec.choices(cell)[0, :, 0].tolist()):
        assert known[level] == pytest.approx((low + high) / 2, abs=1e-6)
        width = (high - low) / codec.bins
        low, high = low + choice * width, low + (choice + 1) * width
    assert known[-1] == pytest.approx((low + high) / 2, abs=1e-6)
    assert codec.centre(cell).item() == pytest.approx(known[-1], abs=1e-6)
    assert middle(cell, codec.cells).item() == known[-1]


@given(st.integers(0, MOST_CELLS - 1))
def test_stored_actions_find_their_cell_among_the_most_there_may_be(cell: int) -> None:
    codec = _codec(20, 2)
    assert codec.cells == MOST_CELLS
    assert codec.cell(codec.centre(torch.tensor([[cell]]))).item() == cell


def test_each_dim_has_a_range_of_its_own() -> None:
    codec = Codec(1, 4, _double(-1, 0), _double(1, 8))
    assert codec.cell(torch.tensor([[0.1, 0.1], [-2, 9]])).tolist() == [[2, 0], [0, 3]]
    assert codec.centre(torch.tensor([[2, 0]])).tolist() == [[0.25, 1.0]]


def test_discrete_actions_are_their_own_cells() -> None:
    codec = _codec(1, 5, -0.5, 4.5)
    actions = torch.arange(5)[:, None]
    assert torch.equal(codec.cell(actions), actions)
    assert torch.equal(codec.centre(actions).long(), actions)


def test_what_is_no_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 1048576 cells"):
        _codec(3, 102)
    with pytest.raises(ConfigError, match="end above where they begin"):
        _codec(3, 5, 1.0, 1.0)


# -- where ranges come from ------------------------------------------------------------------------

RANGE = np.array([[-1.0, -3.0], [0.5, 2.0]], np.float32)


def test_ranges_are_those_of_the_data_on_the_unit_box() -> None:
    fitted = dataclasses.replace(normaliser((1.0, 3.0)), action_range=RANGE)
    codec = codec_of(CQNSettings(), fitted, "cpu")
    assert codec.low.tolist() == pytest.approx([-1.0, -1.0])
    assert codec.high.tolist() == pytest.approx([0.5, 2 / 3])


def test_ranges_may_be_set() -> None:
    fitted = dataclasses.replace(normaliser((1.0, 3.0)), action_range=RANGE)
    codec = codec_of(CQNSettings(action_low=-2.0, action_high=(1.0, 6.0)), fitted, "cpu")
    assert codec.low.tolist() == pytest.approx([-2.0, -2 / 3])
    assert codec.high.tolist() == pytest.approx([1.0, 2.0])
    with pytest.raises(ConfigError, match="action_low as one number, or one for each of 2 dims"):
        codec_of(CQNSettings(action_low=(1.0, 2.0, 3.0)), fitted, "cpu")
    with pytest.raises(ConfigError, match="end above where they begin"):
        codec_of(CQNSettings(action_low=2.0, action_high=1.0), fitted, "cpu")


def test_a_dim_in_which_the_data_never_move_stays_where_it_is() -> None:
    still = np.array([[-1.0, 500.0], [0.5, 500.0]], np.float32)
    fitted = dataclasses.replace(normaliser((1.0, 500.0)), action_range=still)
    codec = codec_of(CQNSettings(), fitted, "cpu")
    every = codec.centre(torch.arange(codec.cells)[:, None].expand(-1, 2))
    assert float((every[:, 1] - 1.0).abs().max()) < 1.1e-3
    assert codec.choices(codec.cell(torch.ones(1, 2)))[0, :, 1].tolist() == [2, 2, 2]


def test_without_a_range_it_is_the_scale() -> None:
    codec = codec_of(CQNSettings(), normaliser((1.0, 3.0)), "cpu")
    assert (codec.low.tolist(), codec.high.tolist()) == ([-1.0, -1.0], [1.0, 1.0])
