"""kill -9 of whole `penstock ingest` processes: what is there at the end is one clean run's."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.store.store import open_store
from tests.episodes import write_d4rl
from tests.reliability.figures import tell
from tests.reliability.sizes import size

ROOT = Path(__file__).resolve().parents[2]
KILLS = size(8, 200)
FILES = 12


def start(store: Path, pattern: Path) -> subprocess.Popen[bytes]:
    given = ["ingest", str(pattern), "--into", str(store), "--commit-every", "7"]
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", *given],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def content(store: Path) -> pa.Table:
    version = open_store(store).version()
    for _ in version.iter_episodes():  # every row can be read
        pass
    return version.episodes(columns=["episode_id", "digest", "length"])


@pytest.mark.timeout(size(300, 3600))
def test_killed_runs_and_a_last_one_make_what_one_run_makes(tmp_path: Path) -> None:
    for number in range(FILES):
        write_d4rl(tmp_path / f"{number:02d}.hdf5", [3 + k for k in range(10)], seed=number)
    pattern = tmp_path / "*.hdf5"
    began = time.monotonic()
    assert start(tmp_path / "clean", pattern).wait(300) == 0
    length = time.monotonic() - began
    clean = content(tmp_path / "clean")
    rng = random.Random(0)
    killed = stores = runs = 0
    while killed < KILLS:
        process = start(tmp_path / f"s{stores}", pattern)
        time.sleep(rng.uniform(0.2, 1.0) * length)
        process.kill()
        code = process.wait()
        runs += 1
        if code == -9:
            killed += 1
            continue
        assert code == 0  # done before it was killed: the next runs find nothing there
        assert content(tmp_path / f"s{stores}").equals(clean)
        stores += 1
    assert start(tmp_path / f"s{stores}", pattern).wait(300) == 0
    assert content(tmp_path / f"s{stores}").equals(clean)
    tell("ingest runs killed", runs=runs, killed=killed, stores=stores + 1)
