"""The benchmark of devices runs where there is no GPU, too, and reads profiles right."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.stream.bench_device import bench_device, overlap
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("spans", "others", "length"),
    [
        ([], [(0, 9)], 0),
        ([(0, 9)], [], 0),
        ([(2, 5)], [(0, 9)], 3),
        ([(2, 5), (7, 8)], [(3, 4), (3.5, 6), (8, 9)], 2),
        ([(0, 10)], [(1, 2), (1, 3), (2, 3), (9, 12)], 3),
    ],
)
def test_overlaps_count_once(
    spans: list[tuple[float, float]], others: list[tuple[float, float]], length: float
) -> None:
    assert overlap(spans, others) == length


def test_it_runs_on_the_cpu() -> None:
    threads = torch.get_num_threads()
    found = bench_device(rows=3_000, batch_size=32, device="cpu", batches=20, rounds=1)
    assert torch.get_num_threads() == threads
    assert [one["name"] for one in found["results"]] == ["mmap, prefetch 0", "mmap, prefetch 2"]
    for one in found["results"]:
        assert one["batches_per_second"] > 0
        assert one["trained_per_second"] > 0
        assert "copies" not in one, "nothing is copied to a device"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="Expected a device that torch has here"):
        bench_device(rows=1_000, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_copies_come_from_pinned_memory() -> None:
    found = bench_device(rows=50_000, batches=200, rounds=1)
    assert len(found["results"]) == 4
    for one in found["results"]:
        assert one["copies"] > 0
        assert one["copies_from_pinned"] > 0
