"""From what a job names to datasets, and which of them must be read.

A branch remembers each dataset it took in: the fingerprint of its files, what the job asked for,
how many episodes it had. A dataset of which all that is the same is not opened again. There is no
watermark, so a file that comes late, or is older than what was taken already, is new like any
other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors import files, patterns, registry, urls
from connectors.base import Listing
from schemas.errors import SourceError, UsageError
from schemas.jobs import IngestJob
from schemas.version import SourceState

_DECIDING = ("format", "namespace", "new_spec", "on_change", "link", "dtype", "max_episodes")
"""Fields of a job that decide which episodes of a source come in, and as what."""


@dataclass(frozen=True)
class Dataset:
    """One dataset of a job."""

    key: str
    """Names it in the branch: its absolute path, or its URL."""
    listing: Listing
    settled: SourceState | None = None
    """What the branch has of it, where nothing changed since; then it is not read."""
    is_member: bool = False
    """One of several that a pattern or folder stands for; if it cannot be read, the others are."""
    spoiled: SourceError | None = None
    """Why such a one cannot be read."""

    def state(self, settings: str, episodes: int, quarantined: Mapping[str, int]) -> SourceState:
        """Returns what a branch that took it in remembers."""
        metadata: dict[str, Any] = json.loads(json.dumps(dict(self.listing.metadata)))
        return SourceState(
            format=self.listing.format,
            where=self.listing.where,
            identity=self.listing.identity,
            fingerprint=self.listing.fingerprint,
            metadata=metadata,
            guesses=self.listing.guesses,
            settings=settings,
            episodes=episodes,
            quarantined=dict(quarantined),
        )


@dataclass(frozen=True)
class Sources:
    """What a job finds where it looks."""

    datasets: tuple[Dataset, ...]
    waiting: tuple[str, ...] = ()
    """Places whose files are too young, left for the next run."""


def find(job: IngestJob, known: Mapping[str, SourceState], now: float) -> Sources:
    """Lists the datasets that a job names.

    Args:
        job: what was asked.
        known: the branch's source states.
        now: `time.time()`; files younger than the job's lag are left.

    Raises:
        NotFoundError: if a source is not there.
        SourceError: if a source that was named itself cannot be trusted whole.
        UsageError: for a lag and a source that is no local file.
    """
    found, waiting = [], []
    asked = settings_of(job)
    taken: set[str] = set()
    for wanted, where, is_member in _places(job):
        key = place_of(where)
        if key in taken:  # two patterns may well name one file
            continue
        taken.add(key)
        if job.lag and now - _written(where) < job.lag:
            waiting.append(where)
            continue
        state = None if job.backfill else known.get(key)
        if state is not None and state.settings == asked and state.fingerprint == _quick(where):
            found.append(Dataset(key, _as_listed(state), settled=state, is_member=is_member))
            continue
        dataset = _opened(key, where, wanted, is_member)
        is_settled = state is not None and (state.settings, state.fingerprint) == (
            asked,
            dataset.listing.fingerprint,
        )
        if is_settled:
            dataset = Dataset(key, dataset.listing, settled=state, is_member=is_member)
        found.append(dataset)
    return Sources(tuple(found), tuple(waiting))


def settings_of(job: IngestJob) -> str:
    """Returns a digest of what decides, besides its files, what a source gives."""
    asked = {name: getattr(job, name) for name in _DECIDING}
    asked["gate"] = job.gate.model_dump() if job.gate else None
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def place_of(where: str) -> str:
    """Returns a local path in full, and anything else as it is."""
    path = urls.local_path(where)
    return os.path.abspath(path) if os.path.lexists(path) else where  # noqa: PTH100 - keeps links


def _places(job: IngestJob) -> Iterator[tuple[str | None, str, bool]]:
    """Yields format (where it is stated), place, and whether others were named with it."""
    for source in job.sources:
        named, where = registry.parse(source)
        wanted = job.format or named
        if _is_live(wanted):
            yield wanted, where, False
            continue
        paths = patterns.matching(where)
        within = [one for path in paths for one in patterns.datasets_in(path)]
        for one in within:
            yield wanted, one, within != [where]


def _is_live(name: str | None) -> bool:
    return name is not None and name in registry.FORMATS and registry.FORMATS[name].is_live


def _opened(key: str, where: str, wanted: str | None, is_member: bool) -> Dataset:
    try:
        name = wanted
        if name is None or not _is_live(name):
            ((name, where),) = registry.expand((where,), wanted)
        return Dataset(key, registry.source(name).discover(where), is_member=is_member)
    except SourceError as error:
        if not is_member:
            raise
        listing = Listing(
            format=wanted or "unknown",
            where=where,
            identity=None,
            units=(),
            episodes=0,
            steps=0,
            fingerprint=_quick(where) or "",
        )
        return Dataset(key, listing, is_member=True, spoiled=error)


def _quick(where: str) -> str | None:
    """Returns a lone file's fingerprint as connectors make it, without opening it."""
    path = Path(urls.local_path(where))
    return files.fingerprint(path.parent, [path]) if path.is_file() else None


def _as_listed(state: SourceState) -> Listing:
    return Listing(
        format=state.format,
        where=state.where,
        identity=state.identity,
        units=(),
        episodes=state.episodes,
        steps=0,
        fingerprint=state.fingerprint,
        metadata=state.metadata,
        guesses=state.guesses,
    )


def _written(where: str) -> float:
    """Returns when the newest file at a place was written, as `time.time()` tells."""
    path = Path(urls.local_path(where))
    if not path.exists():
        raise UsageError(
            f"Expected local files with --lag, came {where}: when it was written is not known.",
            where=where,
        )
    if path.is_file():
        return path.stat().st_mtime
    found = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
    return max(one.lstat().st_mtime for one in found)
