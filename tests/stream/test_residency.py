"""Residency: chosen by size and a budget, said aloud, and never a change of order."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store.store import Store
from pipeline.stream import residency
from pipeline.stream.loader import Stream
from pipeline.stream.residency import available, choose
from schemas.errors import ConfigError
from schemas.sizes import parse_bytes, said_bytes
from schemas.stream import stream_config


def stream(store: Store, **settings: object) -> Stream:
    return Stream(store.version(), framework="numpy", **settings)  # type: ignore[arg-type]


# -- chosen ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GB", 4 * 10**9), ("512 MiB", 512 << 20), ("1.5kb", 1500), ("77", 77), ("0B", 0)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "4 parsecs", "1e9", "4GB4", "nan"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 4GB"):
        parse_bytes(text)


def test_sizes_are_said() -> None:
    said = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 4_200_000_000: "4.2 GB"}
    assert {count: said_bytes(count) for count in said} == said
    assert said_bytes(5 * 10**15) == "5000.0 TB"


@pytest.mark.parametrize(
    ("settings", "size", "in_memory", "why"),
    [
        ({"memory": "1GB"}, 900 * 10**6, True, "900.0 MB fit the budget of 1.0 GB"),
        ({"memory": "1GB"}, 10**9 + 1, False, "1.0 GB exceed the budget of 1.0 GB"),
        ({"memory": 10**9}, 1000, False, "gain nothing"),
        ({"memory": "1GB", "world_size": 2}, 900 * 10**6, False, "ranks on one machine"),
        ({"memory": "1GB", "residency": "ram"}, 10**12, True, "as asked"),
        ({"memory": "1GB", "residency": "mmap"}, 900 * 10**6, False, "as asked"),
        ({}, 10**18, False, "exceed a quarter of the free memory"),
    ],
)
def test_size_and_budget_choose(
    settings: dict[str, object], size: int, in_memory: bool, why: str
) -> None:
    choice = choose(stream_config(settings), size)
    assert choice.in_memory == in_memory
    assert why in choice.why


def test_a_stream_says_what_was_chosen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gain nothing" in stream(store).describe()
    monkeypatch.setattr(residency, "LEAST", 1)
    assert "a copy in memory of the memory-mapped cache" in stream(store).describe()
    said = stream(store, memory=1000).describe()
    assert "exceed the budget of 1.0 kB" in said
    assert "copy in memory" not in said


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64000 kB\nMemAvailable:   32000 kB\n")
    assert available(meminfo, tmp_path) == 32000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available(meminfo, tmp_path) == 32000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available(meminfo, tmp_path) == 4000
    assert available(tmp_path / "absent", tmp_path) == 4000


def test_a_budget_that_is_none_is_refused(store: Store) -> None:
    for memory in (0, -1, "much"):
        with pytest.raises(ConfigError):
            stream(store, memory=memory)
