"""What a run's batches are drawn from, said to the stores that hold it.

Each store learns which of its versions a run reads from which step on, so that collection keeps
them and people find the run from the data. A store that this user may only read is not told.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any

from pipeline.store import runs
from pipeline.store.catalog import Catalog
from pipeline.store.reader import Version
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.errors import AccessDeniedError
from schemas.stream import StreamConfig

_PLACES = frozenset({"device", "residency", "memory", "framework", "cache_dir", "verify", "rank"})
"""Settings that change where rows are, not which."""


def refer(run: str, batches: Stream | Mixture) -> None:
    """Says what a run reads from its next batch on, unless another rank has said so before.

    Args:
        run: name of the run.
        batches: what it reads, at its present step.
    """
    by_store: dict[str, list[tuple[Version, dict[str, Any]]]] = defaultdict(list)
    catalogs: dict[str, Catalog] = {}
    for version, config in batches.members:
        by_store[version.store.url].append((version, settings(config)))
        catalogs[version.store.url] = version.store
    for url, members in by_store.items():
        commits = [version.commit for version, _ in members]
        with contextlib.suppress(AccessDeniedError):
            runs.refer(catalogs[url], run, batches.step, commits, [s for _, s in members])


def settings(config: StreamConfig) -> dict[str, Any]:
    """Returns the settings that decide which rows a stream draws, as plain values."""
    return config.model_dump(mode="json", exclude=set(_PLACES), exclude_defaults=True)
