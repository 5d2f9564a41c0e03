"""Metric runs: equal numbers on every engine, new episodes alone, metrics that join later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.jobs import on_dask, scoring, tree
from pipeline.jobs.measure import measure_version
from pipeline.store.catalog import Catalog
from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError
from schemas.jobs import EngineConfig
from schemas.metrics import FeatureSpec, MeasureConfig, MetricValue

QUICK = MeasureConfig(bootstrap=10)
STEPS = 30


def demonstrations(first: int, last: int, dims: int = 4) -> Iterator[Episode]:
    """Noisy demonstrations of two tasks; every seventh repeats an earlier one."""
    for number in range(first, last):
        rng = np.random.default_rng(number - 6 if number % 7 == 6 else number)
        states = rng.normal(size=(STEPS + 1, dims)).cumsum(0)
        actions = np.sin(states[:-1, :2]) + 0.1 * rng.normal(size=(STEPS, 2))
        yield Episode(
            f"e{number}",
            {"observations": states},
            actions,
            rng.normal(size=STEPS),
            truncated=True,  # type: ignore[arg-type]
            task=("push", "reach")[number % 2] if number % 7 != 6 else "push",
        )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two commits of two tasks, and episodes of a second spec: several units each."""
    monkeypatch.setattr(scoring, "UNIT_STEPS", 10 * STEPS)
    store = open_store(tmp_path / "s", create=True)
    for first in range(0, 60, 12):
        store.append(demonstrations(first, first + 12))
    wide = [e.replace(episode_id=f"w{e.episode_id}") for e in demonstrations(100, 120, dims=5)]
    store.append(wide, new_spec="wide")
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Dask scheduler with two worker processes, by its address."""
    with on_dask.start(2) as local:
        yield local.scheduler_address


def numbers(value: MetricValue) -> np.ndarray:
    return np.array([value.value, value.standard_error, value.coverage], np.float64)


def same_everywhere(store: Store, engine: EngineConfig, *, shared: bool = False) -> None:
    seen = []
    alone = measure_version(store, "main", QUICK, branch="alone")
    outcome = measure_version(
        store,
        "main",
        QUICK,
        branch="spread",
        engine=engine,
        listener=lambda episodes, _steps: seen.append(episodes),
        shared_filesystem=shared,
    )
    assert outcome.fitted
    assert outcome.episodes_scored == 80
    assert outcome.metrics.keys() == alone.metrics.keys()
    expected, found = alone.version.episodes(), outcome.version.episodes()
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        if expected[name].type in ("double", "float"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-9)
        else:
            assert found[name].equals(expected[name]), name
    for name, value in alone.metrics.items():
        np.testing.assert_allclose(
            numbers(outcome.metrics[name]), numbers(value), rtol=1e-9, atol=1e-9, err_msg=name
        )
    assert sum(seen) in (0, 80)
    assert found["duplicate_of"].null_count < 80
    # One commit, and a second run has nothing to do.
    assert outcome.version.number == alone.version.number
    again = measure_version(store, "spread", QUICK, engine=engine, shared_filesystem=shared)
    assert (again.version.id, again.episodes_scored) == (outcome.version.id, 0)
    assert not again.fitted


def test_dask_finds_the_same(store: Store, cluster: str) -> None:
    engine = EngineConfig(engine="dask", address=cluster)
    same_everywhere(store, engine, shared=True)


def test_beam_finds_the_same(store: Store) -> None:
    same_everywhere(store, EngineConfig(engine="beam"))


@pytest.mark.slow
def test_processes_find_the_same(store: Store) -> None:
    same_everywhere(store, EngineConfig(workers=2))


def test_a_local_store_is_refused_where_workers_are_elsewhere(store: Store, cluster: str) -> None:
    with pytest.raises(UsageError, match="shared-filesystem"):
        measure_version(store, "main", QUICK, engine=EngineConfig(engine="dask", address=cluster))


@pytest.mark.parametrize("engine", ["in-process", "beam"])
def test_errors_of_workers_keep_their_type(store: Store, engine: str) -> None:
    config = MeasureConfig(features=FeatureSpec(observations=("observatoins",)))
    with pytest.raises(UnknownNameError, match="observatoins"):
        measure_version(
            store, "main", config, engine=EngineConfig.model_validate({"engine": engine})
        )
    assert store.version().state.score_sets == {}


# -- only what is new ----------------------------------------------------------------------------


class Opened:
    """Counts the blocks that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[str] = []
        read = Catalog.read_block

        def counted(catalog: Catalog, block, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.blocks.append(block.id)
            return read(catalog, block, *args, **kwargs)

        monkeypatch.setattr(Catalog, "read_block", counted)


def blocks_of(version: Version, first: str) -> set[str]:
    index = version.index()
    mine = [str(name).startswith(first) for name in index.episode_ids]
    return {index.data_ids[at] for at in index.data[mine]}


def test_only_blocks_with_new_episodes_are_opened(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure_version(store, "main", QUICK)
    copy = store.version().episode("e0").replace(episode_id="new0")
    store.append(
        [copy, *(e.replace(episode_id=f"new{e.episode_id}") for e in demonstrations(200, 205))]
    )
    opened = Opened(monkeypatch)
    again = measure_version(store, "main", QUICK)
    assert (again.episodes_scored, again.episodes_reused) == (6, 80)
    assert not again.fitted
    assert again.reference == first.reference
    assert again.score_set == first.score_set
    assert set(opened.blocks) == blocks_of(again.version, "new")
    # Dataset values are of all episodes, old scores from overlays.
    assert {value.episodes for value in again.metrics.values()} == {86}
    assert {value.rows for value in again.metrics.values()} == {86 * STEPS}
    found = again.version.episodes(columns=["episode_id", "duplicate_of"]).to_pydict()
    copies = dict(zip(found["episode_id"], found["duplicate_of"], strict=True))
    assert copies["new0"] == "e0"
    assert copies["e6"] == "e0"
    before = first.version.episodes().to_pydict()
    after = again.version.episodes().slice(0, 80).to_pydict()
    assert after == before


def test_a_metric_that_joins_later_is_not_refitted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = QUICK.model_copy(update={"metrics": ("action_divergence", "length")})
    more = ("action_divergence", "coverage", "smoothness", "length")
    first = measure_version(store, "main", some)
    store.append(e.replace(episode_id=f"n{e.episode_id}") for e in demonstrations(200, 205))
    opened = Opened(monkeypatch)
    second = measure_version(store, "main", QUICK.model_copy(update={"metrics": more}))
    assert not second.fitted
    assert second.score_set == first.score_set
    assert (second.episodes_scored, second.episodes_reused) == (85, 0)
    assert len(opened.blocks) < 2 * 85 + 20, "each episode is read once"
    score_set = second.version.state.score_sets[second.score_set]
    assert set(score_set.metrics) == set(more)
    # Just as if all had been asked for at once, of the same reference.
    whole = measure_version(
        store,
        "main",
        QUICK.model_copy(update={"metrics": more}),
        reference=first.reference,
        branch="whole",
    )
    assert whole.fitted
    found, expected = second.version.episodes(), whole.version.episodes()
    for name in more:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)


def test_a_model_that_was_never_fitted_does_not_suffice(store: Store) -> None:
    local = measure_version(store, "main", QUICK.model_copy(update={"metrics": ("smoothness",)}))
    names = ("smoothness", "coverage")
    both = measure_version(store, "main", QUICK.model_copy(update={"metrics": names}))
    assert both.fitted
    assert both.score_set != local.score_set
    # And local metrics alone join what is there.
    third = measure_version(store, "main", QUICK.model_copy(update={"metrics": ("integrity",)}))
    assert (third.score_set, third.fitted) == (both.score_set, False)
    assert set(third.metrics) == {"integrity"}
    assert third.version.episodes()["smoothness"].null_count == 0


# -- the tree ------------------------------------------------------------------------------------


class Sum:
    """A part that remembers how it was merged."""

    def __init__(self, text: str) -> None:
        self.text = text

    def merge(self, other: Sum) -> Sum:
        return Sum(f"({self.text}{other.text})")


@pytest.mark.parametrize("units", [1, 2, 3, 5, 8, 11])
def test_parts_merge_in_one_tree_whatever_the_order(units: int) -> None:
    found = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        nodes: tree.Nodes[Sum] = {}
        lots: list[tree.Nodes[Sum]] = [{}, {}, {}]
        for unit in rng.permutation(units):
            part = {"layout": Sum(chr(97 + int(unit)))}
            tree.put(lots[rng.integers(3)], (0, int(unit)), part)  # type: ignore[arg-type]
        nodes = tree.join(lots[at] for at in rng.permutation(3))
        found.add(tree.total(nodes)["layout"].text)  # type: ignore[index]
    assert len(found) == 1
    assert found.pop().replace("(", "").replace(")", "") == "abcdefghijk"[:units]
