"""Hypothesis strategies for nested spaces and for episodes with everything they may hold."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.episode import KINDS, Episode
from schemas.packed import Packed, Rows, Video

DTYPES = ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
ODD_KEYS = ("", "~", "/", "~0", "~1", "~2", "~3", "~21", "0", "1", "10", "²", "é", "a/b", "🙂")
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
SCALARS = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=True) | TEXTS


def arrays(rows: int) -> st.SearchStrategy[np.ndarray]:
    """Any dtype and row shape, empty axes and every bit pattern included."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    return st.builds(_bits, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32), st.just(rows))


def _bits(dtype: str, shape: tuple[int, ...], seed: int, rows: int) -> np.ndarray:
    """Random bits, so that NaN payloads and negative zeros are among the floats."""
    kind = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    size = (rows, *shape)
    if kind.kind == "b":
        return rng.random(size) < 0.5
    values = np.frombuffer(rng.bytes(int(np.prod(size)) * kind.itemsize), kind).reshape(size).copy()
    if kind.kind == "f" and values.size:
        values.reshape(-1)[0] = np.nan
    return values


def spaces(rows: int) -> st.SearchStrategy[Any]:
    """Nested Dict and Tuple spaces of arrays, under awkward keys."""
    keys = st.sampled_from(ODD_KEYS) | TEXTS
    return st.recursive(
        arrays(rows),
        lambda child: (
            st.dictionaries(keys, child, min_size=1, max_size=3)
            | st.lists(child, min_size=1, max_size=12).map(tuple)
        ),
        max_leaves=6,
    )


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    """Episodes of 0 to 6 steps."""
    steps = draw(st.integers(0, 6))
    final = draw(st.sampled_from(("present", "missing", "copied")))
    flags = st.none() | st.lists(st.booleans(), min_size=steps, max_size=steps)
    names = st.text(st.characters(codec="utf-8"), max_size=6)
    extras = draw(st.dictionaries(names, st.sampled_from((0, 1)), max_size=2))
    return Episode(
        episode_id=draw(TEXTS),
        observations=draw(spaces(steps + (final != "missing"))),
        actions=draw(st.none() | spaces(steps)),
        rewards=draw(st.none() | st.builds(_rewards, st.just(steps), st.integers(0, 99))),
        terminated=np.array(draw(flags) or [False] * steps, bool),
        truncated=np.array(draw(flags) or [False] * steps, bool),
        final_observation=final,
        extras={name: draw(arrays(steps + more)) for name, more in extras.items()},
        **draw(_facts()),
    )


def _rewards(steps: int, seed: int) -> np.ndarray:
    return _bits(("f4", "f8", "i8")[seed % 3], (), seed, steps)


def _facts() -> st.SearchStrategy[dict[str, Any]]:
    zones = st.sampled_from((dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30))))
    early, late = dt.datetime(1971, 1, 1), dt.datetime(2200, 1, 1)
    return st.fixed_dictionaries(
        {
            "task": st.none() | TEXTS,
            "kind": st.sampled_from(KINDS),
            "policy": st.none() | TEXTS,
            "policy_version": st.none() | TEXTS,
            "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
            "success": st.none() | st.booleans(),
            "fps": st.none() | st.floats(0.1, 1000) | st.integers(1, 100),
            "collected_at": st.none() | st.datetimes(early, late, timezones=zones),
            "columns": st.dictionaries(TEXTS, SCALARS | st.none(), max_size=3),
            "labels": st.dictionaries(TEXTS, SCALARS, max_size=2),
            "source": st.none() | TEXTS,
            "source_key": st.none() | TEXTS,
        }
    )


def same_array(one: Rows, two: Rows) -> bool:
    """True if dtype, shape and every bit are equal; encoded rows are compared as they are."""
    if isinstance(one, Packed) and isinstance(two, Packed):
        return one.spec == two.spec and list(one) == list(two)
    if isinstance(one, Video) and isinstance(two, Video):
        left, right = one[:], two[:]
        return (
            one.spec == two.spec
            and left.media == right.media
            and [media.load() for media in left.media] == [media.load() for media in right.media]
            and same_array(left.index, right.index)
            and same_array(left.timestamps, right.timestamps)
        )
    if not isinstance(one, np.ndarray) or not isinstance(two, np.ndarray):
        return False
    return (
        one.dtype == two.dtype
        and one.shape == two.shape
        and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(two).tobytes()
    )


def assert_same_episode(one: Episode, two: Episode) -> None:
    """Equal in every array, bit for bit, and in every fact."""
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        assert same_array(array, two.arrays[name]), name
    for name in ("terminated", "truncated"):
        assert same_array(getattr(one, name), getattr(two, name)), name
    for name in (
        *("episode_id", "final_observation", "task", "kind", "policy", "policy_version", "seed"),
        *("success", "collected_at", "fps", "source", "source_key"),
    ):
        left, right = getattr(one, name), getattr(two, name)
        if isinstance(left, dt.datetime):
            left, right = left.isoformat(), right.isoformat()
        assert repr(left) == repr(right), name
    for name in ("columns", "labels"):
        left, right = getattr(one, name), getattr(two, name)
        assert {k: repr(v) for k, v in left.items()} == {k: repr(v) for k, v in right.items()}
