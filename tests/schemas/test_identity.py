"""A digest changes with the content, and with nothing else."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import identity
from schemas.episode import Episode
from schemas.identity import content_id, digest, hash64, native_id
from tests.strategies import TEXTS, episodes


def base(**changes: Any) -> Episode:
    arguments: dict[str, Any] = {
        "episode_id": "e",
        "observations": {"state": np.arange(8, dtype=np.float32).reshape(4, 2)},
        "actions": np.ones((3, 2), np.float32),
        "rewards": np.zeros(3, np.float32),
        "terminated": False,
        "truncated": True,
        "columns": {"x": 1},
        "extras": {"q": np.zeros(3)},
        **changes,
    }
    return Episode(**arguments)


@settings(max_examples=40)
@given(
    episode=episodes(),
    name=TEXTS,
    source=st.none() | TEXTS,
    key=st.none() | TEXTS,
    labels=st.dictionaries(TEXTS, st.booleans(), max_size=2),
)
def test_digest_ignores_where_it_was_read(
    episode: Episode, name: str, source: str | None, key: str | None, labels: dict[str, bool]
) -> None:
    elsewhere = episode.replace(episode_id=name, source=source, source_key=key, labels=labels)
    assert digest(elsewhere) == digest(episode)


CHANGES: dict[str, dict[str, Any]] = {
    "dtype of an observation": {"observations": {"state": np.arange(8.0).reshape(4, 2)}},
    "name of an observation": {
        "observations": {"pose": np.arange(8, dtype=np.float32).reshape(4, 2)}
    },
    "bare observation": {"observations": np.arange(8, dtype=np.float32).reshape(4, 2)},
    "shape of an observation": {
        "observations": {"state": np.arange(8, dtype=np.float32).reshape(4, 2, 1)}
    },
    "dtype of actions, same bytes": {"actions": np.ones((3, 2), np.float32).view(np.int32)},
    "no actions": {"actions": None},
    "nested actions": {"actions": {"a": np.ones((3, 2), np.float32)}},
    "no rewards": {"rewards": None},
    "negative zero": {"rewards": np.array([-0.0, 0, 0], np.float32)},
    "terminated": {"terminated": True},
    "not truncated": {"truncated": False},
    "copied": {"final_observation": "copied"},
    "task": {"task": ""},
    "kind": {"kind": "rollout"},
    "policy": {"policy": "p"},
    "policy_version": {"policy_version": "1"},
    "seed": {"seed": 0},
    "success": {"success": False},
    "collected_at": {"collected_at": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)},
    "fps": {"fps": 30.0},
    "column value": {"columns": {"x": 2}},
    "column type": {"columns": {"x": "1"}},
    "no column": {"columns": {}},
    "extra value": {"extras": {"q": np.ones(3)}},
    "extra rows": {"extras": {"q": np.zeros(4)}},
    "extra name": {"extras": {"p": np.zeros(3)}},
}


def test_digest_depends_on_every_part() -> None:
    digests = {name: digest(base(**change)) for name, change in CHANGES.items()}
    digests["base"] = digest(base())
    assert len(set(digests.values())) == len(digests)


@given(bit=st.integers(0, 8 * 32 - 1))
def test_digest_depends_on_every_bit(bit: int) -> None:
    state = np.arange(8, dtype=np.float32).reshape(4, 2)
    state.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
    assert digest(base(observations={"state": state})) != digest(base())


def test_digest_ignores_memory_order_and_byte_order() -> None:
    state = np.arange(8, dtype=np.float32).reshape(4, 2)
    for other in (np.asfortranarray(state), state.astype(">f4"), np.repeat(state, 2, 0)[::2]):
        assert digest(base(observations={"state": other})) == digest(base())


def test_digest_is_frozen() -> None:
    # Stores hold digests: this number must never change.
    assert digest(base()).startswith("5c6d4b9d6eb75a0e")


def test_ids() -> None:
    assert content_id("ab", 2) == "c-ab-2"
    assert native_id("hopper/medium-v0", "7") == "hopper/medium-v0/7"


@pytest.mark.parametrize(
    ("text", "value"), [("", 0xB4B2797457A0A6E4), ("hopper/0", 0x81D620E42BA8AE75)]
)
def test_hashes_are_frozen(text: str, value: int) -> None:
    assert hash64(text) == value


def test_large_and_small_contents_are_hashed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the bytes are handed to the hash, in whatever pieces, the digest is the same."""
    ones = [base(actions=np.ones((3, size), np.float32)) for size in (1, 200, 2_000, 20_000)]
    expected = [digest(one) for one in ones]
    for most, piece in ((0, 1), (1 << 30, 7), (1 << 30, 1 << 30)):
        monkeypatch.setattr(identity, "JOINED_BYTES", most)
        monkeypatch.setattr(identity, "UNSHARED_BYTES", piece)
        assert [digest(one) for one in ones] == expected
