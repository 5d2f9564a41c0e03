"""Group commit: nobody is told before the disk is, a full disk refuses, a failed sync is final."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.service.group_commit import GroupCommit, Written
from pipeline.service.pending import Pending
from pipeline.service.records import MAX_PAYLOAD, Kind
from pipeline.service.segments import Segments
from schemas.errors import DiskFullError, LogFailedError, OutOfTimeError, TooLargeError
from tests.reliability.kernel import Call, Kernel


class Log:
    """A group commit over a folder under the stand-in kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.refused = 0
        self.failures: list[LogFailedError] = []
        self.written: list[Written] = []
        self.segments = Segments(Path(kernel.root, "wal"))
        self.group = GroupCommit(
            self.segments,
            0,
            on_refused=self._refuse,
            on_failed=self.failures.append,
            on_written=self.written.append,
        )
        self.add(b"first", Kind.SEGMENT).result()

    def add(self, payload: bytes, kind: Kind = Kind.PUT) -> Pending:
        return self.group.append(Pending(kind, [payload]), refusals=self.refused)

    def fail(self, verb: str, code: int, times: int = 1) -> None:
        """Lets the next calls of a kind fail."""
        left = [times]

        def before(_: int, call: Call) -> int | None:
            if call.verb == verb and left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            return None

        self.kernel.before = before

    def close(self) -> None:
        self.group.close()
        self.segments.close()

    def _refuse(self) -> None:
        self.refused += 1


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Kernel(tmp_path) as kernel:
        one = Log(kernel)
        yield one
        one.close()


def recovered(log: Log) -> list[bytes]:
    log.close()
    segments = Segments(log.segments.folder)
    found = [bytes(record.payload) for _, record in segments.recover()]
    log.segments = segments
    return found


def test_nobody_is_told_before_the_disk_is(log: Log) -> None:
    synced: list[int] = []
    for number in range(20):
        pending = log.add(f"{number}".encode())
        pending.add_done_callback(
            lambda _: synced.append([c.verb for c in log.kernel.trace].count("fsync"))
        )
        assert pending.result() == number + 1
        assert log.group.durable == number + 2
        verbs = [call.verb for call in log.kernel.trace]
        assert verbs[-1] == "fsync"
        assert verbs.count("fsync") == number + 2
    assert synced == list(range(2, 22))


def test_the_name_of_a_segment_is_durable_before_anything_in_it_is_told(log: Log) -> None:
    log.add(b"second", Kind.SEGMENT).result()
    calls = [(call.verb, call.path) for call in log.kernel.trace][-4:]
    name = "wal/0000000000000001.wal"
    assert calls == [("create", name), ("write", name), ("fsync", name), ("sync_dir", "wal")]


def test_many_who_wait_share_a_sync(log: Log) -> None:
    gate = threading.Event()

    def before(_: int, call: Call) -> int | None:
        if call.verb == "fsync":
            gate.wait(30)
        return None

    log.kernel.before = before
    first = log.add(b"alpha")
    while not any(b"alpha" in call.data for call in log.kernel.trace):
        threading.Event().wait(0.001)
    rest = [log.add(f"{number}".encode()) for number in range(50)]
    assert not any(pending.is_durable for pending in (first, *rest))
    with pytest.raises(OutOfTimeError):
        rest[0].result(timeout=0.01)
    gate.set()
    assert [pending.result() for pending in rest] == list(range(2, 52))
    assert [written.records for written in log.written] == [1, 1, 50]


def test_a_short_write_goes_on(log: Log) -> None:
    log.kernel.before = lambda _, call: 7 if call.verb == "write" else None
    pending = [log.add(b"x" * 100) for _ in range(5)]
    assert [one.result() for one in pending] == [1, 2, 3, 4, 5]
    assert recovered(log) == [b"first", *[b"x" * 100] * 5]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_refuses_and_goes_on_when_there_is_room(log: Log, code: int) -> None:
    kept = log.add(b"kept")
    kept.result()
    log.fail("write", code)
    refused = log.add(b"refused")
    with pytest.raises(DiskFullError, match="no space left"):
        refused.result()
    assert refused.is_refused
    assert log.refused == 1
    assert not log.failures
    after = log.add(b"after")
    assert after.result() == refused.offset == 2
    assert recovered(log) == [b"first", b"kept", b"after"]


def test_half_a_record_of_a_full_disk_is_taken_back(log: Log) -> None:
    calls = []

    def before(_: int, call: Call) -> int | None:
        if call.verb == "write":
            calls.append(call)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "full")
            return 50 if len(calls) == 1 else None
        return None

    log.kernel.before = before
    with pytest.raises(DiskFullError):
        log.add(b"x" * 200).result()
    assert log.add(b"after").result() == 1
    assert recovered(log) == [b"first", b"after"]


def test_records_that_rest_on_refused_ones_are_refused(log: Log) -> None:
    log.fail("write", errno.ENOSPC)
    known = log.refused
    with pytest.raises(DiskFullError):
        log.add(b"refused").result()
    with pytest.raises(DiskFullError):
        log.group.append(Pending(Kind.PUT, [b"later"]), refusals=known)
    assert log.add(b"fresh").result() == 1


@pytest.mark.parametrize("verb", ["create", "write"])
def test_a_segment_that_a_full_disk_refuses_is_begun_again(log: Log, verb: str) -> None:
    log.fail(verb, errno.ENOSPC)
    with pytest.raises(DiskFullError):
        log.add(b"second", Kind.SEGMENT).result()
    if verb == "write":  # its file was made and is gone: there is none to write to
        with pytest.raises(DiskFullError):
            log.add(b"nowhere").result()
    log.add(b"second", Kind.SEGMENT).result()
    log.add(b"put").result()
    assert recovered(log) == [b"first", b"second", b"put"]


@pytest.mark.parametrize(
    ("verb", "code"),
    [("write", errno.EIO), ("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("sync_dir", errno.EIO)],
)
def test_any_other_failure_is_final(log: Log, verb: str, code: int) -> None:
    log.fail(verb, code)
    pending = log.add(b"lost", Kind.SEGMENT)
    with pytest.raises(LogFailedError, match="nothing is acknowledged any more"):
        pending.result()
    assert len(log.failures) == 1
    assert log.group.failure is log.failures[0]
    with pytest.raises(LogFailedError):
        log.add(b"more")
    assert log.group.durable == 1


@pytest.mark.parametrize("verb", ["truncate", "fsync"])
def test_a_failure_to_take_back_is_final(log: Log, verb: str) -> None:
    def before(_: int, call: Call) -> int | None:
        if call.verb == "write":
            raise OSError(errno.ENOSPC, "full")
        if call.verb == verb:
            raise OSError(errno.EIO, "broken")
        return None

    log.kernel.before = before
    with pytest.raises(LogFailedError):
        log.add(b"lost").result()
    assert log.failures


def test_nothing_is_taken_that_is_too_long_or_too_late(log: Log) -> None:
    huge = Pending(Kind.PUT, [])
    huge.length = MAX_PAYLOAD + 1
    with pytest.raises(TooLargeError):
        log.group.append(huge, refusals=0)
    log.group.close()
    with pytest.raises(LogFailedError, match="is closed"):
        log.add(b"late")


def test_threads_get_offsets_of_their_own(log: Log) -> None:
    offsets: list[int] = []

    def work() -> None:
        offsets.extend([log.add(b"x" * 50).result() for _ in range(50)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(offsets) == list(range(1, 401))
    assert len(recovered(log)) == 401
