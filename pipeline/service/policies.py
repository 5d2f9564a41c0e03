"""Routes through which learners hand policies to actors; the store keeps them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request, Response
from pydantic import Field

from pipeline.service.answers import json_answer
from pipeline.service.bodies import read_octets
from pipeline.service.heartbeats import RunName
from pipeline.service.state import ControlState, in_thread, state_of
from pipeline.store import policies
from schemas.document import Document

Step = Annotated[int, Path(ge=0, lt=10**12)]


class PolicyQuery(Document):
    """Which policy."""

    after: Annotated[int, Field(ge=-1, lt=10**12)] = -1
    """Only one of a later step."""


async def newest(
    request: Request, run: RunName, query: Annotated[PolicyQuery, Query()]
) -> Response:
    """A run's newest policy as a safetensors file; 204 if the one that is known is the newest."""
    state = state_of(request)
    found = await in_thread(state, policies.newest, state.store.catalog, run, query.after)
    if found is None:
        return Response(status_code=204)
    headers = {"x-penstock-step": str(found.step), "x-penstock-sha256": found.sha256}
    return Response(found.data, media_type="application/octet-stream", headers=headers)


async def publish(request: Request, run: RunName, step: Step) -> Response:
    """Takes a run's next policy; actors of the run act by it from then on."""
    state = state_of(request)
    data = await read_octets(request)
    await in_thread(state, policies.publish, state.store.catalog, run, step, data)
    return json_answer({"run": run, "step": step, "bytes": len(data)})


async def listed(request: Request) -> Response:
    """The runs that publish policies, and the newest step of each."""
    state = state_of(request)
    return json_answer({"policies": await in_thread(state, _listed, state)})


def _listed(state: ControlState) -> dict[str, int]:
    catalog = state.store.catalog
    found = {run: policies.steps(catalog, run) for run in policies.runs(catalog)}
    return {run: steps[-1] for run, steps in found.items() if steps}
