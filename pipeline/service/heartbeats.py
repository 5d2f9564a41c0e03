"""Routes for learners: they say where they are, and people look."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request, Response

from pipeline.service.answers import json_answer
from pipeline.service.bodies import read_json
from pipeline.service.state import state_of
from schemas.online import Heartbeat

RunName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


async def beat(request: Request, run: RunName) -> Response:
    """Takes a learner's heartbeat; answers where the log stands."""
    state = state_of(request)
    state.learners.beat(run, await read_json(request, Heartbeat))
    log = state.log.status()
    kept = ("server", "branch", "version", "durable_offset", "sealed_offset")
    return json_answer({name: log[name] for name in kept})


async def learners(request: Request) -> Response:
    """The learners that are heard of, and what they said last."""
    told: dict[str, Any] = {
        run: beat.model_dump() for run, beat in state_of(request).learners.told().items()
    }
    return json_answer({"learners": told})
