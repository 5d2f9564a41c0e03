"""Values, drift and weights of versions in a store, through the jobs and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.jobs.compare import compare_versions
from pipeline.jobs.measure import measure_version
from pipeline.jobs.weights import KINDS, episode_weights
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError
from schemas.metrics import MeasureConfig

RETURNS = MeasureConfig(
    metrics=("length", "episode_return", "unique_share"),
    bootstrap=20,
    return_random=0.0,
    return_expert=100.0,
)


def runs(first: int, last: int, offset: float, **facts: Any) -> list[Episode]:
    """Episodes that earn twice their first state at every step, and 50 besides in all."""
    found = []
    for number in range(first, last):
        rng = np.random.default_rng(number)
        states = rng.normal(size=(41, 2)) + offset
        rewards = np.full(40, 2 * states[0, 0] + 1.25)
        actions = states[:-1, :1] + 0.1 * rng.normal(size=(40, 1))
        found.append(
            Episode(
                f"e{number}",
                {"state": states},
                actions,
                rewards,
                truncated=np.arange(40) == 39,
                **facts,
            )
        )
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = open_store(tmp_path / "s", create=True)
    found.append(runs(0, 40, 0.0, policy="expert"))
    found.append(runs(40, 80, 1.5, policy="robot", kind="rollout"))
    return found


def test_measured_values_of_a_whole_version(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measure_version(store, "main", RETURNS)
    returns = np.array(found.version.episodes()["episode_return"].to_pylist())
    values = found.metrics
    assert values["trajectory_quality"].value == pytest.approx(returns.mean() / 100)
    spread = (np.maximum(returns - returns.mean(), 0) ** 2).mean()
    assert values["return_spread"].value == pytest.approx(spread)
    assert values["saco"].value == pytest.approx(1.0)
    groups = values["episode_return"].details["groups"]["policy"]
    assert groups["expert"]["value"] == pytest.approx(returns[:40].mean())
    assert groups["robot"]["episodes"] == 40
    assert not [n for n in found.version.episodes().column_names if n.startswith("_")]
    # Later episodes join the sketches of those that are there; nothing is read again.
    store.append(runs(80, 90, 0.0))
    grown = measure_version(store, "main", RETURNS)
    assert grown.episodes_scored == 10
    assert (grown.metrics["saco"].value or 0) > 1.05
    assert main(["show", store.catalog.url, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["metrics"]
    for name in ("trajectory_quality", "return_improvement", "return_spread", "saco"):
        assert shown[name]["value"] == pytest.approx(grown.metrics[name].value)
        assert (shown[name]["episodes"], shown[name]["coverage"]) == (90, 1.0)
    store.append(runs(90, 91, 0.0))
    assert main(["show", store.catalog.url, "--json"]) == 0
    stale = json.loads(capsys.readouterr().out)["metrics"]
    assert stale["saco"]["value"] is None


def test_versions_and_kinds_are_compared(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    config = MeasureConfig(bootstrap=20)
    version = store.version("main")
    found = compare_versions(
        version,
        version,
        config,
        first_where="kind == 'demonstration'",
        second_where="kind == 'rollout'",
    )
    (compared,) = found.layouts
    assert found.verdict == "differ strongly"
    assert compared.drift.episodes == (40, 40)
    assert compared.states == ("observations/state",)
    with pytest.raises(UsageError, match="came none"):
        compare_versions(version, version, config, second_where="kind == 'synthetic'")

    url = store.catalog.url
    assert main(["drift", url, "--kind", "demonstration,rollout", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "differ strongly"
    assert said["layouts"][0]["drift"]["auc"] == pytest.approx(compared.drift.auc, abs=0.02)
    store.append(runs(80, 110, 0.0))
    numbers = [f"main:{n}" for n in (version.number - 1, version.number)]
    assert main(["drift", url, *numbers]) == 0
    assert "differ" in capsys.readouterr().out
    assert main(["drift", url, "main", "--kind", "demonstration"]) == 2
    assert "--kind A,B" in capsys.readouterr().err


def test_weights_follow_the_returns(store: Store) -> None:
    version = store.version("main")
    returns = np.array(version.episodes()["episode_return"].to_pylist())
    found = episode_weights(version, "returns", temperature=0.2)
    scaled = (returns - returns.min()) / np.ptp(returns)
    truth = np.exp(scaled / 0.2) / np.exp(scaled / 0.2).sum()
    np.testing.assert_allclose(found.table["weight"].to_numpy(), truth)
    assert found.effective == pytest.approx(1 / (truth**2).sum())
    assert found.largest_share == pytest.approx(truth.max())
    assert found.table["episode_id"].to_pylist() == version.episodes()["episode_id"].to_pylist()
    # The first state explains the return wholly: no episode has an advantage worth the name.
    even = episode_weights(version, "advantages", temperature=1e9)
    assert even.effective == pytest.approx(80)


def test_weights_of_every_kind_are_there(store: Store) -> None:
    measure_version(store, "main", MeasureConfig(metrics=("action_divergence",), bootstrap=0))
    version = store.version("main")
    for kind in KINDS:
        found = episode_weights(version, kind)  # type: ignore[arg-type]
        weights = found.table["weight"].to_numpy()
        assert (weights >= 0).all()
        assert 1 <= found.effective <= 80
        assert found.episodes <= 80
        assert (found.steps_effective is not None) == (kind == "awr")
    best = episode_weights(version, "quality").table["weight"].to_numpy()
    scores = np.array(version.episodes()["action_divergence"].to_pylist())
    assert np.argmax(best) == np.argmin(scores)
    with pytest.raises(UnknownNameError, match="returns"):
        episode_weights(version, "return")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="above 0"):
        episode_weights(version, "returns", temperature=0.0)
