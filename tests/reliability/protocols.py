"""What is recorded under the stand-in kernel: each protocol of the store, with what it promises."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.store.catalog import Catalog
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store, Version
from pipeline.store.writer import rows_of, write_blocks
from schemas.episode import Episode
from schemas.identity import digest
from tests.reliability.kernel import Call, Kernel
from tests.reliability.promises import Told, learn
from tests.store.makers import episode, score

STORE = "store"
AT_ONCE = dt.timedelta(0)
Change = Callable[[Told], Told]
Act = Callable[["Recorder", Store], object]


class Recorder:
    """Does things to a store and writes down what was asked for and what was answered."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.path = Path(kernel.root, STORE)
        self.truth: dict[str, tuple[tuple[str, str], ...]] = {}

    def open(self) -> Store:
        """Opens the store as a process of its own would."""
        is_new = not self.path.exists()
        store = Store(Catalog(LocalObjects(self.path), create=True))
        if is_new:
            self.note(lambda told: told.adds(is_created=True))
        return store

    def note(self, change: Change) -> None:
        if self.path.is_dir():
            learn(Catalog(LocalObjects(self.path), create=True), self.truth)
        self.kernel.note(change)

    def append(self, store: Store, batch: Sequence[Episode], branch: str = "main") -> Version:
        offer = (branch, tuple(batch))
        self.note(lambda told: told.adds(offered=offer))
        version = store.append(batch, branch=branch)
        self.note(lambda told: told.adds(acked=offer, is_created=True))
        return self.committed(version)

    def committed(self, version: Version) -> Version:
        made = (version.branch, version.number, version.id)
        self.note(lambda told: told.adds(commits=made))
        return version

    def tag(self, store: Store, name: str, version: Version) -> None:
        store.tag(name, version)
        self.note(lambda told: told.adds(tags={name: version.id}))

    def asks(self, ask: Callable[[Store], Any], store: Store) -> Any:
        """Asks for something that is asked for again after a crash."""
        self.note(lambda told: told.adds(again=ask))
        return ask(store)


def batch(first: int, last: int, steps: int = 3, seed: int = 0) -> list[Episode]:
    return [small(f"e{number}", steps, seed) for number in range(first, last)]


def small(name: str, steps: int = 3, seed: int = 0) -> Episode:
    return episode(name, steps, seed=seed)


# -- the protocols -----------------------------------------------------------------------------


def appends(recorder: Recorder) -> None:
    """Small commits to a new store, some of what they offer known already."""
    store = recorder.open()
    recorder.append(store, batch(0, 2))
    recorder.append(store, batch(1, 4))
    recorder.append(store, batch(0, 4))
    recorder.append(recorder.open(), batch(3, 5))


def shards(recorder: Recorder) -> None:
    """A commit of a whole shard, then one of a shard and a tail."""
    store = recorder.open()
    recorder.append(store, [small("s0", 4100)])
    recorder.append(store, [small("s1", 4200), small("t0")])


def names(recorder: Recorder) -> None:
    """Tags and branches made, grown and removed."""
    store = recorder.open()
    first = recorder.append(store, batch(0, 2))
    recorder.tag(store, "gold", first)
    side = recorder.committed(store.branch("side", first))
    recorder.append(store, batch(2, 3), branch="side")
    second = recorder.append(store, batch(2, 4))
    recorder.tag(store, "silver", second)
    recorder.committed(store.branch("late", side))
    recorder.note(lambda told: told.adds(dying_tags=frozenset({"gold"})))
    store.delete_tag("gold")
    recorder.note(lambda told: told.adds(gone_tags=frozenset({"gold"})))
    store.delete_branch("late")


def curates(recorder: Recorder) -> None:
    """Selections on a new branch and on its own, and a revert."""
    store = recorder.open()
    recorder.append(store, batch(0, 4))
    version = store.version()
    recorder.committed(version.where("episode_id != 'e1'").commit(branch="some"))
    recorder.append(store, batch(4, 5), branch="some")
    recorder.committed(store.version("some").where("episode_id != 'e2'").commit(branch="some"))
    recorder.committed(store.revert("some:1"))


def measures(recorder: Recorder) -> None:
    """Scores beside the data."""
    store = recorder.open()
    recorder.append(store, batch(0, 3))
    recorder.committed(score(store, {"e0": 0.5, "e1": 1.5}))
    recorder.append(store, batch(3, 4))
    recorder.committed(score(store, {"e3": 2.5}))


def checkpoints(recorder: Recorder) -> None:
    """Commits that carry the whole state, merge id indexes and leave hints."""
    store = recorder.open()
    for number in range(7):
        recorder.append(store, batch(number, number + 1))
    recorder.append(recorder.open(), batch(0, 8))


def compacts(recorder: Recorder) -> None:
    """Small parts put together, while versions before it stay."""
    store = recorder.open()
    recorder.append(store, batch(0, 1))
    version = recorder.append(store, batch(1, 3))
    recorder.tag(store, "before", version)
    recorder.append(store, batch(3, 4))
    recorder.asks(compact, store)
    recorder.append(store, batch(4, 5))
    recorder.asks(compact, store)


def collects(recorder: Recorder) -> None:
    """Orphans and expired versions marked and swept, while tags keep theirs."""
    store = recorder.open()
    list(write_blocks(store.catalog.objects, rows_of([small("orphan")])))
    tagged = recorder.append(store, batch(0, 2))
    recorder.append(store, batch(2, 4))
    recorder.tag(store, "kept", tagged)
    store.compact(everything=True)
    recorder.committed(store.expire(before=store.version().number))
    for _ in range(3):
        recorder.asks(collect, store)
    recorder.append(store, batch(4, 5))


def erases(recorder: Recorder) -> None:
    """Episodes gone for ever, from a tail and from a shard, their scores with them."""
    store = recorder.open()
    gone = small("secretive")
    recorder.append(store, [*batch(0, 2), gone])
    recorder.committed(score(store, {"e0": 0.5, "secretive": 1.5}))
    names = frozenset({"secretive"})
    recorder.note(lambda told: told.adds(erasing=names))
    store.erase(names)
    recorder.note(lambda told: told.adds(erased=names))
    recorder.note(lambda told: told.adds(searched=b"secretive"))
    recorder.note(lambda told: told.adds(searched=gone.arrays["actions"].tobytes()[:16]))
    recorder.asks(scrub, store)
    recorder.append(store, [*batch(2, 3), gone])


def replaces(recorder: Recorder) -> None:
    """Changed episodes in the place of the old ones, which had scores."""
    store = recorder.open()
    recorder.append(store, batch(0, 2))
    recorder.committed(store.append([small("old"), small("older")]))
    recorder.committed(score(store, {"e0": 0.5, "old": 1.5}))
    recorder.asks(replace, store)
    recorder.append(store, batch(2, 3))


def creating(at: int) -> Callable[[Recorder], None]:
    """Two processes that make the same store and commit to it, the second before call `at`."""

    def second(recorder: Recorder) -> None:
        recorder.append(recorder.open(), batch(1, 3))

    def protocol(recorder: Recorder) -> None:
        _interrupt(recorder, at, second)
        recorder.append(recorder.open(), batch(0, 2))
        _make_sure_it_came(recorder)

    return protocol


def racing(one: Act, other: Act, at: int) -> Callable[[Recorder], None]:
    """One writer at work, and another who does all of its work before the first's call `at`."""

    def protocol(recorder: Recorder) -> None:
        first = recorder.open()
        recorder.append(first, batch(0, 2))
        second = recorder.open()
        _interrupt(recorder, at, lambda recorder: other(recorder, second))
        one(recorder, first)
        _make_sure_it_came(recorder)

    return protocol


def _interrupt(recorder: Recorder, at: int, act: Callable[[Recorder], None]) -> None:
    start = len(recorder.kernel.trace)

    def before(number: int, _call: Call) -> None:
        if number - start >= at:
            recorder.kernel.before = None
            act(recorder)

    recorder.kernel.before = before


def _make_sure_it_came(recorder: Recorder) -> None:
    if recorder.kernel.before is not None:
        recorder.kernel.before = None
        raise OverError


class OverError(Exception):
    """The first writer makes fewer calls than that."""


RACES: dict[str, tuple[Act, Act]] = {
    "other ids": (
        lambda recorder, store: recorder.append(store, batch(2, 4)),
        lambda recorder, store: recorder.append(store, batch(4, 5)),
    ),
    "some of the same ids": (
        lambda recorder, store: recorder.append(store, batch(2, 4)),
        lambda recorder, store: recorder.append(store, batch(3, 5)),
    ),
    "the same ids": (
        lambda recorder, store: recorder.append(store, batch(2, 4)),
        lambda recorder, store: recorder.append(store, batch(2, 4)),
    ),
    "a tag": (
        lambda recorder, store: recorder.append(store, batch(2, 4)),
        lambda recorder, store: recorder.tag(store, "t", store.version()),
    ),
    "a branch": (
        lambda recorder, store: recorder.append(store, batch(2, 4)),
        lambda recorder, store: recorder.committed(store.branch("b")),
    ),
    "a new branch for both": (
        lambda recorder, store: recorder.append(store, batch(2, 4), branch="b"),
        lambda recorder, store: recorder.append(store, batch(3, 5), branch="b"),
    ),
    "an append while compacting": (
        lambda recorder, store: store.compact(everything=True),
        lambda recorder, store: recorder.append(store, batch(2, 3)),
    ),
    "a compaction while appending": (
        lambda recorder, store: recorder.append(store, batch(2, 3)),
        lambda recorder, store: store.compact(everything=True),
    ),
    "a collection while appending": (
        lambda recorder, store: recorder.append(store, batch(2, 3)),
        lambda recorder, store: store.gc(dt.timedelta(hours=1)),
    ),
}


def erases_shards(recorder: Recorder) -> None:
    """An episode gone from within a shard."""
    store = recorder.open()
    recorder.append(store, [small("s0", 4100), small("unspeakable", 60)])
    names = frozenset({"unspeakable"})
    recorder.note(lambda told: told.adds(erasing=names))
    store.erase(names)
    recorder.note(lambda told: told.adds(erased=names))
    recorder.note(lambda told: told.adds(searched=b"unspeakable"))
    recorder.asks(scrub, store)


def compact(store: Store) -> None:
    store.compact(everything=True)


def replace(store: Store) -> None:
    """Replaces what is there; what a crash took with it comes as new."""
    changed = [small("old", seed=1), small("older", 5, seed=1)]
    version = store.append(changed, on_change="replace")
    table = version.episodes()
    there = dict(zip(table["episode_id"].to_pylist(), table["digest"].to_pylist(), strict=True))
    assert [there[one.episode_id] for one in changed] == [digest(one) for one in changed]
    if "action_divergence" in table.column_names:
        scores = zip(
            table["episode_id"].to_pylist(), table["action_divergence"].to_pylist(), strict=True
        )
        assert dict(scores)["old"] is None, "a score of what is gone"


def collect(store: Store) -> None:
    store.gc(AT_ONCE)


def scrub(store: Store) -> None:
    store.gc(AT_ONCE, erase=True)


PROTOCOLS: dict[str, Callable[[Recorder], None]] = {
    "append": appends,
    "shard": shards,
    "names": names,
    "curate": curates,
    "measure": measures,
    "checkpoint": checkpoints,
    "compact": compacts,
    "collect": collects,
    "erase": erases,
    "erase from a shard": erases_shards,
    "replace": replaces,
}
