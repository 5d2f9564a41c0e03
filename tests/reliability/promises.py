"""What a store has promised so far, and the check that a store keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.store import derive
from pipeline.store.catalog import Catalog
from pipeline.store.files import files_of_state
from pipeline.store.reach import branch_commits, kept_from
from pipeline.store.store import Store
from pipeline.store.tables import episode_table
from schemas.episode import Episode
from schemas.errors import NotFoundError
from schemas.identity import digest, hash64
from schemas.version import Commit
from tests.reliability.afterwards import LeftObjects

Truth = Mapping[str, tuple[tuple[str, str], ...]]
"""Commit id to the ids and digests of its episodes, in order."""


@dataclass(frozen=True)
class Told:
    """What the caller was told, and what it asked for, up to some moment."""

    is_created: bool = False
    commits: tuple[tuple[str, int, str], ...] = ()
    """Acknowledged: branch, number, id."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Acknowledged: name to commit id."""
    gone_tags: frozenset[str] = frozenset()
    """Whose deletion was acknowledged."""
    dying_tags: frozenset[str] = frozenset()
    """Whose deletion was asked for."""
    offered: tuple[tuple[str, tuple[Episode, ...]], ...] = ()
    """Branch and batch of every append that was asked for."""
    acked: tuple[tuple[str, tuple[Episode, ...]], ...] = ()
    erasing: frozenset[str] = frozenset()
    """Ids whose erasure was asked for."""
    erased: frozenset[str] = frozenset()
    again: tuple[Callable[[Store], Any], ...] = ()
    """What is asked for again after a crash, besides the batches."""
    searched: tuple[bytes, ...] = ()
    """Bytes that are nowhere once `again` is done."""

    def adds(self, **more: Any) -> Told:
        """Returns this with more in some fields."""
        merged: dict[str, Any] = {}
        for name, value in more.items():
            old = getattr(self, name)
            if isinstance(old, tuple) and value in old:
                continue
            if isinstance(old, tuple):
                merged[name] = (*old, value)
            elif isinstance(old, frozenset):
                merged[name] = old | value
            elif isinstance(old, Mapping):
                merged[name] = {**old, **value}
            else:
                merged[name] = value
        return replace(self, **merged)


def learn(catalog: Catalog, truth: dict[str, tuple[tuple[str, str], ...]]) -> None:
    """Reads what the versions hold that are not known yet."""
    for branch in catalog.refs.heads():
        for commit in branch_commits(catalog, branch):
            if commit.id not in truth:
                table = episode_table(catalog, commit)
                ids, digests = table["episode_id"].to_pylist(), table["digest"].to_pylist()
                truth[commit.id] = tuple(zip(ids, digests, strict=True))


def check(objects: LeftObjects, told: Told, truth: Truth) -> None:
    """Makes sure that a crashed store keeps every promise, before and after trying again.

    Raises:
        AssertionError: if it does not. Any other error is a violation, too.
    """
    try:
        catalog = Catalog(objects, create=False)
    except NotFoundError:
        assert not told.is_created, "the store itself is lost"
    else:
        check_versions(catalog, told, truth)
        check_names(catalog, told)
    store = Store(Catalog(objects, create=True))
    for branch, batch in told.offered:
        if branch == "main" or branch in store.branches():
            store.append(batch, branch=branch)
    objects.wait(hours=25)  # what the dead held has expired
    for ask in told.again:
        ask(store)
    again = Catalog(objects, create=False)
    check_offered(again, told)
    check_names(again, told)
    if told.searched and told.again:
        everything = objects.everything()
        for needle in told.searched:
            found = [key for key, data in everything.items() if needle in data]
            assert not found, f"erased bytes are in {found}"


def check_versions(catalog: Catalog, told: Told, truth: Truth) -> None:
    """All visible versions are whole and true; all acknowledged ones are visible."""
    kept_tags = derive.tags(catalog).values()
    erased = catalog.erased()
    assert erased <= {hash64(name) for name in told.erasing}, "something else is erased"
    assert {hash64(name) for name in told.erased} <= erased, "an erasure is lost"
    for branch in catalog.refs.heads():
        commits = branch_commits(catalog, branch)
        first = min(kept_from(commits), len(commits))
        for commit in commits:
            assert commit.id in truth, f"{branch}:{commit.number} is of nobody"
            if commit.number >= first or commit.ref in kept_tags:
                check_version(catalog, commit, truth, erased)
    for branch, number, name in told.commits:
        head = catalog.refs.head(branch)
        assert head is not None, f"the acknowledged branch {branch} is lost"
        assert head.number >= number, f"the acknowledged {branch}:{number} is lost"
        assert catalog.refs.read(branch, number).id == name, f"{branch}:{number} is another's"


def check_version(catalog: Catalog, commit: Commit, truth: Truth, erased: set[int]) -> None:
    """Every file of a version is whole, and it holds what it should."""
    state = catalog.refs.state(commit)
    for file in files_of_state(state):
        catalog.read(file)
    for part in state.parts:
        for block in part.blocks:
            for file in catalog.block_files(block):
                catalog.read(file)
    table = episode_table(catalog, commit)
    ids, digests = table["episode_id"].to_pylist(), table["digest"].to_pylist()
    expected = tuple(pair for pair in truth[commit.id] if hash64(pair[0]) not in erased)
    assert tuple(zip(ids, digests, strict=True)) == expected, f"{commit.ref} is not what it was"


def check_names(catalog: Catalog, told: Told) -> None:
    """Acknowledged tags are there and lead to what they named."""
    found = derive.tags(catalog)
    for name, ref in found.items():
        assert catalog.refs.read(ref.branch, ref.number).id == ref.id, f"tag {name} leads astray"
    for name, commit_id in told.tags.items():
        if name not in told.dying_tags:
            assert name in found, f"the acknowledged tag {name} is lost"
            assert found[name].id == commit_id, f"the tag {name} moved"
    assert not told.gone_tags & found.keys(), "a deleted tag is back"


def check_offered(catalog: Catalog, told: Told) -> None:
    """Everything offered is there exactly once, wherever it was offered."""
    for branch, head in catalog.refs.branches().items():
        ids = episode_table(catalog, head)["episode_id"].to_pylist()
        twice = {name for name in ids if ids.count(name) > 1}
        assert not twice, f"{branch} has {twice} twice"
    main = catalog.refs.head("main")
    if main is None:
        assert not told.offered
        return
    table = episode_table(catalog, main)
    there = dict(zip(table["episode_id"].to_pylist(), table["digest"].to_pylist(), strict=True))
    for branch, batch in told.offered:
        for episode in batch if branch == "main" else ():
            if episode.episode_id not in told.erasing:
                assert there.get(episode.episode_id) == _digest(episode), f"{episode!r} is not in"
    assert not told.erased & there.keys(), "an erased episode is back"
    for part in catalog.refs.state(main).parts:
        for block in part.blocks:
            for file in catalog.block_files(block):
                catalog.read(file)


_DIGESTS: dict[int, tuple[Episode, str]] = {}


def _digest(episode: Episode) -> str:
    if id(episode) not in _DIGESTS:
        _DIGESTS[id(episode)] = (episode, digest(episode))
    return _DIGESTS[id(episode)][1]
