"""Every learner solves the small task of `tests.learners.tasks`; two of them in `make test`.

`make test-learners` (PENSTOCK_LONG=1) runs all, each on three seeds. Scores asked for stand in
`TASKS`; docs/benchmarks.md has what five seeds reached.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from learners.base import ALGORITHMS
from pipeline.store.store import Store
from tests.learners.tasks import DISCOUNT, TASKS, make_data, solve

IS_LONG = os.environ.get("PENSTOCK_LONG") == "1"
SHORT = ("bc", "td3_bc")
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_data(tmp_path_factory.mktemp("tasks") / "store")


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))


def test_every_learner_has_a_task() -> None:
    assert TASKS.keys() == ALGORITHMS.keys()


def test_the_data_are_what_tasks_say(data: Store) -> None:
    """Copying all of the mixed data is no solution: most of it is aimless, and scores so."""
    means = {}
    for branch in ("steady", "mixed"):
        table = data.version(branch).episodes(columns=["episode_return", "length"])
        means[branch] = table["episode_return"].to_numpy().mean()
        assert set(table["length"].to_pylist()) == {200}
    worst = min(task.at_least for task in TASKS.values())
    assert means["steady"] > worst > means["mixed"] + 300, means
    assert 0 < DISCOUNT < 1


@pytest.mark.parametrize("algo", SHORT)
def test_a_learner_solves_its_task(algo: str, data: Store, tmp_path: Path) -> None:
    assert solve(algo, data, tmp_path / "run", SEEDS[0]) >= TASKS[algo].at_least


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not IS_LONG, reason="minutes for all; PENSTOCK_LONG=1 runs it")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algo", TASKS)
def test_all_learners_solve_their_tasks(algo: str, seed: int, data: Store, tmp_path: Path) -> None:
    assert solve(algo, data, tmp_path / "run", seed) >= TASKS[algo].at_least
