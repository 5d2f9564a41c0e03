"""Rollouts over HTTP: one episode as an Arrow stream, for clients that do not speak Flight."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Query, Request, Response

from pipeline.service.answers import json_answer
from pipeline.service.arrow_body import batches_in
from pipeline.service.bodies import read_arrow
from pipeline.service.rollout_log import Ack
from pipeline.service.state import ControlState, in_thread, state_of, trace_of
from pipeline.service.tokens import Token, check_producer, stream_of
from schemas.document import Document
from schemas.errors import PenstockError, PutError
from schemas.puts import Put
from schemas.rollouts import read_header


class PushQuery(Document):
    """How safe the episode is to be before the answer."""

    ack: Ack = "durable"


async def push(request: Request, query: Annotated[PushQuery, Query()]) -> Response:
    """Takes one whole episode; the answer comes when it is safe, and says its offset in the log."""
    state, token = state_of(request), trace_of(request).token
    began = time.monotonic()
    try:
        stated = request.headers.get("content-length", str(state.config.max_body_bytes))
        with state.quotas.stream(token), state.quotas.buffer(int(stated)):
            body = await read_arrow(request)
            state.quotas.check_unsealed(token, state.log.sealed_through)
            state.quotas.spend(token, len(body))
            puts = await in_thread(state, _puts, token, body)
            wanted = (puts, query.ack, state.config.request_seconds)
            offset = await in_thread(state, state.log.push, *wanted, limiter=state.pushes)
    except PenstockError as error:
        state.metrics.put_rejected.labels(error.kind).inc()
        raise
    state.quotas.pushed(token, offset, len(body))
    _count(state, puts, len(body), time.monotonic() - began)
    last = puts[-1].header
    place = {"episode_id": last.episode_id, "sequence": last.sequence}
    return json_answer({**place, "offset": offset, "server": state.log.server, "ack": query.ack})


def _puts(token: Token | None, body: bytes) -> list[Put]:
    """Returns the puts of one whole episode; the log checks their rows."""
    found = [Put(read_header(text), rows) for text, rows in batches_in(body)]
    first, last = found[0].header, found[-1].header
    check_producer(token, first.producer)
    same = {(put.header.producer, put.header.epoch, put.header.episode_id) for put in found}
    ends = [put.header.end for put in found]
    if len(same) > 1 or first.start or not last.end or sum(ends) > 1:
        raise PutError(
            "Expected all puts of one episode, from its first row to the one that ends it, came "
            "others."
        )
    return found


def _count(state: ControlState, puts: list[Put], size: int, seconds: float) -> None:
    metrics = state.metrics
    stream = metrics.stream(stream_of(puts[0].header.producer))
    steps = sum(put.rows.num_rows for put in puts) - 1  # the last row is no step
    metrics.put_steps.labels(stream).inc(steps)
    metrics.put_bytes.labels(stream).inc(size)
    metrics.put_ack.observe(seconds)
