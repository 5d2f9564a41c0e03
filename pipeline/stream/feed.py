"""Which version a stream reads at which step, so that growing data can be read twice alike."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from pipeline.store.reader import Version
from pipeline.store.store import Store
from pipeline.stream.cache import Progress
from pipeline.stream.source import OpenVersion, open_rows
from schemas.errors import ConfigError, FilesExpiredError, NotFoundError, UsageError
from schemas.stream import StreamConfig
from schemas.version import VersionRef


class History:
    """Which version applies from which step on; copies of a feed share one.

    Args:
        entries: versions by their first step; that of step 0 is among them.
    """

    def __init__(self, entries: Mapping[int, str]) -> None:
        self._entries = dict(entries)
        self.changes: tuple[tuple[int, str], ...] = ()
        """Steps from which another version applies than before, with its id."""
        self.next: OpenVersion | None = None
        """Opened ahead of its step."""
        self._compress()

    def add(self, step: int, version_id: str) -> None:
        """Says what applies from a step on; what was said of other steps stays."""
        self._entries[step] = version_id
        self._compress()

    def until(self, step: int) -> dict[int, str]:
        """Returns what was said of the steps before one."""
        return {since: name for since, name in self._entries.items() if since < step}

    def _compress(self) -> None:
        changes: list[tuple[int, str]] = []
        for since, name in sorted(self._entries.items()):
            if not changes or changes[-1][1] != name:
                changes.append((since, name))
        self.changes = tuple(changes)


class Feed:
    """The versions a stream reads, each from some step on."""

    def __init__(
        self, version: Version, config: StreamConfig, progress: Progress | None = None
    ) -> None:
        self._config = config
        self._progress = progress
        self._store = Store(version.store)
        self._history = History({0: version.id})
        self._versions = {version.id: version}
        self._verified: set[str] = set()
        self._open: OpenVersion | None = None

    @property
    def store(self) -> Store:
        """The store."""
        return self._store

    @property
    def store_id(self) -> str:
        """Id of the store."""
        return self._store.id

    @property
    def spec(self) -> str:
        """Name of the spec that is streamed."""
        return (self._open or self.at(0)).spec

    @property
    def store_url(self) -> str:
        """Where the store is."""
        return self._store.url

    def at(self, step: int) -> OpenVersion:
        """Returns the version that applies at a step, opened.

        Raises:
            NotFoundError, FilesExpiredError: if it is gone.
            UsageError: if it has other fields than those before.
        """
        wanted = self.id_at(step)
        if self._open is None or self._open.version.id != wanted:
            self._open = self._opened(self.version_at(step), step)
            self._history.next = None
        return self._open

    def version_at(self, step: int) -> Version:
        """Returns the version that applies at a step; nothing of its rows is opened.

        Raises:
            NotFoundError: if the store no longer has it.
        """
        wanted = self.id_at(step)
        if wanted not in self._versions:
            try:
                self._versions[wanted] = self._store.version(wanted)
            except NotFoundError as error:
                raise _gone(error, wanted, step) from error
        return self._versions[wanted]

    def id_at(self, step: int) -> str:
        """Returns the id of the version that applies at a step."""
        return [name for since, name in self._history.changes if since <= step][-1]

    def since(self, step: int) -> int:
        """Returns from which step on the version of a step applies."""
        return max(since for since, _ in self._history.changes if since <= step)

    def steps_left(self, step: int, most: int) -> int:
        """Returns how many steps from here on, up to `most`, read the same version."""
        later = [since - step for since, _ in self._history.changes if since > step]
        return min([most, *later])

    def fork(self, step: int) -> Feed:
        """Returns a feed of its own that reads, from step 0 on, what this one reads at a step."""
        forked = copy.copy(self)
        forked._open = self.at(step)
        forked._history = History({0: forked._open.version.id})
        forked._versions = dict(self._versions)
        return forked

    def follow(self, step: int, version: Version | str, *, keep: bool = False) -> bool:
        """Reads another version from a step on.

        Args:
            step: the first that reads it.
            version: the version, or a reference such as `main`.
            keep: whether what is to apply later still does; else it is forgotten.

        Returns:
            True if that changes anything.
        """
        version = self.named(version)
        is_last = keep or all(since <= step for since, _ in self._history.changes)
        if is_last and self.id_at(step) == version.id:
            return False
        self.expect(version, step)
        if keep:
            self._history.add(step, version.id)
        else:
            entries = {**self._history.until(step), step: version.id}
            self._history = History(entries)
        return True

    def named(self, version: Version | str) -> Version:
        """Returns a version of this store by its name, as it is now.

        Raises:
            NotFoundError: if there is none.
            UsageError: if it is one of another store.
        """
        if isinstance(version, str):
            version = self._store.version(version)
        if version.store.id != self._store.id:
            raise UsageError(
                f"Expected a version of the store {self._store.url}, came one of "
                f"{version.store.url}; mix streams of several stores instead."
            )
        return version

    def expect(self, version: Version, step: int) -> None:
        """Opens what is to be read from a later step on, so that nobody waits for it there.

        Raises:
            UsageError: if it has other fields than what is read now, or nothing to draw.
        """
        self._versions[version.id] = version
        if self._open is None or self._open.version.id != version.id:
            self._history.next = self._opened(version, step)

    def decide(self, step: int, ref: VersionRef) -> None:
        """Reads a version from a step on, as was decided; what applies later stays."""
        if ref.id not in self._versions:
            commit = self._store.catalog.refs.read(ref.branch, ref.number)
            self._versions[ref.id] = Version(self._store.catalog, commit)
        self._history.add(step, ref.id)

    def history(self) -> list[list[int | str]]:
        """Returns the version ids with the step from which each applies, as plain lists."""
        return [[since, version_id] for since, version_id in self._history.changes]

    def load_history(self, history: Sequence[Sequence[int | str]]) -> None:
        """Inverse of `history`.

        Raises:
            ConfigError: if it is not a history.
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
        self._history = History(dict(loaded))

    def _opened(self, version: Version, step: int) -> OpenVersion:
        ahead = self._history.next
        if ahead is not None and ahead.version.id == version.id:
            return ahead
        try:
            opened = open_rows(version, self._config, self._verified, self._progress)
        except FilesExpiredError as error:
            raise _gone(error, version.id, step) from error
        if self._open is not None and not opened.is_like(self._open):
            raise UsageError(
                f"Expected a version with the same fields from step {step} on, came "
                f"{version.branch}:{version.number} with other ones; make a new stream of it, or "
                f"follow a branch whose fields stay.",
                where=self._store.url,
            )
        return opened


def _gone(error: NotFoundError | FilesExpiredError, version: str, step: int) -> Exception:
    return type(error)(
        f"Expected the version {version[:12]}, which batches from step {step} on are drawn from, "
        f"came a store that let go of it; restore the store from a copy, or begin another run on "
        f"a version that `penstock log` lists (a run's own versions are kept until `penstock run "
        f"forget`).",
        where=error.where,
    )
