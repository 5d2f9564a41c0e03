"""Fields that are scaled and images that are cut: the numbers meant, the same in any batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.jobs.summary import field_stats
from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store
from pipeline.stream.images import taps
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from pipeline.stream.transforms import FLOORS, shift_and_scale
from schemas.episode import Episode
from schemas.errors import ConfigError, PenstockError, UnknownNameError, UsageError
from schemas.transforms import FieldStatistics
from tests.stream.conftest import ENDS, made_episode, made_episodes
from tests.stream.references import sha_of_rows, stream, take

PIXELS = "observations/camera/rgb"
STATE = "observations/state"


def seen_episode(number: int, length: int) -> Episode:
    """An episode with pictures, in a nested observation, and states of which one never moves."""
    random = np.random.default_rng(number)
    return Episode(
        episode_id=f"p{number}",
        observations={
            "camera": {"rgb": random.integers(0, 256, (length + 1, 12, 10, 3), np.uint8)},
            "state": np.concatenate(
                [random.normal(3, 7, (length + 1, 4)), np.full((length + 1, 1), 5.0)], axis=1
            ),
        },
        actions=random.uniform(-2, 6, (length, 2)).astype(np.float32),
        rewards=random.normal(size=length),
        terminated=number % 2 == 0,
        truncated=number % 2 == 1,
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, str]:
    """A version with pictures, in two blocks, and its cache."""
    folder: Path = tmp_path_factory.mktemp("seen")
    store = open_store(folder / "store", create=True)
    for start in (0, 4):
        store.append(seen_episode(k, 9 + k) for k in range(start, start + 4))
    return store.version(), str(folder / "cache")


def pixels(batch: Any, name: str = "observations") -> Any:
    return batch[name]["camera"]["rgb"]


def both(seen: tuple[Version, str], **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same batch as it was drawn, and transformed."""
    version, cache = seen
    form: dict[str, Any] = {"batch_size": 16, "seed": 3, "cache_dir": cache}
    plain = {k: v for k, v in settings.items() if k not in ("normalize", "images", "statistics")}
    return next(stream(version, **form, **plain)), next(stream(version, **form, **settings))


# -- scaling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "range"])
def test_fields_are_scaled_by_the_statistics_that_are_shown(
    seen: tuple[Version, str], kind: str
) -> None:
    version, _ = seen
    drawn, scaled = both(seen, normalize={STATE: kind, "actions": kind})
    known = field_stats(version)
    for name, before, after in (
        (STATE, drawn["observations"]["state"], scaled["observations"]["state"]),
        (STATE, drawn["next_observations"]["state"], scaled["next_observations"]["state"]),
        ("actions", drawn["actions"], scaled["actions"]),
    ):
        mine = {key: np.array(values) for key, values in known[name].items() if key != "count"}
        if kind == "standard":
            meant = (before - mine["mean"]) / np.maximum(mine["std"], 1e-3)
        else:
            span = np.maximum(mine["max"] - mine["min"], 2e-6)
            meant = 2 * (before - (mine["min"] + mine["max"]) / 2) / span
            assert np.abs(after).max() <= 1 + 1e-6
        assert after.dtype == np.float32
        np.testing.assert_allclose(after, meant, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scaled["rewards"], drawn["rewards"])
    np.testing.assert_array_equal(pixels(scaled), pixels(drawn))


def test_constants_stay_finite() -> None:
    one = FieldStatistics(count=3, mean=(5.0,), std=(0.0,), min=(5.0,), max=(5.0,))
    for kind in FLOORS:
        shift, scale = shift_and_scale(one, kind, (1,), "float32")
        assert ((np.float32(5) - shift) / scale).tolist() == [0]


def test_a_row_of_many_values_has_one_number(seen: tuple[Version, str]) -> None:
    version, cache = seen
    made = stream(version, cache_dir=cache, normalize={PIXELS: "standard"})
    told = made.state_dict()["statistics"][PIXELS]
    known = field_stats(version)[PIXELS]
    assert told["count"] == known["count"]
    assert len(told["mean"]) == 1
    assert told["mean"] == pytest.approx(known["mean"])
    assert told["std"] == pytest.approx(known["std"])
    assert pixels(next(made)).dtype == np.float32


def test_statistics_stay_while_the_data_grow(store: Store) -> None:
    first = store.version()
    settings: dict[str, Any] = {"normalize": {"observations": "standard"}, "batch_size": 8}
    made = stream(first, **settings)
    told = made.state_dict()["statistics"]
    assert told["observations"]["version"] == first.id
    store.append(made_episodes(range(100, 120), seed=5))
    made.follow("main")
    take(made, 3)
    state = json.loads(json.dumps(made.state_dict()))
    assert state["statistics"] == told
    # A stream of the newer version has others, until it loads the state.
    again = stream(store.version(), **settings)
    assert again.state_dict()["statistics"] != told
    again.load_state_dict(state)
    assert again.state_dict() == state
    np.testing.assert_array_equal(next(again)["observations"], next(made)["observations"])


def test_statistics_of_another_version_are_taken_as_they_are(store: Store) -> None:
    settings: dict[str, Any] = {"normalize": {"observations": "range"}, "batch_size": 8}
    before = stream(store.version(), **settings).state_dict()["statistics"]
    store.append(made_episodes(range(100, 120), seed=5))
    fixed = stream(store.version(), **settings, statistics=before)
    assert fixed.state_dict()["statistics"] == before
    with pytest.raises(ConfigError, match="settings"):
        stream(store.version(), **settings).load_state_dict(fixed.state_dict())


def test_a_mixture_scales_all_rows_alike(store: Store, make_store: Callable[..., Store]) -> None:
    other = make_store([made_episode(50 + k, 6, ends=ENDS[k % 3]) for k in range(5)])
    form: dict[str, Any] = {"normalize": {"observations": "standard"}}
    sources = [(stream(one.version(), **form), 1.0) for one in (store, other)]
    mixture = Mixture(sources, batch_size=32)
    rows = [
        episode.observations["observations"]
        for one in (store, other)
        for episode in one.version().iter_episodes()
    ]
    values = np.concatenate(rows)
    told = mixture.state_dict()["statistics"]["observations"]
    np.testing.assert_allclose(told["mean"], values.mean(axis=0))
    np.testing.assert_allclose(told["std"], values.std(axis=0))
    plain = Mixture([(stream(one.version()), 1.0) for one in (store, other)], batch_size=32)
    meant = (next(plain)["observations"] - values.mean(axis=0)) / values.std(axis=0)
    np.testing.assert_allclose(next(mixture)["observations"], meant, atol=1e-5)
    assert "Normalised: observations" in mixture.describe()


# -- images ---------------------------------------------------------------------------------------


def test_images_are_cut_scaled_and_turned(seen: tuple[Version, str]) -> None:
    image = {"crop": (8, 6), "scale": True, "to_layout": "chw"}
    drawn, cut = both(seen, images={PIXELS: image})
    meant = np.moveaxis(pixels(drawn)[:, 2:10, 2:8] / np.float32(255), -1, 1)
    np.testing.assert_array_equal(pixels(cut), meant)
    assert pixels(cut).shape == (16, 3, 8, 6)
    assert pixels(cut).dtype == np.float32
    assert pixels(cut, "next_observations").shape == (16, 3, 8, 6)


@pytest.mark.parametrize("image", [{"shift": 3}, {"crop": (7, 5), "crop_at": "random"}])
def test_rows_are_moved_at_random_and_each_place_comes(
    seen: tuple[Version, str], image: dict[str, Any]
) -> None:
    version, cache = seen
    form: dict[str, Any] = {"batch_size": 64, "cache_dir": cache}
    moved = stream(version, **form, images={PIXELS: image})
    plain = stream(version, **form)
    shift = image.get("shift", 0)
    h, w = image.get("crop", (12, 10))
    places: list[tuple[int, int]] = []
    apart = 0
    for before, after in zip(take(plain, 12), take(moved, 12), strict=True):
        found = {}
        for name in ("observations", "next_observations"):
            edge = ((0, 0), (shift, shift), (shift, shift), (0, 0))
            padded = np.pad(pixels(before, name), edge, mode="edge")
            found[name] = [
                [
                    (y, x)
                    for y in range(padded.shape[1] - h + 1)
                    for x in range(padded.shape[2] - w + 1)
                    if (padded[row, y : y + h, x : x + w] == pixels(after, name)[row]).all()
                ]
                for row in range(64)
            ]
            assert all(found[name])
        places += [one[0] for one in found["observations"]]
        apart += sum(a != b for a, b in zip(*found.values(), strict=True))
    count = (2 * shift + 1) ** 2 if shift else (12 - h + 1) * (10 - w + 1)
    assert len(set(places)) == count
    assert apart > 0.9 * len(places)  # an observation and the next one are moved apart


def test_frames_of_a_window_move_together(seen: tuple[Version, str]) -> None:
    drawn, moved = both(
        seen, sampler="window", window=3, frame_stack=2, images={PIXELS: {"shift": 2}}
    )
    edge = ((0, 0),) * 3 + ((2, 2), (2, 2), (0, 0))
    padded = np.pad(pixels(drawn), edge, mode="edge")
    for row, found in enumerate(pixels(moved)):
        assert any(
            (padded[row, :, :, y : y + 12, x : x + 10] == found).all()
            for y in range(5)
            for x in range(5)
        )


@pytest.mark.parametrize(("before", "after"), [(12, 5), (10, 7), (5, 9), (8, 4), (64, 1)])
def test_resizing_is_torchs_own_antialiased_filter(before: int, after: int) -> None:
    line = np.random.default_rng(0).uniform(0, 255, before)
    places, weights = taps(before, after)
    mine = (line[places] * weights).sum(axis=0)
    image = torch.from_numpy(line)[None, None, None].expand(1, 1, 3, before)
    theirs = torch.nn.functional.interpolate(
        image, (3, after), mode="bilinear", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(mine, theirs[0, 0, 0].numpy(), rtol=1e-6)


EVERYTHING: dict[str, Any] = {
    "normalize": {STATE: "standard", "actions": "range"},
    "images": {
        PIXELS: {"resize": (9, 8), "crop": (6, 7), "crop_at": "random", "scale": True}
        | {"to_layout": "chw"}
    },
}


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for n, t in tree.items() for k, v in leaves(t, f"{name}/{n}").items()}
    return {name: tree}


def test_torch_makes_the_same_numbers(seen: tuple[Version, str]) -> None:
    version, cache = seen
    for more in (EVERYTHING, {"images": {PIXELS: {"shift": 4}}, "dtype": "float64"}):
        form = {**more, "batch_size": 16, "cache_dir": cache}
        pairs = zip(take(stream(version, **form), 3), take(Stream(version, **form), 3), strict=True)
        for mine, theirs in pairs:
            other = leaves(theirs)
            for name, array in leaves(mine).items():
                assert other[name].numpy().dtype == array.dtype
                np.testing.assert_allclose(other[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_any_split_and_resume_makes_the_same_bits(
    seen: tuple[Version, str], framework: str
) -> None:
    version, cache = seen
    form = {**EVERYTHING, "batch_size": 24, "cache_dir": cache, "framework": framework}

    def flat(one: Stream, steps: int) -> Any:
        for batch in take(one, steps):
            yield {name: np.asarray(array) for name, array in leaves(batch).items()}

    names = [
        f"/{root}/{leaf}"
        for root in ("observations", "next_observations")
        for leaf in ("camera/rgb", "state")
    ]
    whole = sha_of_rows([flat(stream(version, **form), 8)], 8, names)
    for world_size in (2, 5):
        ranks = [
            flat(stream(version, **form, rank=rank, world_size=world_size), 8)
            for rank in range(world_size)
        ]
        assert sha_of_rows(ranks, 8, names) == whole
    first = stream(version, **form)
    head = list(flat(first, 3))
    again = stream(version, **form)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert sha_of_rows([iter([*head, *flat(again, 5)])], 8, names) == whole


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"normalize": {"observations/stat": "standard"}}, UnknownNameError, "observations/state"),
        ({"normalize": {"rewards": "standard"}}, ConfigError, "rewards"),
        ({"normalize": {STATE: "minmax"}}, ConfigError, "normalize"),
        ({"normalize": {"terminated": "range"}}, UnknownNameError, "terminated"),
        ({"statistics": {}, "normalize": {STATE: "range"}}, ConfigError, "statistics="),
        ({"images": {STATE: {"crop": (2, 2)}}}, ConfigError, "2 or 3 axes"),
        ({"images": {PIXELS: {"crop": (13, 4)}}}, ConfigError, "12 x 10"),
        ({"images": {PIXELS: {"crop": (0, 4)}}}, ConfigError, "0 pixels"),
        ({"images": {PIXELS: {"resize": (10**6, 4)}}}, ConfigError, "1000000 pixels"),
        ({"images": {PIXELS: {"crop_at": "random"}}}, ConfigError, "crop="),
        (
            {"images": {PIXELS: {"crop": (4, 4), "crop_at": "random", "shift": 2}}},
            ConfigError,
            "random crop",
        ),
        ({"images": {PIXELS: {"scale": True}}, "normalize": {PIXELS: "range"}}, ConfigError, "one"),
        ({"images": {PIXELS: {"blur": 1}}}, ConfigError, "blur"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    seen: tuple[Version, str], settings: dict[str, Any], error: type[PenstockError], said: str
) -> None:
    version, cache = seen
    with pytest.raises(error, match=said):
        stream(version, cache_dir=cache, **settings)


def test_values_that_are_no_numbers_are_refused(make_store: Callable[..., Store]) -> None:
    one = made_episode(0, 5)
    broken = Episode(
        episode_id="nan",
        observations={"observations": np.full((6, 3), np.nan)},
        actions=one.actions,
        rewards=one.rewards,
        terminated=True,
        truncated=False,
    )
    made = stream(make_store([one, broken]).version(), normalize={"observations": "standard"})
    with pytest.raises(UsageError, match="finite"):
        next(made)


def test_states_without_statistics_are_refused(seen: tuple[Version, str]) -> None:
    version, cache = seen
    made = stream(version, cache_dir=cache, normalize={STATE: "range"})
    state = made.state_dict()
    for wrong in ({}, {STATE: {}}, {STATE: {**state["statistics"][STATE], "mean": [1, 2]}}, 3):
        with pytest.raises(ConfigError):
            made.load_state_dict({**state, "statistics": wrong})


def test_the_description_says_what_is_done(seen: tuple[Version, str]) -> None:
    version, cache = seen
    said = stream(version, cache_dir=cache, **EVERYTHING).describe()
    assert "observations/state by mean and standard deviation" in said
    assert "resize 9x8" in said
    assert version.id[:8] in said
