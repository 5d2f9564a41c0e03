"""Every system call of an operation fails once: an error of our tree, or success, never a lie.

After each failure a machine crash is played through as well: what was not acknowledged may be there
or not, but never in part, and trying again makes it whole.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store.catalog import Catalog
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store
from schemas.errors import DiskFullError, NameTakenError, TransientError
from tests.reliability.exploring import explore, recorded
from tests.reliability.figures import tell
from tests.reliability.kernel import Call, Kernel
from tests.reliability.protocols import Recorder, batch, small
from tests.reliability.sizes import LONG, size
from tests.store.makers import ids_of, read_everything, score

Act = Callable[[Recorder, Store], object]
ACTS: dict[str, Act] = {
    "append": lambda recorder, store: recorder.append(store, batch(2, 4)),
    "append a shard": lambda recorder, store: recorder.append(store, [small("s", 4100)]),
    "tag": lambda recorder, store: recorder.tag(store, "t", store.version()),
    "branch": lambda recorder, store: recorder.committed(store.branch("b")),
    "curate": lambda recorder, store: recorder.committed(
        store.version().where("episode_id != 'e0'").commit(branch="c")
    ),
    "measure": lambda recorder, store: recorder.committed(score(store, {"e0": 0.5})),
    "compact": lambda recorder, store: store.compact(everything=True),
}
STRIDE = dict.fromkeys(ACTS, size(4, 1)) | {"append a shard": size(60, 3)}
"""Every so manieth call fails."""
FAULTS: dict[str, int | None] = {
    "EIO": errno.EIO,
    "ENOSPC": errno.ENOSPC,
    "EINTR": errno.EINTR,
    "EDQUOT": errno.EDQUOT,
    "short write": None,
}


class Failing:
    """Lets one call fail, and no other."""

    def __init__(self, at: int, fault: int | None) -> None:
        self._at = at
        self._fault = fault
        self.failed: Call | None = None

    def __call__(self, number: int, call: Call) -> int | None:
        if self.failed is not None or number < self._at:
            return None
        if self._fault is None:
            if call.verb != "write":
                return None
            self.failed = call
            return len(call.data) // 2
        self.failed = call
        raise OSError(self._fault, os.strerror(self._fault), call.path)


def begun(recorder: Recorder) -> Store:
    """A store of two small versions."""
    store = recorder.open()
    recorder.append(store, batch(0, 1))
    recorder.append(store, batch(1, 2))
    return store


SHORT = [*itertools.product(ACTS, ("EIO", "short write")), *itertools.product(["append"], FAULTS)]


@pytest.mark.parametrize(
    ("name", "fault"), list(itertools.product(ACTS, FAULTS)) if LONG else list(dict.fromkeys(SHORT))
)
def test_each_call_fails_once(name: str, fault: str, tmp_path: Path) -> None:
    failures = errors = 0
    for at in itertools.count(0, STRIDE[name]):
        root = tmp_path / str(at)
        root.mkdir()
        outcome = fail(root, ACTS[name], at, FAULTS[fault])
        if outcome is None:
            break
        failures += 1
        errors += outcome
    assert failures >= (1 if fault == "short write" else size(2, 8))
    assert not errors if fault == "short write" else errors, "somebody must be told"
    tell(f"system calls: {name}, {fault}", failures=failures, errors=errors)


def fail(root: Path, act: Act, at: int, fault: int | None) -> bool | None:
    """Lets call `at` of an act fail; returns whether there was an error, None past the last."""
    with Kernel(root) as kernel:
        recorder = Recorder(kernel)
        store = begun(recorder)
        before = len(kernel.trace)
        failing = Failing(before + at, fault)
        kernel.before = failing
        error = told(act, recorder, store)
        kernel.before = None
        if failing.failed is None:
            return None
        if error is not None:
            assert "run it again" in error.message
            assert isinstance(error, DiskFullError) == (fault in (errno.ENOSPC, errno.EDQUOT))
        fresh = Store(Catalog(LocalObjects(recorder.path), create=False))
        assert ids_of(fresh.version("main:2")) == ["e0", "e1"]
        read_everything(fresh, ["main", "main:1", "main:2"])
        if error is not None:
            try_again(recorder, store, act)
    found = explore(recorded(recorder), size(1, 4), since=before + at)
    assert not found.violations, f"{failing.failed}: {found.violations[:3]}"
    return error is not None


def told(act: Act, recorder: Recorder, store: Store) -> TransientError | None:
    """Returns the error of an act; any other than a passing one goes on."""
    try:
        act(recorder, store)
    except TransientError as error:
        return error
    return None


def try_again(recorder: Recorder, store: Store, act: Act) -> None:
    """The same process tries again; what had happened after all is no obstacle."""
    objects = store.catalog.objects
    for turn in list(objects.names("leases/maintainer")):
        objects.delete(f"leases/maintainer/{turn}")  # its time is over
    with contextlib.suppress(NameTakenError):
        act(recorder, store)
    ids = ids_of(store.version())
    assert len(ids) == len(set(ids))
    read_everything(Store(Catalog(LocalObjects(recorder.path), create=False)))
