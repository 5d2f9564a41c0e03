"""Which rows are anchors: against a plain enumeration of episodes and steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.reader import EpisodeIndex
from pipeline.stream.cache_index import CachedBlock
from pipeline.stream.index import TransitionIndex, transition_index
from schemas.episode import has_transition

EPISODES = st.lists(
    st.tuples(st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=12,
)


def layout(episodes: list[tuple[int, bool, bool, int, bool]]) -> EpisodeIndex:
    """Episodes (T, terminated, final present, block, kept), one after the other in their block."""
    ends = [0, 0, 0]
    starts = []
    for length, _, _, block, _ in episodes:
        starts.append(ends[block])
        ends[block] += length + 1
    return EpisodeIndex(
        episode_ids=np.array([f"e{k}" for k in range(len(episodes))], object),
        data=np.array([episode[3] for episode in episodes], np.int32),
        data_ids=("a", "b", "c"),
        row_start=np.array(starts, np.int64),
        length=np.array([episode[0] for episode in episodes], np.int64),
        terminated=np.array([episode[1] for episode in episodes]),
        final_present=np.array([episode[2] for episode in episodes]),
    )


def found(index: TransitionIndex) -> list[tuple[int, int, str]]:
    numbers = np.arange(len(index))
    rows, positions = index.find(numbers)
    return list(
        zip(rows.tolist(), positions.tolist(), index.ids_at(positions).tolist(), strict=True)
    )


@pytest.mark.parametrize("far", [0, 2**33])
@given(episodes=EPISODES, split=st.booleans())
def test_every_transition_is_listed_with_its_rows(
    far: int, episodes: list[tuple[int, bool, bool, int, bool]], split: bool
) -> None:
    if not split:
        episodes = [(*episode[:3], 1, episode[4]) for episode in episodes]
    index = layout(episodes)
    offsets = {"a": far + 1000, "b": far, "c": far + 500}
    cached = {name: CachedBlock(start, 100, 0) for name, start in offsets.items()}
    kept = np.array([episode[4] for episode in episodes])
    expected, position, left_out = [], 0, 0
    for number, (length, terminated, present, block, is_kept) in enumerate(episodes):
        whole = has_transition(terminated, "present" if present else "missing")
        start = offsets["abc"[block]] + int(index.row_start[number])
        if is_kept:
            left_out += not whole
            expected += [
                (start + t, position + t, f"e{number}") for t in range(length - (not whole))
            ]
        position += length + 1
    made = transition_index(index, cached, kept)
    assert found(made) == expected
    assert made.left_out == left_out
    if kept.all():
        assert found(transition_index(index, cached)) == expected
