"""Reverb beside the service: what both take in and give out, and what a kill -9 leaves of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.service.bench import STEPS, ServiceBench, pushed
from pipeline.service.bench_actors import rollout
from pipeline.service.client.client import RolloutClient
from pipeline.store.store import open_store

_ROOT = Path(__file__).parents[2]
SCRIPT = _ROOT / "tests" / "peers" / "service_with_reverb.py"
LEARNER = _ROOT / "tests" / "peers" / "service_draws.py"
MARGIN_SECONDS = 8.0
"""What a learner's process may take to start."""
PUT_STEPS = STEPS[0]
EPISODES = 800
_LONGEST = 600


def reverb(seconds: float, peers: Path | None = None) -> dict[str, Any]:
    """Returns what Reverb and the service take in and give out, and what it keeps of a kill -9.

    Args:
        seconds: of each of its turns.
        peers: folder of other projects' environments; `PENSTOCK_PEERS`, else `.peers` here.

    Returns:
        `rates` and `kill` as the script prints them, `penstock` with our rates, measured next, and
        `ratios` of them to Reverb's, in steps; or `skipped` with the reason.
    """
    python = (
        peers or Path(os.environ.get("PENSTOCK_PEERS", _ROOT / ".peers"))
    ) / "reverb/bin/python"
    if not SCRIPT.exists():
        return {"skipped": "only a checkout of the repository has the scripts of other projects"}
    if not python.exists():
        return {"skipped": f"no {python}; run `make peers` in the repository"}
    theirs = _asked([str(python), str(SCRIPT), "rates", str(seconds)])
    kill = _asked([str(python), str(SCRIPT), "kill"])
    if "failed" in theirs:
        return {"rates": theirs, "kill": kill}
    ours = rates(seconds)
    ratios = {
        name: round(mine["steps_per_second"] / theirs[name]["steps_per_second"], 2)
        for name, mine in ours.items()
        if "failed" not in mine
    }
    return {"rates": theirs, "kill": kill, "penstock": ours, "ratios": ratios}


def rates(seconds: float) -> dict[str, Any]:
    """Returns what a service takes in from eight actors and what a learner draws of it.

    The learner is a process that has nothing but the service's address; once all is sealed, and
    following while the actors push.
    """
    config = ServiceBench(seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        process, address = _start(Path(folder) / "store")
        try:
            found: dict[str, Any] = {
                f"items_of_{steps}_steps": _pushed_rates(address, steps, config) for steps in STEPS
            }
            _wait_sealed(address)
            learner = [sys.executable, str(LEARNER), address, str(seconds)]
            found["sample_256"] = _asked(learner)
            # The actors begin before the learner's first batch, and end after its last one.
            going = replace(config, seconds=2 * seconds + MARGIN_SECONDS)
            pushing = threading.Thread(
                target=pushed, args=(address, config.actors, PUT_STEPS, 1, going)
            )
            pushing.start()
            found["sample_256_following"] = _asked([*learner, "following"])
            pushing.join()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    return found


def _pushed_rates(address: str, steps: int, config: ServiceBench) -> dict[str, Any]:
    waits, seconds = pushed(address, config.actors, steps, 1, config)
    rate = len(waits) / seconds
    return {
        "puts_per_second": round(rate, 1),
        "steps_per_second": round(rate * steps),
        "ack_p50_ms": round(float(np.median(waits)) * 1e3, 3),
        "ack_p99_ms": round(float(np.quantile(waits, 0.99)) * 1e3, 3),
    }


def _wait_sealed(address: str) -> None:
    """Waits until everything that was pushed is in a version."""
    with RolloutClient(address, ack="store") as client:
        client.push(rollout(1, np.random.default_rng()))


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
