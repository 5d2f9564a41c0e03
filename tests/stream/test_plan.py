"""The order of samples: Philox word for word, without visible bias, the same for any split."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.stream import plan

MASK = 2**64 - 1
COUNTS = st.integers(1, 10**6)


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox 4x64-10 in plain integers, from the paper."""
    c = [(counter >> (64 * word)) & MASK for word in range(4)]
    k = list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def test_the_words_of_this_file_are_the_papers() -> None:
    # The known-answer vector that comes with Random123.
    zero = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox(0, (0, 0)) == zero


@given(seed=st.integers(0, MASK), domain=st.integers(0, 9), block=st.integers(0, 2**70))
def test_words_are_philox_of_their_place(seed: int, domain: int, block: int) -> None:
    found = plan.words(seed, domain, 4 * block, 8).tolist()
    # NumPy counts up before it draws.
    assert found == philox(block + 1, (seed, domain)) + philox(block + 2, (seed, domain))


@given(words=st.lists(st.integers(0, MASK), min_size=1), n=st.integers(1, 2**62))
def test_numbers_are_the_exact_share_of_their_word(words: list[int], n: int) -> None:
    found = plan.below(np.array(words, np.uint64), n)
    assert found.dtype == np.int64
    assert found.tolist() == [word * n >> 64 for word in words]


@given(
    seed=st.integers(0, MASK),
    step=st.integers(0, 2**40),
    batch_size=st.integers(1, 70),
    steps=st.integers(1, 9),
    n=COUNTS,
)
def test_many_steps_at_once_are_the_steps_one_by_one(
    seed: int, step: int, batch_size: int, steps: int, n: int
) -> None:
    at_once = plan.uniform(seed, step, batch_size, n, steps=steps)
    one_by_one = [plan.uniform(seed, step + k, batch_size, n)[0] for k in range(steps)]
    np.testing.assert_array_equal(at_once, one_by_one)
    assert at_once.shape == (steps, batch_size)
    assert at_once.min() >= 0
    assert at_once.max() < n


@given(batch_size=st.integers(1, 999), world_size=st.integers(1, 64))
def test_shares_cut_the_batch_in_order(batch_size: int, world_size: int) -> None:
    rows = [
        row
        for rank in range(world_size)
        for row in range(batch_size)[plan.share(batch_size, rank, world_size)]
    ]
    assert rows == list(range(batch_size))


def test_the_order_never_changes() -> None:
    """A release that changed this would break every recorded run."""
    found = plan.uniform(7, 1_000_000, 256, 999_999, steps=64).astype("<i8")
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "9714bdc8b8eb4682"


@pytest.mark.parametrize("n", [97, 1000])
def test_ten_million_draws_are_uniform(n: int) -> None:
    counts = np.zeros(n, np.int64)
    for step in range(0, 40_000, 2_000):
        drawn = plan.uniform(3, step, 250, n, steps=2_000)
        counts += np.bincount(drawn.reshape(-1), minlength=n)
    assert counts.sum() == 10_000_000
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


def test_seeds_and_domains_draw_apart() -> None:
    drawn = [
        plan.uniform(seed, 0, 4096, 2**40, domain=domain)[0]
        for seed, domain in ((0, 0), (1, 0), (0, 1), (1, 1))
    ]
    assert len(np.unique(np.concatenate(drawn))) == 4 * 4096
