"""The suite notices every seeded mistake in the log: a check that cannot fail says nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.service import intake, records, rollout_log, segments
from pipeline.service.assemble import Episodes
from pipeline.service.group_commit import GroupCommit
from pipeline.service.intake import Intake, Taken
from pipeline.service.pending import Pending
from pipeline.service.producers import Producers
from pipeline.service.segments import Segments
from pipeline.store.disk import Disk
from pipeline.store.ids import Seen
from schemas.rollouts import EpisodeFacts
from tests.reliability.figures import tell
from tests.reliability.sizes import LONG
from tests.service import log_crashes, test_rollouts, test_seal, test_wal

Seed = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[Path], None]


@dataclass(frozen=True)
class Mutant:
    """One mistake, and the check that must notice it."""

    seed: Seed
    check: Check


# -- checks --------------------------------------------------------------------------------------


def crashes(root: Path) -> None:
    """The crash states of a log's life."""
    _, fault = log_crashes.explore(log_crashes.record(root), 6)
    assert not fault, fault


def damage(root: Path) -> None:
    test_wal.test_damage_to_what_was_acknowledged_is_told(root)


def seals(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_seal.test_an_episode_that_ends_during_a_seal_waits_for_the_next(root, patch)


def repeats(root: Path) -> None:
    test_rollouts.test_a_put_that_is_repeated_is_kept_once(False, root)


# -- mistakes ------------------------------------------------------------------------------------


def put(target: Any, name: str, value: Any) -> Seed:
    """Puts one function in the place of another."""
    return lambda monkeypatch: monkeypatch.setattr(target, name, value)


def acknowledge_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait are told once a record is queued; the disk is slow."""
    real_append, real_write = GroupCommit.append, GroupCommit._write

    def append(group: GroupCommit, pending: Pending, *, refusals: int) -> Pending:
        parts = pending.parts
        real_append(group, pending, refusals=refusals)
        pending.settle(None)
        pending.parts = parts
        return pending

    def write(group: GroupCommit, records: list[Pending]) -> Any:
        time.sleep(0.02)
        return real_write(group, records)

    monkeypatch.setattr(GroupCommit, "append", append)
    monkeypatch.setattr(GroupCommit, "_write", write)


def sync_without_data(one: Segments) -> None:
    assert one._current is not None
    if not one._sizes[one._current.first]:
        one._disk.sync_dir(one.folder)
    one._sizes[one._current.first] = one._current.size


def sync_without_name(one: Segments) -> None:
    assert one._current is not None
    segments.os.fdatasync(one._current.handle)
    one._sizes[one._current.first] = one._current.size


def recover_without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Segments._settle

    def settle(one: Segments, first: int, data: bytes) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segments.os, "fsync", lambda _: None)
            return real(one, first, data)

    monkeypatch.setattr(Segments, "_settle", settle)


def drop_without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Segments.drop_before

    def drop_before(one: Segments, offset: int) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Disk, "sync_dir", lambda *_: None)
            return real(one, offset)

    monkeypatch.setattr(Segments, "drop_before", drop_before)


def end_what_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode that is open at a restart counts as ended."""
    real = rollout_log.recover

    def recover(*arguments: Any) -> Any:
        found = real(*arguments)
        for growing in list(found.episodes.growing.values()):
            found.episodes.end(growing, EpisodeFacts(final_observation="present"), None)
        return found

    monkeypatch.setattr(rollout_log, "recover", recover)


def early_repeats(one: Intake, header: Any) -> Taken | None:
    known = one.producers.repeated(header.producer, header.epoch, header.sequence)
    return Taken(known.offset, None, header.end) if known else None


def forget_nothing(one: Intake) -> None:
    one._refusals += 1
    one._segment_left = 0


def seal_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes that came while a seal was under way count as sealed by it."""
    real = Episodes.seal
    monkeypatch.setattr(Episodes, "seal", lambda one, through: real(one, through + 1000))


def remember_all_producers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Producers, "forget_refused", lambda _: set())


MUTANTS: dict[str, Mutant] = {
    "an acknowledgement before the log": Mutant(acknowledge_first, crashes),
    "no sync of the log": Mutant(put(Segments, "sync", sync_without_data), crashes),
    "no sync of a segment's name": Mutant(put(Segments, "sync", sync_without_name), crashes),
    "no sync of what a restart found": Mutant(recover_without_sync, crashes),
    "no sync between deletions": Mutant(drop_without_sync, crashes),
    "segments deleted that are needed": Mutant(put(Episodes, "needed", lambda _: None), crashes),
    "no end marker": Mutant(end_what_broke_off, crashes),
    "no deduplication of puts": Mutant(put(Producers, "repeated", lambda *_: None), repeats),
    "no deduplication of episodes": Mutant(
        put(intake.Intake, "_is_copy", lambda *_: False),
        lambda root: test_rollouts.test_an_episode_that_comes_again_is_kept_once("log", root),
    ),
    "an early acknowledgement of a repeat": Mutant(
        put(Intake, "_repeated", early_repeats),
        test_rollouts.test_a_repeat_is_told_no_earlier_than_the_first,
    ),
    "no look at a damaged record": Mutant(put(segments, "durable_after", lambda *_: 0), damage),
    "no checksums": Mutant(
        put(records, "checksum", lambda _: 0),
        lambda _: test_wal.test_what_is_cut_or_changed_ends_the_records(),
    ),
    "state that rests on refused puts": Mutant(
        put(Intake, "_forget_refused", forget_nothing),
        test_seal.test_a_full_disk_is_refused_and_left_behind,
    ),
    "producers that rest on refused puts": Mutant(
        remember_all_producers, test_seal.test_a_full_disk_is_refused_and_left_behind
    ),
    "a seal that reaches too far": Mutant(seal_too_far, seals),
    "no look at what the store has": Mutant(
        put(rollout_log.Sealing, "seen", lambda *_: Seen.NEW),
        lambda root: test_rollouts.test_an_episode_that_comes_again_is_kept_once("store", root),
    ),
}
SHORT = [name for name, mutant in MUTANTS.items() if mutant.check is not crashes] + [
    "an acknowledgement before the log",
    "no sync of the log",
    "no end marker",
]


@pytest.mark.parametrize("name", MUTANTS if LONG else SHORT)
def test_a_mistake_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    mutant.seed(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        mutant.check(tmp_path)
    tell(f"mutant: {name}", caught=1)


def test_the_checks_are_content_without_the_mistakes(tmp_path: Path) -> None:
    checks = {id(mutant.check): mutant.check for mutant in MUTANTS.values()}
    for number, check in enumerate(checks.values()):
        if check is crashes and not LONG:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        check(folder)
