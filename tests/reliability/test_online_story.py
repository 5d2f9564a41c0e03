"""The whole online story, each process killed once: nothing is lost, every batch is known.

A server, four actors, a learner and a curator; every one of them is killed and started again. Then
all episodes that any life of an actor was told are safe are in the store exactly once, and every
batch of the learner can be drawn again from the store, with the rows that the learner logged.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from learners.checkpoint import load_checkpoint, restore
from learners.evaluate import evaluate
from learners.replay import replay, replays
from learners.runlog import read_table
from pipeline.store.store import Store
from pipeline.stream.online import OnlineSource
from tests.learners.playing import ENVIRONMENT, demonstrations, offline_run
from tests.reliability.figures import tell

pytestmark = pytest.mark.skipif(
    os.environ.get("PENSTOCK_LONG") != "1", reason="takes minutes; PENSTOCK_LONG=1 runs it"
)
ROOT = Path(__file__).resolve().parents[2]
RUN = "story"
ACTORS = 4
SHORT = {"env_steps": 4_000, "warmup_steps": 800, "updates_per_step": 0.2, "rate": 0.0003}
LONG = {"env_steps": 12_000, "warmup_steps": 1_000, "updates_per_step": 0.4, "rate": 0.001}


class Processes:
    """What was started, by its name; each goes on after a kill with the same command."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, {**os.environ, **environment}
        self._commands: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        self._commands[name] = list(command)
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *command],
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=ROOT,
            )

    def kill(self, name: str) -> None:
        process = self._running[name]
        assert process.poll() is None, f"{name} ended by itself: {self.said(name)}"
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        self.start(name, *self._commands[name])

    def wait(self, name: str, seconds: float) -> int:
        return self._running[name].wait(seconds)

    def is_alive(self, name: str) -> bool:
        return self._running[name].poll() is None

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()[-3000:]

    def end(self) -> dict[str, int]:
        """Ends all, the server last: actors wait for what it acknowledges."""
        served = {name: one for name, one in self._running.items() if name != "server"}
        codes: dict[str, int] = {}
        for group in (served, self._running):
            for process in group.values():
                process.terminate()
            for name, process in group.items():
                try:
                    codes[name] = process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    codes[name] = process.wait()
        return codes


CURATOR = """
import sys, time
from pipeline.store.store import open_store
store = open_store(sys.argv[1])
while True:
    try:
        chosen = store.version("main").where("kind == 'rollout' and length >= 100")
        if len(chosen):
            chosen.commit("chosen")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    time.sleep(1)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.2)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [SHORT, LONG], ids=["short", "long"])
def test_each_process_is_killed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: dict[str, float]
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    store = demonstrations(tmp_path / "s", 5)
    rates = {"policy_rate": size["rate"], "critic_rate": size["rate"]}
    base = offline_run(store, tmp_path / "base", 50, "rlpd", **rates)
    before = evaluate(restore(load_checkpoint(base)), ENVIRONMENT, 10).mean_return
    port, http_port = free_port(), free_port()
    processes = Processes(tmp_path, {"PENSTOCK_CACHE": str(tmp_path / "cache")})
    token = tmp_path / "s" / "wal" / "token"
    out = tmp_path / "online"
    try:
        ports = ("--port", str(port), "--http-port", str(http_port), "--seal-every", "500ms")
        more = ("--new-spec", "play", "--disk-reserve-bytes", "0B")
        processes.start("server", "-m", "penstock", "serve", store.url, *ports, *more)
        wait_until(token.exists, 60, "a server")
        said = ("--service", f"grpc://127.0.0.1:{port}", "--token-file", str(token))
        where = ("--env", ENVIRONMENT, *said)
        for number in range(ACTORS):
            told = str(tmp_path / f"actor-{number}.told")
            actor = ("-m", "tests.reliability.acting", told, "actor", "--policy", RUN)
            processes.start(f"actor-{number}", *actor, "--slots", "1", *where)
        processes.start("curator", "-c", CURATOR, store.url)
        _wait_for_service(http_port, token)
        learner = [
            *("-m", "penstock", "finetune", str(base), *where, "--name", RUN, "--out", str(out)),
            *("--env-steps", str(size["env_steps"]), "--warmup-steps", str(size["warmup_steps"])),
            *("--updates-per-step", str(size["updates_per_step"]), "--actors", "0"),
            *("--log-rows", "--resume", "--seed", "3"),
        ]
        processes.start("learner", *learner)
        _kill_each(processes, store, random.Random(5), int(size["env_steps"]))
        assert processes.wait("learner", 1800) == 0, processes.said("learner")
        codes = processes.end()
    finally:
        processes.end()
    actors = {name: code for name, code in codes.items() if name.startswith("actor")}
    assert set(actors.values()) == {0}, [processes.said(name) for name in actors]
    assert codes["server"] == 0, processes.said("server")
    heard = _everything_once(store, tmp_path, processes)
    steps = _same_batches(out)
    after = evaluate(restore(load_checkpoint(out)), ENVIRONMENT, 10).mean_return
    tell("online story", told=heard, batches=steps, before=round(before), after=round(after))
    if size is LONG:
        assert after > before + 200


def _wait_for_service(http_port: int, token: Path) -> None:
    from pipeline.service.client.control import ControlClient
    from schemas.errors import TransientError

    def is_ready() -> bool:
        try:
            ControlClient(f"http://127.0.0.1:{http_port}", token.read_text()).addresses()
        except TransientError:
            return False
        return True

    wait_until(is_ready, 60, "a server that answers")


def _kill_each(processes: Processes, store: Store, chance: random.Random, steps: int) -> None:
    """Kills each process once while rollouts come in."""
    source = OnlineSource(store, "main", RUN)
    names = ["server", "learner", "curator", *(f"actor-{k}" for k in range(ACTORS))]
    chance.shuffle(names)
    for number, name in enumerate(names):
        wanted = steps * (number + 1) // (len(names) + 3)
        wait_until(lambda wanted=wanted: source.inserted() >= wanted, 1200, f"{wanted} steps")
        processes.kill(name)


def _everything_once(store: Store, folder: Path, processes: Processes) -> int:
    """Holds the store against what every life of an actor heard; returns how many that were."""
    table = store.version("main").episodes(columns=["episode_id", "length", "policy_version"])
    ids = table["episode_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert set(table["length"].to_pylist()) == {200}  # whole episodes alone
    told: list[str] = []
    for name in (f"actor-{k}" for k in range(ACTORS)):
        mine = (folder / f"{name}.told").read_text().splitlines()
        lives = Counter(one.rpartition("/")[0] for one in mine)
        (said,) = [one for one in processes.said(name).splitlines() if one.startswith("pushed ")]
        count = int(said.split()[1].replace(",", ""))
        assert count in (0, lives[mine[-1].rpartition("/")[0]]), f"{said}, but {lives}"
        told += mine
    assert len(told) == len(set(told))
    assert len({one.rpartition("/")[0] for one in told}) > ACTORS, (
        "no killed life was told anything"
    )
    assert set(told) <= set(ids), f"acknowledged and lost: {sorted(set(told) - set(ids))}"
    # Killed writers leave files that no version refers to; that is no damage.
    assert [one for one in store.doctor().problems if one.is_damage] == []
    return len(told)


def _same_batches(out: Path) -> int:
    logged = read_table(out / "rows.csv")
    assert [int(row["step"]) for row in logged] == list(range(len(logged)))
    for row, made in zip(logged, replays(str(out)), strict=True):
        assert (int(row["step"]), row["rows"]) == (made.step, made.rows)
    for row in logged[:: max(len(logged) // 5, 1)]:  # alone, without those before
        assert replay(str(out), int(row["step"])).rows == row["rows"]
    return len(logged)
