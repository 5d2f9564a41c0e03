"""One thread tells all streams; a client that does not read holds up nobody else."""

from __future__ import annotations

import threading

from pipeline.service.teller import Teller

LONG = 30.0


class Stream:
    """A stream whose client may stop reading."""

    def __init__(self) -> None:
        self.news = 0
        self.told: list[str] = []
        self.was_told = threading.Semaphore(0)
        self.reads = threading.Event()
        self.reads.set()

    @property
    def has_news(self) -> bool:
        return self.news > len(self.told)

    def tell(self) -> None:
        assert self.reads.wait(LONG)
        self.told.append(threading.current_thread().name + str(threading.get_ident()))
        self.was_told.release()


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "teller-test"]


def call(teller: Teller, *streams: Stream) -> None:
    for stream in streams:
        stream.news += 1
    teller.wake()


def test_all_streams_are_told_by_one_thread() -> None:
    teller, streams = Teller("teller-test"), [Stream() for _ in range(5)]
    for stream in streams:
        teller.serve(stream)
    for _ in range(3):
        call(teller, *streams)
        assert all(stream.was_told.acquire(timeout=LONG) for stream in streams)
    assert len({name for stream in streams for name in stream.told}) == 1
    going = threads()
    for stream in streams:
        teller.let_go(stream)
    for thread in going:
        thread.join(LONG)
    assert threads() == []


def test_a_client_that_does_not_read_holds_up_nobody_else() -> None:
    teller = Teller("teller-test")
    deaf, others = Stream(), [Stream() for _ in range(4)]
    for stream in (deaf, *others):
        teller.serve(stream)
    deaf.reads.clear()
    for _ in range(3):
        call(teller, deaf, *others)
        assert all(stream.was_told.acquire(timeout=LONG) for stream in others)
    assert deaf.told == []
    deaf.reads.set()
    assert deaf.was_told.acquire(timeout=LONG)
    call(teller, deaf, *others)
    assert all(stream.was_told.acquire(timeout=LONG) for stream in (deaf, *others))
    assert not set(deaf.told) & {others[0].told[-1]}  # it has a thread of its own now
    going = threads()
    for stream in (deaf, *others):
        teller.let_go(stream)
    for thread in going:
        thread.join(LONG)
    assert threads() == []


def test_a_stream_that_leaves_while_it_is_told_takes_its_thread_along() -> None:
    teller, deaf, other = Teller("teller-test"), Stream(), Stream()
    for stream in (deaf, other):
        teller.serve(stream)
    deaf.reads.clear()
    call(teller, deaf, other)
    assert other.was_told.acquire(timeout=LONG)
    call(teller, other)
    assert other.was_told.acquire(timeout=LONG)
    teller.let_go(deaf)
    deaf.reads.set()
    assert deaf.was_told.acquire(timeout=LONG)
    teller.serve(deaf)
    call(teller, deaf, other)
    assert all(stream.was_told.acquire(timeout=LONG) for stream in (deaf, other))
    going = threads()
    for stream in (deaf, other):
        teller.let_go(stream)
    for thread in going:
        thread.join(LONG)
    assert threads() == []


def test_a_teller_begins_anew() -> None:
    teller, stream = Teller("teller-test"), Stream()
    for _ in range(3):
        teller.serve(stream)
        call(teller, stream)
        assert stream.was_told.acquire(timeout=LONG)
        teller.let_go(stream)
