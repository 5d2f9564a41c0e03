"""The data port spoken to without our client: rights, refusals, hostile puts, the tail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from pipeline.service.flight import DataServer, data_port
from pipeline.service.token_book import TokenRequest
from pipeline.service.tokens import Quota
from schemas.episode import Episode
from schemas.identity import digest
from schemas.pulls import (
    BlockTicket,
    EpisodesTicket,
    Fault,
    Place,
    TailTicket,
    VersionsTicket,
    decode_episode,
    read_said,
)
from schemas.puts import Put, puts_of
from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.service.ports import Port, episode, service_in

PUSH = fl.FlightDescriptor.for_command(b"{}")
KINDS = {"bad_put", "bad_episode", "too_large", "usage", "resend", "busy", "spec_mismatch"}


@dataclass
class Data:
    """A data port over a store with some episodes, and how to ask it."""

    port: Port
    server: DataServer
    client: fl.FlightClient

    def options(self, who: str | None = "admin", timeout: float = 30) -> fl.FlightCallOptions:
        headers = []
        if who is not None:
            headers.append((b"authorization", f"Bearer {self.port.texts[who]}".encode()))
        return fl.FlightCallOptions(timeout=timeout, headers=headers)

    def send(self, puts: list[tuple[pa.RecordBatch, bytes]], who: str | None = "admin") -> Any:
        """Sends puts on a stream of their own; returns its last acknowledgement."""
        writer, reader = self.client.do_put(PUSH, puts[0][0].schema, self.options(who))
        said = None
        try:
            for rows, header in puts:
                writer.write_with_metadata(rows, header)
            writer.done_writing()
            while (data := reader.read()) is not None:
                said = json.loads(data.to_pybytes())
        finally:
            writer.close()
        return said

    def pull(self, ticket: Any, who: str | None = "admin") -> list[tuple[pa.RecordBatch, bytes]]:
        data = ticket if isinstance(ticket, bytes) else ticket.encoded()
        reader = self.client.do_get(fl.Ticket(data), self.options(who))
        return [(c.data, c.app_metadata and c.app_metadata.to_pybytes()) for c in reader]

    def tail(self, **ticket: Any) -> list[str]:
        return [one.episode_id for batch, _ in self.pull(TailTicket(**ticket)) for one in of(batch)]


def of(batch: pa.RecordBatch) -> list[Episode]:
    return [decode_episode(one.as_buffer()) for one in batch["episode"]]


def wire(puts: list[Put]) -> list[tuple[pa.RecordBatch, bytes]]:
    return [(put.rows, put.header.encoded()) for put in puts]


def whole(one: Episode, producer: str = "a", epoch: int = 1, put_bytes: int = 200) -> list[Put]:
    return list(puts_of(one, producer=producer, epoch=epoch, put_bytes=put_bytes))


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Data]:
    with (
        service_in(tmp_path, port=0, request_seconds=1.0) as port,
        data_port(port.state) as (server, url),
        fl.FlightClient(url) as client,
    ):
        yield Data(port, server, client)


def refusal(work: Callable[[], Any]) -> Fault:
    """Returns what some work is refused with; it tells no more than it may."""
    with pytest.raises(fl.FlightError) as caught:
        work()
    text = f"{caught.value}{caught.value.extra_info!r}"
    assert "Traceback" not in text
    assert ".py" not in text
    assert "/tmp" not in text
    return read_said(Fault, caught.value.extra_info)


# -- rights ----------------------------------------------------------------------------------------

VERBS: dict[str, tuple[tuple[str, ...], Callable[[Data, str | None], Any]]] = {
    "put": (("push",), lambda d, who: d.send(wire(whole(episode(f"by-{who}"))), who)),
    "tail": (("pull",), lambda d, who: d.pull(TailTicket(), who)),
    "episodes": (("pull",), lambda d, who: d.pull(EpisodesTicket(), who)),
    "versions": (("pull",), lambda d, who: d.pull(VersionsTicket(), who)),
    "info": (
        ("pull",),
        lambda d, who: d.client.get_flight_info(
            fl.FlightDescriptor.for_command(EpisodesTicket().encoded()), d.options(who)
        ),
    ),
    "actions": (
        ("push", "pull", "curate"),
        lambda d, who: list(d.client.list_actions(d.options(who))),
    ),
    "status": (
        ("push", "pull", "curate"),
        lambda d, who: list(d.client.do_action("status", d.options(who))),
    ),
}


def test_each_token_does_what_it_may(data: Data) -> None:
    for verb, (scopes, work) in VERBS.items():
        for who in ("push", "pull", "curate", "admin"):
            if who in scopes or who == "admin":
                work(data, who)
            else:
                assert refusal(lambda w=work, n=who: w(data, n)).kind == "forbidden", (verb, who)
        for who in (None, "revoked", "expired"):
            kind = refusal(lambda w=work, n=who: w(data, n)).kind
            assert kind == "unauthenticated", (verb, who)


def test_a_token_of_some_streams_pushes_to_no_other(data: Data) -> None:
    book = data.port.state.book
    assert book is not None
    wanted = TokenRequest(name="lab", scopes=("push",), streams=("lab",))
    data.port.texts["lab"] = book.create(wanted)[1]
    assert data.send(wire(whole(episode("e"), "lab:arm")), "lab")["offset"] > 0
    fault = refusal(lambda: data.send(wire(whole(episode("f"), "other:arm")), "lab"))
    assert fault.kind == "forbidden"


def test_a_token_that_is_revoked_ends_its_stream(data: Data) -> None:
    puts = whole(episode("e"))
    writer, reader = data.client.do_put(PUSH, puts[0].rows.schema, data.options("push"))
    writer.write_with_metadata(*wire(puts)[0])
    assert reader.read() is not None
    assert data.port.state.book is not None
    data.port.state.book.revoke("has-push")
    time.sleep(1.1)

    def go_on() -> None:
        writer.write_with_metadata(*wire(puts)[1])
        reader.read()
        writer.close()

    assert refusal(go_on).kind == "unauthenticated"


# -- in and out ------------------------------------------------------------------------------------


def test_a_stream_that_breaks_off_ends_no_episode(data: Data) -> None:
    puts = wire(whole(episode("e")))
    data.send(puts[:-1])
    assert data.tail() == []
    said = data.send(wire(whole(episode("e"), epoch=2)))
    assert said["sequence"] == len(puts) - 1
    assert data.tail() == ["e"]


def test_the_tail_goes_on_over_seals(data: Data) -> None:
    """Each episode once, whether it is in the log or in a version; then only newer ones."""
    sources = {f"n{k}": episode(f"n{k}", k) for k in range(6)}
    offsets = {}
    for k, (name, one) in enumerate(sources.items()):
        offsets[name] = data.send(wire(whole(one, epoch=k + 1)))["offset"]
        if k in (1, 3):
            data.port.state.log.seal()
    assert data.tail() == list(sources)
    assert data.tail(after=offsets["n1"]) == ["n2", "n3", "n4", "n5"]
    assert data.tail(after=offsets["n4"]) == ["n5"]
    assert data.tail(version="main") == ["n4", "n5"]
    found = [one for batch, _ in data.pull(TailTicket()) for one in of(batch)]
    assert [digest(one) for one in found] == [digest(one) for one in sources.values()]
    last = read_said(Place, data.pull(TailTicket())[-1][1])
    assert last.through >= offsets["n5"]
    assert data.tail(after=last.through, server=last.server) == []
    fault = refusal(lambda: data.pull(TailTicket(after=1, server="another")))
    assert fault.kind == "usage"


def test_a_tail_that_follows(data: Data) -> None:
    ticket = TailTicket(follow=True, wait_seconds=20)
    reader = data.client.do_get(fl.Ticket(ticket.encoded()), data.options(timeout=60))
    found: list[str] = []

    def read() -> None:
        for chunk in reader:
            found.extend(one.episode_id for one in of(chunk.data))
            if len(found) >= 6:
                reader.cancel()
                return

    thread = threading.Thread(target=read)
    thread.start()
    for k in range(6):
        data.send(wire(whole(episode(f"n{k}"), epoch=k + 1)))
        if k % 2:
            data.port.state.log.seal()
    thread.join(30)
    assert found == [f"n{k}" for k in range(6)]


def test_read_your_writes(data: Data) -> None:
    offset = data.send(wire(whole(episode("e"))))["offset"]
    assert data.tail(min_offset=offset) == ["e"]
    fault = refusal(lambda: data.tail(min_offset=offset + 1000, wait_seconds=0.1))
    assert fault.kind == "timeout"


def test_blocks_and_versions(data: Data) -> None:
    command = fl.FlightDescriptor.for_command(EpisodesTicket().encoded())
    info = data.client.get_flight_info(command, data.options())
    ((endpoint),) = info.endpoints
    (here, there) = [location.uri.decode() for location in endpoint.locations]
    assert here.startswith("arrow-flight-reuse-connection:")
    assert Path(there.removeprefix("file://")).is_file()
    pieces = [batch for batch, _ in data.pull(endpoint.ticket.ticket)]
    sent = b"".join(batch["data"][0].as_py() for batch in pieces)
    assert sent == Path(there.removeprefix("file://")).read_bytes()
    assert data.pull(VersionsTicket())[0][0]["episodes"].to_pylist() == [10]
    assert refusal(lambda: data.pull(BlockTicket(ref="main", block="../x"))).kind == "not_found"


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ticket",
    [
        *(b"", b"{", b"null", b"[]", b'{"type": "tail", "after": "3"}', b"\xff\xfe", b"9" * 70_000),
        *(b'{"type": "nothing"}', b'{"type": "tail", "more": 1}', b'{"ref": "../x"}'),
        b'{"type": "episodes", "ref": "../../etc/passwd"}',
        b'{"type": "episodes", "where": "__import__(\'os\')"}',
        b'{"type": "episodes", "ref": "main:99"}',
    ],
    ids=range(13),
)
def test_tickets_that_are_none(ticket: bytes, data: Data) -> None:
    assert refusal(lambda: data.pull(ticket)).kind in ("usage", "not_found", "bad_filter")


def test_methods_that_are_none(data: Data) -> None:
    assert refusal(lambda: list(data.client.list_flights(b"", data.options()))).kind == "usage"
    fault = refusal(lambda: list(data.client.do_action("format_disk", data.options())))
    assert fault.kind == "not_found"


def test_streams_are_counted(data: Data) -> None:
    """One too many is refused for now; when one ends there is room."""
    book = data.port.state.book
    assert book is not None
    wanted = TokenRequest(name="one", scopes=("push",), quota=Quota(max_streams=1))
    data.port.texts["one"] = book.create(wanted)[1]
    puts = wire(whole(episode("e")))
    writer, reader = data.client.do_put(PUSH, puts[0][0].schema, data.options("one"))
    writer.write_with_metadata(*puts[0])
    reader.read()
    fault = refusal(lambda: data.send(wire(whole(episode("f"), "b")), "one"))
    assert fault.kind == "busy"
    assert fault.retry_after
    writer.done_writing()
    assert reader.read() is None
    writer.close()
    assert data.send(wire(whole(episode("f"), "b")), "one")["offset"] > 0


@pytest.mark.timeout(size(300, 3600))
def test_hostile_puts(data: Data) -> None:
    """Headers, schemas and buffers of any kind: a kind of our tree each time, and nothing kept."""
    rng = np.random.default_rng(0)
    healthy = wire(whole(episode("e"), put_bytes=1 << 20))
    refused = 0
    kinds: set[str] = set()
    told: list[str] = []
    for number in range(size(2_000, 20_000)):
        rows, header = healthy[0]
        what = number % 4
        if what == 0:
            header = _mutated(header, rng)
        elif what == 1:
            rows = _with_mutated_buffers(rows, rng)
        elif what == 2:
            rows = _with_other_columns(rows, rng)
        else:
            text = rows.schema.metadata or {}
            changed = {key: _mutated(value, rng) for key, value in text.items()}
            rows = rows.replace_schema_metadata(changed)
        header = header.replace(b'"episode_id":"e"', f'"episode_id":"h{number}"'.encode())
        header = header.replace(b'"producer":"a"', f'"producer":"p{number}"'.encode())
        try:
            data.send([(rows, header)])
        except fl.FlightError as error:
            refused += 1
            kinds.add(read_said(Fault, error.extra_info).kind)
            told.append(str(error))
        except (pa.ArrowException, OverflowError, ValueError):
            continue  # our own side would not even send it
    assert refused > number // 3
    assert kinds <= KINDS
    assert not any("Traceback" in one or ".py" in one for one in told)
    data.send(wire(whole(episode("after"), "after")))
    assert data.tail()[-1] == "after"
    tell("fuzzed puts", puts=number + 1, refused=refused)


def _mutated(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(changed)))
        verb = int(rng.integers(3))
        if verb == 0:
            changed[at] = int(rng.integers(256))
        elif verb == 1:
            del changed[at : at + int(rng.integers(1, 8))]
        else:
            changed[at:at] = bytes(rng.integers(0, 256, 4, dtype=np.uint8))
        if not changed:
            return b""
    return bytes(changed)


def _with_mutated_buffers(rows: pa.RecordBatch, rng: np.random.Generator) -> pa.RecordBatch:
    columns = list(rows.columns)
    at = int(rng.integers(len(columns)))
    count = int(rng.integers(0, rows.num_rows + 1))
    mask = pa.array(rng.random(rows.num_rows) < 0.3)
    kind = columns[at].type
    columns[at] = pa.array(
        [None if null else value for null, value in zip(mask.to_pylist(), columns[at].to_pylist(),
                                                        strict=True)],
        kind,
    )  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema).slice(0, count)


def _with_other_columns(rows: pa.RecordBatch, rng: np.random.Generator) -> pa.RecordBatch:
    at = int(rng.integers(rows.num_columns))
    count = rows.num_rows
    others = [
        pa.array(["x"] * count),
        pa.array(["x"] * count).dictionary_encode(),
        pa.array([[1.0]] * count),
        pa.array([{"a": 1}] * count),
        pa.nulls(count),
        pa.array(range(count), pa.int64()),
    ]
    names = list(rows.schema.names)
    columns = list(rows.columns)
    columns[at] = others[int(rng.integers(len(others)))]
    return pa.RecordBatch.from_arrays(columns, names, metadata=rows.schema.metadata)
