"""Rollouts of one run as a source of batches: how many there are, and which are fresh enough.

Actors stamp each episode with the policy that played it, `<run>:<step>`. What is drawn from is a
version, so that it can be decided by reference and drawn again: the newest version of the branch
that rollouts come to, or, where that holds other episodes or stale ones, a selection of it that
shares all data. When a version holds an offset of a service's log is told by the version itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.store.reader import Version
from pipeline.store.selection import Selection
from pipeline.store.store import Store
from schemas.errors import ConfigError, NotFoundError, OutOfTimeError
from schemas.version import Derivation

LOOK_SECONDS = 0.2


def policy_stamp(run: str, step: int) -> str:
    """Returns what an episode says of the policy that played it."""
    return f"{run}:{step}"


def policy_steps(stamps: pa.ChunkedArray, run: str) -> np.ndarray:
    """Returns the updates that made each episode's policy, (E,) int64; -1 for those of others."""
    start = f"{run}:"
    found = [
        int(stamp.removeprefix(start))
        if stamp is not None and stamp.startswith(start) and stamp[len(start) :].isdecimal()
        else -1
        for stamp in stamps.to_pylist()
    ]
    return np.array(found, np.int64)


@dataclass(frozen=True)
class Freshness:
    """Which rollouts may be drawn."""

    max_lag: int | None = None
    """Updates between an episode's policy and the newest one; None for any."""
    max_age: float | None = None
    """Seconds since it was played; None for any. Episodes that do not say when are too old."""

    def __post_init__(self) -> None:
        """Refuses bounds that nothing could keep."""
        if (self.max_lag is not None and self.max_lag < 0) or (
            self.max_age is not None and not self.max_age > 0
        ):
            raise ConfigError(
                f"Expected max_lag of at least 0 and max_age above 0, came {self.max_lag} and "
                f"{self.max_age}."
            )

    def kept(self, steps: np.ndarray, played: np.ndarray, newest: int, now: float) -> np.ndarray:
        """Returns which episodes are fresh, (E,) bool.

        Args:
            steps: (E,) int64, updates that made each one's policy; -1 for other runs'.
            played: (E,) float64, when, in seconds since 1970; NaN where that is not known.
            newest: updates that made the newest policy.
            now: seconds since 1970.
        """
        kept = steps >= 0
        if self.max_lag is not None:
            kept &= steps >= newest - self.max_lag
        if self.max_age is not None:
            kept &= played >= now - self.max_age  # not so for NaN
        return kept


@dataclass(frozen=True)
class Rollouts:
    """What a version of the branch has of one run."""

    head: Version
    """The version of the branch."""
    episodes: int
    """Of the run."""
    steps: int
    """Theirs: what counts as inserted."""
    newest: int
    """Updates of the newest policy that played; -1 without episodes."""


class OnlineSource:
    """A branch that rollouts come to, as one run reads it.

    Args:
        store: where they are.
        branch: to which they come.
        run: whose rollouts are read.
        freshness: which of them may be drawn.
        select: commits what is left of a version (its id) without some episodes (their ids) to a
            branch, with a message, and returns the new version's id; by default in the store.
    """

    def __init__(
        self,
        store: Store,
        branch: str,
        run: str,
        freshness: Freshness = Freshness(),
        select: Callable[[str, Sequence[str], str, str], str] | None = None,
    ) -> None:
        self.store, self.branch, self.run = store, branch, run
        self.freshness = freshness
        self.selected = f"{run}-rollouts"
        """The branch of the selections."""
        self._known: Rollouts | None = None
        self._select = select

    def look(self) -> Rollouts | None:
        """Returns what there is now; None as long as the branch is not there."""
        try:
            head = self.store.version(self.branch)
        except NotFoundError:
            return None
        if self._known is None or self._known.head.id != head.id:
            table = head.episodes(columns=["policy_version", "length"])
            steps = policy_steps(table["policy_version"], self.run)
            mine = steps >= 0
            lengths = table["length"].to_numpy()[mine]
            newest = int(steps.max(initial=-1))
            self._known = Rollouts(head, int(mine.sum()), int(lengths.sum()), newest)
        return self._known

    def inserted(self) -> int:
        """Returns how many steps of the run there are now."""
        found = self.look()
        return 0 if found is None else found.steps

    def fresh(self, newest: int, now: float | None = None) -> Version | None:
        """Returns a version of just the episodes that may be drawn now; None if there are none.

        Args:
            newest: updates that made the newest policy.
            now: seconds since 1970; by default the clock's.
        """
        found = self.look()
        if found is None:
            return None
        table = found.head.episodes(columns=["episode_id", "policy_version", "collected_at"])
        steps = policy_steps(table["policy_version"], self.run)
        moment = time.time() if now is None else now
        kept = self.freshness.kept(steps, _seconds(table["collected_at"]), newest, moment)
        if not kept.any():
            return None
        if kept.all():
            return found.head
        ids = table["episode_id"].filter(pa.array(kept))
        try:
            last = self.store.version(self.selected)
        except NotFoundError:
            last = None
        if last is not None and last.episodes(columns=["episode_id"])["episode_id"].equals(ids):
            return last
        dropped = {"others": int((steps < 0).sum()), "stale": int((~kept & (steps >= 0)).sum())}
        derived = Derivation(base=found.head.commit.ref, dropped=dropped)
        said = f"rollouts of {self.run} at update {newest}: {int(kept.sum())} episodes"
        if self._select is not None:
            gone = table["episode_id"].filter(pa.array(~kept)).to_pylist()
            return self.store.version(self._select(found.head.id, gone, self.selected, said))
        return Selection(found.head, kept, derived).commit(self.selected, said)


def _seconds(column: pa.ChunkedArray) -> np.ndarray:
    moments = [None if m is None else m.timestamp() for m in column.to_pylist()]
    return np.array([np.nan if m is None else m for m in moments], np.float64)


# -- read your writes ----------------------------------------------------------------------------


def sealed_offset(version: Version, server: str) -> int:
    """Returns through which offset a version holds a service's log; -1 for nothing of it."""
    source = version.state.sources.get(f"rollouts/{server}")
    return -1 if source is None else int(source.metadata["offset"])


def wait_for(
    store: Store,
    branch: str,
    offset: int,
    server: str,
    timeout: float = 30.0,
    *,
    while_waiting: Callable[[], None] = lambda: None,
) -> Version:
    """Returns a version that holds everything a service acknowledged up to an offset.

    Args:
        store: that the service seals into.
        branch: to which it does.
        offset: as `push` returned it.
        server: whose offset it is (`offset.server`).
        timeout: seconds.
        while_waiting: called between looks.

    Raises:
        OutOfTimeError: if no version has it in time.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            version = store.version(branch)
        except NotFoundError:
            reached = -1
        else:
            reached = sealed_offset(version, server)
            if reached >= offset:
                return version
        if time.monotonic() >= until:
            raise OutOfTimeError(
                f"Expected a version of {branch!r} that holds offset {offset} of the service "
                f"{server} within {timeout:g} s, came one through {reached}; look whether the "
                f"service runs and seals (`seal_error` of its status).",
                where=store.url,
            )
        while_waiting()
        time.sleep(LOOK_SECONDS)
