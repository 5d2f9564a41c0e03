"""Any sequence of operations on a store, through two handles, against a dictionary."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.store.catalog import Catalog
from pipeline.store.objects import LocalObjects, Objects
from pipeline.store.reader import Version
from pipeline.store.store import Store
from schemas.errors import FilesExpiredError, UsageError
from schemas.identity import digest
from tests.reliability.figures import tell
from tests.reliability.memory import MemoryObjects
from tests.reliability.sizes import size
from tests.store.makers import episode, ids_of, score

AT_ONCE = dt.timedelta(0)
IDS = tuple(f"e{number}" for number in range(8))
BRANCHES = ("main", "b0", "b1", "b2")
TAGS = ("t0", "t1", "t2")
OFFERS = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from((0, 0, 0, 1))), max_size=4)
NUMBERS = st.integers(0, 1000)
DIGESTS = {(name, seed): digest(episode(name, 2, seed=seed)) for name in IDS for seed in (0, 1)}


@dataclass(frozen=True)
class Shown:
    """What one version shows, and what its branch knows with it."""

    ids: tuple[tuple[str, int], ...] = ()
    """Ids and seeds in order, erased ones included."""
    known: frozenset[tuple[str, int]] = frozenset()
    refused: frozenset[tuple[str, int]] = frozenset()


@dataclass
class Branch:
    versions: list[Shown] = field(default_factory=list)
    kept_from: int = 1
    is_closed: bool = False


class StoreMachine(RuleBasedStateMachine):
    """The store and its model side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.handles = [Store(Catalog(self.objects(), create=True)) for _ in range(2)]
        self.branches: dict[str, Branch] = {}
        self.tags: dict[str, tuple[str, int]] = {}
        self.erased: set[str] = set()

    def objects(self) -> Objects:
        raise NotImplementedError

    # -- operations ----------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.branches["main"] = Branch()
        self.append(0, 0, [("e0", 0), ("e1", 0)])

    @rule(by=st.integers(0, 1), at=NUMBERS, offers=OFFERS)
    def replace(self, by: int, at: int, offers: list[tuple[str, int]]) -> None:
        name = self.pick(at)
        head = self.head(name)
        kept = {one: seed for one, seed in head.ids if one not in self.erased}
        ids = dict(head.ids)
        refused, said, coming = set(head.refused), dict[str, int](), dict[str, int]()
        for one, seed in offers:
            is_known = any(one == known for known, _ in head.known)
            if said.setdefault(one, seed) != seed:
                refused.add((one, seed))
            elif one in kept or not is_known:
                if kept.get(one) != seed:
                    coming[one] = seed
            elif (one, seed) not in head.known:
                refused.add((one, seed))  # a selection or an erasure took it: it stays away
        left = tuple(pair for pair in ids.items() if pair[0] not in coming)
        known = head.known | set(coming.items())
        after = Shown((*left, *coming.items()), known, frozenset(refused))
        if after != head:
            self.branches[name].versions.append(after)
        batch = [episode(one, 2, seed=seed) for one, seed in offers]
        version = self.handles[by].append(batch, branch=name, on_change="replace")
        assert version.number == len(self.branches[name].versions)

    @rule(by=st.integers(0, 1), at=NUMBERS, offers=OFFERS)
    def append(self, by: int, at: int, offers: list[tuple[str, int]]) -> None:
        name = self.pick(at)
        head = self.head(name)
        after, refused = head, set(head.refused)
        known = set(head.known)
        added = []
        for one, seed in offers:
            if (one, seed) in known:
                continue
            if one in {name for name, _ in known}:
                refused.add((one, seed))
            else:
                known.add((one, seed))
                added.append((one, seed))
        after = Shown((*head.ids, *added), frozenset(known), frozenset(refused))
        if after != head:
            self.branches[name].versions.append(after)
        batch = [episode(one, 2, seed=seed) for one, seed in offers]
        version = self.handles[by].append(batch, branch=name)
        assert version.number == len(self.branches[name].versions)

    @rule(by=st.integers(0, 1), at=NUMBERS, number=NUMBERS, to=st.sampled_from(BRANCHES),
          keep=st.sets(st.sampled_from(IDS)))  # fmt: skip
    def curate(self, by: int, at: int, number: int, to: str, keep: set[str]) -> None:
        name = self.pick(at)
        number = self.pick_number(name, number)
        base = self.branches[name].versions[number - 1]
        shown = replace(base, ids=tuple(pair for pair in base.ids if pair[0] in keep))
        listed = ", ".join(f"'{one}'" for one in sorted(keep)) or "''"
        self.jump(
            to,
            shown,
            (name, number),
            lambda: (
                self.version(by, name, number).where(f"episode_id in ({listed})").commit(branch=to)
            ),
        )

    @rule(by=st.integers(0, 1), at=NUMBERS, number=NUMBERS, to=st.sampled_from(BRANCHES[1:]))
    def branch(self, by: int, at: int, number: int, to: str) -> None:
        name = self.pick(at)
        number = self.pick_number(name, number)
        base = self.branches[name].versions[number - 1]
        store = self.handles[by]
        if to in self.branches:
            with pytest.raises(UsageError):
                store.branch(to, f"{name}:{number}")
            return
        self.jump(to, base, (name, number), lambda: store.branch(to, f"{name}:{number}"))

    @rule(by=st.integers(0, 1), at=NUMBERS, number=NUMBERS)
    def revert(self, by: int, at: int, number: int) -> None:
        name = self.pick(at)
        number = self.pick_number(name, number)
        base = self.branches[name].versions[number - 1]
        store = self.handles[by]
        self.jump(name, base, (name, number), lambda: store.revert(f"{name}:{number}"))

    @rule(by=st.integers(0, 1), at=NUMBERS, number=NUMBERS, tag=st.sampled_from(TAGS))
    def tag(self, by: int, at: int, number: int, tag: str) -> None:
        name = self.pick(at)
        where = (name, self.pick_number(name, number))
        store = self.handles[by]
        if self.tags.get(tag, where) != where:
            with pytest.raises(UsageError):
                store.tag(tag, f"{where[0]}:{where[1]}")
        elif self.unless_expired(where, lambda: store.tag(tag, f"{where[0]}:{where[1]}")):
            self.tags[tag] = where

    @precondition(lambda self: self.tags)
    @rule(by=st.integers(0, 1), at=NUMBERS)
    def delete_tag(self, by: int, at: int) -> None:
        tag = sorted(self.tags)[at % len(self.tags)]
        self.handles[by].delete_tag(tag)
        del self.tags[tag]

    @precondition(lambda self: len(self.open()) > 1)
    @rule(by=st.integers(0, 1), at=NUMBERS)
    def close(self, by: int, at: int) -> None:
        name = [name for name in self.open() if name != "main"][at % (len(self.open()) - 1)]
        self.handles[by].delete_branch(name)
        self.branches[name].versions.append(self.head(name))
        self.branches[name].is_closed = True
        with pytest.raises(UsageError):
            self.handles[1 - by].append([episode("e0", 2)], branch=name)

    @rule(by=st.integers(0, 1), at=NUMBERS, scores=st.dictionaries(st.sampled_from(IDS),
          st.floats(0, 1), min_size=1, max_size=3))  # fmt: skip
    def measure(self, by: int, at: int, scores: dict[str, float]) -> None:
        name = self.pick(at)
        score(self.handles[by], dict(scores), branch=name)
        self.branches[name].versions.append(self.head(name))

    @rule(by=st.integers(0, 1), at=NUMBERS)
    def compact(self, by: int, at: int) -> None:
        name = self.pick(at)
        done = self.handles[by].compact(name, everything=True)
        self.branches[name].versions += [self.head(name)] * len(done.commits)
        assert done.parts_after <= max(done.parts_before, 1)

    @rule(by=st.integers(0, 1), at=NUMBERS, number=NUMBERS)
    def expire(self, by: int, at: int, number: int) -> None:
        name = self.pick(at)
        before = self.pick_number(name, number)
        self.handles[by].expire(name, before=before)
        self.branches[name].versions.append(self.head(name))
        self.branches[name].kept_from = max(self.branches[name].kept_from, before)

    @rule(by=st.integers(0, 1), times=st.integers(1, 2))
    def gc(self, by: int, times: int) -> None:
        for _ in range(times):
            self.handles[by].gc(AT_ONCE)

    @rule(by=st.integers(0, 1), at=NUMBERS)
    def erase(self, by: int, at: int) -> None:
        visible = sorted({one for name in self.open() for one, _ in self.head(name).ids})
        visible = [one for one in visible if one not in self.erased]
        if len(visible) > 2:
            one = visible[at % len(visible)]
            assert self.handles[by].erase([one]) == 1
            self.erased.add(one)

    @rule(by=st.integers(0, 1))
    def scrub(self, by: int) -> None:
        self.handles[by].gc(AT_ONCE, erase=True)
        for branch in self.branches.values():
            branch.versions = [
                replace(
                    shown,
                    refused=frozenset(pair for pair in shown.refused if pair[0] not in self.erased),
                )
                for shown in branch.versions
            ]

    @rule(by=st.integers(0, 1))
    def reopen(self, by: int) -> None:
        self.handles[by] = Store(Catalog(self.objects(), create=False))

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def heads_are_as_they_should(self) -> None:
        for store in self.handles:
            assert sorted(store.branches()) == sorted(self.open())
            assert {n: (r.branch, r.number) for n, r in store.tags().items()} == self.tags
            for name in self.open():
                assert store.version(name).number == len(self.branches[name].versions)
                self.check(store.version(name), self.head(name))

    @rule(by=st.integers(0, 1), at=NUMBERS, number=NUMBERS)
    def look_back(self, by: int, at: int, number: int) -> None:
        name = sorted(self.branches)[at % len(self.branches)]
        number = self.pick_number(name, number)
        if self.is_kept((name, number)):
            version = self.handles[by].version(f"{name}:{number}")
            self.check(version, self.branches[name].versions[number - 1])
            self.read(version)

    def teardown(self) -> None:
        if not self.branches:
            return
        store = Store(Catalog(self.objects(), create=False))
        for name, branch in self.branches.items():
            for number, shown in enumerate(branch.versions, 1):
                if self.is_kept((name, number)):
                    self.check(store.version(f"{name}:{number}"), shown)
            self.read(store.version(f"{name}:{len(branch.versions)}"))
        assert store.doctor().damage == []

    def check(self, version: Version, shown: Shown) -> None:
        expected = [pair for pair in shown.ids if pair[0] not in self.erased]
        table = version.episodes(columns=["episode_id", "digest"])
        assert table["episode_id"].to_pylist() == [one for one, _ in expected]
        assert table["digest"].to_pylist() == [DIGESTS[pair] for pair in expected]

    def read(self, version: Version) -> None:
        digests = [digest(one) for one in version.iter_episodes()]
        assert digests == version.episodes(columns=["digest"])["digest"].to_pylist()
        assert len(version.index().length) == len(digests)

    # -- within --------------------------------------------------------------------------------

    def open(self) -> list[str]:
        return [name for name, branch in self.branches.items() if not branch.is_closed]

    def head(self, name: str) -> Shown:
        versions = self.branches[name].versions
        return versions[-1] if versions else Shown()

    def pick(self, at: int) -> str:
        return self.open()[at % len(self.open())]

    def pick_number(self, name: str, number: int) -> int:
        return 1 + number % len(self.branches[name].versions)

    def version(self, by: int, name: str, number: int) -> Version:
        return self.handles[by].version(f"{name}:{number}")

    def is_kept(self, where: tuple[str, int]) -> bool:
        branch = self.branches[where[0]]
        is_recent = where[1] >= branch.kept_from or where[1] == len(branch.versions)
        return is_recent or where in self.tags.values()

    def jump(self, to: str, shown: Shown, base: tuple[str, int], act: object) -> None:
        """A commit that carries a state; the branch forgets no id that it has seen."""
        branch = self.branches.get(to)
        if branch is not None and branch.is_closed:
            with pytest.raises(UsageError):
                act()  # type: ignore[operator]
            return
        if self.unless_expired(base, act):
            before = self.head(to).known if branch is not None else frozenset()
            # Of an id that both know with other content, both contents are known.
            known = shown.known | before
            self.branches.setdefault(to, Branch()).versions.append(replace(shown, known=known))

    def unless_expired(self, where: tuple[str, int], act: object) -> bool:
        try:
            act()  # type: ignore[operator]
        except FilesExpiredError:
            assert not self.is_kept(where), f"{where} is kept"
            return False
        return True


class InMemory(StoreMachine):
    def objects(self) -> Objects:
        if not hasattr(self, "_objects"):
            self._objects = MemoryObjects()
        return self._objects


class OnDisk(StoreMachine):
    def objects(self) -> Objects:
        if not hasattr(self, "_folder"):
            self._folder = tempfile.mkdtemp(prefix="penstock-")
        return LocalObjects(Path(self._folder) / "s")

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self._folder)


@pytest.mark.parametrize(
    ("machine", "examples"), [(InMemory, size(25, 2000)), (OnDisk, size(5, 300))]
)
@pytest.mark.timeout(1200)
def test_a_store_does_as_its_model(machine: type[StoreMachine], examples: int) -> None:
    chosen = settings(max_examples=examples, stateful_step_count=size(12, 15))
    run_state_machine_as_test(machine, settings=chosen)
    tell(f"state machine: {machine.__name__}", examples=examples)


def test_the_model_is_no_stranger_to_episodes() -> None:
    machine = InMemory()
    machine.begin()
    assert ids_of(machine.handles[1].version()) == ["e0", "e1"]
