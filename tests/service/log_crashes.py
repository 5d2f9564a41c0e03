"""A life of a log under the stand-in kernel, and what must hold after a crash at any moment."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.episode import Episode
from schemas.errors import LogFailedError, PenstockError
from schemas.identity import digest
from tests.reliability.crashes import Model, Tree
from tests.reliability.kernel import Call, Kernel
from tests.service.logs import Actor, open_log, rollout, store_at, stored

SEGMENT_BYTES = 2500


@dataclass(frozen=True)
class Told:
    """What actors began and were told, up to some moment."""

    ended: frozenset[str] = frozenset()
    """Episodes whose last put was sent."""
    acked: frozenset[str] = frozenset()
    """Those whose end was acknowledged as durable."""


def small(name: str) -> Episode:
    return rollout(name, length=4)


def life(root: Path, kernel: Kernel) -> None:
    """Puts, rolls, seals, a failed sync, restarts and repeats."""

    def push(actor: Actor, name: str) -> None:
        kernel.note(lambda told: replace(told, ended=told.ended | {name}))
        actor.push(small(name))
        kernel.note(lambda told: replace(told, acked=told.acked | {name}))

    log = open_log(root, segment_bytes=SEGMENT_BYTES)
    one, two = Actor(log, "one"), Actor(log, "two")
    push(one, "e0")
    rest = two.begin(small("open"), 1)
    push(one, "e1")
    log.seal()
    for put in rest[:-1]:
        log.wait(two.send(put), timeout=30)
    for number in range(2, 5):
        push(one, f"e{number}")
    two.again()
    push(two, "e5")
    log.seal()  # several segments go at once
    two.begin(small("left"), 1)
    _fail_syncs(kernel)
    kernel.note(lambda told: replace(told, ended=told.ended | {"torn"}))
    with contextlib.suppress(LogFailedError):
        one.push(small("torn"))
    kernel.before = None
    with contextlib.suppress(PenstockError):
        log.close()
    log = open_log(root, segment_bytes=SEGMENT_BYTES)
    one = Actor(log, "one", epoch=2)
    push(one, "torn")
    push(one, "e6")
    log.seal()
    push(one, "e7")
    log.close()
    open_log(root, segment_bytes=SEGMENT_BYTES).close()


def _fail_syncs(kernel: Kernel) -> None:
    def before(_: int, call: Call) -> int | None:
        if call.verb == "fsync" and call.path.startswith("wal/"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return None

    kernel.before = before


def record(root: Path) -> list[Call]:
    """Lives that life; returns the calls."""
    with Kernel(root) as kernel:
        life(root, kernel)
    return list(kernel.trace)


def explore(trace: list[Call], limit: int, *, every: int = 1, seed: int = 0) -> tuple[int, str]:
    """Returns how many different states were checked, and the first thing wrong with one."""
    rng = random.Random(seed)
    model, told = Model(), Told()
    seen: set[int] = set()
    checked = 0
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for number, call in enumerate((*trace, Call("note", ""))):
        if call.note is not None:
            told = call.note(told)
        model.apply(call)
        if call.note is None and number % every:
            continue
        for tree in model.states(limit, rng):
            key = hash((frozenset(tree.items()), told))
            if key in seen:
                continue
            seen.add(key)
            checked += 1
            folder = Path(tempfile.mkdtemp(prefix="penstock-crash-", dir=base))
            try:
                fault = _fault(folder, tree, told)
            finally:
                shutil.rmtree(folder)
            if fault:
                return checked, f"after call {number} ({call.verb} {call.path}): {fault}"
    return checked, ""


def _fault(folder: Path, tree: Tree, told: Told) -> str:
    for path, data in sorted(tree.items()):
        if path.endswith("/"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).write_bytes(data)
    try:
        check(folder, told)
    except Exception as error:  # whatever goes wrong on a crashed log is a finding
        return f"{type(error).__name__}: {error}"
    return ""


def check(root: Path, told: Told) -> None:
    """A restart on what a crash left: all that was acknowledged, once, and nothing unended.

    Raises:
        AssertionError: if not. Any other error is a violation, too.
    """
    with open_log(root, segment_bytes=SEGMENT_BYTES) as log:
        before = stored(root)
        with log.tail() as tail:
            waiting = list(tail.episodes())
        for _, one in waiting:
            assert digest(one) == digest(small(one.episode_id)), f"{one.episode_id} is another"
        visible = Counter([*before, *(one.episode_id for _, one in waiting)])
        assert set(visible.values()) <= {1}, f"there twice: {visible}"
        assert told.acked <= visible.keys(), f"lost: {sorted(told.acked - visible.keys())}"
        assert visible.keys() <= told.ended, "an episode that was never ended is there"
        log.seal()
        actor = Actor(log, "one", epoch=1000)
        for name in sorted(told.ended):
            actor.push(small(name))
        log.seal()
    found = stored(root)
    assert sorted(found) == sorted(told.ended), "sent again, all are there once"
    if found:
        version = store_at(root).version()
        for name in found:
            assert digest(version.episode(name)) == digest(small(name)), f"{name} is another"
