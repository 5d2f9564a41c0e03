"""Ingest: changed episodes, new specs and casts on request; then looking, scoring, streaming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from pipeline.jobs import engines
from pipeline.jobs.export import export_version
from pipeline.jobs.measure import measure_version
from pipeline.jobs.report import IngestReport
from pipeline.jobs.summary import describe, field_stats
from pipeline.store.layout import new_id
from pipeline.store.store import open_store
from pipeline.stream.loader import Stream
from schemas.errors import ConfigError, SpecMismatchError, UnknownNameError, UsageError
from schemas.jobs import IngestJob
from schemas.metrics import MeasureConfig
from tests.connectors.makers import action_box, buffer, minari_dataset
from tests.episodes import write_d4rl

METRICS = MeasureConfig(metrics=("action_divergence", "length"), bootstrap=0)


def ingest(store: Path, *sources: Path | str, **options: Any) -> IngestReport:
    job = IngestJob(sources=tuple(map(str, sources)), into=str(store), run_id=new_id(), **options)
    return engines.run(job, None)


def minari_of(place: Path, seeds: list[int]) -> Path:
    """A Minari dataset of an identity that does not change; `seeds` decide what is in it."""
    shutil.rmtree(place, ignore_errors=True)
    box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    seen = [np.random.default_rng(seed).normal(size=(6, 3)).astype(np.float32) for seed in seeds]
    return Path(minari_dataset(place, [buffer(rows, 5) for rows in seen], (box, action_box())))


def test_a_changed_episode_is_quarantined_or_replaced(tmp_path: Path) -> None:
    source = minari_of(tmp_path / "m", [0, 1, 2])
    assert ingest(tmp_path / "s", source).episodes_added == 3
    source = minari_of(tmp_path / "m", [0, 7, 2])
    refused = ingest(tmp_path / "s", source)
    assert (refused.episodes_changed, refused.episodes_replaced) == (1, 0)
    assert (refused.episodes_quarantined, refused.reasons) == (1, {"id_conflict": 1})
    replaced = ingest(tmp_path / "s", source, on_change="replace")
    assert (replaced.episodes_changed, replaced.episodes_replaced) == (1, 1)
    assert (replaced.episodes_added, replaced.episodes_known) == (0, 2)
    assert (replaced.episodes_quarantined, replaced.steps_added) == (0, 5)
    again = ingest(tmp_path / "s", source, on_change="replace")
    assert again.version == replaced.version
    assert (again.episodes_changed, again.episodes_known) == (0, 3)
    version = open_store(tmp_path / "s").version()
    assert len(version) == 3
    expected = np.random.default_rng(7).normal(size=(6, 3)).astype(np.float32)
    kept = [one.observations["observations"] for one in version.iter_episodes()]
    assert sum(np.array_equal(rows, expected) for rows in kept) == 1


def test_another_spec_is_refused_named_or_cast(tmp_path: Path) -> None:
    store = tmp_path / "s"
    ingest(store, write_d4rl(tmp_path / "a.hdf5", [5, 7]))
    double = np.random.default_rng(3).normal(size=(9, 2))
    other = write_d4rl(tmp_path / "b.hdf5", [4, 5], actions=double, seed=1)
    with pytest.raises(SpecMismatchError, match="--new-spec"):
        ingest(store, other)
    assert ingest(store, other, new_spec="double", branch="n").episodes_added == 2
    cast = ingest(store, other, dtype="spec")
    assert cast.episodes_added == 2
    version = open_store(store).version()
    assert list(version.specs) == ["default"]
    assert version.message.endswith("; cast actions float64 to float32")
    np.testing.assert_array_equal(
        np.concatenate([one.flat_actions["actions"] for one in list(version.iter_episodes())[2:]]),
        double.astype(np.float32),
    )
    assert ingest(store, other, dtype="spec").episodes_added == 0
    assert ingest(store, other, dtype="float32").episodes_known == 2, "known by what came"
    with pytest.raises(ConfigError, match="float64"):
        ingest(store, other, dtype="int32")


def test_a_dtype_casts_every_float(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5], actions=np.zeros((5, 2)))
    ingest(tmp_path / "s", source, dtype="float16")
    (spec,) = open_store(tmp_path / "s").version().specs.values()
    assert {field.dtype for field in spec.fields.values()} == {"<f2"}


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two specs whose episodes differ in nothing but the actions' dtype and scale."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    states = rng.normal(size=(600, 4)).astype(np.float32)
    noise = rng.normal(size=(600, 2))
    calm = (states[:, :2] + 0.1 * noise).astype(np.float32)
    wild = states[:, :2] + 1.0 * noise
    lengths = [30] * 20
    ingest(tmp_path / "s", write_d4rl(tmp_path / "a", lengths, observations=states, actions=calm))
    ingest(
        tmp_path / "s",
        write_d4rl(tmp_path / "b", lengths, observations=states, actions=wild, seed=1),
        new_spec="wild",
    )
    return tmp_path / "s"


def test_scores_are_of_one_spec(two: Path, tmp_path: Path) -> None:
    store = open_store(two)
    measure_version(store, "main", METRICS)
    alone = open_store(tmp_path / "alone", create=True)
    for spec in ("default", "wild"):
        branch = "main" if spec == "default" else spec
        alone.append(store.version().iter_episodes(f"spec == '{spec}'"), branch=branch)
        expected = measure_version(alone, branch, METRICS).version.episodes()
        found = store.version().episodes(f"spec == '{spec}'")
        np.testing.assert_allclose(
            found["action_divergence"].to_numpy(), expected["action_divergence"].to_numpy()
        )
    # New episodes are judged by their own spec's reference, older scores are kept.
    lengths = [30] * 2
    more = write_d4rl(tmp_path / "c", lengths, actions=np.zeros((60, 2)), seed=5)
    ingest(two, more)
    again = measure_version(open_store(two), "main", METRICS)
    assert (again.episodes_scored, again.episodes_reused) == (2, 40)
    assert again.version.episodes("spec == 'wild'")["action_divergence"].null_count == 0


def test_what_is_shown_of_two_specs(two: Path) -> None:
    store = open_store(two)
    shown = describe(store, store.version())["specs"]
    assert {n: s["fields"]["actions"]["dtype"] for n, s in shown.items()} == {
        "default": "<f4",
        "wild": "<f8",
    }
    stats = field_stats(store.version())
    assert set(stats) == {
        *("observations", "rewards", "terminated", "truncated"),
        *("default:actions", "wild:actions"),
    }
    assert stats["observations"]["count"] == 1200
    assert stats["default:actions"]["count"] == 600
    assert stats["wild:actions"]["std"][0] > stats["default:actions"]["std"][0] + 0.2


def test_a_stream_takes_one_spec_or_what_they_share(two: Path) -> None:
    options: dict[str, Any] = {"framework": "numpy", "batch_size": 64}
    with pytest.raises(UsageError, match=r"default, wild.*spec=.*observations"):
        Stream(f"{two}@main", **options)
    with pytest.raises(UsageError, match=r"actions|common"):
        Stream(f"{two}@main", fields=("actions",), **options)
    with pytest.raises(UnknownNameError, match="wild"):
        Stream(f"{two}@main", spec="wlid", **options)
    own = next(iter(Stream(f"{two}@main", spec="wild", dtype="keep", **options)))
    assert own["actions"].dtype == np.float64
    assert (own["indices"] >= 620).all()
    shared = next(iter(Stream(f"{two}@main", fields=("observations", "rewards"), **options)))
    assert "actions" not in shared
    assert (shared["indices"] >= 620).any()
    assert (shared["indices"] < 620).any()


def test_an_export_is_of_one_spec(two: Path, tmp_path: Path) -> None:
    version = open_store(two).version()
    with pytest.raises(UsageError, match=r"--where \"spec == 'default'\""):
        export_version(version, "d4rl", str(tmp_path / "out.hdf5"))
    assert export_version(version, "d4rl", str(tmp_path / "out.hdf5"), "spec == 'wild'") == 20
