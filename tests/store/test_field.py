"""One field across all episodes: real entries, or raw rows, equal to the episodes' own arrays."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask
import numpy as np
import pytest

from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError
from schemas.rows import to_rows
from tests.store.disks import quick_store
from tests.store.makers import episode, names
from tests.strategies import same_array


def odd(name: str, steps: int) -> Episode:
    """Cycles through the ways an episode may end."""
    final = ("present", "missing", "copied")[steps % 3]
    rows = steps + (final != "missing")
    return episode(
        name,
        steps,
        observations={"state": np.full((rows, 3), steps, np.float32)},
        final_observation=final,
        extras={"full": np.full(steps + 1, steps), "step": np.full((steps, 2), steps)},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = quick_store(tmp_path_factory.mktemp("field") / "s")
    made.append([odd(f"e{n}", n) for n in range(8)])
    made.append([odd("long", 5000), odd("longer", 6000)])
    made.append([odd("last", 1)])
    made.version().where("length != 3").commit(branch="c")
    return made


FIELDS = ("observations/state", "actions", "rewards", "extras/full", "extras/step", "terminated")


@pytest.mark.parametrize("ref", ["main", "c"])
@pytest.mark.parametrize("name", FIELDS)
def test_field_is_the_episodes_one_after_the_other(store: Store, ref: str, name: str) -> None:
    version = store.version(ref)
    episodes = list(version.iter_episodes())
    real = version.field(name)
    own = [{**one.arrays, "terminated": one.terminated}[name] for one in episodes]
    assert same_array(real.compute(scheduler="synchronous"), np.concatenate(own))
    raw = version.field(name, rows=True)
    rows = [to_rows(one)[name] for one in episodes]
    assert same_array(raw.compute(scheduler="synchronous"), np.concatenate(rows))
    assert raw.shape[0] == sum(one.length + 1 for one in episodes)
    assert real.dtype == own[0].dtype


def test_parts_are_independent_tasks(store: Store) -> None:
    field = store.version().field("rewards")
    assert len(field.chunks[0]) == 3
    assert field[-1].compute(scheduler="synchronous") == odd("last", 1).rewards[0]  # type: ignore[index]
    total = field.sum().compute(scheduler="threads", num_workers=4)
    expected = sum(one.episode_return or 0 for one in store.version().iter_episodes())
    assert total == pytest.approx(expected, rel=1e-4)


def test_tasks_travel_between_processes(store: Store) -> None:
    catalog = pickle.loads(pickle.dumps(store.catalog))
    assert catalog.id == store.id
    field = store.version().field("actions")
    graph = pickle.loads(pickle.dumps(dict(field.__dask_graph__())))
    found = dask.get(graph, field.__dask_keys__())
    whole = np.concatenate([row[0] for row in found])
    np.testing.assert_array_equal(whole, field.compute(scheduler="synchronous"))
    version = pickle.loads(pickle.dumps(store.version("main:2")))
    assert version.number == 2
    np.testing.assert_array_equal(version.episode("e4").rewards, odd("e4", 4).rewards)


def test_many_threads_read_one_store(tmp_path: Path) -> None:
    made = quick_store(tmp_path / "s")
    for number in range(30):
        made.append([odd(f"e{number}", 3)])
    fresh = open_store(tmp_path / "s")
    field = fresh.version().field("rewards")
    assert field.compute(scheduler="threads", num_workers=8).shape == (90,)


def test_unknown_and_unlike_fields(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'actions'"):
        store.version().field("action")
    made = quick_store(tmp_path / "s")
    made.append([episode("a", extras={"q": np.zeros(4)}), episode("b", rewards=None)])
    with pytest.raises(UsageError, match="1 of 2 blocks without it"):
        made.version().field("rewards")
    assert made.version().where("episode_id == 'a'").commit("a").field("rewards").shape == (4,)
    made.append([episode("c", extras={"q": np.zeros((4, 2))})])
    both = made.version().where("episode_id != 'b'").commit("both")
    with pytest.raises(UsageError, match="one dtype and shape"):
        both.field("extras/q")


def test_read_rows_picks_fields(store: Store) -> None:
    version = store.version()
    block = version.index().data_ids[0]
    assert set(version.read_rows(block, ["rewards", "valid"])) == {"rewards", "valid"}
    assert set(version.read_rows(block)) >= set(FIELDS)
    with pytest.raises(UnknownNameError, match="rewards"):
        version.read_rows(block, ["reward"])


def test_to_xarray(store: Store) -> None:
    for name in names(8):
        one = store.version().episode(name)
        data = store.version().to_xarray(name)
        assert set(data.data_vars) == {*one.arrays, "terminated", "truncated"}
        assert data["rewards"].dims == ("step",)
        assert data.sizes["step"] == one.length
        for field, array in one.arrays.items():
            np.testing.assert_array_equal(data[field], array)
        assert data.attrs["episode_id"] == name
