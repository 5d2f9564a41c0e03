"""Copies of versions in other stores: all that was said, nothing that was erased, nothing twice."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.jobs import engines
from pipeline.store.layout import new_id
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store, open_store
from schemas.errors import NameTakenError, PenstockError, UsageError
from schemas.jobs import IngestJob
from tests.encoded import camera_episode
from tests.episodes import write_d4rl
from tests.store.disks import FailingDisk, quick_store, store_on
from tests.store.makers import episode, ids_of, names, quarantined, score
from tests.strategies import assert_same_episode


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six episodes in two parts, with a score, labels, other rewards and a second spec."""
    made = quick_store(tmp_path / "s")
    made.append([episode(f"e{n}", n + 3, task="Straße") for n in range(4)])
    made.append([episode(f"e{n}", n + 3) for n in range(4, 6)])
    small = np.zeros((3, 2), np.float32)
    made.append([episode("other", 2, observations={"place": small})], new_spec="places")
    score(made, {"e0": 0.25, "e1": None, "e4": 0.5})
    made.version().annotate(pa.table({"episode_id": ["e1", "e4"], "success": [True, False]}))
    made.version().annotate_steps("rewards", {"e0": np.arange(3, dtype=np.float32)})
    return made


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return quick_store(tmp_path / "other")


def facts(store: Store, ref: str = "main") -> list[dict[str, Any]]:
    rows = store.version(ref).episodes().to_pylist()
    return sorted(rows, key=lambda row: str(row["episode_id"]))


def test_a_copy_shows_what_the_version_shows(store: Store, other: Store) -> None:
    told: list[tuple[int, int]] = []
    done = store.copy("main", other, advance=lambda *counts: told.append(counts))
    assert (done.episodes, done.known, done.refused) == (7, 0, 0)
    assert sum(steps for _, steps in told) == done.steps == store.version().commit.totals.steps
    assert facts(other) == facts(store)
    assert other.version().specs == store.version().specs
    assert other.version().state.metrics == store.version().state.metrics
    for name in ids_of(store.version()):
        assert_same_episode(other.version().episode(name), store.version().episode(name))
    assert open_store(other.url).doctor().problems == []


def test_a_second_copy_adds_only_what_came_since(store: Store, other: Store) -> None:
    first = store.copy("main", other)
    again = store.copy("main", other)
    assert (again.episodes, again.known, again.commit.id) == (0, 7, first.commit.id)
    store.append([episode("late", 5)])
    store.version().annotate(pa.table({"episode_id": ["late", "e1"], "success": [True, False]}))
    third = store.copy("main", other)
    assert (third.episodes, third.steps, third.known) == (1, 5, 7)
    assert facts(other) == facts(store)


def test_a_curated_version_is_copied_as_it_is(store: Store, other: Store) -> None:
    chosen = store.version().where("length >= 6").commit("long")
    done = store.copy("long", other, branch="main")
    assert (done.commit.branch, done.episodes) == ("main", 3)
    assert facts(other) == facts(store, "long")
    assert other.version().state.sources == {}
    assert len(chosen) == 3


def test_erased_episodes_stay_behind(store: Store, other: Store) -> None:
    store.erase(["e0"])
    store.copy("main", other)
    assert "e0" not in ids_of(other.version())
    said = b"".join(path.read_bytes() for path in Path(other.url).rglob("overlays/*.parquet"))
    assert said
    for path in Path(other.url).rglob("*.parquet"):
        table = pq.read_table(path)
        if "episode_id" in table.column_names:
            assert "e0" not in table["episode_id"].to_pylist()


def test_an_id_with_other_content_is_refused_with_all_that_was_said_of_it(
    store: Store, other: Store
) -> None:
    other.append([episode("e4", 9, seed=7)])
    done = store.copy("main", other)
    assert (done.episodes, done.refused) == (6, 1)
    assert quarantined(other) == [("e4", "id_conflict")]
    assert other.version().episode("e4").length == 9
    row = next(row for row in facts(other) if row["episode_id"] == "e4")
    assert row["action_divergence"] is None
    assert row["success"] is None


def test_what_came_in_quarantine_is_told_there(store: Store, other: Store) -> None:
    store.append([episode("e1", 5, seed=3)])
    store.copy("main", other)
    assert quarantined(other) == quarantined(store) == [("e1", "id_conflict")]


def test_rollouts_that_were_cast_keep_the_digest_of_what_came(store: Store, other: Store) -> None:
    came = episode("rollout", 4, kind="rollout")
    wide = came.replace(rewards=came.rewards.astype(np.float64))
    store.append([wide])
    store.copy("main", other)
    assert facts(other) == facts(store)
    assert other.append_batch([wide]).known == 1


def test_pictures_are_copied_as_they_are_encoded(tmp_path: Path) -> None:
    store, other = quick_store(tmp_path / "s"), quick_store(tmp_path / "o")
    store.append([camera_episode("p0"), camera_episode("p1")])
    store.copy("main", other)
    for name in ("p0", "p1"):
        assert_same_episode(other.version().episode(name), store.version().episode(name))


def test_copies_are_refused_where_they_make_no_sense(store: Store, other: Store) -> None:
    with pytest.raises(UsageError, match="another store"):
        store.copy("main", open_store(store.url))
    nothing = store.version().where("length > 99").commit("none")
    with pytest.raises(UsageError, match="with episodes"):
        store.copy(nothing.branch, other, branch="main")
    other.append(names_as_episodes("x"))
    other.tag("taken")
    with pytest.raises(NameTakenError):
        store.copy("main", other, branch="taken")


def names_as_episodes(prefix: str) -> list[Any]:
    return [episode(name) for name in names(2, prefix)]


@pytest.mark.parametrize("half", [False, True], ids=["nothing", "half"])
def test_a_copy_that_was_broken_off_is_finished_by_the_next(
    store: Store, tmp_path: Path, half: bool
) -> None:
    counted = FailingDisk(-1)
    store.copy("main", store_on(LocalObjects(tmp_path / "whole", counted)))
    for fail_at in range(0, len(counted.calls), 5):
        place = tmp_path / str(fail_at)
        failing = LocalObjects(place, FailingDisk(fail_at, is_half_done=half))
        with contextlib.suppress(PenstockError, OSError):  # clearing up may fail unseen
            store.copy("main", store_on(failing))
            assert counted.calls[fail_at] == "unlink"
        again = quick_store(place)
        store.copy("main", again)
        assert facts(again) == facts(store)
        assert again.doctor().damage == []


def test_what_is_linked_is_stored(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    into = str(tmp_path / "s")
    engines.run(IngestJob(sources=(str(source),), into=into, run_id=new_id(), link=True), None)
    store, other = open_store(into), quick_store(tmp_path / "other")
    store.copy("main", other)
    source.unlink()
    assert {part.kind for part in other.version().state.parts} == {"stored"}
    assert [one.length for one in other.version().iter_episodes()] == [5, 6]
