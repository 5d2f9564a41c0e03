"""How fast datasets come in, beside what other projects take to make their own format of them.

Datasets are made first (`connectors.samples`). Then every case runs in a fresh process that imports
before it times; all cases take turns, every second round backwards, and the best round of each
counts, so that a noisy moment hurts none of them. Figures are CPU seconds of the whole process and
its children. Reading alone, at the speed of the library beneath, is what nobody can beat who reads
with it.

Other projects' conversions are the files `with_<peer>.py` in a folder of their own. They run in
`<peers>/<peer>/bin/python` (`make peers`), Minari and the plain layouts in this environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.samples import WRITERS
from schemas.errors import UsageError

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
OURS, READING = "Penstock", "reading alone"
STEPS_PER_FRAME = 100
"""A case of pictures has so many times fewer steps than one of numbers."""
_DATASETS = {
    "numbers, D4RL HDF5 (gzip)": ("d4rl", "low.hdf5"),
    "raw pictures, robomimic HDF5": ("robomimic", "frames.hdf5"),
    "raw pictures, Zarr": ("replay_zarr", "frames.zarr"),
    "PNG, LeRobot Parquet": ("lerobot", "lerobot"),
    "JPEG, RLDS TFRecord": ("rlds", "rlds"),
    "JPEG, Parquet": ("parquet", "parquet"),
}
"""Format and file name of each dataset."""
_LOW = "numbers, D4RL HDF5 (gzip)"
_PEERS = {"minari": None, "robomimic": None, "torchrl": "", "d3rlpy": "", "mosaicml": ""}
"""Who converts the D4RL file, and whether in an environment of its own."""
_ALONE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Case:
    """One conversion of one dataset."""

    dataset: str
    name: str
    python: str
    file: Path
    source: str


def bench_ingest(
    rows: int = 1_000_000,
    rounds: int = 3,
    datasets: Sequence[str] = (),
    peers: Path | None = None,
) -> dict[str, Any]:
    """Measures ingestion of datasets of several formats.

    Args:
        rows: steps of numbers; cases of pictures have a hundredth of them.
        rounds: how often the cases take turns.
        datasets: formats to measure; all by default.
        peers: folder of the other projects' environments; by default `PENSTOCK_PEERS`, else
            `.peers` beside the source.

    Returns:
        `results`: per case the best CPU and wall seconds, steps per CPU second, peak memory, and
        the CPU seconds over those of reading alone.

    Raises:
        UsageError: if a format is none of those measured.
    """
    known = [format for format, _ in _DATASETS.values()]
    for name in datasets:
        if name not in known:
            raise UsageError(f"Expected formats among {', '.join(known)}, came {name!r}.")
    peers = peers or Path(os.environ.get("PENSTOCK_PEERS", _ROOT / ".peers"))
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        cases: list[Case] = []
        steps: dict[str, int] = {}
        for dataset, (format, file) in _DATASETS.items():
            if datasets and format not in datasets:
                continue
            steps[dataset] = rows if dataset == _LOW else max(rows // STEPS_PER_FRAME, 100)
            where = f"{folder}/{file}"
            WRITERS[format](where, steps[dataset])
            cases += _cases(dataset, format, where, peers)
        found: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
        failed: dict[Case, str] = {}
        for number in range(rounds):
            for case in cases if number % 2 == 0 else cases[::-1]:
                if case not in failed:
                    _take_turn(case, Path(folder, "target"), found[case], failed)
    results = [_row(case, runs, steps[case.dataset], found) for case, runs in found.items() if runs]
    return {
        "rows": rows,
        "rounds": rounds,
        "results": results,
        "failed": {f"{case.name}: {case.dataset}": why for case, why in failed.items()},
    }


# -- within --------------------------------------------------------------------------------------


def _cases(dataset: str, format: str, where: str, peers: Path) -> list[Case]:
    source = f"{format}:{where}"
    cases = [
        Case(dataset, READING, sys.executable, _HERE / "bench_reading.py", source),
        Case(dataset, OURS, sys.executable, _HERE / "bench_ingest.py", source),
    ]
    if dataset != _LOW:
        return cases
    for name, environment in _PEERS.items():
        file = _ROOT / "tests" / "peers" / f"with_{name}.py"
        python = sys.executable
        if environment is not None:
            python = str(peers / name / "bin" / "python")
        if file.exists() and Path(python).exists():
            cases.append(Case(dataset, name, python, file, where))
    return cases


def _take_turn(
    case: Case, target: Path, runs: list[dict[str, float]], failed: dict[Case, str]
) -> None:
    """Runs a case once in a fresh process; one that fails is left out from then on."""
    target.mkdir()
    environment = {**os.environ, **_ALONE}
    if case.python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
    arguments = (str(case.file), case.source, str(target / "made"))
    try:
        done = subprocess.run(
            [case.python, "-P", str(_HERE / "bench_case.py"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    finally:
        shutil.rmtree(target)
    if done.returncode:
        failed[case] = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    else:
        runs.append(json.loads(done.stdout.splitlines()[-1]))


def _row(
    case: Case,
    runs: list[dict[str, float]],
    steps: int,
    found: Mapping[Case, list[dict[str, float]]],
) -> dict[str, Any]:
    def best(of: list[dict[str, float]]) -> float:
        return max(min(run["cpu_s"] for run in of), 1e-3)

    alone = next(r for c, r in found.items() if (c.dataset, c.name) == (case.dataset, READING))
    return {
        "dataset": case.dataset,
        "name": case.name,
        "steps": steps,
        "cpu_s": round(best(runs), 3),
        "wall_s": round(min(run["wall_s"] for run in runs), 3),
        "steps_per_cpu_second": round(steps / best(runs)),
        "peak_mb": round(min(run["peak_mb"] for run in runs)),
        "over_reading": round(best(runs) / best(alone), 2) if alone else None,
        "rounds": [round(run["cpu_s"], 3) for run in runs],
    }
