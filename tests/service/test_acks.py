"""What a stream of puts is told, and by whom."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pyarrow as pa

from pipeline.service.flight_acks import Acks, Unacked
from schemas.pulls import Ack, read_said
from schemas.puts import Put, puts_of
from tests.service.ports import episode, service_in

LONG = 30.0


class Writer:
    """Flight's writer to a client that does not read yet."""

    def __init__(self) -> None:
        self.said: list[Ack] = []
        self.has_begun, self.reads = threading.Event(), threading.Event()

    def write(self, data: pa.Buffer) -> None:
        self.said.append(read_said(Ack, data.to_pybytes()))
        self.has_begun.set()
        assert self.reads.wait(LONG)


def test_what_becomes_safe_while_another_thread_tells_is_told(tmp_path: Path) -> None:
    """A stream may change hands while it is told: the new thread leaves it to the old one."""
    with service_in(tmp_path, no_token=True, is_filled=False) as port:
        log, writer = port.state.log, Writer()
        acks = Acks(port.state, writer, "durable", None)
        first, second, *_ = puts_of(episode("e"), producer="a", epoch=1, put_bytes=200)

        def add(put: Put) -> None:
            taken = log.put(put.header, put.rows)
            log.wait(taken, timeout=LONG)
            acks.add(Unacked(put.header, taken, 1, put.rows.num_rows, time.monotonic()))

        add(first)
        thread = threading.Thread(target=acks.tell)
        thread.start()
        assert writer.has_begun.wait(LONG)
        add(second)
        acks.tell()  # does not wait for the client
        assert [one.sequence for one in writer.said] == [0]
        writer.reads.set()
        thread.join(LONG)
        assert [one.sequence for one in writer.said] == [0, 1]
        acks.finish()
        acks.tell()  # nothing more, and nobody waits
        assert len(writer.said) == 2
