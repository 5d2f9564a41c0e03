"""Compaction is seen by nobody: same episodes, same order, same samples, few rewrites."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout
from pipeline.store.catalog import Catalog
from pipeline.store.compact import FAN_IN
from pipeline.store.store import Store, Version, open_store
from pipeline.stream.loader import Stream
from schemas.episode import Episode
from schemas.identity import digest
from schemas.version import Compact
from tests.reliability.memory import MemoryObjects, memory_store
from tests.reliability.sizes import size
from tests.store.makers import episode, ids_of, names, read_everything, score
from tests.strategies import assert_same_episode


def varied(count: int) -> list[Episode]:
    """Episodes of several layouts, with and without a final observation, some without steps."""
    found = []
    for number in range(count):
        changes = [
            {},
            {"rewards": None},
            {"success": True, "labels": {"note": "x"}, "columns": {"lap": number}},
            {"extras": {"torque": np.arange(number % 5 + 2, dtype=np.float32)}},
        ][number % 4]
        one = episode(f"e{number}", number % 5 + 2, **changes)
        found.append(one)
    cut = found[2]
    found[2] = cut.replace(
        observations={"state": cut.arrays["observations/state"][:-1]}, final_observation="missing"
    )
    return found


def grown(folder: Path, episodes: list[Episode]) -> Store:
    store = open_store(folder / "s", create=True)
    for one in episodes:
        store.append([one])
    return store


def samples(version: Version, cache: Path) -> list[dict[str, np.ndarray]]:
    stream = Stream(
        version, framework="numpy", batch_size=32, seed=3, cache_dir=str(cache), episode_ids=True
    )
    return [dict(batch) for batch in itertools.islice(stream, 6)]


def test_nothing_changes_but_the_files(tmp_path: Path) -> None:
    episodes = varied(24)
    store = grown(tmp_path, episodes)
    score(store, {"e1": 0.5, "e7": 1.5})
    before = store.version()
    done = store.compact(everything=True)
    assert (done.parts_before, done.parts_after) == (24, 1)
    after = open_store(tmp_path / "s").version()
    assert after.number > before.number
    assert ids_of(after) == [one.episode_id for one in episodes]
    assert after.episodes().equals(before.episodes())
    for one, other in zip(episodes, after.iter_episodes(), strict=True):
        assert_same_episode(other, one)
        assert digest(other) == digest(one)
    old, new = before.index(), after.index()
    for field in ("episode_ids", "length", "terminated", "final_present"):
        assert np.array_equal(getattr(old, field), getattr(new, field)), field
    assert store.version().state.known == before.state.known
    read_everything(open_store(tmp_path / "s"), [f"main:{before.number}", "main"])
    assert store.doctor().damage == []


def test_samples_of_a_stream_stay(tmp_path: Path) -> None:
    store = grown(tmp_path, [episode(name, 9) for name in names(20)])
    before = store.version()
    store.compact()
    after = store.version()
    assert len(after.state.parts) == 1
    pairs = zip(samples(before, tmp_path / "c1"), samples(after, tmp_path / "c2"), strict=True)
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_equal(one[name], other[name], name)


def test_selections_and_erasures_are_settled(tmp_path: Path) -> None:
    store = grown(tmp_path, [episode(name) for name in names(8)])
    store.append([episode("x"), episode("y")])
    store.remove("episode_id in ('e3', 'x')")
    store.erase(["e5"])
    kept = ids_of(store.version())
    assert store.compact(everything=True).parts_after == 1
    part = store.version().state.parts[0]
    assert part.selection is None
    assert part.episodes == len(kept) == 7
    assert ids_of(store.version()) == kept
    assert store.append([episode("e3"), episode("x"), episode("e5")]).number == 11, "still known"
    assert ids_of(store.version("main:9")) == [n for n in names(8) if n != "e5"] + ["x", "y"]


def test_parts_of_which_nothing_is_left() -> None:
    store, objects = memory_store()
    for pair in (("a", "b"), ("c", "d")):
        for name in pair:
            store.append([episode(name)])
        store.erase(pair)
        store.compact(everything=True)
        assert ids_of(store.version()) == []
    store.compact(everything=True)
    for name in ("new", "newer"):
        store.append([episode(name)])
    assert store.compact(everything=True).parts_after == 1
    assert ids_of(Store(Catalog(objects, create=False)).version()) == ["new", "newer"]
    assert store.doctor().damage == []


def test_full_shards_and_lone_parts_are_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    full = Episode("full", np.zeros((50_000, 1), np.float32))
    small = [Episode(name, np.ones((5, 1), np.float32)) for name in names(3)]
    store.append([small[0]])
    store.append([full])
    store.append([small[1]])
    store.append([small[2]])
    shard = store.version().state.parts[1]
    done = store.compact(everything=True)
    assert done.rows == 10
    assert [part.episodes for part in store.version().state.parts] == [1, 1, 2]
    assert store.version().state.parts[1] == shard
    assert store.compact(everything=True).commits == ()
    assert ids_of(store.version()) == ["e0", "full", "e1", "e2"]


def test_too_few_wait_for_more(tmp_path: Path) -> None:
    store = grown(tmp_path, [episode(name) for name in names(FAN_IN - 1)])
    assert store.compact().commits == ()
    store.append([episode("more")])
    assert len(store.compact().commits) == 1


# -- what comes meanwhile ----------------------------------------------------------------------


class Meanwhile(MemoryObjects):
    """Lets something happen just before a compaction's commit is made."""

    act: Callable[[], object] | None = None

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.act is not None and key.startswith("refs/branches/main") and b'"compact' in data:
            act, self.act = self.act, None
            act()
        return super().put_if_absent(key, data)


def interrupted(act: Callable[[Store], object]) -> tuple[Store, MemoryObjects]:
    objects = Meanwhile()
    store = Store(Catalog(objects, create=True))
    for name in names(4):
        store.append([episode(name)])
    objects.act = lambda: act(Store(Catalog(objects, create=False)))
    store.compact(everything=True)
    assert objects.act is None
    return Store(Catalog(objects, create=False)), objects


def test_an_append_meanwhile_is_kept() -> None:
    store, _ = interrupted(lambda rival: rival.append([episode("e2"), episode("new")]))
    assert ids_of(store.version()) == [*names(4), "new"]
    read_everything(store)


def test_scores_meanwhile_are_kept() -> None:
    store, _ = interrupted(lambda rival: score(rival, {"e1": 0.25}))
    assert store.version().episodes()["action_divergence"].to_pylist() == [None, 0.25, None, None]
    assert len(store.version().state.parts) == 1


@pytest.mark.parametrize("where", ["episode_id == 'e1'", "length > 100"])
def test_a_selection_meanwhile_wins(where: str) -> None:
    store, _ = interrupted(lambda rival: rival.remove(where))
    kept = [name for name in names(4) if "e1" not in where or name != "e1"]
    assert ids_of(store.version()) == kept
    assert len(store.version().state.parts) == 1, "and is compacted in turn"
    read_everything(store, ["main", "main:4", "main:5"])


def test_another_compaction_meanwhile_wins() -> None:
    def rival(store: Store) -> None:
        for turn in list(store.catalog.objects.names("leases/maintainer")):
            store.catalog.objects.delete(f"leases/maintainer/{turn}")  # it has expired
        store.compact(everything=True)

    store, _ = interrupted(rival)
    assert ids_of(store.version()) == names(4)
    commits = [version.commit for version in store.log()]
    assert sum(isinstance(c.operations[0], Compact) for c in commits) == 1


# -- what it costs -----------------------------------------------------------------------------


class Counting(MemoryObjects):
    """Adds up what is written."""

    written = 0

    def put(self, files: object) -> None:
        super().put(files)  # type: ignore[arg-type]
        self.written += sum(len(data) for data in dict(files).values())  # type: ignore[call-overload]


def test_each_byte_is_written_four_times_at_most() -> None:
    objects = Counting()
    store = Store(Catalog(objects, create=True))
    offered = 0
    for number in range(size(260, 4500)):
        before = objects.written
        store.append([Episode(f"e{number}", np.full((6, 2), number, np.float32))])
        offered += objects.written - before
        if number % FAN_IN == FAN_IN - 1:
            store.compact()
    assert len(store.version().state.parts) <= 3 * FAN_IN
    assert objects.written <= 4 * offered
    assert ids_of(store.version()) == names(size(260, 4500))


def test_orphans_of_a_compaction_go_and_nothing_else() -> None:
    store, objects = memory_store()
    for name in names(5):
        store.append([episode(name)])
    store.compact(everything=True)
    store.expire(before=store.version().number)
    for _ in range(2):
        objects.wait(25)
        store.gc()
    tails = [key for key in objects.files if key.startswith("tails/")]
    assert len(tails) == 1
    assert [key for key in objects.files if key.startswith(layout.DATA[3])], "rows and indexes"
    read_everything(Store(Catalog(objects, create=False)))
