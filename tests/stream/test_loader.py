"""`Stream`: real neighbours only, one order for any split and after any stop."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from schemas.episode import Episode
from schemas.errors import ConfigError, NotFoundError, UnknownNameError, UsageError
from tests.stream.conftest import made_episode, made_episodes

ROOT = Path(__file__).resolve().parents[2]
MakeStore = Callable[[list[Episode]], Store]


def stream(data: Any, **settings: Any) -> Stream:
    return Stream(data, **{"framework": "numpy", **settings})


def take(batches: Any, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(batches, count))


def all_rows(version: Any, **settings: Any) -> dict[str, np.ndarray]:
    """Rows of enough batches that every transition is there (chance of a gap below 1e-9)."""
    made = stream(version, batch_size=1024, **settings)
    batches = take(made, made.transitions * 30 // 1024 + 1)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


# -- what a batch holds ------------------------------------------------------------------------


def test_a_batch_has_the_documented_keys_shapes_and_dtypes(store: Store) -> None:
    batch = next(stream(store.version(), batch_size=8))
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "observations": ("float32", (8, 3)),
        "actions": ("float32", (8, 2)),
        "rewards": ("float32", (8,)),
        "next_observations": ("float32", (8, 3)),
        "terminated": ("bool", (8,)),
        "truncated": ("bool", (8,)),
        "discounts": ("float32", (8,)),
        "mask": ("float32", (8,)),
        "indices": ("int64", (8,)),
    }
    assert (batch["mask"] == 1).all()


def test_every_row_is_a_real_transition(store: Store) -> None:
    rows = all_rows(store.version())
    at = rows["observations"][:, 0]
    np.testing.assert_array_equal(rows["observations"], np.stack([at, -at, at / 2], axis=1))
    np.testing.assert_array_equal(rows["actions"], np.stack([at + 0.25, at + 0.5], axis=1))
    np.testing.assert_array_equal(rows["rewards"], at + 0.75)
    np.testing.assert_array_equal(
        rows["discounts"], np.where(rows["terminated"], 0, 0.99).astype("f4")
    )
    following = rows["next_observations"][:, 0]
    np.testing.assert_array_equal(following, at + 1)


def test_exactly_the_transitions_of_the_version_are_drawn(store: Store) -> None:
    """A truncated last step without its next observation never is, every other step is."""
    episodes = made_episodes(range(30))
    expected, position = {}, 0
    for number, episode in enumerate(episodes):
        steps = episode.length - (number % 3 == 2)  # the third kind lost its final observation
        expected.update({position + t: 1000 * number + t for t in range(steps)})
        position += episode.length + 1
    rows = all_rows(store.version())
    drawn = dict(zip(rows["indices"].tolist(), rows["observations"][:, 0].tolist(), strict=True))
    assert drawn == expected
    ends = {1000 * n + e.length - 1 for n, e in enumerate(episodes)}
    is_end = np.isin(rows["observations"][:, 0], list(ends))
    np.testing.assert_array_equal(is_end, rows["terminated"] | rows["truncated"])
    assert {int(at) // 1000 % 3 for at in rows["observations"][is_end, 0]} == {0, 1}


def test_a_terminated_end_without_its_final_observation_is_drawn(make_store: MakeStore) -> None:
    lost = made_episode(0, 4, ends="lost").replace(
        terminated=np.array([0, 0, 0, 1], bool), truncated=np.zeros(4, bool)
    )
    copied = made_episode(1, 3).replace(
        terminated=False, truncated=True, final_observation="copied"
    )
    rows = all_rows(make_store([lost, copied, made_episode(2, 2)]).version())
    last = rows["observations"][:, 0] == 3
    assert last.any()
    assert rows["terminated"][last].all()
    assert (rows["discounts"][last] == 0).all()
    # Nothing reads it, but NaN would spread all the same.
    np.testing.assert_array_equal(rows["next_observations"][last], rows["observations"][last])
    # A copied final observation is no observation, so a truncated end makes no transition.
    assert set(rows["observations"][:, 0]) == {0, 1, 2, 3, 1000, 1001, 2000, 2001}


def test_a_version_without_transitions_is_refused(make_store: MakeStore) -> None:
    store = make_store([made_episode(0, 1, ends="lost")])
    with pytest.raises(UsageError, match="at least one transition"):
        stream(store.version())


def test_nested_fields_come_nested_and_integers_stay(make_store: MakeStore) -> None:
    length = 12
    images = np.arange((length + 1) * 48, dtype=np.uint8).reshape(-1, 4, 4, 3)
    stamps = np.arange(length + 1) + 2**60
    episode = Episode(
        episode_id="nested",
        observations={"image": images, "robot": {"state": np.eye(13), "stamp": stamps}},
        actions={"arm": np.arange(24.0).reshape(12, 2), "grip": np.arange(12) % 2 == 0},
        truncated=True,
        extras={"sim": np.arange(13.0)},
    )
    store = make_store([episode])
    fields = [*episode.spec.fields, "extras/sim"]
    batch = next(stream(store.version(), batch_size=64, fields=fields))
    assert "rewards" not in batch
    t = batch["indices"]
    np.testing.assert_array_equal(batch["observations"]["image"], images[t])
    np.testing.assert_array_equal(batch["next_observations"]["image"], images[t + 1])
    np.testing.assert_array_equal(batch["observations"]["robot"]["stamp"], stamps[t])
    np.testing.assert_array_equal(batch["next_observations"]["robot"]["state"], np.eye(13)[t + 1])
    np.testing.assert_array_equal(batch["actions"]["arm"][:, 0], 2.0 * t)
    np.testing.assert_array_equal(batch["actions"]["grip"], t % 2 == 0)
    np.testing.assert_array_equal(batch["extras"]["sim"], t)
    assert batch["observations"]["robot"]["state"].dtype == np.float32
    assert batch["observations"]["robot"]["stamp"].dtype == np.int64


def test_absent_actions_and_rewards_are_masked(make_store: MakeStore) -> None:
    whole, silent = made_episode(0, 10), made_episode(1, 10).replace(rewards=None)
    rows = all_rows(make_store([whole, silent]).version())
    is_silent = rows["observations"][:, 0] >= 1000
    assert is_silent.any()
    np.testing.assert_array_equal(rows["rewards_mask"], np.where(is_silent, 0, 1).astype("f4"))
    np.testing.assert_array_equal(np.isnan(rows["rewards"]), is_silent)
    assert "actions_mask" not in rows


def test_batches_name_their_episodes_on_request(store: Store) -> None:
    rows = all_rows(store.version(), episode_ids=True)
    expected = [f"e{int(at) // 1000}" for at in rows["observations"][:, 0]]
    assert rows["episode_ids"].tolist() == expected


def test_a_curated_version_draws_from_its_episodes_alone(store: Store) -> None:
    curated = store.version().where("length > 20").commit(branch="long")
    rows = all_rows(curated, episode_ids=True)
    assert set(rows["episode_ids"]) == set(curated.episodes()["episode_id"].to_pylist())
    ids, starts = [], []
    position = 0
    for row in curated.episodes().to_pylist():
        ids.append(row["episode_id"])
        starts.append(position)
        position += row["length"] + 1
    first = dict(zip(ids, starts, strict=True))
    expected = [
        first[name] + at % 1000
        for name, at in zip(rows["episode_ids"], rows["observations"][:, 0], strict=True)
    ]
    np.testing.assert_array_equal(rows["indices"], expected)


def test_residencies_yield_the_same(store: Store) -> None:
    version = store.version()
    mapped = take(stream(version, residency="mmap"), 3)
    for mine, theirs in zip(mapped, take(stream(version, residency="ram"), 3), strict=True):
        for name, array in mine.items():
            np.testing.assert_array_equal(array, theirs[name])


def test_batches_are_the_readers_own(store: Store) -> None:
    made = stream(store.version(), batch_size=4)
    kept = take(made, 200)
    before = [batch["observations"].copy() for batch in kept]
    kept[0]["observations"][:] = -1
    kept[0]["mask"][:] = 0
    take(made, 200)
    for batch, array in zip(kept[1:], before[1:], strict=True):
        np.testing.assert_array_equal(batch["observations"], array)
        assert (batch["mask"] == 1).all()


# -- order -------------------------------------------------------------------------------------


def sha_of_rows(ranks: list[Stream], steps: int) -> str:
    """SHA-256 of the global row order: each global batch, rank after rank."""
    sha = hashlib.sha256()
    for _ in range(steps):
        rows = np.concatenate([next(rank)["indices"] for rank in ranks])
        sha.update(rows.astype("<i8").tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_any_world_size_reads_the_same_rows(store: Store, world_size: int) -> None:
    version = store.version()
    one = sha_of_rows([stream(version, batch_size=50, seed=5)], 300)
    ranks = [
        stream(version, batch_size=50, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sha_of_rows(ranks, 300) == one


@pytest.mark.parametrize("stop", np.random.default_rng(0).integers(1, 300, 20).tolist())
def test_a_resume_at_any_step_reads_on(store: Store, stop: int) -> None:
    version = store.version()
    whole = [batch["indices"] for batch in take(stream(version, seed=2), 310)]
    first = stream(version, seed=2)
    take(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = stream(store.url, seed=2, residency="ram", rank=1, world_size=3)
    resumed.load_state_dict(state)
    for rows, batch in zip(whole[stop:], resumed, strict=False):
        np.testing.assert_array_equal(rows[256 // 3 : 2 * 256 // 3], batch["indices"])


def test_draws_are_uniform_over_transitions(store: Store) -> None:
    rows = np.concatenate(
        [b["indices"] for b in take(stream(store.version(), batch_size=4096), 250)]
    )
    counts = np.unique_counts(rows).counts
    assert len(counts) == stream(store.version()).transitions
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


def test_following_is_part_of_the_state(store: Store) -> None:
    first = store.version()
    live = stream(first)
    seen = take(live, 10)
    grown = store.append(made_episodes(range(30, 60)))
    live.follow(grown)
    seen += take(live, 7)
    live.follow(grown)  # again changes nothing
    live.follow("main:1")
    seen += take(live, 3)
    state = live.state_dict()
    assert state["versions"] == [[0, first.id], [10, grown.id], [17, first.id]]
    assert live.version.id == first.id
    replayed = stream(store.url)  # opens the newest version
    replayed.load_state_dict({**state, "step": 0})
    for batch, again in zip(seen, replayed, strict=False):
        np.testing.assert_array_equal(batch["observations"], again["observations"])
    assert max(batch["indices"].max() for batch in seen[10:17]) > first.index().length.sum() + 30


def test_following_at_once_replaces_the_version(store: Store) -> None:
    made = stream("@".join([store.url, "main:1"]))
    grown = store.append(made_episodes(range(30, 40)))
    made.follow("main")
    assert made.state_dict()["versions"] == [[0, grown.id]]
    np.testing.assert_array_equal(next(made)["indices"], next(stream(grown))["indices"])


def test_following_another_store_or_other_fields_is_refused(store: Store, tmp_path: Path) -> None:
    other = open_store(tmp_path / "other", create=True)
    made = stream(store.version())
    with pytest.raises(UsageError, match="mix streams"):
        made.follow(other.append(made_episodes(range(2))))
    with pytest.raises(NotFoundError):
        made.follow("no-such-tag")
    with pytest.raises(UsageError, match="same fields"):
        made.follow(store.append([made_episode(99, 5).replace(rewards=None)]))
    assert len(made.state_dict()["versions"]) == 1


# -- states and settings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"), [("seed", 1), ("batch_size", 8), ("spec", "x"), ("store", "y")]
)
def test_a_state_of_another_order_is_refused(store: Store, setting: str, value: Any) -> None:
    made = stream(store.version())
    with pytest.raises(ConfigError, match=setting):
        made.load_state_dict({**made.state_dict(), setting: value})


def test_a_state_of_another_discount_is_refused(store: Store) -> None:
    state = stream(store.version(), discount=0.9).state_dict()
    with pytest.raises(ConfigError, match="discount"):
        stream(store.version()).load_state_dict(state)
    stream(store.version(), discount=0.9).load_state_dict(state)


def test_a_state_that_cannot_be_loaded_leaves_a_stream_where_it_is(store: Store) -> None:
    made, same = stream(store.version()), stream(store.version())
    take(made, 3), take(same, 3)
    state = same.state_dict()
    later = store.append([made_episode(99, 5).replace(rewards=None)])
    known = [*state["versions"], [7, later.id]]
    for versions in ([[0, "0" * 32]], known):
        with pytest.raises((NotFoundError, UsageError)):
            made.load_state_dict({**state, "step": 9, "versions": versions})
        assert made.state_dict() == state
    for one, two in zip(take(made, 4), take(same, 4), strict=True):
        np.testing.assert_array_equal(one["indices"], two["indices"])


@pytest.mark.parametrize(
    "broken",
    [
        {"versions": []},
        {"versions": [[3, "id"]]},
        {"versions": [[0, "id"], [0, "id"]]},
        {"versions": "nonsense"},
    ],
)
def test_a_broken_state_is_refused(store: Store, broken: dict[str, Any]) -> None:
    made = stream(store.version())
    with pytest.raises(ConfigError, match="state_dict"):
        made.load_state_dict({**made.state_dict(), **broken})
    with pytest.raises(ConfigError, match="state_dict"):
        made.load_state_dict({})


def test_a_state_with_a_version_that_is_gone_is_refused(store: Store) -> None:
    made = stream(store.version())
    with pytest.raises(NotFoundError):
        made.load_state_dict({**made.state_dict(), "versions": [[0, "0" * 32]]})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 2, "world_size": 2}, "below world_size"),
        ({"batch_size": 2, "world_size": 3}, "none for some"),
        ({"seed": -1}, "seed"),
        ({"discount": 1.5}, "discount"),
        ({"residency": "floppy"}, "'ram', 'windowed' or 'gpu'"),
        ({"dtype": "int8"}, "dtype"),
        ({"framework": "jax"}, "framework"),
        ({"device": "cuda"}, "cpu"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    store: Store, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        stream(store.version(), **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": "transitions"}, "'transition'"),
        ({"fields": ["observation"]}, "'observations'"),
        ({"fields": ["extras/none"]}, "extras/none"),
        ({"spec": "defualt"}, "'default'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(
    store: Store, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnknownNameError, match=said):
        stream(store.version(), **settings)


def test_the_description_says_what_is_read(store: Store) -> None:
    said = stream(store.version(), rank=1, world_size=2, seed=9).describe()
    version = store.version()
    for expected in (
        "uniformly",
        "seed 9",
        "rows 128 to 255",
        f"main:1 ({version.id[:8]})",
        "10 last steps left out",
        "memory-mapped cache",
        "observations from float64 to float32",
    ):
        assert expected in said
    assert "a copy in memory" in stream(version, residency="ram").describe()


# -- torch -------------------------------------------------------------------------------------


def test_torch_batches_equal_numpy_batches(store: Store) -> None:
    torch = pytest.importorskip("torch")
    version = store.version()
    for mine, theirs in zip(
        take(stream(version, framework="torch"), 70), take(stream(version), 70), strict=True
    ):
        assert list(mine) == list(theirs)
        for name, tensor in mine.items():
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor.numpy(), theirs[name], strict=True)


def test_an_unknown_device_is_refused(store: Store) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="device='cpu'"):
        stream(store.version(), framework="torch", device="no-such-device")


def test_a_write_to_a_torch_batch_does_not_count_for_others(store: Store) -> None:
    torch = pytest.importorskip("torch")
    first, second = take(stream(store.version(), framework="torch"), 2)
    weight = torch.ones(3, requires_grad=True)
    predicted = (first["observations"] * weight).sum()  # autograd keeps the observations
    before = first["observations"].clone()
    second["observations"].zero_()
    predicted.backward()
    assert torch.equal(weight.grad, before.sum(0))


def test_numpy_batches_need_no_torch(store: Store) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pipeline.stream.loader import Stream\n"
        "from schemas.errors import MissingExtraError\n"
        f"print(next(Stream({store.url!r}, framework='numpy'))['indices'].sum())\n"
        "try:\n"
        f"    Stream({store.url!r})\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    total, message = ran.stdout.splitlines()
    assert int(total) == next(stream(store.version()))["indices"].sum()
    assert "pip install 'penstock[learners]'" in message
