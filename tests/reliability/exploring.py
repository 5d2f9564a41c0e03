"""Runs a protocol under the stand-in kernel and checks the states that crashes may leave."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.store.catalog import Catalog
from pipeline.store.objects import LocalObjects
from tests.reliability.afterwards import Checked, Left
from tests.reliability.crashes import Model, Tree
from tests.reliability.kernel import Before, Call, Kernel
from tests.reliability.promises import Told, Truth, check, learn
from tests.reliability.protocols import STORE, Recorder


@dataclass
class Explored:
    """What was found."""

    states: int = 0
    runs: int = 0
    """Checks that were really run: the other states answered as an earlier one did."""
    violations: list[str] = field(default_factory=list)

    def add(self, other: Explored, where: str) -> None:
        """Takes in what was found elsewhere."""
        self.states += other.states
        self.runs += other.runs
        self.violations += [f"{where}: {said}" for said in other.violations]


@dataclass(frozen=True)
class Recording:
    """A protocol's calls and what its versions hold in the end."""

    trace: tuple[Call, ...]
    truth: Truth


def record(
    root: Path,
    protocol: Callable[[Recorder], None],
    before: Callable[[Recorder], Before] | None = None,
) -> Recording:
    """Runs a protocol under the stand-in kernel."""
    kernel = Kernel(root)
    recorder = Recorder(kernel)
    if before is not None:
        kernel.before = before(recorder)
    with kernel:
        protocol(recorder)
    return recorded(recorder)


def recorded(recorder: Recorder) -> Recording:
    """Returns what was recorded, and makes sure that the model knows every file it left."""
    kernel = recorder.kernel
    model = Model()
    for call in kernel.trace:
        model.apply(call)
    assert model.now() == _tree_on(Path(kernel.root)), "some call went around the kernel"
    learn(Catalog(LocalObjects(recorder.path), create=False), recorder.truth)
    return Recording(tuple(kernel.trace), recorder.truth)


def explore(
    recording: Recording, limit: int, *, seed: int = 0, again_every: int = 1, since: int = 0
) -> Explored:
    """Checks the states that a crash after each call may leave.

    Args:
        recording: what was done.
        limit: how many states of each moment, at most.
        seed: of the random choice where there are more.
        again_every: in every so manieth state, what had been asked for is asked for again.
        since: number of the first call after which there may be a crash.
    """
    explored = Explored()
    rng = random.Random(seed)
    model, told = Model(), Told()
    checked, tried = _checks(told, recording.truth)
    for number, call in enumerate((*recording.trace, Call("note", ""))):
        if call.note is not None:
            explored.runs += checked.ran + tried.ran
            told = call.note(told)
            checked, tried = _checks(told, recording.truth)
        model.apply(call)
        for tree in _different(model.states(limit, rng)) if number >= since else ():
            explored.states += 1
            is_tried = told.again and explored.states % again_every == 0
            fault = (tried if is_tried else checked)(Left(tree, STORE))
            if fault:
                said = f"after call {number} ({call.verb} {call.path}): {fault}"
                explored.violations.append(said)
    explored.runs += checked.ran + tried.ran
    return explored


def _checks(told: Told, truth: Truth) -> tuple[Checked, Checked]:
    """The check that offers batches again, and the one that asks for the rest again, too."""
    less = replace(told, again=())
    return (
        Checked(lambda objects: check(objects, less, truth)),
        Checked(lambda objects: check(objects, told, truth)),
    )


def _different(trees: Iterator[Tree]) -> Iterator[Tree]:
    seen: set[int] = set()
    for tree in trees:
        key = hash(frozenset(tree.items()))
        if key not in seen:
            seen.add(key)
            yield tree


def _tree_on(root: Path) -> Tree:
    tree: Tree = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        tree[f"{name}/" if path.is_dir() else name] = b"" if path.is_dir() else path.read_bytes()
    return tree
