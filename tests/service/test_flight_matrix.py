"""Every method of the data port against every kind of token: the whole table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pyarrow.flight as fl
import pytest

from pipeline.service.client.faults import WIRE, error_of
from pipeline.service.flight import data_port
from pipeline.store import layout
from schemas.pulls import (
    BlockTicket,
    EpisodesTicket,
    NamesTicket,
    ObjectTicket,
    PullStream,
    PutStream,
    TailTicket,
    VersionsTicket,
)
from schemas.puts import puts_of
from tests.service.ports import Port, episode, service_in

WHO = ("none", "garbage", "basic", "twice", "expired", "revoked", "push", "pull", "curate", "admin")
EXPECTED = {
    "DoPut": "push admin",
    "DoGet tail": "pull admin",
    "DoGet episodes": "pull admin",
    "DoGet block": "pull admin",
    "DoGet versions": "pull admin",
    "DoGet object": "pull admin",
    "DoGet names": "pull admin",
    "DoExchange": "pull admin",
    "GetFlightInfo": "pull admin",
    "DoAction status": "push pull curate admin",
    "DoAction refer": "pull admin",
    "ListActions": "push pull curate admin",
    "ListFlights": "",
    "GetSchema": "",
}
"""Who may what, written a second time on purpose; nobody has what the service does not do."""
KNOWN = ("push", "pull", "curate", "admin")
Call = Callable[[fl.FlightClient, fl.FlightCallOptions], object]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    with service_in(tmp_path_factory.mktemp("flight"), port=0) as found, data_port(found.state):
        yield found


def put(client: fl.FlightClient, options: fl.FlightCallOptions) -> object:
    """One episode, to its acknowledgement."""
    name = f"put-{time.monotonic_ns()}"
    (one,) = puts_of(episode(name), producer="actor", epoch=time.time_ns())
    descriptor = fl.FlightDescriptor.for_command(PutStream(ack="received").encoded())
    writer, reader = client.do_put(descriptor, one.rows.schema, options)
    with writer:
        writer.write_with_metadata(one.rows, one.header.encoded())
        said = reader.read()
        writer.done_writing()
        if said is not None:
            return said
    raise AssertionError("the stream ended without a word")


def exchange(client: fl.FlightClient, options: fl.FlightCallOptions) -> object:
    """One small pull over a stream."""
    descriptor = fl.FlightDescriptor.for_command(PullStream(answers="objects").encoded())
    writer, reader = client.do_exchange(descriptor, options)
    with writer:
        writer.write_metadata(NamesTicket(prefix=layout.BRANCHES).encoded())
        said = reader.read_chunk()
        writer.done_writing()
        return said


def call_of(port: Port, what: str) -> Call:
    """Returns what asks for something as a client would."""
    method, _, kind = what.partition(" ")
    if method == "DoGet":
        block = port.store.version("main").state.parts[0].blocks[0].id
        head = port.store.version("main").id
        tickets = {
            "tail": TailTicket(),
            "episodes": EpisodesTicket(ref="main"),
            "block": BlockTicket(ref=head, block=block),
            "versions": VersionsTicket(),
            "object": ObjectTicket(key=layout.STORE),
            "names": NamesTicket(prefix=layout.BRANCHES),
        }
        ticket = fl.Ticket(tickets[kind].encoded())
        return lambda client, options: client.do_get(ticket, options).read_all()
    whole = fl.FlightDescriptor.for_command(EpisodesTicket(ref="main").encoded())
    calls: dict[str, Call] = {
        "DoPut": put,
        "DoExchange": exchange,
        "GetFlightInfo": lambda client, options: client.get_flight_info(whole, options),
        "GetSchema": lambda client, options: client.get_schema(whole, options),
        "DoAction": lambda client, options: list(client.do_action(fl.Action(kind, b"{}"), options)),
        "ListActions": lambda client, options: client.list_actions(options),
        "ListFlights": lambda client, options: list(client.list_flights(b"", options)),
    }
    return calls[method]


def headers_of(port: Port, who: str) -> list[tuple[bytes, bytes]]:
    if who == "none":
        return []
    text = {
        "garbage": "Bearer " + "x" * 60,
        "basic": "Basic YWRtaW46YWRtaW4=",
        "twice": f"Bearer {port.texts['admin']}",
    }.get(who) or f"Bearer {port.texts[who]}"
    return [(b"authorization", text.encode())] * (2 if who == "twice" else 1)


def kind_of(port: Port, what: str, who: str) -> str:
    """Returns what comes of a call: `done`, or the kind of the error."""
    options = fl.FlightCallOptions(timeout=60, headers=headers_of(port, who))
    call = call_of(port, what)
    with fl.FlightClient(port.state.addresses["data"]) as client:
        try:
            call(client, options)
        except WIRE as error:
            if "Traceback" in str(error):
                return "a traceback"
            if what == "GetSchema":  # of which Flight's client tells the text alone
                return "usage" if "each stream says" in str(error) else "unauthenticated"
            return error_of(error).kind
    return "done"


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("what", EXPECTED)
def test_who_may_what(port: Port, what: str, who: str) -> None:
    found = kind_of(port, what, who)
    if who not in KNOWN:
        assert found == "unauthenticated"
    elif who in EXPECTED[what].split():
        # Of an empty reference nothing is remembered, but whoever asks may.
        assert found == ("usage" if what == "DoAction refer" else "done")
    elif EXPECTED[what]:
        assert found == "forbidden"
    else:
        assert found == "usage"


def test_these_are_all_methods_there_are() -> None:
    """A method of Flight that a server answers, and that is not in the table, has no rule."""
    from pipeline.service.flight import DataServer

    own = {name for name in vars(fl.FlightServerBase) if name.startswith(("do_", "get_", "list_"))}
    named = {"".join(part.capitalize() for part in name.split("_")) for name in own}
    assert named == {what.partition(" ")[0] for what in EXPECTED}
    assert own <= vars(DataServer).keys()


def test_the_audit_names_who_put_and_from_where(port: Port) -> None:
    before = len(_audit(port))
    assert kind_of(port, "DoPut", "push") == "done"
    assert kind_of(port, "DoPut", "none") == "unauthenticated"
    while len(_audit(port)) < before + 2:  # the stream's line comes when the stream has ended
        time.sleep(0.01)
    done, refused = sorted(_audit(port)[before:], key=lambda line: line["status"])
    assert (done["method"], done["name"], done["client"]) == ("DO_PUT", "has-push", "127.0.0.1")
    assert (refused["kind"], refused["token"]) == ("unauthenticated", None)


def _audit(port: Port) -> list[dict[str, object]]:
    file = port.state.config.wal / "audit.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
