from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.inputs import join
from learners.normaliser import EPSILON, fit_normaliser
from schemas.errors import SpecMismatchError


class Blocks:
    """A version of two blocks, of which one episode is not kept and one lost its last row."""

    def __init__(self, offset: float = 0.0) -> None:
        generator = np.random.default_rng(0)
        self.blocks = {
            name: {
                "observations/a": generator.normal(3.0 + offset, 2.0, (12, 2)),
                "observations/b": generator.normal(-1.0, 0.5, (12,)).astype(np.float32),
                "actions": generator.uniform(-3.0, 0.5, (12, 2)),
            }
            for name in ("one", "two")
        }

    def index(self) -> Any:
        return SimpleNamespace(
            data=np.array([0, 0, 1], np.int32),
            data_ids=("one", "two"),
            row_start=np.array([0, 8, 4]),
            length=np.array([4, 3, 5]),  # of block two only rows 4 to 9 belong to an episode
            final_present=np.array([True, False, True]),
        )

    def read_rows(self, data_id: str, fields: Any) -> dict[str, np.ndarray]:
        return {name: self.blocks[data_id][name] for name in fields}

    def real(self, name: str, with_final: bool) -> np.ndarray:
        one, two = self.blocks["one"][name], self.blocks["two"][name]
        last = int(with_final)
        parts = [one[0 : 4 + last], one[8:11], two[4 : 9 + last]]
        return np.concatenate([part.reshape(len(part), -1) for part in parts]).astype(np.float64)


FIELDS = ("observations/a", "observations/b")


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equals_numpy_on_the_real_rows(offset: float) -> None:
    version = Blocks(offset)
    fitted = fit_normaliser([version], FIELDS, True)
    states = np.concatenate([version.real(name, True) for name in FIELDS], axis=1)
    np.testing.assert_allclose(fitted.mean, states.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.scale, states.std(axis=0) + EPSILON, rtol=1e-5)
    peak = np.abs(version.real("actions", False)).max(axis=0)
    np.testing.assert_allclose(fitted.action_scale, np.where(peak > 1, peak, 1), rtol=1e-6)
    acted = version.real("actions", False)
    np.testing.assert_allclose(fitted.action_low, acted.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.action_high, acted.max(axis=0), rtol=1e-6)


def test_two_versions_are_one_set_of_rows() -> None:
    one, two = Blocks(), Blocks(offset=5.0)
    both = fit_normaliser([one, two], ("observations/a",), True)
    states = np.concatenate([one.real("observations/a", True), two.real("observations/a", True)])
    np.testing.assert_allclose(both.mean, states.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(both.scale, states.std(axis=0) + EPSILON, rtol=1e-6)


def test_plain_keeps_sizes_and_lets_states_in_as_they_are() -> None:
    fitted = fit_normaliser([Blocks()], FIELDS, False)
    assert fitted.is_plain
    assert fitted.observation_dims == 3
    assert fitted.action_dims == 2


def test_an_empty_version_is_refused() -> None:
    with pytest.raises(SpecMismatchError, match="at least one episode"):
        fit_normaliser([], FIELDS, True)


def test_joins_nested_fields_in_the_order_asked_for() -> None:
    nested = {"arm": {"pos": torch.ones(2, 2)}, "goal": torch.zeros(2), "image": torch.ones(2, 9)}
    joined = join(nested, ("observations/arm/pos", "observations/goal"))
    assert joined.tolist() == [[1.0, 1.0, 0.0]] * 2
    assert (
        join((np.ones(2), np.zeros(2)), ("observations/1", "observations/0")).tolist()
        == [[0.0, 1.0]] * 2
    )


def test_a_missing_field_is_named() -> None:
    with pytest.raises(SpecMismatchError, match="observations/velocity"):
        join({"position": torch.ones(1, 2)}, ("observations/velocity",))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_any_split_into_blocks_gives_the_same_numbers(sizes: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).normal(100.0, 3.0, (sum(sizes), 2))
    cuts = np.cumsum(sizes)[:-1]
    whole = fit_normaliser([_one_block([rows])], ("observations",), True)
    split = fit_normaliser([_one_block(np.split(rows, cuts))], ("observations",), True)
    np.testing.assert_allclose(whole.mean, split.mean, rtol=1e-6)
    np.testing.assert_allclose(whole.scale, split.scale, rtol=1e-5)


def _one_block(parts: list[np.ndarray]) -> Any:
    """A version with one block for each part, each one episode without its last observation."""
    padded = {
        str(k): {
            "observations": np.concatenate([part, part[-1:]]),
            "actions": np.zeros((len(part) + 1, 1)),
        }
        for k, part in enumerate(parts)
    }
    index = SimpleNamespace(
        data=np.arange(len(parts), dtype=np.int32),
        data_ids=tuple(padded),
        row_start=np.zeros(len(parts), np.int64),
        length=np.array([len(part) for part in parts]),
        final_present=np.zeros(len(parts), bool),
    )
    return SimpleNamespace(
        index=lambda: index,
        read_rows=lambda data_id, fields: {name: padded[data_id][name] for name in fields},
    )
