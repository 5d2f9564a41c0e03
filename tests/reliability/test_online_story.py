"""The whole online story, each process killed once: nothing is lost, every batch is known.

A server, actors, a learner and a curator, all of which speak to the service alone but for the
learner, which reads the store itself; every one of them is killed and started again. Then all
episodes that any life of an actor was told are safe are in the store exactly once, every version
that the curator was told of is there and holds what it chose, and every batch of the learner can be
drawn again from the store, with the rows that the learner logged. The long form asks besides that
the learner has become better.
"""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from learners.checkpoint import load_checkpoint, restore
from learners.evaluate import evaluate
from learners.replay import replay, replays
from learners.runlog import read_table
from pipeline.service.client.control import ControlClient
from pipeline.store.store import Store
from pipeline.stream.online import OnlineSource
from schemas.errors import TransientError
from tests.learners.playing import ENVIRONMENT, demonstrations, offline_run
from tests.reliability.curating import BRANCH, left_out
from tests.reliability.figures import tell
from tests.reliability.processes import Processes, free_port, wait_until
from tests.reliability.sizes import LONG

RUN = "story"
PATIENCE = 600  # seconds until what is waited for is given up: many times what it takes


@dataclass(frozen=True)
class Story:
    """How much happens."""

    actors: int = 2
    env_steps: int = 4_000
    warmup_steps: int = 600
    updates_per_step: float = 0.1
    algo: str = "iql"
    settings: dict[str, float] = field(default_factory=dict)
    evaluations: int = 1
    """Episodes of each."""


SHORT = Story()
LONGER = Story(
    actors=4,
    env_steps=12_000,
    warmup_steps=1_000,
    updates_per_step=0.4,
    algo="rlpd",
    settings={"policy_rate": 0.001, "critic_rate": 0.001},
    evaluations=10,
)


@pytest.mark.timeout(3600)
def test_each_process_is_killed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = LONGER if LONG else SHORT
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    store = demonstrations(tmp_path / "s", 5)
    base = offline_run(store, tmp_path / "base", 50, story.algo, **story.settings)
    out = tmp_path / "online"
    processes = Processes(tmp_path, {"PENSTOCK_CACHE": str(tmp_path / "cache")})
    try:
        _start(processes, story, store, base, out)
        _kill_each(processes, story, store, out, random.Random(5))
        assert processes.wait("learner", 2 * PATIENCE) == 0, processes.said("learner")[-3000:]
        wait_until(lambda: _all_go_on(processes, story, tmp_path), PATIENCE, "second lives")
        codes = processes.end()
    finally:
        processes.end()
    actors = [f"actor-{k}" for k in range(story.actors)]
    assert {codes[name] for name in actors} == {0}, [processes.said(name)[-999:] for name in actors]
    assert codes["server"] == 0, processes.said("server")[-3000:]
    assert codes["curator"] == -signal.SIGTERM, processes.said("curator")[-3000:]
    heard = _everything_once(store, tmp_path, processes, story.actors)
    chosen, errors = _all_that_was_chosen(store, processes)
    steps = _same_batches(out)
    count = story.evaluations
    before, after = (
        evaluate(restore(load_checkpoint(one)), ENVIRONMENT, count).mean_return
        for one in (base, out)
    )
    figures = {"told": heard, "chosen": chosen, "curator_errors": errors, "batches": steps}
    tell("online story", **figures, before=round(before), after=round(after))
    if LONG:
        assert after > before + 200


def _start(processes: Processes, story: Story, store: Store, base: Path, out: Path) -> None:
    port, http_port = str(free_port()), str(free_port())
    data, control = f"grpc://127.0.0.1:{port}", f"http://127.0.0.1:{http_port}"
    token = Path(store.url) / "wal" / "token"
    ports = ("--port", port, "--http-port", http_port, "--seal-every", "300ms")
    more = ("--new-spec", "play", "--disk-reserve-bytes", "0B")
    processes.start("server", "-m", "penstock", "serve", store.url, *ports, *more)
    wait_until(lambda: _is_ready(control, token), PATIENCE, "a server that answers")
    where = ("--env", ENVIRONMENT, "--service", data, "--token-file", str(token))
    for number in range(story.actors):
        told = str(out.parent / f"actor-{number}.told")
        actor = ("-m", "tests.reliability.acting", told, "actor", "--policy", RUN)
        processes.start(f"actor-{number}", *actor, "--slots", "1", *where)
    processes.start("curator", "-m", "tests.reliability.curating", control, data, str(token))
    learner = [
        *("-m", "penstock", "finetune", str(base), *where, "--name", RUN, "--out", str(out)),
        *("--env-steps", str(story.env_steps), "--warmup-steps", str(story.warmup_steps)),
        *("--updates-per-step", str(story.updates_per_step), "--actors", "0", "--log-rows"),
        *("--episodes", str(story.evaluations), "--resume", "--seed", "3"),
    ]
    processes.start("learner", *learner)


def _is_ready(control: str, token: Path) -> bool:
    if not token.exists():
        return False
    try:
        ControlClient(control, token.read_text()).addresses()
    except TransientError:
        return False
    return True


def _kill_each(
    processes: Processes, story: Story, store: Store, out: Path, chance: random.Random
) -> None:
    """Kills each process once while rollouts come in, when it has done some of its work."""
    source = OnlineSource(store, "main", RUN)
    names = ["server", "learner", "curator", *(f"actor-{k}" for k in range(story.actors))]
    chance.shuffle(names)
    for number, name in enumerate(names):
        wanted = story.env_steps * (number + 1) // (len(names) + 3)
        enough = f"{wanted} steps, and work of {name}"

        def is_time(name: str = name, wanted: int = wanted) -> bool:
            processes.check()
            return source.inserted() >= wanted and _has_worked(name, processes, out)

        wait_until(is_time, 2 * PATIENCE, enough)
        processes.kill(name)


def _has_worked(name: str, processes: Processes, out: Path) -> bool:
    if name == "curator":
        return any("version" in line for line in _lines(processes))
    if name == "learner":
        return (out / "rows.csv").exists()
    told = out.parent / f"{name}.told"
    return name == "server" or (told.exists() and told.stat().st_size > 0)


def _all_go_on(processes: Processes, story: Story, folder: Path) -> bool:
    """Says whether actors and curator have worked again after they were killed."""
    processes.check()
    actors = [len(_lives(_told(folder, f"actor-{k}"))) for k in range(story.actors)]
    curator = {line["life"] for line in _lines(processes) if "version" in line}
    return {*actors, len(curator)} == {2}


def _told(folder: Path, actor: str) -> list[str]:
    """Ids of the episodes that an actor heard are safe."""
    return (folder / f"{actor}.told").read_text().splitlines()


def _lives(told: list[str]) -> Counter[str]:
    """How many of them each life of the actor played."""
    return Counter(one.rpartition("/")[0] for one in told)


def _lines(processes: Processes) -> list[dict[str, Any]]:
    """What all lives of the curator said."""
    said = processes.said("curator").splitlines()
    return [json.loads(line) for line in said if line.startswith("{")]


def _everything_once(store: Store, folder: Path, processes: Processes, actors: int) -> int:
    """Holds the store against what every life of an actor heard; returns how many that were."""
    table = store.version("main").episodes(columns=["episode_id", "length", "policy_version"])
    ids = table["episode_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert set(table["length"].to_pylist()) == {200}  # whole episodes alone
    told: list[str] = []
    for name in (f"actor-{k}" for k in range(actors)):
        mine = _told(folder, name)
        lives = _lives(mine)
        (said,) = [one for one in processes.said(name).splitlines() if one.startswith("pushed ")]
        count = int(said.split()[1].replace(",", ""))
        assert count == lives[mine[-1].rpartition("/")[0]], f"{said}, but {lives}"
        told += mine
    assert len(told) == len(set(told))
    assert set(told) <= set(ids), f"acknowledged and lost: {sorted(set(told) - set(ids))}"
    # Killed writers leave files that no version refers to; that is no damage.
    assert [one for one in store.doctor().problems if one.is_damage] == []
    return len(told)


def _all_that_was_chosen(store: Store, processes: Processes) -> tuple[int, int]:
    """Holds the curator's branch against what its lives said; returns versions and errors."""
    lines = _lines(processes)
    told = {line["version"]: line for line in lines if "version" in line}
    errors = Counter(line["error"] for line in lines if "error" in line)
    assert errors.keys() <= {"transient", "timeout", "busy", "not_found"}, errors
    versions = {one.id: one for one in store.log(BRANCH) if one.branch == BRANCH}
    assert told.keys() <= versions.keys()
    for one in versions.values():  # also what a killed life was not told of any more
        derivation = one.state.derivation
        assert derivation is not None
        base = store.version(derivation.base.id).episodes()["episode_id"].to_pylist()
        assert list(derivation.exclude) == left_out(base)
        ids = one.episodes()["episode_id"].to_pylist()
        assert ids == [name for name in base if name not in derivation.exclude]
        if one.id in told:
            assert told[one.id]["base"] == derivation.base.id
    return len(told), errors.total()


def _same_batches(out: Path) -> int:
    logged = read_table(out / "rows.csv")
    assert [int(row["step"]) for row in logged] == list(range(len(logged)))
    for row, made in zip(logged, replays(str(out)), strict=True):
        assert (int(row["step"]), row["rows"]) == (made.step, made.rows)
    for row in logged[:: max(len(logged) // 5, 1)]:  # alone, without those before
        assert replay(str(out), int(row["step"])).rows == row["rows"]
    return len(logged)
