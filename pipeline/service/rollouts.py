"""Rollouts over HTTP: one episode as an Arrow stream, for clients that do not speak Flight."""

from __future__ import annotations

import time

from fastapi import Request, Response

from pipeline.service.answers import json_answer
from pipeline.service.arrow_body import batches_in
from pipeline.service.bodies import read_arrow
from pipeline.service.state import ControlState, in_thread, state_of, trace_of
from pipeline.service.tokens import Token, check_producer, stream_of
from schemas.errors import PenstockError, PutError
from schemas.puts import Put, PutLimits, check_rows, check_schema
from schemas.rollouts import read_header


async def push(request: Request) -> Response:
    """Takes one whole episode; the answer says the offset from which on it is safe."""
    state, token = state_of(request), trace_of(request).token
    began = time.monotonic()
    try:
        with state.quotas.stream(token):
            body = await read_arrow(request)
            state.quotas.spend(token, len(body))
            puts = await in_thread(state, _puts, token, body)
            offset = await in_thread(state, state.log.push, puts)
    except PenstockError as error:
        state.metrics.put_rejected.labels(error.kind).inc()
        raise
    _count(state, puts, len(body), time.monotonic() - began)
    last = puts[-1].header
    return json_answer(
        {"episode_id": last.episode_id, "sequence": last.sequence, "durable_offset": offset}
    )


def _puts(token: Token | None, body: bytes) -> list[Put]:
    """Returns the checked puts of one whole episode."""
    limits = PutLimits()
    found: list[Put] = []
    layout = None
    for text, rows in batches_in(body):
        layout = layout or check_schema(rows.schema, limits)
        check_rows(rows, layout, limits)
        found.append(Put(read_header(text), rows))
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
