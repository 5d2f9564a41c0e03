"""Windows, action chunks and stacked frames, against loops over episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.reader import Version
from pipeline.store.store import open_store
from schemas.errors import ConfigError, UsageError
from tests.stream.conftest import ENDS, made_episode
from tests.stream.references import Place, Reference, stream, take

LENGTHS = (1, 2, 3, 5, 8, 13, 1, 4, 30, 2, 6, 9)
KEEP = {4: (2, 6), 5: (0, 4), 8: (10, 40), 10: (3, 3)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, Version, str]:
    """Short episodes of all ends: as they are, with kept steps, and a folder for a cache."""
    folder: Path = tmp_path_factory.mktemp("windows")
    store = open_store(folder / "store", create=True)
    episodes = [made_episode(k, n, ends=ENDS[k % 3]) for k, n in enumerate(LENGTHS)]
    for start in (0, 6):
        store.append(episodes[start : start + 6])
    whole = store.version()
    labels = {
        "episode_id": [f"e{k}" for k in KEEP],
        "keep_start": [start for start, _ in KEEP.values()],
        "keep_stop": [stop for _, stop in KEEP.values()],
    }
    return whole, whole.annotate(pa.table(labels)), str(folder / "cache")


def reference(is_cut: bool) -> Reference:
    episodes = [made_episode(k, n, ends=ENDS[k % 3]) for k, n in enumerate(LENGTHS)]
    return Reference(episodes, KEEP if is_cut else None)


@settings(max_examples=60)
@given(
    window=st.none() | st.integers(1, 9),
    history=st.integers(0, 4),
    chunk=st.none() | st.integers(1, 5),
    stack=st.integers(1, 4),
    pad=st.sampled_from(["repeat", "zero", "none"]),
    is_cut=st.booleans(),
    seed=st.integers(0, 99),
)
def test_windows_hold_the_steps_of_one_episode(
    made: tuple[Version, Version, str],
    window: int | None,
    history: int,
    chunk: int | None,
    stack: int,
    pad: str,
    is_cut: bool,
    seed: int,
) -> None:
    has_steps = window is not None or history > 0
    if not (has_steps or chunk or stack > 1) or (pad == "zero" and stack > 1 and has_steps):
        return
    known = reference(is_cut)
    before, after = history + stack - 1, (window or 1) + (chunk or 1) - 1
    fitting = [
        place
        for place in known.places()
        if pad != "none"
        or (
            place.t - before >= known.steps(place.episode)[0]
            and place.t + after <= known.steps(place.episode)[1]
        )
    ]
    form = {"window": window, "history": history, "action_chunk": chunk, "frame_stack": stack}
    made_stream = (
        stream(
            made[is_cut],
            sampler="window",
            pad=pad,
            seed=seed,
            batch_size=48,
            cache_dir=made[2],
            **form,
        )
        if fitting
        else None
    )
    if made_stream is None:
        with pytest.raises(UsageError, match="room for its window"):
            stream(made[is_cut], sampler="window", pad=pad, cache_dir=made[2], **form)
        return
    assert made_stream.transitions == len(fitting)
    batch = next(made_stream)
    for row, position in enumerate(batch["indices"].tolist()):
        anchor = known.place(position)
        assert anchor in fitting
        got = {name: values[row] for name, values in batch.items()}
        times = range(anchor.t - history, anchor.t + (window or 1)) if has_steps else [anchor.t]
        expected = [_step(known, anchor.episode, t, chunk, stack, pad) for t in times]
        for name in expected[0]:
            wanted = [step[name] for step in expected]
            _same(got[name], np.array(wanted if has_steps else wanted[0]), name, anchor)
    if has_steps:
        assert (batch["mask"].sum(axis=1) >= 1).all()


def _same(came: np.ndarray, wanted: np.ndarray, name: str, anchor: Place) -> None:
    np.testing.assert_array_equal(came, wanted.astype(came.dtype), err_msg=f"{name} at {anchor}")


def _step(
    known: Reference, episode: int, t: int, chunk: int | None, stack: int, pad: str
) -> dict[str, Any]:
    """What a batch says of one step, or of the padding in its place."""
    begin, stop = known.steps(episode)
    it = known.episodes[episode]

    def seen(at: int, is_padding: bool) -> np.ndarray:
        if is_padding and pad == "zero":
            return np.zeros(3, np.float32)
        return known.observation(Place(episode, min(max(at, begin), stop)))

    def acted(at: int) -> np.ndarray:
        if not begin <= at < stop and pad == "zero":
            return np.zeros(2, np.float32)
        return np.asarray(it.actions)[min(max(at, begin), stop - 1)]

    is_step = begin <= t < stop
    if stack > 1:
        now = [seen(at, at < begin) for at in range(t - stack + 1, t + 1)]
        following = [seen(at, at < begin) for at in range(t - stack + 2, t + 2)]
    else:
        now, following = seen(t, not is_step), seen(t + 1, not is_step)  # type: ignore[assignment]
    found = {
        "observations": now,
        "next_observations": following,
        "actions": acted(t) if chunk is None else [acted(at) for at in range(t, t + chunk)],
        "rewards": np.asarray(it.rewards)[t] if is_step else 0.0,
        "terminated": is_step and bool(it.terminated[t]),
        "truncated": is_step and bool(it.truncated[t]),
        "discounts": 0.99 if is_step and not it.terminated[t] else 0.0,
    }
    found["discounts"] = np.float32(found["discounts"])
    return found


def test_masks_say_which_steps_are_real(made: tuple[Version, Version, str]) -> None:
    version, _, cache = made
    known = reference(False)
    form = {"window": 4, "history": 2, "action_chunk": 3, "frame_stack": 2}
    batch = next(stream(version, sampler="window", batch_size=64, cache_dir=cache, **form))
    assert batch["mask"].shape == (64, 6)
    assert batch["action_chunk_mask"].shape == (64, 6, 3)
    assert batch["frame_stack_mask"].shape == (64, 6, 2)
    for row, position in enumerate(batch["indices"].tolist()):
        anchor = known.place(position)
        steps = range(*known.steps(anchor.episode))
        times = np.arange(anchor.t - 2, anchor.t + 4)
        is_step = np.isin(times, steps)
        np.testing.assert_array_equal(batch["mask"][row], is_step)
        chunks = np.isin(times[:, None] + np.arange(3), steps)
        np.testing.assert_array_equal(batch["action_chunk_mask"][row], chunks)
        frames = np.isin(times[:, None] + np.arange(-1, 1), steps)
        np.testing.assert_array_equal(batch["frame_stack_mask"][row], frames)
    alone = next(stream(version, sampler="window", action_chunk=3, batch_size=64, cache_dir=cache))
    assert alone["actions"].shape == (64, 3, 2)
    assert alone["rewards"].shape == (64,)
    assert alone["mask"].shape == (64, 3)


@pytest.mark.parametrize("sampler", ["episode", "weighted", "shuffle", "prioritised"])
def test_windows_go_with_other_samplers(made: tuple[Version, Version, str], sampler: str) -> None:
    more = {"weights": "length"} if sampler == "weighted" else {}
    made_stream = stream(
        made[0], sampler=sampler, window=3, batch_size=16, cache_dir=made[2], **more
    )
    batch = take(made_stream, 3)[-1]
    at = batch["observations"][..., 0]
    real = batch["mask"] == 1
    np.testing.assert_array_equal(at[real], (at[:, :1] + np.arange(3))[real])
    np.testing.assert_array_equal(batch["rewards"][real], at[real] + 0.75)


def test_windows_over_added_rewards_and_absent_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    silent = made_episode(1, 6).replace(rewards=None)
    store.append([made_episode(0, 5), silent])
    before = {"sampler": "window", "window": 4, "batch_size": 64, "cache_dir": str(tmp_path / "c")}
    batch = next(stream(store.version(), **before))
    is_silent = batch["indices"] >= 6
    real = batch["mask"] == 1
    np.testing.assert_array_equal(batch["rewards_mask"], real & ~is_silent[:, None])
    assert np.isnan(batch["rewards"][real & is_silent[:, None]]).all()
    assert (batch["rewards"][~real] == 0).all()
    added = store.version().annotate_steps("rewards", {"e1": np.arange(6.0)})
    batch = next(stream(added, **before))
    real = batch["mask"] == 1
    np.testing.assert_array_equal(batch["rewards_mask"], real)
    at = batch["observations"][..., 0]
    wanted = np.where(is_silent[:, None], at % 1000, at + 0.75)
    np.testing.assert_array_equal(batch["rewards"], np.where(real, wanted, 0).astype("f4"))


def test_torch_holds_windows(made: tuple[Version, Version, str]) -> None:
    pytest.importorskip("torch")
    form = {"window": 4, "action_chunk": 2, "frame_stack": 2, "batch_size": 8, "cache_dir": made[2]}
    theirs = next(stream(made[0], sampler="window", **form))
    mine = next(stream(made[0], sampler="window", framework="torch", **form))
    for name, values in theirs.items():
        np.testing.assert_array_equal(mine[name].numpy(), values)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sampler": "window"}, "needs window="),
        ({"window": 3}, "setting of the sampler 'window'"),
        ({"sampler": "window", "window": 3, "n_step": 2}, "n_step"),
        ({"sampler": "window", "window": 3, "frame_stack": 2, "pad": "zero"}, "stacked frames"),
        ({"sampler": "window", "window": 0}, "window"),
        ({"sampler": "window", "widow": 3}, "'window'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    made: tuple[Version, Version, str], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        stream(made[0], cache_dir=made[2], **wrong)


def test_the_description_says_what_a_window_is(made: tuple[Version, Version, str]) -> None:
    form = {"window": 4, "history": 2, "action_chunk": 3, "pad": "none", "cache_dir": made[2]}
    said = stream(made[0], sampler="window", **form).describe()
    for expected in ("2 steps before", "chunks of 3 actions", "window would leave the episode"):
        assert expected in said
