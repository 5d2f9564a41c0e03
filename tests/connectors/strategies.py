"""Hypothesis strategies: small datasets of one spec, with everything an episode may hold."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
from hypothesis import strategies as st

from schemas.episode import Episode

DTYPES = ("?", "u1", "i2", "i8", "f2", "f4", "f8")
SHAPES = ((), (1,), (3,), (2, 2))
ENDS = ("terminated", "truncated", "both", "neither")
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


def fill(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values; floats have NaN, infinities and negative zero among them."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        return rng.integers(bounds.min, bounds.max, shape, kind, endpoint=True)
    values = rng.normal(size=shape).astype(kind)
    special = np.array([np.nan, np.inf, -np.inf, -0.0], kind)
    return np.where(rng.random(shape) < 0.1, rng.choice(special, shape), values).astype(kind)


@st.composite
def datasets(draw: st.DrawFn, *, is_nested: bool) -> list[Episode]:
    """A list of episodes of one spec."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    fields = st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES))
    names = ["observations"]
    if is_nested and draw(st.booleans()):
        names = draw(
            st.sampled_from(
                (
                    ["observations/state", "observations/goal/x"],
                    ["observations/0", "observations/1"],
                )
            )
        )
    spec = {name: draw(fields) for name in (*names, "actions")}
    rewards = draw(st.sampled_from(("f4", "f8", "i8")))
    extras = {name: (*draw(fields), draw(st.booleans())) for name in draw(_extra_names())}
    count = draw(st.integers(1, 4))
    return [
        _episode(rng, spec, rewards, extras, draw(st.integers(2, 9)), draw(_facts()))
        for _ in range(count)
    ]


def _extra_names() -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(["qpos", "contact/force", "t"]), unique=True, max_size=2)


def _facts() -> st.SearchStrategy[dict[str, Any]]:
    scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXTS
    return st.fixed_dictionaries(
        {
            "end": st.sampled_from(ENDS),
            "final_observation": st.sampled_from(("present", "copied", "missing")),
            "task": st.none() | TEXTS,
            "kind": st.sampled_from(("demonstration", "rollout", "synthetic")),
            "policy": st.none() | TEXTS,
            "policy_version": st.none() | TEXTS,
            "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
            "success": st.none() | st.booleans(),
            "fps": st.none() | st.floats(0.1, 1000),
            "collected_at": st.none()
            | st.datetimes(
                dt.datetime(1990, 1, 1),
                dt.datetime(2100, 1, 1),
                timezones=st.just(dt.UTC),
            ),
            "columns": st.dictionaries(st.sampled_from(("operator", "sigma", "x")), scalars),
        }
    )


def _episode(
    rng: np.random.Generator,
    spec: dict[str, tuple[str, tuple[int, ...]]],
    rewards: str,
    extras: dict[str, tuple[str, tuple[int, ...], bool]],
    steps: int,
    facts: dict[str, Any],
) -> Episode:
    facts = dict(facts)
    end = facts.pop("end")
    rows = steps + (facts["final_observation"] != "missing")
    observations = {
        name: fill(rng, dtype, (rows, *shape))
        for name, (dtype, shape) in spec.items()
        if name != "actions"
    }
    for array in observations.values():
        if facts["final_observation"] == "copied":
            array[-1] = array[-2]
        elif facts["final_observation"] == "present":
            _differ(array)
    dtype, shape = spec["actions"]
    return Episode(
        episode_id="",
        observations=observations,
        actions=fill(rng, dtype, (steps, *shape)),
        rewards=fill(rng, rewards, (steps,)),
        terminated=(np.arange(steps) == steps - 1) & (end in ("terminated", "both")),
        truncated=(np.arange(steps) == steps - 1) & (end in ("truncated", "both")),
        extras={
            name: fill(rng, dtype, (steps + full, *shape))
            for name, (dtype, shape, full) in extras.items()
        },
        **facts,
    )


def _differ(array: np.ndarray) -> None:
    """Makes the final observation differ from the one before it."""
    array[-1] = ~array[-2] if array.dtype.kind == "b" else 1
    if array.dtype.kind != "b":
        array[-2] = 0
