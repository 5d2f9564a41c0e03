"""A dataset larger than the memory it may take: ingest and export in a process that is measured.

768 MB of pictures by default, 3 GB with PENSTOCK_LONG=1; one episode of 100,000 steps, or 400,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.connectors.makers import write_hdf5
from tests.reliability.sizes import size

MEBI = 2**20
SIDE = 96
LENGTH = 400
MEASURED = """
import json, sys
from pathlib import Path
from pipeline.cli.main import main

codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
status = Path("/proc/self/status").read_text()
peak = int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])
print(json.dumps({"codes": codes, "peak": peak // 1024}))
"""


def measured(*commands: list[str]) -> int:
    """Runs commands in one new process; returns its peak of resident memory in MB."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(said["codes"]) == {0}, done.stderr[-2000:]
    return int(said["peak"])


def pictures(path: Path, megabytes: int) -> str:
    """A replay buffer of raw pictures, written chunk by chunk; small on disk."""
    rows = megabytes * MEBI // (SIDE * SIDE * 3) // LENGTH * LENGTH
    group = zarr.open_group(path, mode="w", zarr_format=2)
    image = group.create_array(
        "data/img", shape=(rows, SIDE, SIDE, 3), chunks=(64, SIDE, SIDE, 3), dtype="u1"
    )
    for start in range(0, rows, 64):
        stop = min(start + 64, rows)
        shades = (np.arange(start, stop) % 251 + 1).astype(np.uint8)
        image[start:stop] = np.broadcast_to(
            shades[:, None, None, None], (stop - start, SIDE, SIDE, 3)
        )
    group.create_array("data/action", data=np.ones((rows, 2), np.float32))
    group.create_array("data/reward", data=np.ones(rows, np.float32))
    group.create_array("meta/episode_ends", data=np.arange(LENGTH, rows + 1, LENGTH))
    return str(path)


@pytest.mark.slow
def test_pictures_larger_than_memory(tmp_path: Path) -> None:
    where = pictures(tmp_path / "z.zarr", size(768, 3072))
    store = str(tmp_path / "store")
    assert measured(["ingest", where, "--into", store]) <= size(700, 1024)
    out = str(tmp_path / "out")
    assert measured(["export", store, out, "--format", "parquet"]) <= size(700, 1024)


@pytest.mark.slow
def test_one_long_episode(tmp_path: Path) -> None:
    steps = size(100_000, 400_000)
    random = np.random.default_rng(0)
    arrays = {
        "observations": random.normal(size=(steps, 17)),
        "actions": random.normal(size=(steps, 6)),
        "rewards": random.normal(size=steps),
        "terminals": np.zeros(steps, bool),
        "timeouts": np.arange(steps) == steps - 1,
    }
    where, store = write_hdf5(tmp_path / "a.hdf5", arrays), str(tmp_path / "store")
    assert measured(["ingest", where, "--into", store]) <= size(500, 1024)
    out = str(tmp_path / "steps")
    assert measured(["export", store, out, "--format", "parquet"]) <= size(500, 1024)
    again = str(tmp_path / "again")
    assert measured(["ingest", out, "--into", again]) <= size(500, 1024)
