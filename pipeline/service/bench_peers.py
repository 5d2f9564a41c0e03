"""Reverb beside the service's benchmark: its rates, and what a kill -9 leaves of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.service.bench_actors import rollout
from pipeline.service.client.client import RolloutClient
from pipeline.store.store import open_store

_ROOT = Path(__file__).parents[2]
SCRIPT = _ROOT / "tests" / "peers" / "service_with_reverb.py"
EPISODES = 800
_LONGEST = 600


def reverb(seconds: float, peers: Path | None = None) -> dict[str, Any]:
    """Returns what Reverb inserts and samples, and what a kill -9 leaves of 800 items.

    Args:
        seconds: of each of its turns.
        peers: folder of other projects' environments; `PENSTOCK_PEERS`, else `.peers` here.

    Returns:
        `rates` and `kill` as the script prints them, or `skipped` with the reason.
    """
    python = (
        peers or Path(os.environ.get("PENSTOCK_PEERS", _ROOT / ".peers"))
    ) / "reverb/bin/python"
    if not python.exists() or not SCRIPT.exists():
        return {"skipped": f"no {python} or no {SCRIPT.name}; run `make peers` in the repository"}
    return {
        "rates": _asked([str(python), str(SCRIPT), "rates", str(seconds)]),
        "kill": _asked([str(python), str(SCRIPT), "kill"]),
    }


def killed() -> dict[str, Any]:
    """Returns what a kill -9 leaves of 800 acknowledged episodes, and how long a start takes."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        store = Path(folder) / "store"
        process, address = _start(store)
        with RolloutClient(address) as client:
            pushed = [client.push_async(rollout(1, random)) for _ in range(EPISODES)]
            for one in pushed:
                one.result(60)
        process.kill()
        process.wait()
        begun = time.perf_counter()
        process, _ = _start(store)
        seconds = time.perf_counter() - begun
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        left = len(open_store(store).version())
    told = {"acknowledged": EPISODES, "after_restart": left, "lost": EPISODES - left}
    return {**told, "restart_seconds": round(seconds, 2)}


def _start(store: Path) -> tuple[subprocess.Popen[str], str]:
    ports = ("--port", "0", "--http-port", "0", "--no-token", "--disk-reserve-bytes", "0B")
    command = [sys.executable, "-m", "penstock", "serve", str(store), *ports]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    with process.stdout as ready:
        return process, json.loads(ready.readline())["data"]


def _asked(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=False)
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"failed": done.stderr.strip()[-500:] or f"it ended with {done.returncode}"}
    return told
