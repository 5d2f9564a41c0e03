"""Where records are read from, chosen by their size and a budget of memory, and said aloud."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.sizes import said_bytes
from schemas.stream import StreamConfig

SHARE = 0.25
"""Of the memory that is free, what a stream takes where no budget is stated."""
LEAST = 64 << 20
"""Bytes below which a copy gains nothing: translations of so few pages stay in the processor."""

PACK_MEMORY = 512 << 20
"""Bytes that one thread may need to pack a block: its arrays as they are read, and one piece."""
PACK_THREADS = 8

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Choice:
    """Where records are read from, and why."""

    residency: Literal["mmap", "ram", "gpu"]
    why: str


def choose(config: StreamConfig, size: int) -> Choice:
    """Returns whether to read the mapped cache, or a copy of it in memory or on the GPU.

    Args:
        config: the stream's settings.
        size: of the copy, bytes.
    """
    if config.residency in ("mmap", "ram", "gpu"):
        return Choice(config.residency, "as asked")
    if not config.device.startswith("cuda"):
        return _on_host(config, size)
    limit, of_what = device_budget(config)
    if size <= limit:
        return Choice("gpu", f"as {said_bytes(size)} fit {of_what} of {said_bytes(limit)}")
    found = _on_host(config, size)
    over = f"as {said_bytes(size)} exceed {of_what} of {said_bytes(limit)}"
    return Choice(found.residency, f"{over}, and {found.why}")


def _on_host(config: StreamConfig, size: int) -> Choice:
    limit, of_what = budget(config)
    if config.world_size > 1:
        return Choice("mmap", "as ranks on one machine share it")
    if size > limit:
        return Choice("mmap", f"as {said_bytes(size)} exceed {of_what} of {said_bytes(limit)}")
    if size < LEAST:
        return Choice("mmap", f"as a copy of {said_bytes(size)} would gain nothing")
    return Choice("ram", f"as {said_bytes(size)} fit {of_what} of {said_bytes(limit)}")


def device_budget(config: StreamConfig) -> tuple[int, str]:
    """Returns the bytes that records may take of a GPU, and what that number is."""
    if config.device_memory is not None:
        return config.device_memory, f"the budget on {config.device}"
    from pipeline.stream.on_device import free_memory  # noqa: PLC0415 - an optional extra

    free = free_memory(config.device)
    return int(free * SHARE), f"a quarter of the free memory of {config.device}"


def pack_threads(config: StreamConfig) -> int:
    """Returns how many blocks are packed at once: one per processor, as far as memory goes."""
    return max(1, min(len(os.sched_getaffinity(0)), PACK_THREADS, budget(config)[0] // PACK_MEMORY))


def budget(config: StreamConfig) -> tuple[int, str]:
    """Returns the bytes that a stream may hold in memory, and what that number is."""
    if config.memory is not None:
        return config.memory, "the budget"
    return int(available() * SHARE), "a quarter of the free memory"


def available(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int:
    """Returns the bytes of memory that this process may still take.

    Args:
        meminfo: what the kernel says of the machine.
        cgroup: the folder of the limits that a container has, version 2.
    """
    try:
        said = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(said["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit = int((cgroup / "memory.max").read_text())
        free = min(free, max(0, limit - int((cgroup / "memory.current").read_text())))
    except (OSError, ValueError):  # no limit: the file is absent, or says `max`
        pass
    return free
