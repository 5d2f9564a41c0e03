"""Bytes that are no requests, many at a time, on any port: blobs, half HTTP/2, half TLS."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

PAUSE_SECONDS = 0.003
"""Between two blobs of one thrower."""
FIRST = 20
"""Blobs of each thrower after which it counts as a flood."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """One HTTP/2 frame, whose length may be a lie."""
    size = len(payload) if length is None else length
    return struct.pack("!I", size)[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def blob(chance: random.Random) -> bytes:
    """What a connection sends: by turns of several kinds, each of other bytes."""
    noise = chance.randbytes(chance.randrange(1, 4096))
    return chance.choice(
        [
            noise,
            _PREFACE[: chance.randrange(1, len(_PREFACE))],
            _PREFACE + _SETTINGS + frame(1, 4, 1, noise, length=1 << 14),
            _PREFACE + _SETTINGS + frame(0, 0, 1, b"", length=(1 << 24) - 1),
            _PREFACE + _SETTINGS + frame(chance.randrange(256), chance.randrange(256), 3, noise),
            _PREFACE + frame(4, 0, 0, struct.pack("!HI", 4, 0xFFFFFFFF)) + noise,
            _PREFACE + _SETTINGS + b"".join(frame(3, 0, k, bytes(4)) for k in range(1, 400, 2)),
            b"\x16\x03\x01" + struct.pack("!H", len(noise)) + b"\x01" + noise,
            b"\x16\x03\x03\x40\x00" + noise[:100],
            b"POST /v1/rollouts HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n"
            + noise,
            b"GET / HTTP/1.1\r\nHost: " + noise,
        ]
    )


def throw(
    ports: tuple[int, ...], seed: int, begun: Any, over: Any, thrown: Any, lingering: int = 32
) -> None:
    """Throws blobs at ports by turns, until it is over; some connections stay open for a while.

    Args:
        ports: of this machine.
        seed: of the blobs.
        begun: the semaphore that is released after the first blobs.
        over: the event that ends it.
        thrown: a queue that is told how many were thrown.
        lingering: connections that stay open.
    """
    chance = random.Random(seed)
    open_ones: list[socket.socket] = []
    count = 0
    for port in itertools.cycle(ports):
        if over.wait(PAUSE_SECONDS):
            break
        with contextlib.suppress(OSError):
            one = socket.create_connection(("127.0.0.1", port), timeout=2)
            open_ones.append(one)
            one.sendall(blob(chance))
            count += 1
            if count == FIRST:
                begun.release()
        if len(open_ones) > lingering:
            open_ones.pop(chance.randrange(len(open_ones))).close()
    for one in open_ones:
        one.close()
    thrown.put(count)


@contextlib.contextmanager
def flood(ports: tuple[int, ...], throwers: int = 2) -> Iterator[list[int]]:
    """Floods ports while the context lasts; afterwards the list tells how much was thrown."""
    context = multiprocessing.get_context("spawn")
    begun, over, told = context.Semaphore(0), context.Event(), context.Queue()
    thrown: list[int] = []
    processes = [
        context.Process(target=throw, args=(ports, seed, begun, over, told))
        for seed in range(throwers)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            assert begun.acquire(timeout=120), f"{process} throws nothing"
        yield thrown
    finally:
        over.set()
        thrown += [told.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
