"""Traces of callers, in the log of either port."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.service.client.client import RolloutClient
from pipeline.service.client.control import ControlClient
from pipeline.service.client.settings import ClientSettings
from schemas.errors import ConfigError
from schemas.tracing import traceparent_of
from tests.service.ports import episode
from tests.service.servers import serving

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", TRACE.upper(), TRACE + "-00", TRACE[:-1], "ff" + TRACE[2:], f" {TRACE}"),
        *(TRACE.replace("b7ad6b7169203331", "0" * 16), f"00-{'0' * 32}-b7ad6b7169203331-01"),
    ],
)
def test_what_is_no_trace(text: str | None) -> None:
    assert traceparent_of(text) is None
    if text is not None:
        with pytest.raises(ConfigError, match="traceparent"):
            RolloutClient("grpc://127.0.0.1:1", traceparent=text)


def test_both_ports_log_the_trace(tmp_path: Path) -> None:
    assert traceparent_of(TRACE) == TRACE
    with serving(tmp_path / "store") as server:
        settings = ClientSettings(traceparent=TRACE)
        with RolloutClient(server.data, server.token, settings) as client:
            client.push(episode("e0"))
        with server.client() as client:
            client.push(episode("e1"))
        ControlClient(server.control, server.token, settings).status()
        ControlClient(server.control, server.token).status()
        server.end()
    lines = [json.loads(one) for one in (tmp_path / "server.log").read_text().splitlines()]
    traced = [one for one in lines if one.get("traceparent") == TRACE]
    assert [one["event"] for one in traced] == ["call", "request"]
    assert traced[1]["route"] == "/v1/status"
    assert sum("traceparent" in one for one in lines) == 2
