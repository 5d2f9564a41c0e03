"""A log of rollouts over a store, and actors that send to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.service.intake import IntakeConfig, Taken
from pipeline.service.rollout_log import RolloutLog, RolloutLogConfig
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.puts import Put, puts_of
from tests.episodes import episode

PUT_BYTES = 100
"""So that the episodes of these tests take several puts."""


def config(root: Path, **changes: Any) -> RolloutLogConfig:
    """Settings that suit small logs; those of puts are given by their own names."""
    own = {name: changes.pop(name) for name in ("limits", "segment_bytes", "memory_bytes")
           if name in changes}  # fmt: skip
    defaults = {"seal_every": None, "disk_reserve_bytes": 0}
    return RolloutLogConfig(root / "wal", intake=IntakeConfig(**own), **{**defaults, **changes})


def store_at(root: Path) -> Store:
    return open_store(root / "store", create=True)


def open_log(root: Path, **changes: Any) -> RolloutLog:
    return RolloutLog(store_at(root), config(root, **changes))


def rollout(name: str, length: int = 20, **changes: Any) -> Episode:
    return episode(name, length=length, **{"kind": "rollout", **changes})


class Actor:
    """Numbers its puts as a client does."""

    def __init__(self, log: RolloutLog, name: str = "a", epoch: int = 1) -> None:
        self.log = log
        self.name = name
        self.epoch = epoch
        self.sequence = 0

    def puts(self, one: Episode) -> list[Put]:
        return list(
            puts_of(
                one,
                producer=self.name,
                epoch=self.epoch,
                sequence=self.sequence,
                put_bytes=PUT_BYTES,
            )
        )

    def send(self, put: Put) -> Taken:
        taken = self.log.put(put.header, put.rows)
        self.sequence = max(self.sequence, put.header.sequence + 1)
        return taken

    def push(self, one: Episode) -> int:
        """Sends a whole episode; returns its durable offset."""
        taken = [self.send(put) for put in self.puts(one)]
        return max(self.log.wait(one, timeout=30) for one in taken)

    def begin(self, one: Episode, puts: int = 2) -> list[Put]:
        """Sends the first puts of an episode; returns the others."""
        numbered = self.puts(one)
        for put in numbered[:puts]:
            self.log.wait(self.send(put), timeout=30)
        return numbered[puts:]

    def again(self) -> None:
        """Begins a new epoch."""
        self.epoch, self.sequence = self.epoch + 1, 0


def stored(root: Path) -> list[str]:
    """Ids of the episodes in the newest version, in its order."""
    store = store_at(root)
    if not store.branches():
        return []
    found: list[str] = store.version().episodes()["episode_id"].to_pylist()
    return found


def waiting(log: RolloutLog) -> list[str]:
    """Ids of the episodes in the tail."""
    with log.tail() as tail:
        return [one.episode_id for _, one in tail.episodes()]
