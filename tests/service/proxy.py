"""A TCP proxy that does what networks do: cuts, delays, repeats bytes, goes silent, flips bits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Weather:
    """What happens to each piece of bytes; chances between 0 and 1."""

    cut: float = 0.0
    """The connection ends, maybe amid a piece."""
    delay: float = 0.0
    repeat: float = 0.0
    """The piece comes twice."""
    silence: float = 0.0
    """Nothing goes through any more, and nobody is told."""
    flip: float = 0.0
    """A bit of what the client sends changes."""
    seed: int = 0
    random: random.Random = field(init=False)
    count: dict[str, int] = field(default_factory=dict)
    is_over: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def strikes(self, name: str) -> bool:
        """Says whether something happens now, and counts it."""
        happens = not self.is_over and self.random.random() < getattr(self, name)
        if happens:
            self.count[name] = self.count.get(name, 0) + 1
        return happens


class Proxy:
    """Listens on a port of its own and passes on to another."""

    def __init__(self, port: int, weather: Weather) -> None:
        self._to = port
        self._weather = weather
        self._loop = asyncio.new_event_loop()
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        ways = [self._pass(reader, back, is_in=True), self._pass(there, writer, is_in=False)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for end in (back, writer):
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_in: bool
    ) -> None:
        weather = self._weather
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if weather.strikes("silence"):
                    await asyncio.sleep(3600)
                if weather.strikes("delay"):
                    await asyncio.sleep(weather.random.uniform(0, 0.03))
                if is_in and weather.strikes("flip"):
                    at = weather.random.randrange(len(data))
                    flipped = data[at] ^ (1 << weather.random.randrange(8))
                    data = data[:at] + bytes([flipped]) + data[at + 1 :]
                if weather.strikes("cut"):
                    writer.write(data[: weather.random.randrange(len(data) + 1)])
                    await writer.drain()
                    return
                writer.write(data * (2 if weather.strikes("repeat") else 1))
                await writer.drain()

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Passes on while the context lasts; yields the address."""
        is_ready = threading.Event()

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            is_ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(listen())
            self._loop.run_forever()

        async def leave() -> None:
            self._server.close()
            mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)
            self._loop.stop()

        thread = threading.Thread(target=run)
        thread.start()
        is_ready.wait(30)
        try:
            yield f"grpc://127.0.0.1:{self.port}"
        finally:
            asyncio.run_coroutine_threadsafe(leave(), self._loop)
            thread.join(30)
            self._loop.close()
