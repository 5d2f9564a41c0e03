"""Heartbeats of a learner: the service hears where it is, and its actors are looked after."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from learners.actors import Actors
from learners.online_run import OnlineRun
from pipeline.service.client.control import ControlClient
from pipeline.stream.limiter import Limiter
from schemas.errors import PenstockError, TransientError
from schemas.online import Heartbeat

logger = logging.getLogger(__name__)
BEAT_SECONDS = 1.0


@dataclass
class Pulse:
    """Heartbeats: sent every second while the learner learns or waits."""

    control: ControlClient
    run: OnlineRun
    limiter: Limiter
    env_steps: int
    actors: Actors
    is_away: bool = False
    _due: float = 0.0
    _told: float = 0.0

    def beat(self) -> None:
        """Looks after the actors, and tells the service where the learner is, if it is time.

        A service that is away stops nobody here: no rollouts come then, and the limiter says so.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + BEAT_SECONDS
        self.actors.look()
        try:
            self.control.beat(self.run.name, self._heartbeat())
            self._told, self.is_away = self.limiter.waited, False
        except TransientError as error:
            if not self.is_away:
                logger.warning("the service does not hear: %s", error)
            self.is_away = True

    def leave(self) -> None:
        """Lets actors go on that wait because of this learner."""
        last = {"insert_room": None, "valid_seconds": 1.0}
        try:
            self.control.beat(self.run.name, self._heartbeat().model_copy(update=last))
        except PenstockError as error:
            logger.warning("the service does not hear: %s", error)

    def _heartbeat(self) -> Heartbeat:
        run, found = self.run, self.run.source.look()
        inserted = 0 if found is None else found.steps
        room = min(run.ratio.inserts_left(inserted, run.samples), self.env_steps - inserted)
        head = None if found is None else found.head
        behind = 0 if head is None or run.read is None else head.number - run.read.number
        read = run.read or head
        return Heartbeat(
            step=run.step,
            version="0" * 32 if read is None else read.id,
            versions_behind=max(behind, 0),
            samples=run.samples,
            inserted=inserted,
            insert_room=max(room, 0),
            room_since=0 if head is None else head.number,
            pull_wait_seconds=self.limiter.waited - self._told,
        )
