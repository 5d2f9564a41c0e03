"""What was annotated reaches batches: relabelled rewards, masks, the steps that are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.store.store import Store
from pipeline.stream.loader import Stream
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError
from tests.stream.conftest import made_episode
from tests.stream.test_loader import all_rows, stream

MakeStore = Callable[[list[Episode]], Store]


@pytest.fixture
def five(make_store: MakeStore) -> Store:
    """Five episodes of 10 to 14 steps whose values tell where they are."""
    ends = ("terminated", "truncated", "lost", "terminated", "terminated")
    return make_store([made_episode(n, 10 + n, ends=ends[n]) for n in range(5)])


def steps_of(rows: dict[str, np.ndarray], number: int) -> list[int]:
    at = rows["observations"][:, 0].astype(int)
    return sorted({int(step) % 1000 for step in at[at // 1000 == number]})


def test_transitions_outside_the_kept_steps_are_never_drawn(five: Store) -> None:
    whole = five.version()
    starts, stops = [0, 3, 5, None, 20], [4, 7, None, 0, None]
    ids = [f"e{n}" for n in range(5)]
    made = whole.annotate(pa.table({"episode_id": ids, "keep_start": starts, "keep_stop": stops}))
    rows = all_rows(made, episode_ids=True)
    assert steps_of(rows, 0) == [0, 1, 2, 3]
    assert steps_of(rows, 1) == [3, 4, 5, 6]
    assert steps_of(rows, 2) == list(range(5, 11)), "its last step's next observation was lost"
    assert steps_of(rows, 3) == steps_of(rows, 4) == []
    np.testing.assert_array_equal(rows["next_observations"][:, 0], rows["observations"][:, 0] + 1)
    at = rows["observations"][:, 0].astype(int)
    starts_at = np.cumsum([0, 11, 12, 12])
    np.testing.assert_array_equal(rows["indices"], starts_at[at // 1000] + at % 1000)
    assert set(rows["episode_ids"]) == {"e0", "e1", "e2"}
    assert not rows["terminated"].any(), "no kept step ends its episode"
    made_stream = stream(made, batch_size=4)
    assert made_stream.transitions == 14
    assert "45 more outside the steps that are kept" in made_stream.describe()
    assert stream(whole, batch_size=4).transitions == 59


def test_relabelled_rewards_and_old_ones_share_a_cache_and_never_mix(five: Store) -> None:
    old = five.version()
    before = all_rows(old)
    relabelled = old.annotate_steps("rewards", {"e1": np.full(11, -5.0), "e3": np.full(13, -7.0)})
    chosen = relabelled.where("length < 12").commit(branch="few")
    newer = relabelled.annotate_steps("rewards", {"e1": np.full(11, -9.0)})
    for version, wanted in (
        (chosen, {1: -5.0}),
        (newer, {1: -9.0, 3: -7.0}),
        (relabelled, {1: -5.0, 3: -7.0}),
        (old, {}),
    ):
        rows = all_rows(version)
        at = rows["observations"][:, 0]
        expected = np.array([wanted.get(int(n) // 1000, n + 0.75) for n in at], np.float32)
        np.testing.assert_array_equal(rows["rewards"], expected)
        assert "rewards_mask" not in rows
    np.testing.assert_array_equal(all_rows(old)["rewards"], before["rewards"])
    assert "rewards" in stream(newer, batch_size=4).describe()


def test_a_stream_follows_to_relabelled_rewards(five: Store) -> None:
    made = stream(five.version(), batch_size=64)
    next(made)
    five.version().annotate_steps("rewards", {f"e{n}": np.full(10 + n, 3.0) for n in range(5)})
    made.follow("main")
    assert (next(made)["rewards"] == 3).all()
    state = made.state_dict()
    again = stream(five.version(), batch_size=64)
    again.load_state_dict(state)
    np.testing.assert_array_equal(next(again)["indices"], next(made)["indices"])


def test_rewards_of_episodes_that_had_none(make_store: MakeStore) -> None:
    bare = [made_episode(n, 10).replace(rewards=None) for n in range(3)]
    store = make_store(bare)
    some = store.version().annotate_steps("rewards", {"e0": np.ones(10), "e1": np.ones(10)})
    rows = all_rows(some)
    has = rows["observations"][:, 0] < 2000
    np.testing.assert_array_equal(rows["rewards_mask"], has.astype(np.float32))
    assert (rows["rewards"][has] == 1).all()
    assert np.isnan(rows["rewards"][~has]).all()
    every = some.annotate_steps("rewards", {"e2": np.zeros(10)})
    rows = all_rows(every)
    assert "rewards_mask" not in rows
    assert rows["rewards"].dtype == np.float32
    with pytest.raises(UsageError, match="same fields"):
        following(some).follow(store.version("main:1"))


def following(version: Any) -> Stream:
    return stream(version, batch_size=4)


def test_other_arrays_come_where_they_are_asked_for(five: Store) -> None:
    masks = {f"e{n}": np.arange(10 + n) % 2 == 0 for n in range(5)}
    made = five.version().annotate_steps("keep_mask", masks)
    fields = ["observations", "extras/keep_mask"]
    assert "extras" not in next(stream(made, batch_size=4))
    rows = all_rows_of(made, fields)
    np.testing.assert_array_equal(rows["mask"], rows["at"] % 2 == 0)
    with pytest.raises(UnknownNameError, match="keep_mask"):
        stream(five.version("main:1"), fields=fields)
    few = five.version("main:1").annotate_steps("m", {"e0": np.ones(10)}, branch="few")
    with pytest.raises(UsageError, match="4 of 5 have not"):
        stream(few, fields=["extras/m"])


def all_rows_of(version: Any, fields: list[str]) -> dict[str, np.ndarray]:
    batch = next(stream(version, batch_size=512, fields=fields))
    at = batch["observations"][:, 0].astype(int) % 1000
    return {"at": at, "mask": batch["extras"]["keep_mask"]}
