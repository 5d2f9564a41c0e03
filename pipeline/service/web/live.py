"""The page that watches rollouts come in and learners read; its figures are asked for anew."""

from __future__ import annotations

import datetime as dt
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response

from pipeline.service.answers import scrub
from pipeline.service.state import ControlState
from pipeline.service.web.pages import page
from pipeline.service.web.rates import Watch
from pipeline.service.web.svg import sparkline
from pipeline.store.catalog import Catalog
from pipeline.store.runs import RunReference, newest, runs
from schemas.errors import NotFoundError, PenstockError
from schemas.version import Commit, VersionRef

Head = Callable[[str], Commit | None]
"""The newest commit of a branch, asked for once."""
MAX_RUNS = 50
"""Those that are looked at: the last by name."""
RUN_SECONDS = 5.0
"""How long a look at the runs holds: each reads the store."""


class Runs:
    """What learners read last, looked at no more often than every few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: float | None = None
        self._found: tuple[list[dict[str, Any]], int] = ([], 0)

    def look(self, catalog: Catalog) -> tuple[list[dict[str, Any]], int]:
        """Returns what some runs read, the newest word first, and how many runs there are."""
        with self._lock:
            if self._at is None or time.monotonic() - self._at >= RUN_SECONDS:
                names = runs(catalog)
                head = functools.cache(catalog.refs.head)
                rows = [_run(catalog, name, head) for name in names[-MAX_RUNS:]]
                rows.sort(key=lambda row: row["age"])
                self._found = (rows, len(names))
                self._at = time.monotonic()
            return self._found


async def live(request: Request) -> Response:
    """The whole page."""
    return await page(request, "live.html", _live, *_watchers(request))


async def figures(request: Request) -> Response:
    """Its figures alone."""
    return await page(request, "_live.html", _live, *_watchers(request))


def _watchers(request: Request) -> tuple[Watch, Runs]:
    return request.app.state.watch, request.app.state.runs


# -- in threads ----------------------------------------------------------------------------------


def _live(state: ControlState, watch: Watch, known: Runs) -> dict[str, Any]:
    rates = watch.rates()
    log = {n: scrub(v) if isinstance(v, str) else v for n, v in state.log.status().items()}
    head = state.store.catalog.refs.head(state.config.branch)
    found, count = known.look(state.store.catalog)
    return {
        "rates": rates,
        "line": sparkline(rates.history, "Steps per second of late"),
        "log": log,
        "head": head,
        "branch": state.config.branch,
        "streams": state.quotas.open_streams,
        "beats": sorted(state.learners.told().items()),
        "runs": found,
        "more_runs": count - len(found),
        "now": dt.datetime.now(dt.UTC),
    }


def _run(catalog: Catalog, name: str, head: Head) -> dict[str, Any]:
    """What a run reads since its newest reference, and how far that is behind."""
    row: dict[str, Any] = {"name": name, "age": float("inf"), "problem": None, "versions": []}
    try:
        found = newest(catalog, name)
        if found is None:
            return {**row, "problem": "forgotten"}
        behind = [_behind(catalog, version, head) for version in found.versions]
    except PenstockError as error:
        return {**row, "problem": scrub(error.message)}
    return {**row, **_told(found), "behind": behind}


def _told(found: RunReference) -> dict[str, Any]:
    age = (dt.datetime.now(dt.UTC) - found.created_at).total_seconds()
    return {"step": found.step, "age": age, "versions": found.versions}


def _behind(catalog: Catalog, read: VersionRef, head: Head) -> tuple[int, int] | None:
    """Versions and steps that came to a branch since; None if the branch is gone."""
    newest_commit = head(read.branch)
    if newest_commit is None:
        return None
    try:
        then = catalog.refs.read(read.branch, read.number)
    except NotFoundError:
        return None
    behind = newest_commit.number - read.number
    return behind, newest_commit.totals.steps - then.totals.steps
