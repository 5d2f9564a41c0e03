"""A log against a model of it: actors, repeats, conflicts, seals, restarts, cut ends."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.episode import Episode
from schemas.errors import IdConflictError, ResendError
from schemas.identity import digest
from schemas.puts import Put
from tests.reliability.sizes import size
from tests.service.logs import Actor, open_log, rollout, store_at, stored

NAMES = st.sampled_from([f"e{number}" for number in range(6)])
ACTORS = st.integers(0, 2)


class LogModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.root = Path(tempfile.mkdtemp(prefix="penstock-model-", dir=base))
        self.log = open_log(self.root, segment_bytes=4000, memory_bytes=6000)
        self.actors = [Actor(self.log, f"a{number}") for number in range(3)]
        self.open: list[tuple[str, int, list[Put]] | None] = [None] * 3
        """What each actor is sending: id, seed, the puts that are left."""
        self.acked: dict[str, int] = {}
        """Seeds of the episodes that were acknowledged."""
        self.sent: dict[str, set[int]] = {}
        """Seeds of the episodes whose ends were sent."""
        self.last: list[Put | None] = [None] * 3

    def teardown(self) -> None:
        self.log.seal()
        self.log.close()
        found = stored(self.root)
        assert len(found) == len(set(found))
        assert self.acked.keys() <= set(found)
        version = store_at(self.root).version() if found else None
        for name in found:
            assert version is not None
            content = digest(version.episode(name))
            seeds = {self.acked[name]} if name in self.acked else self.sent[name]
            assert content in {digest(self.made(name, seed)) for seed in seeds}
        shutil.rmtree(self.root)

    def made(self, name: str, seed: int) -> Episode:
        return rollout(name, 5 + seed, seed=seed)

    @rule(at=ACTORS, name=NAMES, seed=st.integers(0, 1))
    def begin(self, at: int, name: str, seed: int) -> None:
        if self.open[at] is None:
            self.open[at] = (name, seed, self.actors[at].puts(self.made(name, seed)))
            self.go_on(at)

    @rule(at=ACTORS)
    def go_on(self, at: int) -> None:
        """Sends the next put and waits for it."""
        sending = self.open[at]
        if sending is None:
            return
        name, seed, left = sending
        put = left.pop(0)
        if put.header.end:
            self.sent.setdefault(name, set()).add(seed)
            self.open[at] = None
        try:
            self.log.wait(self.actors[at].send(put), timeout=30)
        except IdConflictError:
            assert put.header.end
            known = self.acked.get(name)
            assert known != seed
            assert known is not None or len(self.sent[name]) > 1
            return
        self.last[at] = put
        if put.header.end:
            assert self.acked.setdefault(name, seed) == seed

    @rule(at=ACTORS)
    def finish(self, at: int) -> None:
        while self.open[at]:
            self.go_on(at)

    @rule(at=ACTORS)
    def repeat(self, at: int) -> None:
        put = self.last[at]
        if put is None or put.header.epoch != self.actors[at].epoch:
            return
        before = self.log.status()["unsealed_episodes"]
        self.log.wait(self.log.put(put.header, put.rows), timeout=30)
        assert self.log.status()["unsealed_episodes"] == before

    @rule(at=ACTORS)
    def jump(self, at: int) -> None:
        """A put that leaves a gap."""
        sending = self.open[at]
        if sending is not None and len(sending[2]) > 1:
            with pytest.raises(ResendError):
                self.log.put(sending[2][1].header, sending[2][1].rows)

    @rule(at=ACTORS)
    def connect_anew(self, at: int) -> None:
        """The actor sends its open episode again, from the first step."""
        self.actors[at].again()
        sending, self.open[at] = self.open[at], None
        if sending is not None:
            self.begin(at, sending[0], sending[1])

    @rule()
    def seal(self) -> None:
        self.log.seal()
        assert self.log.status()["unsealed_episodes"] == 0

    @rule()
    def restart(self) -> None:
        self.log.close()
        self._reopen()

    @rule(at=ACTORS, puts=st.integers(1, 4), share=st.floats(0, 1))
    def crash(self, at: int, puts: int, share: float) -> None:
        """Nobody waited for the last puts; their records are cut anywhere."""
        sending = self.open[at]
        before = self._last_segment()
        sure = before.stat().st_size
        for _ in range(puts if sending else 0):
            assert sending is not None
            if sending[2]:
                put = sending[2].pop(0)
                if put.header.end:
                    self.sent.setdefault(sending[0], set()).add(sending[1])
                try:
                    self.actors[at].send(put)
                except IdConflictError:
                    break
        self.log.close()
        after = self._last_segment()
        begun = sure if after == before else 0
        data = after.read_bytes()
        after.write_bytes(data[: begun + int(share * (len(data) - begun))])
        self._reopen()

    def _last_segment(self) -> Path:
        return max((self.root / "wal").glob("*.wal"))

    def _reopen(self) -> None:
        """Actors connect anew; each sends its open episode again, or does not."""
        self.log = open_log(self.root, segment_bytes=4000, memory_bytes=6000)
        for at, actor in enumerate(self.actors):
            actor.log = self.log
            actor.again()
            self.open[at] = None

    @invariant()
    def all_that_was_acknowledged_is_there(self) -> None:
        with self.log.tail() as tail:
            names = [one.episode_id for _, one in tail.episodes()]
        assert len(names) == len(set(names))
        assert set(names) <= self.sent.keys()
        if len(self.acked) > len(names) or self.acked.keys() - set(names):
            assert self.acked.keys() <= {*names, *stored(self.root)}


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(
    max_examples=size(12, 400), stateful_step_count=size(20, 40), deadline=None
)
