"""How fast batches come to a device, alone and beside a training step, and what overlaps there.

Contenders are the records' places (residency `gpu`, and `mmap` streamed through the transport) with
and without gathers made ahead. Each makes batches alone, and for a small network that is trained on
them; the same training on one batch that stays is the bound that no stream can beat. On CUDA the
profiler also says how much of the copies ran while a kernel did. On the CPU the same runs without
residency `gpu`, which shows that it runs, and little else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.stream.bench_data import NUMBERS, make_source
from pipeline.stream.loader import Stream
from pipeline.stream.torch_adapter import torch_device
from schemas.stream import Residency

WIDTH = 256  # of the network's two hidden layers
PROFILED = 256  # batches

Batches = Iterator[dict[str, torch.Tensor]]
Train = Callable[[dict[str, torch.Tensor]], None]


@dataclass(frozen=True)
class Way:
    """One way for batches to come to a device."""

    residency: Residency
    prefetch: int

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.residency}, prefetch {self.prefetch}"


def bench_device(
    rows: int = 1_000_000,
    batch_size: int = 256,
    device: str = "cuda",
    batches: int = 2_000,
    rounds: int = 3,
) -> dict[str, Any]:
    """Measures streams to a device, in wall time.

    Args:
        rows: steps in the store.
        batch_size: B.
        device: where batches end up; `cpu` runs the same code without residency `gpu`.
        batches: per contender and round.
        rounds: how often contenders take turns; the best round of each counts.

    Returns:
        `results`: per contender the batches per second alone and with training, the share of the
        training's own speed that is left, and on CUDA what the profiler saw of copies.

    Raises:
        ConfigError: if there is no such device.
    """
    place = torch_device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what is measured is not how threads share a processor
    try:
        return _measured(rows, batch_size, place, batches, rounds)
    finally:
        torch.set_num_threads(threads)


def _measured(
    rows: int, batch_size: int, place: torch.device, batches: int, rounds: int
) -> dict[str, Any]:
    residencies: tuple[Residency, ...] = ("gpu", "mmap") if place.type == "cuda" else ("mmap",)
    ways = [Way(residency, prefetch) for residency in residencies for prefetch in (0, 2)]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        store = make_source(Path(folder), NUMBERS, rows) / "store"
        streams = {
            way: Stream(
                f"{store}@main",
                batch_size=batch_size,
                device=str(place),
                residency=way.residency,
                prefetch=way.prefetch,
                cache_dir=Path(folder) / "cache",
            )
            for way in ways
        }
        train = _training(next(streams[ways[0]]), place)
        still = repeat(next(streams[ways[0]]))
        bound, alone, trained = 0.0, dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
        for _ in range(rounds):
            bound = max(bound, _rate(still, train, batches, place))
            for way, stream in streams.items():
                alone[way] = max(alone[way], _rate(stream, _nothing, batches, place))
                trained[way] = max(trained[way], _rate(stream, train, batches, place))
        seen = {way: _profiled(stream, train, place) for way, stream in streams.items()}
        for stream in streams.values():
            stream.close()
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        "torch": torch.__version__,
        "rows": rows,
        "batch_size": batch_size,
        "training_alone_per_second": round(bound),
        "results": [
            {
                "name": way.name,
                "batches_per_second": round(alone[way]),
                "trained_per_second": round(trained[way]),
                "of_training_alone": round(trained[way] / bound, 3),
                **seen[way],
            }
            for way in ways
        ],
    }


def _training(batch: dict[str, torch.Tensor], place: torch.device) -> Train:
    """A step of behavioural cloning by a network of two layers, and what it costs by itself."""
    sizes = (batch["observations"].shape[1], WIDTH, WIDTH, batch["actions"].shape[1])
    layers: list[torch.nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1]).to(place)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-4)

    def train(batch: dict[str, torch.Tensor]) -> None:
        loss = torch.nn.functional.mse_loss(network(batch["observations"]), batch["actions"])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return train


def _nothing(batch: dict[str, torch.Tensor]) -> None:
    """What is done with batches that only have to come."""


def _rate(batches: Batches, train: Train, count: int, place: torch.device) -> float:
    """Batches per second until the device has done all that was asked of it."""
    for _ in range(max(1, count // 10)):
        train(next(batches))
    _wait(place)
    start = time.perf_counter()
    for _ in range(count):
        train(next(batches))
    _wait(place)
    return count / (time.perf_counter() - start)


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def _profiled(batches: Batches, train: Train, place: torch.device) -> dict[str, Any]:
    """What a profile shows of copies to the device; nothing where there are none."""
    if place.type != "cuda":
        return {}
    _rate(batches, train, PROFILED, place)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            train(next(batches))
        _wait(place)
    on_device = [one for one in profiled.events() or () if one.device_type.name == "CUDA"]
    spans = [(one.name, one.time_range.start, one.time_range.end) for one in on_device]
    copies = [(start, end) for name, start, end in spans if "HtoD" in name]
    kernels = [(start, end) for name, start, end in spans if not name.startswith("Mem")]
    return {
        "copies": len(copies),
        "copies_from_pinned": sum("HtoD" in name and "Pinned" in name for name, _, _ in spans),
        "copy_us": round(sum(end - start for start, end in copies), 1),
        "copy_us_beside_kernels": round(overlap(copies, kernels), 1),
    }


def overlap(spans: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> float:
    """Returns for how long spans of time have one of some others beside them.

    Args:
        spans: start and end of each, no two at the same time.
        others: the same; these may be so.
    """
    merged: list[tuple[float, float]] = []
    for start, end in sorted(others):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return sum(
        max(0.0, min(end, until) - max(start, since))
        for start, end in spans
        for since, until in merged
    )
