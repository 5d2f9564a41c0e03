"""Updates per CPU second: our learners on a stream, a plain PyTorch script, and the products alone.

Everybody learns from the same rows, of Hopper's sizes, on one thread, in turns; the best and the
median turn of each are told, and the medians of ratios within rounds, as others may be at work on
the machine. CPU seconds are those of the process, streams and their threads included.

The bound is the time of the matrix products alone that an update needs, each over operands that are
there: no update can take less. A plain script's IQL needs fewer of them than the authors' order
does, so its bound is its own.
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners.base import make_learner
from learners.bench_plain import PLAIN, Replay
from learners.data import Pinned, Sampling, fit, open_stream
from learners.engine import Compile, engine
from learners.memory import keep_freed_memory
from learners.run import threads
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.errors import UnknownNameError, suggest

STATES, ACTIONS, LENGTH = 11, 3, 1000  # of Hopper
WIDTHS = (256, 256)
DECAY = 1_000_000


@dataclass(frozen=True)
class LearnerBench:
    """How much is measured."""

    algos: tuple[str, ...] = ("iql", "td3_bc")
    """Keys of `bench_plain.PLAIN`."""
    rows: int = 100_000
    """Steps of the data set."""
    batch_size: int = 256
    """Rows of a batch."""
    updates: int = 200
    """Of one turn."""
    rounds: int = 9
    """Turns of each."""
    seeds: int = 4
    """Agents side by side, beside one alone."""
    compile: Compile = "none"
    """How ours take updates; where that is not as they are written, one alone does so beside."""
    hidden: tuple[int, ...] = WIDTHS
    """Widths of hidden layers."""


QUICK = LearnerBench(rows=2_000, batch_size=32, updates=5, rounds=2, seeds=2, hidden=(16, 16))


@dataclass(frozen=True)
class Product:
    """A product of matrices that updates need: (rows, inputs) times (inputs, outputs)."""

    inputs: int
    outputs: int
    rows: int = 1
    """In batches."""


def forward(inputs: int, outputs: int, hidden: Sequence[int], rows: int = 1) -> list[Product]:
    """Returns the products of an MLP's values."""
    return [Product(a, b, rows) for a, b in pairwise((inputs, *hidden, outputs))]


def backward(
    inputs: int, outputs: int, hidden: Sequence[int], *, to_inputs: bool = False
) -> list[Product]:
    """Returns those of its parameters' gradients; each but the first layer's hands them on."""
    layers = forward(inputs, outputs, hidden)
    return layers + layers[0 if to_inputs else 1 :]


def products(algo: str, hidden: Sequence[int], *, is_plain: bool) -> list[Product]:
    """Returns the products of an update; of TD3+BC those of two updates, one with the policy."""
    value, critic, policy = (
        (STATES, 1, hidden),
        (STATES + ACTIONS, 1, hidden),
        (STATES, ACTIONS, hidden),
    )
    both = 2 * (forward(*critic) + backward(*critic))
    if algo == "iql":
        # The authors' order reads V again after its update, at both states.
        again = forward(*value) if is_plain else forward(*value, rows=2)
        fitted = forward(*value) + backward(*value) + forward(*policy) + backward(*policy)
        return 2 * forward(*critic) + again + fitted + both
    targets = forward(*policy) + 2 * forward(*critic)
    through = [Product(b, a) for a, b in pairwise((STATES + ACTIONS, *hidden, 1))]
    # Both critics of ours are one product; a script asks the first alone.
    passed = (1 if is_plain else 2) * (forward(*critic) + through)
    return 2 * (targets + both) + forward(*policy) + backward(*policy) + passed


def bench_learner(
    config: LearnerBench | None = None, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Measures learners on this machine's processor, one thread.

    Args:
        config: how much.
        say: told what is measured next.

    Returns:
        `machine`, and per algorithm in `results` rows of updates per CPU second: `name`, `best`,
        `median`, `of_bound` (the best's share of its bound), `agents`; `over_plain`; and, where
        updates are compiled, `over_written`, what that makes of one agent's.

    Raises:
        UnknownNameError: for an algorithm that there is no plain script of.
    """
    config = config or LearnerBench()
    for algo in config.algos:
        if algo not in PLAIN:
            raise UnknownNameError(
                f"Expected an algorithm with a plain script, came {algo!r}; others are measured "
                f"with --device; {suggest(algo, PLAIN)}.",
                where=algo,
            )
    load = os.getloadavg()[0]
    keep_freed_memory()  # as runs do; the script gains by it, too
    with threads(1), tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        columns = columns_of(config.rows)
        pinned = stored(Path(folder), columns)
        results = {}
        for algo in config.algos:
            if say is not None:
                say(f"{algo}: {config.rounds} rounds of {config.updates} updates")
            results[algo] = _measured(algo, config, pinned, columns, f"{folder}/cache")
    return {
        "machine": machine_of(load),
        "batch_size": config.batch_size,
        "compile": config.compile,
        "results": results,
    }


def machine_of(load: float) -> dict[str, Any]:
    """Returns what is said of this machine, with its load before the measurement and now."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }


def _measured(
    algo: str, config: LearnerBench, pinned: Pinned, columns: dict[str, np.ndarray], cache: str
) -> dict[str, Any]:
    plain = PLAIN[algo](STATES, ACTIONS, DECAY, config.hidden)
    replay = Replay(columns, seed=0)

    def take_plain(count: int) -> None:
        for _ in range(count):
            plain.update(replay.sample(config.batch_size))

    one, several = (_ours(algo, config, pinned, cache, agents) for agents in (1, config.seeds))
    timed = {algo: one, f"{algo}, {config.seeds} seeds": several, "plain": take_plain}
    agents = {algo: 1, f"{algo}, {config.seeds} seeds": config.seeds, "plain": 1}
    written = f"{algo}, as written"
    if config.compile != "none":
        eager = replace(config, compile="none")
        timed[written], agents[written] = _ours(algo, eager, pinned, cache, 1), 1
    rates: dict[str, list[float]] = {name: [] for name in timed}
    bounds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(config.rounds + 1):
        for name, take in timed.items():
            count = max(1, config.updates // agents[name])
            rate = agents[name] * count / _cpu_seconds(functools.partial(take, count))
            rates[name] += [rate] if number else []  # the first round warms up
        for is_plain, found in bounds.items():
            needed = products(algo, config.hidden, is_plain=is_plain)
            found.append(_bound(needed, config) * (1 if algo == "iql" else 2))
    rows = [
        {
            "name": name,
            "agents": agents[name],
            "best": round(max(found), 1),
            "median": round(statistics.median(found), 1),
            "of_bound": round(max(found) / max(bounds[name == "plain"]), 3),
        }
        for name, found in rates.items()
    ]
    ours = {name: found for name, found in rates.items() if name != "plain"}
    best = {"bound": max(bounds[False]), "bound of plain": max(bounds[True])}
    return {
        "rows": rows,
        "over_plain": {name: _over(found, rates["plain"]) for name, found in ours.items()},
        **({"over_written": _over(rates[algo], rates[written])} if written in timed else {}),
        **{name: round(bound, 1) for name, bound in best.items()},
    }


def _over(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of ratios within rounds."""
    return round(statistics.median(map(_ratio, mine, theirs)), 3)


def _ratio(mine: float, theirs: float) -> float:
    return mine / theirs


def _ours(
    algo: str, config: LearnerBench, pinned: Pinned, cache: str, agents: int
) -> Callable[[int], None]:
    """What takes so many updates of some agents, each on a stream of its own."""
    seeds = range(agents)
    settings: dict[str, Any] = {"hidden": config.hidden}
    if algo == "iql":
        settings["policy_decay"] = DECAY
    normaliser = fit([pinned], standardise=algo == "td3_bc")
    learner = make_learner(algo, settings, normaliser, list(seeds))
    streams = [
        open_stream(
            [pinned],
            Sampling(config.batch_size, seed, 0.99, "cpu", stream={"cache_dir": cache}),
        )
        for seed in seeds
    ]
    takes = engine(learner, config.compile)
    batches = [iter(stream) for stream in streams]

    def take(count: int) -> None:
        takes.take(batches, count)

    return take


def _bound(needed: Sequence[Product], config: LearnerBench) -> float:
    """How often a CPU second holds these products, done one by one."""
    operands = []
    for product in needed:
        rows = product.rows * config.batch_size
        shape = (rows, product.inputs), (product.inputs, product.outputs), (rows, product.outputs)
        operands.append([torch.ones(size) for size in shape])

    def multiply(times: int) -> None:
        for _ in range(times):
            for left, right, out in operands:
                torch.mm(left, right, out=out)

    multiply(1)
    count = max(1, config.updates // 20)
    return count / _cpu_seconds(functools.partial(multiply, count))


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return max(time.process_time() - began, 1e-9)


def columns_of(rows: int) -> dict[str, np.ndarray]:
    """Returns a data set of normal numbers, in which an episode ends by its task now and then."""
    random = np.random.default_rng(0)
    terminated = np.zeros(rows, bool)
    terminated[LENGTH - 1 :: 2 * LENGTH] = True
    observations = random.normal(size=(rows, STATES)).astype(np.float32)
    return {
        "observations": observations,
        "next_observations": np.roll(observations, -1, axis=0),
        "actions": random.uniform(-1, 1, size=(rows, ACTIONS)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminated": terminated,
    }


def stored(folder: Path, columns: dict[str, np.ndarray]) -> Pinned:
    """Returns the same as episodes of a store in a folder."""
    store = open_store(folder / "store", create=True)
    starts = range(0, len(columns["rewards"]), LENGTH)
    version = store.append(_episode(columns, number, start) for number, start in enumerate(starts))
    return Pinned(store.url, version.id)


def _episode(columns: dict[str, np.ndarray], number: int, start: int) -> Episode:
    part = slice(start, start + LENGTH)
    seen, last = columns["observations"][part], columns["next_observations"][part][-1:]
    ended = bool(columns["terminated"][part][-1])
    made: dict[str, Any] = {
        "episode_id": f"bench/{number}",
        "observations": np.concatenate([seen, last]),
        "actions": columns["actions"][part],
        "rewards": columns["rewards"][part],
        "terminated": ended,
        "truncated": not ended,
    }
    return Episode(**made)
