"""No secret reaches a log line, however it got into the record."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from pipeline.service.audit import address_of
from pipeline.service.logs import log_to, redacted
from pipeline.service.tokens import new_text

TEXT = new_text()
SECRET = TEXT.split("_", 2)[2]


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        f"Bearer {TEXT}",
        f"authorization: bearer {SECRET}",
        f"before{TEXT}after",
        TEXT.encode(),
        [TEXT, {"deep": (TEXT,)}],
        {"token": SECRET},
        {"Authorization": SECRET},
        {"a": {"Set-Cookie": f"penstock_session={SECRET}"}},
        f"penstock_session={SECRET}; path=/",
        {TEXT: 1},
        ValueError(TEXT),
    ],
    ids=range(12),
)
def test_secrets_are_blacked_out(value):
    assert SECRET not in json.dumps(redacted(value))


def test_other_values_stay():
    value = {"path": "/v1/tags/x", "status": 200, "seconds": 0.5, "kind": None, "ok": True}
    assert redacted(value) == value
    assert redacted(TEXT).startswith("pnk_" + TEXT.split("_")[1])


def test_every_way_to_log():
    stream = io.StringIO()
    log_to(stream)
    structlog.get_logger("ours").info("said", token=SECRET, text=f"see {TEXT}")
    with structlog.contextvars.bound_contextvars(request="r1", cookie=SECRET):
        structlog.get_logger("ours").warning(f"in the event {TEXT}")
    other = logging.getLogger("a.library")
    other.warning("formatted %s", TEXT)
    other.info("extra", extra={"header": f"Bearer {SECRET}"})
    try:
        raise RuntimeError(TEXT)
    except RuntimeError:
        other.exception("traceback")
        structlog.get_logger("ours").exception("traceback")
    lines = stream.getvalue().splitlines()
    assert SECRET not in stream.getvalue()
    records = [json.loads(line) for line in lines]
    assert len(records) == 6
    assert {"time", "level", "event", "logger"} <= records[0].keys()
    assert records[1]["request"] == "r1"
    assert all("RuntimeError" in record["exception"] for record in records[-2:])


def test_an_event_stands_alone():
    """Uvicorn hands its events on a second time, with signs for a terminal."""
    stream = io.StringIO()
    log_to(stream)
    more = {"color_message": "Started \x1b[36m%d\x1b[0m"}
    logging.getLogger("uvicorn.error").info("Started %d", 7, extra=more)
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "Started 7"
    assert "color_message" not in line
    assert "x1b" not in line


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:59476", "127.0.0.1"),
        ("ipv6:[::1]:59476", "::1"),
        ("ipv6:%5B2001:db8::7%5D:9", "2001:db8::7"),
        ("-", "-"),
        ("unix:/tmp/socket", "unix:/tmp/socket"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_audit_names_addresses_alike(peer, address):
    assert address_of(peer) == address
