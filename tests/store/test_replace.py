"""Changed episodes replace the old ones in one commit; versions, scores and maintenance cope."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from pipeline.curation.select import refresh
from pipeline.store import layout
from pipeline.store.append import Batch, commit_batch, write_new
from pipeline.store.scores import Scores, commit_scores, scored_ids
from pipeline.store.store import Store, open_store
from pipeline.store.writer import rows_of
from schemas.errors import TransientError, UnscoredError
from schemas.identity import digest
from schemas.version import Append
from tests.store.disks import Interrupted, store_on
from tests.store.makers import episode, hashes, ids_of, names, quarantined, score
from tests.strategies import assert_same_episode

AT_ONCE = dt.timedelta(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode(name) for name in names(4)])
    return store


def column(store: Store, ref: str = "main") -> dict[str, object]:
    table = store.version(ref).episodes(columns=["episode_id", "action_divergence"])
    return dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def test_one_leaves_as_the_other_comes(store: Store) -> None:
    changed = [episode("e1", 6, seed=1), episode("e9"), episode("e2")]
    version = store.append(changed, on_change="replace")
    assert version.number == 2, "one commit"
    assert ids_of(version) == ["e0", "e2", "e3", "e1", "e9"]
    assert_same_episode(version.episode("e1"), changed[0])
    assert version.commit.totals.episodes == 5
    assert version.commit.totals.steps == 3 * 4 + 6 + 4
    assert ids_of(store.version("main:1")) == names(4)
    assert_same_episode(store.version("main:1").episode("e1"), episode("e1"))
    assert quarantined(store) == []
    changes = store.diff("main:1", "main")
    assert (changes.added, changes.removed, changes.replaced) == (("e9",), (), ("e1",))
    before = hashes(Path(store.url))
    assert open_store(store.url).append(changed, on_change="replace").id == version.id
    assert hashes(Path(store.url)) == before, "a second offer writes nothing at all"
    assert store.append(changed).id == version.id, "its content is known without replacing too"
    assert store.doctor().problems == []


def test_the_default_is_quarantine(store: Store) -> None:
    store.append([episode("e1", seed=1)])
    assert quarantined(store) == [("e1", "id_conflict")]
    outcome = store.append_batch([episode("e1", seed=1)], on_change="replace")
    assert [row.episode_id for row in outcome.replaced] == ["e1"]
    assert (outcome.added, outcome.known, outcome.refusals) == ((), 0, ())


def test_a_whole_part_may_leave(store: Store) -> None:
    version = store.append([episode(name, seed=1) for name in names(4)], on_change="replace")
    assert ids_of(version) == names(4)
    assert len(version.state.parts) == 1
    (operation,) = version.commit.operations
    assert isinstance(operation, Append)
    assert operation.replaced is not None
    assert operation.replaced.episodes == 4
    assert version.commit.totals.episodes == 4


def test_the_store_follows_its_source_back_and_forth(store: Store) -> None:
    for seed in (1, 0, 1, 0, 2):
        version = store.append([episode("e1", seed=seed)], on_change="replace")
        assert_same_episode(version.episode("e1"), episode("e1", seed=seed))
        assert store.append([episode("e1", seed=seed)], on_change="replace").id == version.id
    assert version.number == 6
    assert sorted(ids_of(version)) == names(4)


def test_the_first_of_an_id_in_a_batch_speaks_for_it(store: Store) -> None:
    two = [episode("e1", seed=1), episode("e1", seed=2), episode("e1", seed=1)]
    version = store.append(two, on_change="replace")
    assert_same_episode(version.episode("e1"), two[0])
    assert quarantined(store) == [("e1", "id_conflict")]
    assert store.append(two, on_change="replace").id == version.id
    # The one that is there, then another: the source contradicts itself, the store stays.
    assert store.append([two[0], two[1]], on_change="replace").id == version.id


def test_dropped_and_erased_ids_stay_away(store: Store) -> None:
    store.version().where("episode_id != 'e1'").commit(branch="c")
    store.append([episode("e1", seed=1)], branch="c", on_change="replace")
    assert ids_of(store.version("c")) == ["e0", "e2", "e3"]
    assert quarantined(store, "c") == [("e1", "id_conflict")]
    store.erase(["e2"])
    store.append([episode("e2", seed=1)], on_change="replace")
    assert ids_of(store.version()) == ["e0", "e1", "e3"]


# -- scores ------------------------------------------------------------------------------------


def _scored(store: Store) -> list[str]:
    """Ids of the episodes that the score set holds a divergence of."""
    state = store.version().state
    found: list[str] = scored_ids(store.catalog, state, "s1", "action_divergence").to_pylist()
    return found


def test_scores_do_not_pass_to_other_content(store: Store) -> None:
    score(store, {"e0": 0.0, "e1": 0.1, "e2": 0.2, "e3": 0.3})
    store.append([episode("e1", seed=1)], on_change="replace")
    assert column(store) == {"e0": 0.0, "e2": 0.2, "e3": 0.3, "e1": None}
    assert column(store, "main:2")["e1"] == 0.1, "older versions show what they showed"
    assert "e1" not in _scored(store)
    with pytest.raises(UnscoredError):
        store.version().where("action_divergence < 0.2")
    score(store, {"e1": 0.9})
    assert column(store)["e1"] == 0.9
    store.append([episode("e1", seed=2), episode("e0", seed=2)], on_change="replace")
    assert column(store) == {"e2": 0.2, "e3": 0.3, "e1": None, "e0": None}
    assert store.diff("main:4", "main").rescored == ()
    # Back to what was scored once: scores come with measuring, not with memories.
    store.append([episode("e1", seed=0)], on_change="replace")
    assert column(store)["e1"] is None


def test_scores_that_are_late_say_nothing_of_what_was_replaced(store: Store) -> None:
    base = score(store, {"e0": 0.5})
    set_ = next(iter(base.state.score_sets.values()))
    other = open_store(store.url)
    other.append([episode("e1", seed=1), episode("new")], on_change="replace")
    table = base.episodes(columns=["episode_id"]).append_column(
        "action_divergence", [np.full(4, 0.5)]
    )
    commit_scores(store.catalog, "main", Scores(set_, table, {}), "late", base=base.commit)
    found = column(open_store(store.url))
    assert found == {"e0": 0.5, "e2": 0.5, "e3": 0.5, "e1": None, "new": None}


# -- rebasing, and the rest of a store's life ----------------------------------------------------


def held(store: Store, seed: int, *ids: str) -> Batch:
    offered = rows_of([episode(name, seed=seed) for name in ids])
    return write_new(store.catalog, "main", offered, on_change="replace")


def commit(store: Store, batch: Batch) -> None:
    commit_batch(
        store.catalog,
        batch,
        branch="main",
        message="",
        run_id=layout.new_id(),
        on_change="replace",
    )


def test_a_replacement_is_planned_again_on_a_new_head(store: Store) -> None:
    for number in range(20):
        store.append([episode(f"f{number}")])
    batch = held(store, 1, "e1", "f3", "new")
    other = open_store(store.url)
    other.compact(everything=True)
    other.append([episode("e1", seed=2)], on_change="replace")
    other.version().where("episode_id != 'f3'").commit(branch="main")
    commit(store, batch)
    version = open_store(store.url).version()
    assert_same_episode(version.episode("e1"), episode("e1", seed=1))
    assert "f3" not in ids_of(version), "what was dropped meanwhile stays dropped"
    assert len(ids_of(version)) == len(set(ids_of(version))) == 24
    assert version.commit.totals.episodes == 24
    assert store.doctor().damage == []


def test_a_curation_does_not_overlook_a_replacement(store: Store) -> None:
    def replace() -> None:
        open_store(store.url).append([episode("e1", seed=1)], on_change="replace")

    mine = store_on(Interrupted(Path(store.url), "branches/main", replace))
    with pytest.raises(TransientError, match="curate its new version"):
        mine.version().where("length > 0").commit(branch="main")
    assert ids_of(open_store(store.url).version()) == ["e0", "e2", "e3", "e1"]


def test_a_curated_branch_follows_on_refresh(store: Store) -> None:
    store.version().where("length < 5").commit(branch="short")
    store.append([episode("e1", 6, seed=1), episode("e2", 2, seed=1)], on_change="replace")
    assert ids_of(store.version("short")) == names(4)
    refreshed = refresh(store, "short").commit(branch="short")
    assert ids_of(refreshed) == ["e0", "e3", "e2"]
    assert_same_episode(refreshed.episode("e2"), episode("e2", 2, seed=1))


def test_maintenance_after_replacements(store: Store) -> None:
    score(store, {"e1": 0.1, "e0": 0.0})
    for seed in (1, 2):
        store.append([episode("e1", seed=seed), episode("e2", seed=seed)], on_change="replace")
    done = store.compact(everything=True)
    assert done.parts_after == 1
    for _ in range(2):
        store.gc(AT_ONCE)
    assert sorted(ids_of(store.version())) == names(4)
    assert column(store)["e1"] is None
    for number in range(1, store.version().number + 1):
        version = store.version(f"main:{number}")
        found = [digest(one) for one in version.iter_episodes()]
        assert found == version.episodes(columns=["digest"])["digest"].to_pylist()
    assert store.doctor().damage == []
    store.expire(before=store.version().number)
    for _ in range(2):
        store.gc(AT_ONCE)
    assert sorted(ids_of(open_store(store.url).version())) == names(4)
    assert column(open_store(store.url))["e0"] == 0.0
    assert store.doctor().damage == []


def test_erasing_an_id_erases_all_its_contents(store: Store) -> None:
    mark = b"a secret that must go"
    secret = episode("e1", seed=1, columns={"note": mark.decode() * 3})
    store.append([secret], on_change="replace")
    store.append([episode("e1", seed=2)], on_change="replace")
    before = store.version("main:1").episode("e1")
    needle = np.asarray(before.rewards).tobytes()
    store.erase(["e1"])
    store.gc(AT_ONCE, erase=True)
    for number in (1, 2, 3):
        assert ids_of(store.version(f"main:{number}")) == ["e0", "e2", "e3"]
    for path in Path(store.url).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert needle not in data
            assert mark not in data
    assert store.doctor().damage == []


def test_a_lost_list_of_replaced_ids_costs_the_scores_it_is_about(store: Store) -> None:
    score(store, {"e0": 0.0, "e1": 0.1})
    version = store.append([episode("e1", seed=1)], on_change="replace")
    (overlay,) = version.state.overlays
    (file,) = overlay.without
    Path(store.url, file.key).unlink()
    fresh = open_store(store.url)
    assert [problem.code for problem in fresh.doctor().damage] == ["missing_file"]
    fresh.repair()
    repaired = open_store(store.url)
    assert repaired.version().state.overlays == ()
    assert ids_of(repaired.version()) == ["e0", "e2", "e3", "e1"]
    assert repaired.doctor().damage == []
