"""The learners' suite itself: what it reads, plays, runs again and says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from benchmarks import suite
from benchmarks.data import episodes
from benchmarks.noise_grid import add_mixed, grid_entries
from benchmarks.remote import Remote, python_of, register
from benchmarks.report import load, table, verdict
from benchmarks.simulators.make_pointmaze import distances
from benchmarks.simulators.trajectories import make_all, write
from benchmarks.tasks import TASKS, Entry, Scale, Task
from pipeline.store.store import open_store, open_version
from schemas.errors import ConfigError, NotFoundError
from tests.benchmarks.squares import square


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))


def trajectory(number: int, masks: list[float]) -> dict[str, np.ndarray]:
    T = len(masks)
    return {
        "observations": np.stack([np.full(T, number), np.arange(T)], 1).astype(np.float32),
        "actions": np.linspace(-1, 1, T, dtype=np.float32)[:, None],
        "rewards": np.array(masks, np.float32) * -1.0,
        "masks": np.array(masks, np.float32),
    }


# -- data ------------------------------------------------------------------------------------------


def test_trajectories_are_cut_where_their_task_is_done(tmp_path: Path) -> None:
    write(tmp_path / "two.npz", [trajectory(0, [1, 1, 0, 0, 1, 1]), trajectory(1, [1, 1, 1])])
    found = list(episodes(tmp_path / "two.npz"))
    assert [one.episode_id for one in found] == ["two/0/0", "two/0/1", "two/0/2", "two/1/0"]
    assert [one.length for one in found] == [3, 1, 1, 2]
    assert [one.is_terminated for one in found] == [True, True, False, False]
    assert [one.is_truncated for one in found] == [False, False, True, True]
    steps = [
        (int(seen[0]), int(seen[1]), int(following[1]), float(reward), bool(ends))
        for one in found
        for seen, following, reward, ends in zip(
            one.observations["observations"][:-1],
            one.observations["observations"][1:],
            one.rewards,
            one.terminated,
            strict=True,
        )
    ]
    assert steps == [
        *((0, 0, 1, -1.0, False), (0, 1, 2, -1.0, False), (0, 2, 3, 0.0, True)),
        *((0, 3, 4, 0.0, True), (0, 4, 5, -1.0, False)),
        *((1, 0, 1, -1.0, False), (1, 1, 2, -1.0, False)),
    ]


def test_demonstrations_end_as_they_say(tmp_path: Path) -> None:
    def one(success: list[float]) -> dict[str, np.ndarray]:
        made = trajectory(0, [1.0] * len(success))
        del made["masks"]
        return {**made, "success": np.array(success, np.float32)}

    write(tmp_path / "noisy.npz", [one([0, 0, 1, 0]), one([0, 0, 0, 0])])
    found = list(episodes(tmp_path / "noisy.npz"))
    assert [episode.success for episode in found] == [True, False]
    assert [episode.is_terminated for episode in found] == [True, False]
    assert [len(episode.rewards) for episode in found] == [3, 3]


def test_trajectories_do_not_depend_on_who_makes_them() -> None:
    alone, shared = make_all(square, 5, 1), make_all(square, 5, 2)
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert all((one[name] == other[name]).all() for name in one)


def test_ways_through_a_maze_are_the_shortest() -> None:
    maze = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    found = distances(maze, (3, 1))
    assert found[(1, 1)] == 6
    assert found[(3, 3)] == 2
    assert len(found) == 7


# -- worlds ----------------------------------------------------------------------------------------


@pytest.fixture
def far() -> Iterator[Any]:
    with closing(gym.make(register("gymnasium/Pendulum-v1"))) as made:
        yield made


def test_a_world_elsewhere_is_the_world_here(far: Any) -> None:
    with closing(gym.make("Pendulum-v1")) as near:
        assert far.action_space == near.action_space
        for seed in (0, 1):
            theirs, ours = far.reset(seed=seed)[0], near.reset(seed=seed)[0]
            np.testing.assert_array_equal(theirs, ours)
            for step in range(200):
                action = np.array([np.sin(step)], np.float32)
                theirs, ours = far.step(action), near.step(action)
                np.testing.assert_array_equal(theirs[0], ours[0])
                assert theirs[1:4] == (float(ours[1]), *ours[2:4])


def test_a_simulator_that_ends_is_an_error_and_leaves_no_process() -> None:
    made = Remote("gymnasium/Pendulum-v1")
    made.reset(seed=0)
    made._process.kill()
    with pytest.raises(ConfigError, match="its process ended"):
        made.reset(seed=1)
    made.close()
    assert made._process.poll() is not None
    with pytest.raises(ConfigError, match="Environment `Pendulun` doesn't exist"):
        Remote("gymnasium/Pendulun-v1")


def test_a_simulator_that_is_not_there_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_PEERS", str(tmp_path))
    with pytest.raises(NotFoundError, match="make suite-setup"):
        python_of("ogbench/cube-single-singletask-task2-v0")


# -- runs ------------------------------------------------------------------------------------------

TINY = Task(
    world="Pendulum-v1",
    maker="",
    sizes={"small": Scale(400, 20, (8, 8), 2, env_steps=400, batch_size=16)},
    entries={
        "bc": Entry("bc", published="1"),
        "iql": Entry("iql", {"expectile": 0.8}, small={"tau": 0.1}),
        "iql online": Entry(
            "iql", {"expectile": 0.8}, small={"tau": 0.1}, online={"updates_per_step": 0.05}
        ),
    },
    orders=(("bc", "iql"), ("iql", "iql online")),
    is_return=True,
)


def test_a_task_runs_goes_on_and_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "tiny", TINY)
    said: list[str] = []
    file = suite.run_task("tiny", "small", 1, tmp_path, ("bc",), note=said.append)
    first = json.loads(file.read_text())
    assert list(first["rows"]) == ["bc"]
    played = open_version(first["data"]["main"]).episodes(columns=["length"])
    assert sum(played["length"].to_pylist()) == 400

    suite.run_task("tiny", "small", 2, tmp_path, note=said.append)
    after = json.loads(file.read_text())
    assert after["data"] == first["data"]
    assert after["rows"]["bc"]["seeds"]["0"] == first["rows"]["bc"]["seeds"]["0"]
    assert [len(row["seeds"]) for row in after["rows"].values()] == [2, 2, 2]
    used = after["rows"]["iql"]["made_with"]["settings"]
    assert (used["tau"], used["expectile"]) == (0.1, 0.8)
    assert sum("bc, seed 0" in line for line in said) == 1
    shown = table(load(tmp_path, "small")[0])
    assert shown.count("| 2 |") == 3
    assert "| 1 |" in shown
    assert "bc < iql: " in shown


def test_rows_of_other_settings_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def run(task: Task, only: str) -> dict[str, Any]:
        monkeypatch.setitem(TASKS, "tiny", task)
        said.clear()
        file = suite.run_task("tiny", "small", 1, tmp_path, (only,), note=said.append)
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    first = run(TINY, "bc")
    assert run(TINY, "bc") == first
    assert said == ["tiny (small): data"]
    runs = tmp_path / "small" / "tiny" / "runs"
    kept = set(runs.iterdir())

    entries = {**TINY.entries, "bc": replace(TINY.entries["bc"], small={"learning_rate": 0.1})}
    faster = run(replace(TINY, entries=entries), "bc")
    assert said[1].startswith("tiny: bc, seed 0")
    assert faster["rows"]["bc"]["made_with"]["settings"]["learning_rate"] == 0.1
    assert faster["rows"]["bc"]["seeds"] != first["rows"]["bc"]["seeds"]
    assert len(set(runs.iterdir()) - kept) == 1

    kept = set(runs.iterdir())
    judged = run(
        replace(TINY, sizes={"small": replace(TINY.sizes["small"], evaluation_episodes=3)}), "bc"
    )
    (found,) = judged["rows"]["bc"]["seeds"].values()
    assert found["returns"][:2] == first["rows"]["bc"]["seeds"]["0"]["returns"]
    assert len(found["returns"]) == 3
    assert set(runs.iterdir()) == kept, "nothing was learned again"

    fewer = replace(TINY, sizes={"small": replace(TINY.sizes["small"], episodes=200)})
    other = run(fewer, "bc")
    assert other["data"] != first["data"]
    played = open_version(other["data"]["main"]).episodes(columns=["length"])
    assert sum(played["length"].to_pylist()) == 200
    assert other["rows"]["bc"]["made_with"]["data"] == other["data"]["main"]
    assert other["rows"]["bc"]["seeds"] != first["rows"]["bc"]["seeds"]


def test_an_order_holds_if_its_interval_does() -> None:
    def rows(**scores: list[float]) -> dict[str, Any]:
        made = {
            name: {
                "made_with": {"data": "store@1"},
                "seeds": {str(k): {"score": score} for k, score in enumerate(found)},
            }
            for name, found in scores.items()
        }
        return {"rows": made}

    document = rows(low=[0, 5, 0, 5, 0], high=[50, 40, 60, 50, 45], wide=[0, 90, 0, 20, 1])
    assert verdict(document, "low", "high").startswith("low < high: holds, by 47.0 [")
    assert "does not hold" in verdict(document, "low", "wide")
    assert "does not hold" in verdict(document, "high", "low")
    assert verdict(document, "low", "none") == "low < none: not run"
    document["rows"]["high"]["made_with"]["data"] = "store@2"
    assert verdict(document, "low", "high") == "low < high: run on different data"


def test_a_grid_has_all_pairs_and_what_was_chosen_of_all(tmp_path: Path) -> None:
    entries = grid_entries(TASKS["button-press"])
    assert len(entries) == 4 * 4 + 2
    assert entries["bc 0.3/1.0"].data == "bc 0.3/1.0"
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for level in ("0.0", "1.0"):
        made = []
        for _ in range(6):
            seen = np.cumsum(generator.normal(size=(21, 2)), axis=0).astype(np.float32)
            actions = np.tanh(seen) + float(level) * generator.normal(size=seen.shape)
            zeros = np.zeros(21, np.float32)
            rows = {"observations": seen, "actions": actions.astype(np.float32)}
            made.append({**rows, "rewards": zeros, "success": zeros})
        write(tmp_path / "data" / f"p{level}-s0.0.npz", made)
    found = dict(add_mixed(tmp_path, tmp_path / "store"))
    every, chosen = (open_version(found[name]) for name in ("all", "chosen half"))
    assert (len(every), len(chosen)) == (12, 6)
    assert open_store(tmp_path / "store").version("chosen").id == chosen.id
    names = chosen.episodes(columns=["episode_id"])["episode_id"].to_pylist()
    assert sum(name.startswith("p0.0") for name in names) > 3


def test_every_task_names_rows_and_data_that_there_are() -> None:
    for name, task in TASKS.items():
        assert set(task.sizes) == {"small", "full"}, name
        for pair in task.orders:
            assert set(pair) <= task.entries.keys(), name
        for row, entry in task.entries.items():
            assert row.endswith(" online") == (entry.online is not None), name
            base = task.entries.get(row.removesuffix(" online"), entry)
            assert (base.algo, base.settings, base.small) == (
                *(entry.algo, entry.settings, entry.small),
            ), "they share their offline run"
