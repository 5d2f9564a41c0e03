"""The tail misses nothing: not while the log settles, not when a reader breaks off."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.service.pending import Pending
from pipeline.service.recent import sealed_since
from tests.service.logs import Actor, open_log, rollout, store_at


def test_what_is_durable_and_not_told_yet_is_in_the_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tail is read at the very moment before each record's writer is told."""
    settle = Pending.settle
    missed: list[int] = []
    looks: list[int] = []

    def looking(self: Pending, error: object) -> None:
        with log.tail() as tail:
            found = {offset for offset, _ in tail.episodes()}
            looks.append(tail.through)
            missed.extend(ended for ended in ends if ended <= tail.through and ended not in found)
        settle(self, error)  # type: ignore[arg-type]

    ends: list[int] = []
    with open_log(tmp_path) as log:
        actor = Actor(log)
        monkeypatch.setattr(Pending, "settle", looking)
        for k in range(5):
            *before, last = actor.puts(rollout(f"e{k}"))
            for put in before:
                log.wait(actor.send(put), timeout=30)
            with log._intake.changed:  # so that no look comes before its offset is known
                taken = actor.send(last)
                ends.append(taken.offset)
            log.wait(taken, timeout=30)
        monkeypatch.undo()
    assert looks[-1] == ends[-1]
    assert missed == []


def test_who_breaks_off_within_a_commit_gets_the_rest(tmp_path: Path) -> None:
    """Going on after the offset of any episode that was received brings all that were not."""
    with open_log(tmp_path) as log:
        actor = Actor(log)
        names = [f"e{k}" for k in range(9)]
        for k, name in enumerate(names):
            actor.push(rollout(name))
            if k % 3 == 2:
                log.seal()
        store = store_at(tmp_path)

        def since(after: int) -> list[tuple[int, str]]:
            with log.tail() as tail:
                head = tail.version
            assert head is not None
            return [
                (offset, one.episode_id)
                for offset, one in sealed_since(store, head, log.server, after)
            ]

        everything = since(-1)
        assert [name for _, name in everything] == names
        for received in range(1, len(names)):
            after = everything[received - 1][0]
            rest = {name for _, name in since(after)} if after >= 0 else set(names)
            assert rest >= set(names[received:])
        assert len({offset for offset, _ in everything}) > 1
