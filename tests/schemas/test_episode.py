"""What an episode accepts, what it refuses and with which code."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest

from schemas.episode import Episode, has_transition
from schemas.errors import EpisodeError


def make(steps: int = 3, **changes: Any) -> Episode:
    arguments: dict[str, Any] = {
        "episode_id": "e",
        "observations": {"observations": np.zeros((steps + 1, 2), np.float32)},
        "actions": np.zeros((steps, 1)),
        "rewards": np.arange(steps, dtype=np.float32),
        **changes,
    }
    return Episode(**arguments)


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("short observations", {"observations": {"a": np.zeros((2, 2))}}, "length_mismatch"),
    ("long observations", {"observations": {"a": np.zeros((5, 2))}}, "length_mismatch"),
    (
        "unlike observations",
        {"observations": {"a": np.zeros(4), "b": np.zeros(3)}},
        "length_mismatch",
    ),
    ("no observations", {"observations": {}}, "length_mismatch"),
    ("missing final, T+1 rows", {"final_observation": "missing"}, "length_mismatch"),
    (
        "present final, T rows",
        {"observations": {"a": np.zeros(3)}, "final_observation": "present"},
        "length_mismatch",
    ),
    ("short rewards", {"rewards": np.zeros(2)}, "length_mismatch"),
    ("rewards of two dims", {"rewards": np.zeros((3, 1))}, "length_mismatch"),
    ("unlike actions", {"actions": {"a": np.zeros((3, 1)), "b": np.zeros(2)}}, "length_mismatch"),
    ("scalar action", {"actions": np.float32(1)}, "length_mismatch"),
    ("short flags", {"terminated": np.zeros(2, bool)}, "length_mismatch"),
    ("flags of two dims", {"truncated": np.zeros((3, 1), bool)}, "length_mismatch"),
    ("flags beyond 0 and 1", {"terminated": np.array([0, 0, 2])}, "bad_dtype"),
    ("short extra", {"extras": {"x": np.zeros(2)}}, "length_mismatch"),
    ("text", {"actions": np.array(["a", "b", "c"])}, "bad_dtype"),
    ("objects", {"observations": {"a": np.array([None] * 4)}}, "bad_dtype"),
    ("ragged rows", {"actions": [[1.0], [1.0, 2.0], [3.0]]}, "bad_dtype"),
    ("complex", {"rewards": np.zeros(3, complex)}, "bad_dtype"),
    ("long double", {"rewards": np.zeros(3, np.longdouble)}, "bad_dtype"),
    ("dates", {"extras": {"t": np.zeros(3, "datetime64[s]")}}, "bad_dtype"),
    ("unknown kind", {"kind": "expert"}, "bad_dtype"),
    ("unknown final", {"final_observation": "lost"}, "bad_dtype"),
    ("large seed", {"seed": 2**63}, "bad_dtype"),
    ("text seed", {"seed": "7"}, "bad_dtype"),
    ("success beyond 0 and 1", {"success": 0.5}, "bad_dtype"),
    ("a list as a column", {"columns": {"x": [1, 2]}}, "bad_dtype"),
    ("half a surrogate pair", {"task": "\ud800"}, "bad_dtype"),
]


@pytest.mark.parametrize(("changes", "code"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults_have_codes(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(EpisodeError) as caught:
        make(**changes)
    assert caught.value.code == code
    assert caught.value.where


def test_the_faulty_field_is_named() -> None:
    with pytest.raises(EpisodeError, match=r"observations/camera.*object"):
        make(observations={"camera": np.array([None] * 4)})
    with pytest.raises(EpisodeError, match="rewards with 3 rows"):
        make(rewards=np.zeros(5))


def test_final_observation_is_told_from_the_lengths() -> None:
    assert make().final_observation == "present"
    assert make(observations=np.zeros((3, 2))).final_observation == "missing"
    assert make(final_observation="copied").final_observation == "copied"
    alone = Episode("e", np.zeros((4, 2)))
    assert (alone.length, alone.final_observation) == (3, "present")
    lost = Episode("e", np.zeros((4, 2)), final_observation="missing")
    assert lost.length == 4


@pytest.mark.parametrize(
    ("observations", "names"),
    [
        (np.zeros(4), ["observations"]),
        ({"observations": np.zeros(4)}, ["observations"]),
        ({"state": np.zeros(4)}, ["observations/state"]),
        ({"observations/state": np.zeros(4)}, ["observations/state"]),
        ({"a": {"b": (np.zeros(4), np.zeros(4))}}, ["observations/a/b/0", "observations/a/b/1"]),
    ],
)
def test_names_of_observations(observations: Any, names: list[str]) -> None:
    assert list(make(observations=observations).observations) == names


def test_plain_flags_speak_of_the_last_step() -> None:
    episode = make(terminated=True)
    np.testing.assert_array_equal(episode.terminated, [False, False, True])
    assert episode.is_terminated
    assert not episode.is_truncated
    np.testing.assert_array_equal(make(truncated=[0, 1.0, 0]).truncated, [False, True, False])


def test_episodes_of_no_step_and_one_step() -> None:
    empty = Episode("e", np.zeros((1, 2)))
    assert empty.length == 0
    assert not empty.is_terminated
    assert empty.replace(rewards=np.zeros(0)).episode_return == 0.0
    one = Episode("e", np.zeros((2, 2)), np.zeros((1, 1)), np.ones(1), terminated=True)
    assert one.length == 1
    assert one.is_terminated


def test_return_is_a_float64_sum() -> None:
    rewards = np.full(10_000_000 // 100, 0.1, np.float32)
    episode = Episode("e", np.zeros(len(rewards) + 1), rewards=rewards)
    assert episode.episode_return == pytest.approx(len(rewards) * float(np.float32(0.1)), rel=1e-12)
    assert make(rewards=None).episode_return is None


def test_facts_are_plain_values() -> None:
    episode = make(
        seed=np.int64(3),
        success=np.bool_(True),
        fps=20,
        columns={"n": np.int32(4), "x": np.float64(0.5), "none": None},
        collected_at=dt.datetime(2024, 5, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    )
    assert (type(episode.seed), type(episode.success), type(episode.fps)) == (int, bool, float)
    assert episode.columns == {"n": 4, "x": 0.5}
    assert type(episode.columns["n"]) is int
    assert episode.collected_at == dt.datetime(2024, 5, 1, 10, tzinfo=dt.UTC)
    assert episode.collected_at.tzinfo is dt.UTC
    naive = make(collected_at=dt.datetime(2024, 5, 1, 12))
    assert naive.collected_at == dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


def test_foreign_byte_order_becomes_ours() -> None:
    big = np.arange(3, dtype=">f4")
    rewards = make(rewards=big).rewards
    assert rewards is not None
    assert rewards.dtype.isnative
    np.testing.assert_array_equal(rewards, [0, 1, 2])


@pytest.mark.parametrize(
    ("terminated", "final", "expected"),
    [
        (True, "present", True),
        (True, "missing", True),
        (True, "copied", True),
        (False, "present", True),
        (False, "missing", False),
        (False, "copied", False),
    ],
)
def test_last_transition(terminated: bool, final: str, expected: bool) -> None:
    assert has_transition(terminated, final) is expected
