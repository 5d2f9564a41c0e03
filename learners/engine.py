"""How updates are taken: as they are written, compiled, or captured on a GPU and replayed.

An update of small networks costs a GPU less than it costs the processor to ask for it. So with
`graph` a step, with the choice of its batch, is captured once for each of a learner's phases, and
then asked for in one call: batches lie on the device, several ahead; learning rates and the numbers
of optimisers are tensors there; random numbers go on where the generators are. What the number of
updates decides (`Learner.prepare`) happens before each replay, outside. The first updates of each
phase are taken as written, on the stream of the capture, so nothing is taken twice.

All ways give the numbers of the first up to rounding: `graph` runs the same kernels in the same
order, `step` fuses those between products.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from learners.base import Learner
from learners.batches import Staged, Streams, joined
from schemas.errors import ConfigError

Compile = Literal["none", "step", "graph"]
STAGED = 64
"""Batches that wait on the device for a captured step; fewer where `STAGED_BYTES` are too few."""
WARM = 3
"""Updates of each phase before it is captured: libraries make their work space in them."""


class Engine(Protocol):
    """Takes updates."""

    def take(self, streams: Streams, count: int) -> Mapping[str, Tensor]:
        """Takes some updates; returns the values of the last, (K,) by name, on the device.

        Args:
            streams: the batches of each agent; exactly so many are drawn of each.
            count: how many, at least 1.
        """
        ...


def engine(learner: Learner, compile: Compile = "none") -> Engine:
    """Returns what takes a learner's updates.

    Raises:
        ConfigError: if this machine cannot do so.
    """
    if compile == "graph":
        return Captured(learner)
    return Compiled(learner) if compile == "step" else Eager(learner)


class Eager:
    """Takes updates as they are written."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def take(self, streams: Streams, count: int) -> Mapping[str, Tensor]:
        """As `Engine.take`."""
        losses: Mapping[str, Tensor] = {}
        for _ in range(count):
            losses = self._learner.update(joined([next(stream) for stream in streams]))
        return losses


class Compiled:
    """Takes updates whose tensor work `torch.compile` has compiled.

    What it cannot see through (random generators, the backward pass itself, optimisers) is called
    as it is.

    Args:
        learner: whose updates.
        backend: of `torch.compile`; others than its own trace alike, and leave kernels as they are.

    Raises:
        ConfigError: if there is no compiler of C++, which is needed for the CPU.
    """

    def __init__(self, learner: Learner, backend: str = "inductor") -> None:
        self._learner = learner
        compiler, is_cpu = os.environ.get("CXX", "g++"), learner.scaler.device == "cpu"
        if backend == "inductor" and is_cpu and shutil.which(compiler) is None:
            raise ConfigError(
                f"Expected a compiler of C++ for --compile step, came no {compiler!r}; install "
                f"one, name it by CXX, or leave --compile away."
            )
        torch.compiler.reset()  # what other learners compiled counts against a limit
        self._step = torch.compile(learner.step, dynamic=False, backend=backend)

    def take(self, streams: Streams, count: int) -> Mapping[str, Tensor]:
        """As `Engine.take`."""
        learner = self._learner
        losses: Mapping[str, Tensor] = {}
        for _ in range(count):
            batch = joined([next(stream) for stream in streams])
            learner.prepare()
            losses = self._step(batch, learner.phase())
            learner.agents.updates += 1
        return losses


class Captured:
    """Replays captured updates on a GPU, each with the choice of its batch.

    Raises:
        ConfigError: for another device, or several ranks.
    """

    def __init__(self, learner: Learner) -> None:
        place = torch.device(learner.scaler.device)
        if place.type != "cuda":
            raise ConfigError(
                f"Expected a GPU for --compile graph, came the device {place}; add --device cuda, "
                f"or choose --compile step."
            )
        if learner.agents.ranks.size > 1:
            raise ConfigError(
                "Expected one process for --compile graph, came several ranks; choose --compile "
                "step."
            )
        self._learner = learner
        self._stream = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]
        self._staged = Staged(STAGED)
        self._taken: dict[str, int] = {}
        self._graphs: dict[str, tuple[torch.cuda.CUDAGraph, Mapping[str, Tensor]]] = {}

    def take(self, streams: Streams, count: int) -> Mapping[str, Tensor]:
        """As `Engine.take`."""
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        losses: Mapping[str, Tensor] = {}
        with torch.cuda.stream(self._stream):
            while count:
                staged = self._staged.fill(streams, count)
                for _ in range(staged):
                    losses = self._update()
                count -= staged
        outer.wait_stream(self._stream)
        return losses

    def _update(self) -> Mapping[str, Tensor]:
        learner = self._learner
        learner.prepare()
        phase = learner.phase()
        taken = self._taken.get(phase, 0)
        if taken < WARM:
            losses: Mapping[str, Tensor] = self._step(phase)
        else:
            if phase not in self._graphs:
                self._graphs[phase] = self._capture(phase)
            graph, losses = self._graphs[phase]
            graph.replay()
        self._taken[phase] = taken + 1
        learner.agents.updates += 1
        return losses

    def _step(self, phase: str) -> dict[str, Tensor]:
        found = self._learner.step(self._staged.current(), phase)
        self._staged.advance()
        return found

    def _capture(self, phase: str) -> tuple[torch.cuda.CUDAGraph, Mapping[str, Tensor]]:
        """Captures a step, which does not take it."""
        graph = torch.cuda.CUDAGraph()
        for generator in self._learner.agents.noise.generators:
            graph.register_generator_state(generator)
        # Other threads copy batches to the device meanwhile, as they may.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            losses = self._step(phase)
        return graph, losses
