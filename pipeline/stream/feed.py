"""Which version a stream reads at which step, so that growing data can be read twice alike."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pipeline.store.reader import Version
from pipeline.store.store import Store
from pipeline.stream.cache import Progress
from pipeline.stream.source import OpenVersion, open_rows
from schemas.errors import ConfigError, UsageError
from schemas.stream import StreamConfig


class Feed:
    """The versions a stream reads, each from some step on."""

    def __init__(
        self, version: Version, config: StreamConfig, progress: Progress | None = None
    ) -> None:
        self._config = config
        self._progress = progress
        self._store = Store(version.store)
        self._history: list[tuple[int, str]] = [(0, version.id)]
        self._verified: set[str] = set()
        self._open = open_rows(version, config, self._verified, progress)

    @property
    def store_id(self) -> str:
        """Id of the store."""
        return self._store.id

    @property
    def spec(self) -> str:
        """Name of the spec that is streamed."""
        return self._open.spec

    @property
    def store_url(self) -> str:
        """Where the store is."""
        return self._store.url

    def at(self, step: int) -> OpenVersion:
        """Returns the version that applies at a step, opened."""
        wanted = self._id_at(step)
        if self._open.version.id != wanted:
            version = self._store.version(wanted)
            self._open = open_rows(version, self._config, self._verified, self._progress)
        return self._open

    def since(self, step: int) -> int:
        """Returns from which step on the version of a step applies."""
        return max(since for since, _ in self._history if since <= step)

    def steps_left(self, step: int, most: int) -> int:
        """Returns how many steps from here on, up to `most`, read the same version."""
        later = [since - step for since, _ in self._history if since > step]
        return min([most, *later])

    def fork(self, step: int) -> Feed:
        """Returns a feed of its own that reads, from step 0 on, what this one reads at a step."""
        forked = copy.copy(self)
        forked._open = self.at(step)
        forked._history = [(0, forked._open.version.id)]
        return forked

    def follow(self, step: int, version: Version | str) -> bool:
        """Reads another version from a step on; what was to apply later is forgotten.

        Args:
            step: the first that reads it.
            version: the version, or a reference such as `main`.

        Returns:
            True if that changes anything.
        """
        if isinstance(version, str):
            version = self._store.version(version)
        if version.store.id != self._store.id:
            raise UsageError(
                f"Expected a version of the store {self._store.url}, came one of "
                f"{version.store.url}; mix streams of several stores instead."
            )
        is_last = all(since <= step for since, _ in self._history)
        if is_last and self._id_at(step) == version.id:
            return False
        opened = open_rows(version, self._config, self._verified)
        if not opened.is_like(self._open):
            raise UsageError(
                "Expected a version with the same fields, came another set; make a new stream."
            )
        before = [(since, version_id) for since, version_id in self._history if since < step]
        if before and before[-1][1] == version.id:
            self._history = before
        else:
            self._history = [*before, (step, version.id)]
        self._open = opened
        return True

    def history(self) -> list[list[int | str]]:
        """Returns the version ids with the step from which each applies, as plain lists."""
        return [[since, version_id] for since, version_id in self._history]

    def load_history(self, history: Sequence[Sequence[int | str]]) -> None:
        """Inverse of `history`.

        Raises:
            ConfigError: if it is not a history.
            NotFoundError: if the store no longer has a version.
        """
        try:
            loaded = [(int(since), str(version_id)) for since, version_id in history]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "Expected versions as pairs of a step and an id, came something else; load a "
                "state that state_dict() returned."
            ) from error
        steps = [since for since, _ in loaded]
        if not loaded or steps[0] != 0 or steps != sorted(set(steps)):
            raise ConfigError(
                "Expected versions from step 0 on with growing steps, came others; load a state "
                "that state_dict() returned."
            )
        self._history = loaded

    def _id_at(self, step: int) -> str:
        return [version_id for since, version_id in self._history if since <= step][-1]
