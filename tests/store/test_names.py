"""Branches, tags, references, time travel, log, diff, revert."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from pipeline.store.store import Store, open_store, open_version, parse_ref
from schemas.errors import NameTakenError, NotFoundError, UsageError
from tests.store.disks import quick_store
from tests.store.makers import episode, hashes, ids_of, names, score


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three versions of main: e0; e0 e1; e0 e1 e2."""
    made = quick_store(tmp_path / "s")
    for name in names(3):
        made.append([episode(name)], message=f"add {name}")
    return made


# -- branches and tags -------------------------------------------------------------------------


def test_a_branch_starts_where_it_is_told_and_goes_its_own_way(store: Store) -> None:
    before = hashes(Path(store.url))
    branch = store.branch("side", "main:2")
    assert (branch.number, branch.branch, ids_of(branch)) == (1, "side", ["e0", "e1"])
    assert branch.parent == store.version("main:2").commit.ref
    after = hashes(Path(store.url))
    assert before.items() <= after.items()
    new = [key for key in after if key not in before and not key.endswith(".ids")]
    assert new == ["refs/branches/side/000000000001.json"]
    store.append([episode("x")], branch="side")
    store.append([episode("e3")])
    assert ids_of(store.version("side")) == ["e0", "e1", "x"]
    assert ids_of(store.version()) == names(4)
    assert store.branches().keys() == {"main", "side"}
    # The branch knows what its base knew.
    assert store.append([episode("e0")], branch="side").number == 2
    log = [(version.branch, version.number) for version in store.log("side")]
    assert log == [("side", 2), ("side", 1), ("main", 2), ("main", 1)]


def test_tags_never_move(store: Store) -> None:
    first = store.version("main:1")
    store.tag("paper", first)
    store.tag("paper", first)  # saying it again changes nothing
    store.append([episode("x")])
    assert store.version("paper").id == first.id
    for ref in ("main", "main:2"):
        with pytest.raises(NameTakenError, match="never move"):
            store.tag("paper", ref)
    assert store.version("paper").id == first.id
    store.tag("latest")
    assert store.tags().keys() == {"paper", "latest"}
    assert store.version("latest").id == store.version().id
    store.delete_tag("paper")
    assert store.tags().keys() == {"latest"}
    for act in (lambda: store.version("paper"), lambda: store.delete_tag("paper")):
        with pytest.raises(NotFoundError):
            act()
    assert store.version("main:1").id == first.id


def test_branches_and_tags_share_one_name_space(store: Store) -> None:
    store.tag("t")
    store.branch("b")
    with pytest.raises(NameTakenError, match="branch named 'b'"):
        store.tag("b")
    for act in (
        lambda: store.branch("t"),
        lambda: store.append([episode("x")], branch="t"),
        lambda: store.version().where("length > 0").commit(branch="t"),
    ):
        with pytest.raises(NameTakenError, match="tag named 't'"):
            act()
    with pytest.raises(NameTakenError, match="exists"):
        store.branch("b")
    assert store.branches().keys() == {"main", "b"}


def test_a_closed_branch_stays_closed(store: Store) -> None:
    side = store.branch("side")
    late = store.append([episode("x")], branch="side")
    store.tag("kept", late)
    store.delete_branch("side")
    assert store.branches().keys() == {"main"}
    with pytest.raises(NotFoundError):
        store.version("side")
    for act in (
        lambda: store.append([episode("y")], branch="side"),
        lambda: store.branch("side"),
        lambda: store.tag("side"),
        lambda: store.delete_branch("side"),
        lambda: store.version().where("length > 0").commit(branch="side"),
        lambda: store.revert("side:1"),
    ):
        with pytest.raises(NameTakenError):
            act()
    # Its versions stay, by number, tag and id.
    assert store.version("side:1").id == side.id
    assert store.version("kept").id == late.id
    assert store.version(late.id).id == late.id
    assert store.version(late.id[:8]).id == late.id
    with pytest.raises(NotFoundError):
        store.delete_branch("never")


BAD_NAMES = (
    "",
    "..",
    "a/b",
    ".hidden",
    "-dash",
    "a b",
    "a\n",
    "é",
    "x" * 129,
    "0" * 32,
    "a:1",
    "a@b",
)


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_names_that_are_refused(store: Store, name: str) -> None:
    for act in (
        lambda: store.branch(name),
        lambda: store.tag(name),
        lambda: store.append([episode("x")], branch=name),
        lambda: store.delete_branch(name),
        lambda: store.delete_tag(name),
        lambda: store.version().where("length > 0").commit(branch=name),
    ):
        with pytest.raises(UsageError):
            act()
    assert store.version().number == 3


# -- references --------------------------------------------------------------------------------


def test_references(store: Store) -> None:
    third = store.version()
    assert store.version("main:3").id == third.id
    assert store.version("main:003").id == third.id
    assert store.version(third.id).id == third.id
    assert store.version(third.id[:8].upper()).id == third.id
    store.tag("0123456789")
    assert store.version("0123456789").id == third.id


@pytest.mark.parametrize(
    "ref", ["main:x", "main:", "main:-1", "main:²", "main:1.0", ":1", "../x:1"]
)
def test_references_that_are_not(store: Store, ref: str) -> None:
    with pytest.raises(UsageError):
        store.version(ref)


def test_unknown_references_name_the_nearest(store: Store) -> None:
    store.tag("paper")
    with pytest.raises(NotFoundError, match="did you mean 'paper'"):
        store.version("papre")
    with pytest.raises(NotFoundError):
        store.version(store.version().id[:7])
    with pytest.raises(NotFoundError):
        store.version("f" * 32)
    with pytest.raises(NotFoundError, match="main:4"):
        store.version("main:4")


def test_a_name_wins_over_an_id_prefix(store: Store) -> None:
    first, third = store.version("main:1"), store.version()
    store.tag(first.id[:12], third)
    assert store.version(first.id[:12]).id == third.id
    assert store.version(first.id[:13]).id == first.id


def test_an_ambiguous_prefix_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.store import layout

    made = iter(["abcdefab" + "0" * 24, "abcdefab" + "1" * 24])
    real = layout.new_id
    for _ in range(2):
        version_id = next(made)
        monkeypatch.setattr("pipeline.store.commit.layout.new_id", lambda: version_id)  # noqa: B023
        store.branch(f"b{version_id[-1]}")
        monkeypatch.setattr("pipeline.store.commit.layout.new_id", real)
    with pytest.raises(UsageError, match="unambiguous"):
        store.version("abcdefab")
    assert store.version("abcdefab0").branch == "b0"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("/data/s", ("/data/s", "main")),
        ("/data/s@main:7", ("/data/s", "main:7")),
        ("/data/s@", ("/data/s", "main")),
        ("/home/me@work/s", ("/home/me@work/s", "main")),
        ("/home/me@work/s@t", ("/home/me@work/s", "t")),
        ("s@0123abcd", ("s", "0123abcd")),
        ("file:///data/s@t", ("file:///data/s", "t")),
    ],
)
def test_parse_ref(text: str, parsed: tuple[str, str]) -> None:
    assert parse_ref(text) == parsed


def test_open_version(store: Store) -> None:
    assert open_version(f"{store.url}@main:2").number == 2
    assert open_version(f"file://{store.url}").number == 3
    assert open_version(store.url).message == "add e2"
    with pytest.raises(NotFoundError):
        open_version(f"{store.url}@nothing")


# -- time --------------------------------------------------------------------------------------


def test_time_travel_by_datetime(store: Store) -> None:
    versions = [store.version(f"main:{number}") for number in (1, 2, 3)]
    tick = dt.timedelta(microseconds=1)
    for version in versions:
        assert store.version(version.created_at).id == version.id
    assert store.version(versions[2].created_at - tick).number == 2
    assert store.version(dt.datetime(2999, 1, 1, tzinfo=dt.UTC)).number == 3
    local = versions[1].created_at.astimezone().replace(tzinfo=None)
    assert store.version(local).number == 2
    with pytest.raises(NotFoundError, match="none that old"):
        store.version(versions[0].created_at - tick)


def test_versions_never_change(store: Store) -> None:
    seen = {n: store.version(f"main:{n}").episodes() for n in (1, 2, 3)}
    score(store, {"e0": 0.1})
    store.version().where("length > 0 and episode_id == 'e1'").commit(branch="main")
    store.revert("main:1")
    fresh = open_store(store.url)
    for number, table in seen.items():
        assert fresh.version(f"main:{number}").episodes().equals(table)


# -- diff and revert ---------------------------------------------------------------------------


def test_diff(store: Store) -> None:
    changes = store.diff("main:1", "main:3")
    assert (changes.added, changes.removed, changes.rescored) == (("e1", "e2"), (), ())
    back = store.diff("main:3", "main:1")
    assert (back.added, back.removed) == ((), ("e1", "e2"))
    nan = float("nan")
    score(store, {"e0": 0.5, "e1": nan, "e2": None})
    assert store.diff("main:3", "main").rescored == ("e0",)
    score(store, {"e0": 0.5, "e1": nan, "e2": 0.5})
    assert store.diff("main:4", "main").rescored == ("e2",)
    assert store.diff("main", "main").rescored == ()
    score(store, {"e1": 0.25}, metric="smoothness", extra={"duplicate_of": ["e0"]})
    assert store.diff("main:5", "main").rescored == ("e1",)
    assert store.diff("main", "main:5").rescored == ("e1",)
    score(store, {"e1": 0.25}, metric="smoothness", extra={"duplicate_of": ["e2"]})
    assert store.diff("main:6", "main").rescored == ("e1",)


def test_revert_is_a_new_version(store: Store) -> None:
    before = hashes(Path(store.url))
    back = store.revert("main:1")
    assert (back.number, back.branch, ids_of(back)) == (4, "main", ["e0"])
    assert before.items() <= hashes(Path(store.url)).items()
    assert ids_of(store.version("main:3")) == names(3)
    assert [version.number for version in store.log()] == [4, 3, 2, 1]
    # The ids stay known; undoing the undo brings the episodes back.
    assert store.append([episode("e1")]).number == 4
    assert ids_of(store.revert("main:3")) == names(3)
    assert store.append([episode(name) for name in names(3)]).number == 5
    with pytest.raises(NotFoundError):
        store.revert("main:9")


def test_reverting_a_tag_moves_its_branch(store: Store) -> None:
    store.branch("side", "main:1")
    store.tag("t", "side")
    store.append([episode("x")], branch="side")
    assert store.revert("t").branch == "side"
    assert ids_of(store.version("side")) == ["e0"]
    assert store.version().number == 3


def test_urls_and_repr(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="gopher"):
        open_store("gopher://bucket/s")
    assert str(tmp_path / "s") in repr(store)
    assert "main:3" in repr(store.version())
    assert len(store.version()) == 3
