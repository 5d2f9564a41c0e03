"""The page of one episode: facts, where its metrics stand in the version, pictures, plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import anyio
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Query, Request, Response
from markupsafe import Markup
from pydantic import Field

from pipeline.service.state import ControlState, in_thread, state_of
from pipeline.service.versions import Ref
from pipeline.service.web.columns import number_columns, numbers
from pipeline.service.web.forms import Id
from pipeline.service.web.pages import page, said_of
from pipeline.service.web.strips import Strips
from pipeline.service.web.svg import MAX_LINES, lines
from pipeline.store.store import Version
from schemas.document import Document
from schemas.episode import Episode
from schemas.errors import NotFoundError, PenstockError, TooLargeError
from schemas.packed import Packed
from schemas.thumbnails import is_pictures

MAX_EPISODE_BYTES = 256 << 20
"""Numbers of an episode that is read for a page."""
MAX_PLOTS = 12
MAX_PLOT_DIMS = 64
"""Numbers of a row that count as lines; wider fields are named only."""
MAX_TEXTS = 3
READERS = 2
"""Episodes that are read and decoded at a time."""
HIDDEN = ("episode_id", "digest")


class EpisodeQuery(Document):
    """Which episode: by id, or by its position in the version."""

    id: Id | None = None
    at: Annotated[int, Field(ge=0, lt=2**53)] | None = None


class StripQuery(Document):
    """Which row of pictures."""

    id: Id
    field: Annotated[str, Field(max_length=1024)]


async def episode(request: Request, ref: Ref, query: Annotated[EpisodeQuery, Query()]) -> Response:
    """One episode."""
    kept: anyio.CapacityLimiter = request.app.state.readers
    return await page(request, "episode.html", _episode, ref, query, _strips(request), limiter=kept)


async def strip(request: Request, ref: Ref, query: Annotated[StripQuery, Query()]) -> Response:
    """A row of pictures of one camera, as PNG."""
    state = state_of(request)
    kept: anyio.CapacityLimiter = request.app.state.readers
    data = await in_thread(state, _strip, state, ref, query, _strips(request), limiter=kept)
    return Response(data, media_type="image/png")


def _strips(request: Request) -> Strips:
    found: Strips = request.app.state.strips
    return found


# -- in threads ----------------------------------------------------------------------------------


def _episode(state: ControlState, ref: str, query: EpisodeQuery, strips: Strips) -> dict[str, Any]:
    version = state.store.version(ref)
    table = version.episodes()
    at = _position(version, table, query)
    row = table.slice(at, 1).to_pylist()[0]
    places = _places(table, at)
    hidden = {*HIDDEN, *(place["name"] for place in places)}
    values: dict[str, Any] = {
        "version": version,
        "ref": f"{version.branch}:{version.number}",
        "id": row["episode_id"],
        "at": at,
        "of": table.num_rows,
        "facts": {n: v for n, v in row.items() if v is not None and n not in hidden},
        "places": places,
        "strips": [],
        "plots": [],
        "texts": [],
        "problem": None,
    }
    try:
        found = _read(version, row["episode_id"], row["length"])
        shown = strips.make(version.id, found)
    except PenstockError as error:
        return {**values, "problem": said_of(error)}
    told = [(one, said_of(one.problem) if one.problem else None) for one in shown]
    return {**values, "strips": told, "plots": _plots(found), "texts": _texts(found)}


def _position(version: Version, table: pa.Table, query: EpisodeQuery) -> int:
    at = query.at if query.at is not None else -1
    if query.id is not None:
        at = pc.index(table["episode_id"], query.id).as_py()
    if not 0 <= at < table.num_rows:
        came = repr(query.id[:128]) if query.id is not None else f"number {query.at}"
        raise NotFoundError(
            f"Expected an episode of {version.branch}:{version.number}, came {came}; its list "
            f"names them."
        )
    return int(at)


def _read(version: Version, episode_id: str, length: int) -> Episode:
    """Reads an episode that is small enough."""
    widest = max(
        (
            sum(one.row_bytes for one in spec.fields.values() if one.encoding == "raw")
            for spec in version.specs.values()
        ),
        default=0,
    )
    if widest * (length + 1) > MAX_EPISODE_BYTES:
        raise TooLargeError(
            f"Expected an episode of at most {MAX_EPISODE_BYTES >> 20} MiB of numbers to draw, "
            f"came about {widest * (length + 1) >> 20} MiB; `penstock.open_store` reads it."
        )
    return version.episode(episode_id)


def _strip(state: ControlState, ref: str, query: StripQuery, strips: Strips) -> bytes:
    version = state.store.version(ref)
    data = strips.find(version.id, query.id, query.field)
    if data is None:  # not asked by a page just now
        table = version.episodes()
        at = _position(version, table, EpisodeQuery(id=query.id))
        found = _read(version, query.id, table["length"][at].as_py())
        for one in strips.make(version.id, found):
            if one.field == query.field and one.problem is not None:
                raise one.problem
        data = strips.find(version.id, query.id, query.field)
    if data is None:
        raise NotFoundError(f"Expected a field of pictures, came {query.field[:128]!r}.")
    return data


def _places(table: pa.Table, at: int) -> list[dict[str, Any]]:
    """Each number of an episode, and the share of episodes that have as much or less."""
    found = []
    for name in number_columns(table):
        values = numbers(table, name)
        finite = values[np.isfinite(values)]
        if np.isfinite(values[at]) and name not in ("seed", "fps"):
            share = float((finite <= values[at]).mean())
            middle = float(np.median(finite))
            row = {"name": name, "value": float(values[at]), "share": share, "median": middle}
            found.append(row)
    return found


def _plots(found: Episode) -> list[tuple[str, str, Markup]]:
    """Actions, rewards and observations over time: name, words, plot."""
    fields: dict[str, Any] = dict(found.flat_actions)
    if found.rewards is not None:
        fields["rewards"] = found.rewards
    fields.update(found.observations)
    fields.update({f"extras/{name}": rows for name, rows in found.extras.items()})
    drawn: list[tuple[str, str, Markup]] = []
    for name, rows in fields.items():
        if len(drawn) >= MAX_PLOTS:
            break
        if not isinstance(rows, np.ndarray) or is_pictures(rows) or rows.dtype.kind not in "fiub":
            continue
        dims = int(np.prod(rows.shape[1:]))
        if not 0 < dims <= MAX_PLOT_DIMS or len(rows) < 2:
            continue
        words = f"{dims} {'number' if dims == 1 else 'numbers'} a step"
        if dims > MAX_LINES:
            words += f", the first {MAX_LINES} drawn"
        values = rows.reshape(len(rows), -1)[:, :MAX_LINES].astype(float)
        plot = lines(values, f"{len(rows):,} rows, {words}")
        drawn.append((name, words, plot))
    return drawn


def _texts(found: Episode) -> list[tuple[str, list[str], int]]:
    """Fields of text with their first distinct texts."""
    fields: Mapping[str, Any] = {**found.observations, **found.extras}
    shown = []
    for name, rows in fields.items():
        if isinstance(rows, Packed) and rows.spec.encoding == "text":
            distinct = [raw for raw in dict.fromkeys(rows) if raw]
            said = [raw.decode(errors="replace") for raw in distinct[:MAX_TEXTS]]
            shown.append((name, said, len(distinct)))
    return shown
