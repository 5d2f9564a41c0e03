"""Who takes part in `penstock bench stream`, and how one of them is spoken to.

A contender is a function in a Python file. It runs in a process of its own (`bench_child.py`), in
this environment or, if it is another project's, in `<peers>/<peer>/bin/python` (`make peers`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pipeline.stream.bench_data import NUMBERS, PICTURES

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
SOURCES = {"L1": NUMBERS, "L2": NUMBERS, "L3": NUMBERS, "L4": PICTURES}
"""Workloads, and what they stream."""
TITLES = {
    "L1": "transitions, 256 per batch",
    "L2": "windows of 64 steps, 32 per batch",
    "L3": "one shuffled epoch from disk",
    "L4": "windows of 3 pictures of 84 x 84 x 3, 64 per batch",
}
OURS, CEILING = "Penstock", "ceiling"
_VARIANTS = {
    "": "",
    "many": ", 64 batches at once",
    "memory": ", in memory",
    "numpy": ", NumPy arrays",
    "take": ", numpy.take",
    "select": ", torch.index_select",
    "single": ", one batch at once",
    "cached": ", cache filled before",
    "windowed": ", windowed",
    "shards": ", shards alone",
}
"""What follows a contender's name for each ending of its functions' names."""
_LONGEST = 600.0  # seconds for one answer
_ALONE = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

Kind = Literal["ours", "ceiling", "peer"]


@dataclass(frozen=True)
class Contender:
    """One product: its file, and the functions of it that take part."""

    title: str
    kind: Kind
    file: Path
    functions: tuple[str, ...]
    environment: str | None = None
    """Name of the folder with its own environment; None runs it in ours."""
    writes: tuple[str, ...] = (NUMBERS, PICTURES)
    """Sources of which it writes a format of its own first."""

    def python(self, peers: Path) -> Path:
        """Returns the interpreter that runs it."""
        own = self.environment
        return Path(sys.executable) if own is None else peers / own / "bin" / "python"


@dataclass(frozen=True)
class Case:
    """One function of a contender."""

    contender: Contender
    function: str

    @property
    def workload(self) -> str:
        """`L1` to `L4`."""
        return self.function[:2].upper()

    @property
    def name(self) -> str:
        """The contender's title, and which of its ways this is."""
        return self.contender.title + _VARIANTS[self.function[3:]]


def _peer(
    title: str, functions: str, name: str, *, is_alone: bool = True, writes: bool = True
) -> Contender:
    file = _ROOT / "tests" / "peers" / f"stream_with_{name}.py"
    environment = name if is_alone else None
    written = (NUMBERS, PICTURES) if writes else ()
    return Contender(title, "peer", file, tuple(functions.split()), environment, written)


CONTENDERS: tuple[Contender, ...] = (
    Contender(
        CEILING,
        "ceiling",
        _HERE / "bench_ceilings.py",
        (
            *("l1_single", "l1_take", "l1_select", "l2_single", "l2_select"),
            *("l3", "l4_take", "l4_select"),
        ),
        writes=(NUMBERS,),
    ),
    Contender(
        OURS,
        "ours",
        _HERE / "bench_ours.py",
        ("l1", "l1_numpy", "l2", "l3", "l3_cached", "l3_windowed", "l3_shards", "l4"),
        writes=(NUMBERS,),
    ),
    _peer("plain NumPy", "l1 l2 l4", "numpy", is_alone=False, writes=False),
    _peer("CORL's pattern", "l1 l2 l3", "corl", is_alone=False, writes=False),
    _peer("TorchRL", "l1 l1_many l2 l3 l4 l4_memory", "torchrl"),
    _peer("d3rlpy", "l1 l2 l3 l4", "d3rlpy"),
    _peer("Minari", "l1 l2 l3 l4", "minari", is_alone=False),
    _peer("robomimic", "l1 l2 l3 l4", "robomimic"),
    _peer("TFDS", "l1 l2 l3 l4", "tfds"),
    _peer("LeRobot", "l1 l2 l3 l4", "lerobot"),
    _peer("Grain", "l1 l2 l3 l4", "grain", writes=False),
    _peer("Reverb", "l1 l2", "reverb", writes=False),
)


class CaseFailedError(Exception):
    """A contender's process ended, or did not answer in time; told as a result."""


class Process:
    """A contender that runs; a context manager that ends it.

    Args:
        contender: which one.
        place: folder of the source that it streams.
        peers: folder of other projects' environments.
    """

    def __init__(self, contender: Contender, place: Path, peers: Path) -> None:
        environment = {**os.environ, **_ALONE}
        python = contender.python(peers)
        if contender.environment is None:
            environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command = [python, "-P", _HERE / "bench_child.py", contender.file, place]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Returns the answer to one question of `bench_child.Child`.

        Raises:
            CaseFailedError: with the last line that the process said, or after too long.
        """
        assert self._process.stdin is not None, "it is a pipe"
        assert self._process.stdout is not None, "it is a pipe"
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], _LONGEST)[0]:
            raise CaseFailedError(f"no answer within {_LONGEST:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)  # it says why last
            self._said.seek(0)
            said = self._said.read().strip().splitlines()
            raise CaseFailedError(said[-1] if said else f"ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # its children, and itself if it hangs
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._said.close()


def choose(
    contenders: Sequence[Contender], workloads: Sequence[str], peers: Path
) -> tuple[list[Case], dict[str, str]]:
    """Returns the cases of some workloads, and why some contenders are left out."""
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for contender in contenders:
        mine = [Case(contender, name) for name in contender.functions]
        mine = [case for case in mine if case.workload in workloads]
        missing = [path for path in (contender.python(peers), contender.file) if not path.exists()]
        if missing:
            skipped[contender.title] = f"not installed: there is no {missing[0]}; run make peers"
        else:
            cases += mine
    return cases, skipped
