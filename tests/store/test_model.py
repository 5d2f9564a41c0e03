"""A store against a model of dictionaries, in whatever order things happen."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field
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

from pipeline.store.known import OnChange
from pipeline.store.store import Store, Version
from schemas.episode import Episode
from schemas.errors import NameTakenError
from tests.store.disks import quick_store
from tests.store.makers import episode, ids_of, quarantined
from tests.strategies import assert_same_episode

NUMBERS = st.integers(0, 11)
BRANCHES = st.sampled_from(("main", "b1", "b2"))
TAGS = st.sampled_from(("t1", "t2", "b2"))
OFFERS = st.lists(st.tuples(NUMBERS, st.sampled_from((0, 0, 0, 1))), min_size=1, max_size=5)


def made(number: int, variant: int) -> Episode:
    """Episode `number`; its variants differ in content only. Every third is of another spec."""
    one = episode(f"e{number}", 1 + number % 4, seed=variant)
    if number % 3:
        return one
    return one.replace(actions={"left": one.actions, "right": one.actions})


def by_spec(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The order in which a batch comes in: a part is of one spec, the first one's first."""
    if not pairs:
        return []
    first = bool(pairs[0][0] % 3)
    return sorted(pairs, key=lambda pair: bool(pair[0] % 3) != first)


@dataclass(frozen=True)
class Shown:
    """What one version shows."""

    id: str
    kept: tuple[tuple[int, int], ...]
    """(number, variant) of its episodes in order."""
    refused: frozenset[tuple[int, int]]
    known: frozenset[tuple[int, int]]
    """What its branch had seen by then."""


@dataclass
class Branch:
    """The model of a branch: its versions, and all that it has ever seen."""

    versions: list[Shown] = field(default_factory=list)
    known: set[tuple[int, int]] = field(default_factory=set)
    is_closed: bool = False

    @property
    def head(self) -> Shown:
        return self.versions[-1]


class StoreMachine(RuleBasedStateMachine):
    """Does to a store what it does to the model, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store: Store = quick_store(self.folder / "s")
        self.branches: dict[str, Branch] = {}
        self.tags: dict[str, Shown] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # -- rules ---------------------------------------------------------------------------------

    @initialize(numbers=st.sets(NUMBERS, min_size=1, max_size=4))
    def begin(self, numbers: set[int]) -> None:
        self.append([(number, 0) for number in sorted(numbers)], "main")

    @rule(offers=OFFERS, name=BRANCHES, on_change=st.sampled_from(("quarantine", "replace")))
    def append(
        self, offers: list[tuple[int, int]], name: str, on_change: OnChange = "quarantine"
    ) -> None:
        branch = self.branches.get(name, Branch())
        episodes = [made(number, variant) for number, variant in offers]
        if branch.is_closed or name in self.tags:
            with pytest.raises(NameTakenError):
                self.store.append(episodes, branch=name)
            return
        specs = len(self.store.version(name).state.specs) if branch.versions else 0
        if not specs:  # one commit brings one new spec at most
            offers = [offer for offer in offers if (offer[0] % 3 > 0) == (offers[0][0] % 3 > 0)]
            episodes = [made(number, variant) for number, variant in offers]
        plan = self._plan if on_change == "quarantine" else self._plan_replacing
        kept, refused = plan(branch, offers)
        version = self.store.append(
            episodes, branch=name, new_spec=f"s{specs}", on_change=on_change
        )
        self.branches[name] = branch
        if (kept, refused) != ((branch.head.kept, branch.head.refused) if branch.versions else 0):
            branch.versions.append(Shown(version.id, kept, refused, frozenset(branch.known)))
        assert version.id == branch.head.id

    def _plan(
        self, branch: Branch, offers: list[tuple[int, int]]
    ) -> tuple[tuple[tuple[int, int], ...], frozenset[tuple[int, int]]]:
        kept = branch.head.kept if branch.versions else ()
        refused = set(branch.head.refused) if branch.versions else set()
        coming = []
        for offer in offers:
            if offer in branch.known:
                continue
            if any(number == offer[0] for number, _ in branch.known):
                refused.add(offer)
                continue
            branch.known.add(offer)
            coming.append(offer)
        return (*kept, *by_spec(coming)), frozenset(refused)

    def _plan_replacing(
        self, branch: Branch, offers: list[tuple[int, int]]
    ) -> tuple[tuple[tuple[int, int], ...], frozenset[tuple[int, int]]]:
        kept = dict(branch.head.kept) if branch.versions else {}
        refused = set(branch.head.refused) if branch.versions else set()
        said: dict[int, int] = {}
        coming = []
        for number, variant in offers:
            if said.setdefault(number, variant) != variant:
                refused.add((number, variant))
            elif number in kept or not any(known == number for known, _ in branch.known):
                if kept.get(number) != variant and (number, variant) not in coming:
                    kept.pop(number, None)
                    coming.append((number, variant))
            elif (number, variant) not in branch.known:
                refused.add((number, variant))
        branch.known.update(coming)
        return (*kept.items(), *by_spec(coming)), frozenset(refused)

    @rule(name=BRANCHES, at=st.integers(0, 99), onto=BRANCHES, limit=st.integers(0, 5))
    def curate(self, name: str, at: int, onto: str, limit: int) -> None:
        base = self._pick(name, at)
        if base is None:
            return
        number, shown = base
        selection = self.store.version(f"{name}:{number}").where(f"length < {limit}")
        kept = tuple(one for one in shown.kept if 1 + one[0] % 4 < limit)
        assert len(selection) == len(kept)
        target = self.branches.get(onto, Branch())
        if target.is_closed or onto in self.tags:
            with pytest.raises(NameTakenError):
                selection.commit(branch=onto)
            return
        version = selection.commit(branch=onto)
        target.known |= shown.known
        known = frozenset(target.known)
        target.versions.append(Shown(version.id, kept, shown.refused, known))
        self.branches[onto] = target

    @rule(name=BRANCHES, at=st.integers(0, 99), new=BRANCHES)
    def branch(self, name: str, at: int, new: str) -> None:
        base = self._pick(name, at)
        if base is None:
            return
        number, shown = base
        if new in self.branches or new in self.tags:
            with pytest.raises(NameTakenError):
                self.store.branch(new, f"{name}:{number}")
            return
        version = self.store.branch(new, f"{name}:{number}")
        first = Shown(version.id, shown.kept, shown.refused, shown.known)
        self.branches[new] = Branch([first], set(shown.known))

    @rule(name=BRANCHES, at=st.integers(0, 99))
    def revert(self, name: str, at: int) -> None:
        base = self._pick(name, at)
        if base is None:
            return
        number, shown = base
        if self.branches[name].is_closed:
            with pytest.raises(NameTakenError):
                self.store.revert(f"{name}:{number}")
            return
        version = self.store.revert(f"{name}:{number}")
        known = frozenset(self.branches[name].known)
        back = Shown(version.id, shown.kept, shown.refused, known)
        self.branches[name].versions.append(back)

    @rule(tag=TAGS, name=BRANCHES, at=st.integers(0, 99))
    def tag(self, tag: str, name: str, at: int) -> None:
        base = self._pick(name, at)
        if base is None:
            return
        number, shown = base
        taken = tag in self.branches or self.tags.get(tag, shown).id != shown.id
        with pytest.raises(NameTakenError) if taken else contextlib.nullcontext():
            self.store.tag(tag, f"{name}:{number}")
        if not taken:
            self.tags[tag] = shown

    @precondition(lambda self: len(self.branches) > 1)
    @rule(name=st.sampled_from(("b1", "b2")))
    def close(self, name: str) -> None:
        branch = self.branches.get(name)
        if branch is None or branch.is_closed:
            return
        self.store.delete_branch(name)
        branch.is_closed = True

    @rule()
    def reopen(self) -> None:
        self.store = quick_store(self.folder / "s")

    # -- comparison ----------------------------------------------------------------------------

    @invariant()
    def heads_are_those_of_the_model(self) -> None:
        open_ = {name: one.head for name, one in self.branches.items() if not one.is_closed}
        found = self.store.branches()
        assert {name: version.id for name, version in found.items()} == {
            name: shown.id for name, shown in open_.items()
        }
        for name, shown in open_.items():
            self._compare(found[name], shown)
            assert sorted(quarantined(self.store, name)) == sorted(
                (f"e{number}", "id_conflict") for number, _ in shown.refused
            )

    @invariant()
    def tags_are_those_of_the_model(self) -> None:
        found = {name: self.store.version(name).id for name in self.store.tags()}
        assert found == {name: shown.id for name, shown in self.tags.items()}

    @rule(name=BRANCHES, at=st.integers(0, 99))
    def an_old_version_is_as_it_was(self, name: str, at: int) -> None:
        base = self._pick(name, at)
        if base is None:
            return
        number, shown = base
        for ref in (f"{name}:{number}", shown.id, shown.id[:12]):
            assert self.store.version(ref).id == shown.id
        version = self.store.version(shown.id)
        self._compare(version, shown)
        for one, (number, variant) in zip(version.iter_episodes(), shown.kept, strict=True):
            assert_same_episode(one, made(number, variant))

    def _compare(self, version: Version, shown: Shown) -> None:
        assert ids_of(version) == [f"e{number}" for number, _ in shown.kept]
        sizes = version.commit.totals
        assert sizes.episodes == len(shown.kept)
        assert sizes.steps == sum(1 + number % 4 for number, _ in shown.kept)

    def _pick(self, name: str, at: int) -> tuple[int, Shown] | None:
        """A version of a branch: its number and what it shows."""
        branch = self.branches.get(name)
        if branch is None:
            return None
        number = at % len(branch.versions)
        return number + 1, branch.versions[number]


def test_a_store_behaves_like_dictionaries() -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=60, stateful_step_count=20)
    )
