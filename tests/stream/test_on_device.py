"""Records on a device: the class runs on the CPU here, and its batches equal those of the host."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.store.store import Store
from pipeline.stream.batches import columns, draw
from pipeline.stream.cache_index import CachedBlock
from pipeline.stream.device_plan import plan_columns
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from pipeline.stream.on_device import DeviceRecords, hold
from pipeline.stream.priorities import priorities_for
from pipeline.stream.residency import choose
from pipeline.stream.samplers import Draw, Drawn
from pipeline.stream.source import OpenVersion
from pipeline.stream.transport import Transport
from schemas.episode import Episode
from schemas.errors import ConfigError
from schemas.stream import stream_config
from tests.stream.conftest import made_episode, made_episodes
from tests.stream.references import take

MakeStore = Callable[[list[Episode]], Store]
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def opened(store: Any, **settings: Any) -> OpenVersion:
    """A version as a stream opens it."""
    return Stream(store.version(), framework="numpy", **settings).feed.at(0)


def drawn(one: OpenVersion, step: int = 3, steps: int = 4, rows: int = 64) -> Drawn:
    before = np.arange(step, step + steps) * rows
    priorities = priorities_for(one, None)
    return draw(one, Draw(one.config.seed, 0, step, steps, rows, before, priorities))


def on_cpu(one: OpenVersion) -> DeviceRecords:
    """Its records as a device holds them."""
    blocks = {"all": CachedBlock(0, len(one.records), 0)}
    return hold(one.records, blocks, "cpu", Path(one.place))


def arrived(planned: dict[str, np.ndarray]) -> dict[str, Any]:
    transport = Transport(CPU)
    return transport.receive(transport.send(planned))


def assert_as_on_the_host(one: OpenVersion) -> None:
    chosen = drawn(one)
    sent = arrived(plan_columns(one, chosen))
    assert_equal(on_cpu(one).columns(one, sent), columns(one, chosen))


def assert_equal(mine: dict[str, Any], theirs: dict[str, np.ndarray]) -> None:
    """The same names, dtypes, shapes and bits."""
    assert mine.keys() == theirs.keys()
    for name, array in theirs.items():
        came = mine[name] if isinstance(mine[name], np.ndarray) else mine[name].cpu().numpy()
        assert (came.dtype, came.shape) == (array.dtype, array.shape), name
        if array.dtype == object:
            assert came.tolist() == array.tolist()
        else:
            assert came.tobytes() == array.tobytes(), name


WINDOW = {"sampler": "window"}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"episode_ids": True},
    {"dtype": "float64", "discount": 0.9},
    {"dtype": "keep"},
    {"dtype": "float16"},
    {"sampler": "length_proportional"},
    {"sampler": "episode", "n_step": 3},
    {"sampler": "weighted", "weights": "grade"},
    {"sampler": "shuffle"},
    {"sampler": "prioritised"},
    {"n_step": 5, "returns": "monte_carlo"},
    {"returns": "to_go"},
    {"goals": "future"},
    {"goals": {"current": 0.3, "geometric": 0.5, "random": 0.2}, "episode_ids": True},
    {"goals": "final", "goal_rewards": False, "n_step": 2},
    *({**WINDOW, "window": 7, "history": 4, "pad": pad} for pad in ("repeat", "zero", "none")),
    *({**WINDOW, "action_chunk": 5, "pad": pad} for pad in ("repeat", "zero")),
    *({**WINDOW, "action_chunk": 3, "frame_stack": 4, "pad": pad} for pad in ("repeat", "zero")),
    {**WINDOW, "window": 6, "action_chunk": 4, "frame_stack": 3},
    {**WINDOW, "window": 6, "action_chunk": 4, "pad": "zero", "dtype": "float64"},
    {**WINDOW, "frame_stack": 3, "n_step": 4},
    {**WINDOW, "action_chunk": 3, "n_step": 4, "returns": "to_go"},
    {**WINDOW, "window": 9, "history": 2, "returns": "to_go"},
    {**WINDOW, "window": 9, "goals": {"current": 0.5, "future": 0.5}},
    {**WINDOW, "frame_stack": 2, "goals": "final", "goal_rewards": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_batches_equal_those_of_the_host(store: Store, settings: dict[str, Any]) -> None:
    labels = {"episode_id": [f"e{k}" for k in range(30)], "grade": [k % 5 for k in range(30)]}
    store.version().annotate(pa.table(labels))
    assert_as_on_the_host(opened(store, **settings))


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_step": 3}, *({**WINDOW, "window": 5, "pad": pad} for pad in ("repeat", "zero"))],
    ids=str,
)
def test_fields_of_all_widths_and_what_lies_over_them(
    make_store: MakeStore, settings: dict[str, Any]
) -> None:
    """Nested fields, bytes, booleans, wide integers; rewards and actions that some lack."""

    def episode(number: int, length: int) -> Episode:
        rows = np.arange(length + 1)
        return Episode(
            episode_id=f"e{number}",
            observations={
                "image": (rows[:, None, None] * np.ones((1, 3, 2))).astype(np.uint8),
                "robot": {"stamp": rows + 2**60, "tilt": rows.astype(np.float16)},
            },
            actions={"grip": rows[:-1] % 2 == 0, "arm": -np.ones((length, 2)) * number},
            rewards=None if number == 1 else rows[:-1] * 1.5,
            truncated=True,
            extras={"count": rows.astype(np.uint16)},
        )

    store = make_store([episode(number, 5 + 4 * number) for number in range(4)])
    fields = [*episode(0, 5).spec.fields, "extras/count"]
    assert_as_on_the_host(opened(store, fields=fields, **settings))
    store.version().annotate_steps("rewards", {"e1": np.full(9, -5.0), "e2": np.full(13, -7.0)})
    one = opened(store, fields=fields, **settings)
    assert one.added["rewards"].has is not None
    assert_as_on_the_host(one)
    every = {f"e{k}": np.arange(5.0 + 4 * k) for k in range(4)}
    store.version().annotate_steps("advantage", every)
    assert_as_on_the_host(opened(store, fields=[*fields, "extras/advantage"], **settings))


def test_actions_that_some_episodes_lack(make_store: MakeStore) -> None:
    silent = made_episode(1, 10).replace(actions=None)
    store = make_store([made_episode(0, 10), silent])
    for settings in ({}, {**WINDOW, "action_chunk": 4}, {**WINDOW, "window": 4}):
        one = opened(store, **settings)
        assert one.lacks == {"actions"}
        assert_as_on_the_host(one)


# -- streams -----------------------------------------------------------------------------------


def stream(version: Any, *, is_on_device: bool, **settings: Any) -> Stream:
    """Tensors made of records on the CPU as a device, by the same way as on a GPU; or plainly."""
    made = Stream(version, prefetch=2 if is_on_device else 0, batch_size=16, **settings)
    if is_on_device:
        made.feed._open = one = made.feed.at(0)
        made.feed._open = replace(one, device=on_cpu(one))
    return made


def arrays(batches: list[Any]) -> list[dict[str, np.ndarray]]:
    return [{name: np.asarray(values) for name, values in batch.items()} for batch in batches]


def test_a_stream_reads_on_from_a_device(store: Store) -> None:
    version, seen = store.version(), []
    for is_on_device in (True, False):
        with stream(version, is_on_device=is_on_device, goals="future", episode_ids=True) as made:
            first = take(made, 100)
            state = made.state_dict()
            take(made, 30)
            made.load_state_dict(state)
            seen.append((arrays(first + take(made, 40)), state))
    (mine, state), (theirs, expected) = seen
    assert state == expected
    for one, other in zip(mine, theirs, strict=True):
        assert_equal(one, other)


def test_a_mixture_of_a_device_and_the_host(store: Store) -> None:
    settings: dict[str, Any] = {"episode_ids": True}
    seen = []
    for is_on_device in (True, False):
        sources = [
            stream(store.version(), is_on_device=is_on_device, **settings),
            stream(store.version(), is_on_device=False, sampler="episode", **settings),
            stream(store.version(), is_on_device=is_on_device, sampler="shuffle", **settings),
        ]
        with Mixture([(one, 1.0) for one in sources], batch_size=16) as mixture:
            seen.append(arrays(take(mixture, 100)))
    for one, other in zip(*seen, strict=True):
        assert_equal(one, other)


# -- what is uploaded --------------------------------------------------------------------------


def rows(count: int) -> np.ndarray:
    return np.arange(count * 16, dtype=np.int32).reshape(count, 16)


def test_only_what_is_new_is_uploaded() -> None:
    a, b = CachedBlock(0, 50, 7), CachedBlock(50, 30, 8)
    first = hold(rows(50), {"a": a}, "cpu", Path("cache"))
    assert first.matrix.numpy().tobytes() == rows(50).tobytes()
    assert hold(rows(50), {"a": a}, "cpu", Path("cache")) is first
    grown = rows(80)
    grown[:50] = -1  # what is there is not read again
    second = hold(grown, {"a": a, "b": b}, "cpu", Path("cache"))
    assert second.matrix.numpy().tobytes() == rows(80).tobytes()
    assert hold(rows(50), {"a": a}, "cpu", Path("cache")) is second, "its rows are among these"
    assert hold(rows(80)[:0], {}, "cpu", Path("none")).matrix.shape == (0, 16)
    del first, second
    gc.collect()
    assert hold(grown, {"a": a}, "cpu", Path("cache")).matrix[0, 0] == -1, "nobody held it"


def test_a_cache_that_was_filled_anew_is_uploaded_anew() -> None:
    first = hold(rows(50), {"a": CachedBlock(0, 50, 7)}, "cpu", Path("cache"))
    for block in (CachedBlock(0, 50, 9), CachedBlock(3, 47, 7)):
        again = hold(rows(50) + 1, {"a": block}, "cpu", Path("cache"))
        assert again is not first
        assert again.matrix[0, 0] == 1
    assert hold(rows(50) + 2, {"b": CachedBlock(3, 10, 7)}, "cpu", Path("cache")).matrix[0, 0] == 2


def test_records_are_uploaded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stream.on_device.PIECE_BYTES", 1000)
    found = hold(rows(333), {"a": CachedBlock(0, 333, 7)}, "cpu", Path("pieces"))
    assert found.matrix.numpy().tobytes() == rows(333).tobytes()


@pytest.mark.parametrize(
    ("settings", "size", "where", "why"),
    [
        ({"device_memory": "1GB"}, 9 * 10**8, "gpu", "fit the budget on cuda:1 of 1.0 GB"),
        ({"device_memory": "1GB", "memory": "4GB"}, 2 * 10**9, "ram", "exceed the budget on cuda"),
        ({"device_memory": "1GB", "memory": "1GB"}, 2 * 10**9, "mmap", "and as 2.0 GB exceed"),
        ({"device_memory": "1GB", "residency": "ram"}, 1, "ram", "as asked"),
        ({"device_memory": 1, "residency": "gpu"}, 10**9, "gpu", "as asked"),
        ({"device_memory": "1GB", "world_size": 2}, 10**8, "gpu", "fit"),
    ],
)
def test_size_and_budget_choose(settings: dict[str, Any], size: int, where: str, why: str) -> None:
    choice = choose(stream_config({"device": "cuda:1", **settings}), size)
    assert choice.residency == where
    assert why in choice.why


def test_residency_gpu_needs_one(store: Store) -> None:
    with pytest.raises(ConfigError, match="use device='cuda', or residency='ram'"):
        Stream(store.version(), residency="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="Expected a device that torch has here"):
            Stream(store.version(), residency="gpu", device="cuda")


# -- with a GPU --------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("residency", ["mmap", "gpu"])
def test_batches_on_a_gpu_equal_those_of_the_host(
    store: Store, residency: str, prefetch: int
) -> None:
    labels = {"episode_id": [f"e{k}" for k in range(30)], "grade": [k % 5 for k in range(30)]}
    version = store.version().annotate(pa.table(labels))
    on_gpu: dict[str, Any] = {"device": "cuda", "residency": residency}
    for settings in SETTINGS:
        ahead = 0 if settings.get("sampler") == "prioritised" else prefetch
        plain = Stream(version, framework="numpy", **settings)
        with Stream(version, prefetch=ahead, **on_gpu, **settings) as made:
            for mine, theirs in zip(take(made, 80), take(plain, 80), strict=True):
                assert_equal(mine, theirs)


@needs_gpu
def test_records_that_fit_stay_on_the_gpu(store: Store) -> None:
    version = store.version()
    assert "a copy on cuda of" in Stream(version, device="cuda").describe()
    assert "pinned memory" in Stream(version, device="cuda").describe()
    assert "a copy on" not in Stream(version, device="cuda", device_memory=1).describe()
    made = Stream(version, device="cuda")
    take(made, 10)
    made.follow(store.append(made_episodes(range(30, 60))))
    plain = Stream(version, framework="numpy")
    take(plain, 10)
    plain.follow("main")
    for mine, theirs in zip(take(made, 70), take(plain, 70), strict=True):
        assert_equal(mine, theirs)
