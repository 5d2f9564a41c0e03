"""Several specs in one version: who joins which, who is cast, who is refused."""

from __future__ import annotations

import multiprocessing as mp
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout
from pipeline.store.append import commit_batch, write_new
from pipeline.store.store import Store, open_store
from pipeline.store.writer import rows_of
from schemas.episode import Episode
from schemas.errors import (
    NameTakenError,
    PenstockError,
    SpecMismatchError,
    UnknownNameError,
    UsageError,
)
from schemas.version import Append
from tests.store import workers
from tests.store.makers import episode, hashes, ids_of, names
from tests.strategies import assert_same_episode


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode(name) for name in names(3)])
    return store


def camera(name: str, steps: int = 4) -> Episode:
    """An episode of another spec than `episode` makes."""
    pixels = np.random.default_rng(len(name)).integers(0, 255, (steps + 1, 4, 4, 3), np.uint8)
    return episode(name, steps).replace(
        observations={"state": np.ones((steps + 1, 2)), "c": pixels}
    )


def wide(name: str, steps: int = 4, **changes: object) -> Episode:
    """An episode of the same names and shapes as `episode` makes, in float64."""
    made = episode(name, steps)
    return made.replace(
        observations={n: np.asarray(a).astype(np.float64) for n, a in made.observations.items()},
        rewards=np.asarray(made.rewards).astype(np.float64),
        **changes,
    )


def specs_of(store: Store, ref: str = "main") -> dict[str, str]:
    table = store.version(ref).episodes()
    return dict(zip(table["episode_id"].to_pylist(), table["spec"].to_pylist(), strict=True))


def test_what_fits_none_is_refused_with_both_named_or_joins_as_a_new_spec(store: Store) -> None:
    before = ids_of(store.version())
    with pytest.raises(SpecMismatchError, match=r"'default' .*observations/c.*--new-spec") as error:
        store.append([camera("k0")])
    assert "float64[2]" in error.value.message
    assert ids_of(store.version()) == before
    version = store.append([episode("e3"), camera("k0"), episode("e4")], new_spec="cam")
    assert ids_of(version) == [*names(5), "k0"], "a part is of one spec"
    assert list(version.specs) == ["default", "cam"]
    assert specs_of(store) == {**dict.fromkeys(names(5), "default"), "k0": "cam"}
    for part in version.state.parts:
        assert len({block.spec for block in part.blocks}) == 1
    assert ids_of(version.where("spec == 'cam'").commit(branch="c")) == ["k0"]
    assert list(store.version("c").specs) == ["cam"], "specs are those of the episodes"
    # Once there, no name is needed; a second offer adds nothing.
    more = store.append([camera("k1"), episode("e5")])
    assert specs_of(store)["k1"] == "cam"
    assert store.append([camera("k1"), camera("k0")], new_spec="other").id == more.id
    for one in more.iter_episodes("spec == 'cam'"):
        assert_same_episode(one, camera(one.episode_id))


def test_the_first_spec_has_the_name_that_is_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    assert list(store.append([camera("k0")], new_spec="cam").specs) == ["cam"]
    with pytest.raises(SpecMismatchError, match="'cam'"):
        store.append([episode("e0")])
    with pytest.raises(NameTakenError, match="'cam'"):
        store.append([episode("e0")], new_spec="cam")
    with pytest.raises(UsageError, match="spec name"):
        store.append([episode("e0")], new_spec="../x")
    assert list(store.append([episode("e0")], new_spec="low").specs) == ["cam", "low"]


def test_one_batch_makes_one_new_spec_at_most(store: Store) -> None:
    other = episode("o").replace(observations={"x": np.zeros((5, 7))})
    with pytest.raises(NameTakenError):
        store.append([camera("k0"), other], new_spec="new")
    assert list(store.version().specs) == ["default"]


def test_what_fits_several_specs_needs_a_name(store: Store) -> None:
    store.append([episode("a", actions=np.zeros((4, 7)))], new_spec="arm")
    blind = episode("b", actions=None)
    with pytest.raises(SpecMismatchError, match="'default', 'arm'"):
        store.append([blind])
    store.append([blind], new_spec="arm")
    assert specs_of(store)["b"] == "arm"
    # What equals one is not asked, even where it would fit the other too.
    store.append([episode("c", actions=None)], branch="x")
    store.append([camera("d").replace(actions=None)], branch="x", new_spec="cam")
    store.append([episode("e", actions=None)], branch="x")
    assert specs_of(store, "x") == {"c": "default", "d": "cam", "e": "default"}


def test_a_field_is_of_one_spec_or_agrees(store: Store) -> None:
    version = store.append([camera("k0")], new_spec="cam")
    assert version.field("rewards").shape == (16,)
    assert version.field("observations/state", spec="default").shape == (15, 3)
    assert version.field("observations/state", spec="cam").shape == (5, 2)
    with pytest.raises(UsageError, match="observations/state"):
        version.field("observations/state")
    with pytest.raises(UnknownNameError, match="cam"):
        version.field("rewards", spec="cma")


def test_compaction_keeps_specs_apart(store: Store) -> None:
    for number in range(3):
        store.append([episode(f"f{number}")])
        store.append([camera(f"k{number}")], new_spec="cam")
    before, named = ids_of(store.version()), specs_of(store)
    store.compact(everything=True)
    assert ids_of(store.version()) == before
    assert specs_of(store) == named
    for one in store.version().iter_episodes():
        made = camera if one.episode_id.startswith("k") else episode
        assert_same_episode(one, made(one.episode_id))
    assert store.doctor().damage == []


# -- casting -----------------------------------------------------------------------------------


def test_rollouts_are_cast_and_the_commit_says_so(store: Store) -> None:
    rollout = wide("r", kind="rollout")
    version = store.append([rollout], message="online")
    assert list(version.specs) == ["default"]
    assert version.message == (
        "online; cast observations/state float64 to float32, rewards float64 to float32"
    )
    (operation,) = version.commit.operations
    assert isinstance(operation, Append)
    assert operation.casts["rewards"] == "float64 to float32"
    came = version.episode("r")
    assert came.rewards is not None
    assert came.rewards.dtype == np.float32
    np.testing.assert_array_equal(came.rewards, np.asarray(rollout.rewards, np.float32))
    before = hashes(Path(store.url))
    assert store.append([rollout]).id == version.id, "known by what came"
    assert hashes(Path(store.url)) == before


def test_only_rollouts_are_cast_and_only_floats(store: Store) -> None:
    with pytest.raises(SpecMismatchError):
        store.append([wide("d")])
    with pytest.raises(SpecMismatchError):
        store.append([wide("r", kind="rollout")], cast=False)
    whole = episode("r", rewards=np.ones(4, np.int64), kind="rollout")
    with pytest.raises(SpecMismatchError, match="int64"):
        store.append([whole])
    huge = wide("r", kind="rollout").replace(rewards=np.full(4, 1e300))
    with pytest.raises(SpecMismatchError, match="larger"):
        store.append([huge])
    assert ids_of(store.version()) == names(3)


def test_whole_numbers_are_cast_only_to_wider_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("e0", actions=np.ones((4, 2), np.int32))])
    store.append([episode("r0", actions=np.ones((4, 2), np.int16), kind="rollout")])
    assert store.version().episode("r0").flat_actions["actions"].dtype == np.int32
    with pytest.raises(SpecMismatchError):
        store.append([episode("r1", actions=np.ones((4, 2), np.int64), kind="rollout")])


def test_what_was_written_before_a_race_is_cast_after_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    rollouts = [wide("r0", kind="rollout"), wide("r1", 2, kind="rollout")]
    late = write_new(store.catalog, "main", rows_of(rollouts), casting="rollouts")
    open_store(tmp_path / "s").append([episode("e0")])
    outcome = commit_batch(
        store.catalog, late, branch="main", message="m", run_id=layout.new_id(), casting="rollouts"
    )
    assert [row.episode_id for row in outcome.added] == ["r0", "r1"]
    version = open_store(tmp_path / "s").version()
    assert list(version.specs) == ["default"]
    for one, steps in (("r0", 4), ("r1", 2)):
        cast = version.episode(one)
        np.testing.assert_array_equal(cast.rewards, episode(one, steps).rewards)
    assert store.doctor().damage == []


# -- races -------------------------------------------------------------------------------------


def test_racing_processes_agree_on_specs(tmp_path: Path) -> None:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(workers.PRELOAD)
    root = tmp_path / "s"
    open_store(root, create=True)
    barrier = context.Barrier(3)
    pipes = [context.Pipe(duplex=False) for _ in range(3)]
    processes = [
        context.Process(target=workers.race_specs, args=(str(root), number, barrier, pipe[1]))
        for number, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    reports = [pipe[0].recv() if pipe[0].poll(120) else "no report" for pipe in pipes]
    for process in processes:
        process.join(30)
    assert not any(isinstance(report, PenstockError | str) for report in reports), reports
    store = open_store(root)
    version = store.version()
    assert set(version.specs) == {"s0", "s1"}, "writers 0 and 2 are of one spec"
    found: dict[str, set[str]] = {}
    for name, spec in specs_of(store).items():
        found.setdefault(spec, set()).add(name)
    assert found == {
        version_spec: {f"w{w}-{n}" for w in writers for n in range(workers.OWN)}
        for version_spec, writers in (("s0", (0, 2)), ("s1", (1,)))
    }
    assert store.doctor().damage == []
