"""Learners on streams of any form: settings, runs that follow a branch, successes that join."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learners.checkpoint import load_checkpoint
from learners.finetune import FinetuneConfig, finetune
from learners.replay import replay, replays
from learners.run import Progress
from learners.sampling import as_rows, check_stream
from learners.train import TrainConfig, train
from pipeline.store import runs
from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.errors import ConfigError, PenstockError, UnknownNameError
from tests.learners.homing import ENVIRONMENT, demonstrations

pytestmark = pytest.mark.usefixtures("homing")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(40))
    return made


def config(store: Store, out: Path, steps: int = 40, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "algo": "iql",
        "data": (store.url,),
        "out": str(out),
        "steps": steps,
        "settings": {"hidden": (8, 8)},
        "batch_size": 32,
        "log_every": 10,
        "checkpoint_every": 15,
    }
    return TrainConfig(**{**given, **changes})


def online(store: Store, run: Path, **changes: Any) -> FinetuneConfig:
    given: dict[str, Any] = {
        "run": str(run),
        "environment": ENVIRONMENT,
        "into": store.url,
        "env_steps": 160,
        "round_steps": 40,
        "exploration": "gaussian",
        "noise": 0.5,
    }
    return FinetuneConfig(**{**given, **changes})


def stop_at(step: int) -> Any:
    def report(progress: Progress) -> None:
        if progress.done == step:
            raise InterruptedError

    return report


def same(one: Path, two: Path) -> None:
    left, right = load_checkpoint(one), load_checkpoint(two)
    assert left.step == right.step
    for name, tensor in left.tensors.items():
        assert torch.equal(tensor, right.tensors[name]), name


# -- settings of streams ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        {"sampler": "shuffle", "residency": "windowed", "memory": "16MB"},
        {"sampler": "episode", "n_step": 3, "residency": "ram"},
        {"sampler": "weighted", "weights": "episode_return"},
        {"sampler": "window", "window": 4, "history": 1},
    ],
)
def test_a_run_takes_settings_of_streams_and_resumes_exactly(
    tmp_path: Path, store: Store, stream: dict[str, Any]
) -> None:
    if "weights" in stream:
        ids = store.version().episodes(columns=["episode_id"])["episode_id"].to_pylist()
        grades = {"episode_id": ids, "grade": [float(k % 3) for k in range(len(ids))]}
        store.version().annotate(pa.table(grades))
        stream = {**stream, "weights": "grade"}
    train(config(store, tmp_path / "whole", stream=stream))
    with pytest.raises(InterruptedError):
        train(config(store, tmp_path / "half", stream=stream), stop_at(30))
    elsewhere = {**stream, "residency": "mmap"}
    elsewhere.pop("memory", None)
    train(config(store, tmp_path / "half", stream=elsewhere, resume=True))
    same(tmp_path / "whole", tmp_path / "half")
    document = load_checkpoint(tmp_path / "half").document
    assert document["config"]["stream"] == elsewhere
    assert document["stream"]["sampler"] == stream["sampler"]
    for step in (0, 17, 39):
        one, two = (replay(str(tmp_path / name), step) for name in ("whole", "half"))
        assert one.rows == two.rows
    changed = {**elsewhere, "sampler": "transition"}
    with pytest.raises(ConfigError, match="sampler"):
        train(config(store, tmp_path / "half", 50, stream=changed, resume=True))


@pytest.mark.parametrize(
    ("stream", "error", "said"),
    [
        ({"sampler": "shufle"}, UnknownNameError, "'shuffle'"),
        ({"smapler": "shuffle"}, UnknownNameError, "'sampler'"),
        ({"batch_size": 3}, ConfigError, "--batch-size"),
        ({"goals": "final"}, ConfigError, "do not read"),
        ({"frame_stack": 2}, ConfigError, "do not read"),
        ({"sampler": "prioritised"}, ConfigError, "'weighted'"),
        ({"residency": "windowed"}, ConfigError, "shuffle"),
        ({"sampler": "window"}, ConfigError, "window="),
    ],
)
def test_settings_that_learners_do_not_take(
    tmp_path: Path, store: Store, stream: dict[str, Any], error: type[PenstockError], said: str
) -> None:
    with pytest.raises(error, match=said):
        train(config(store, tmp_path / "run", stream=stream))
    assert not (tmp_path / "run").exists()


def test_steps_of_windows_are_rows(store: Store) -> None:
    check_stream({"sampler": "window", "window": 3})
    batch = next(Stream(store.version(), sampler="window", window=3, batch_size=5))
    rows = as_rows(batch)
    assert rows["observations"].shape == (15, 1)
    assert rows["mask"].shape == rows["rewards"].shape == (15,)
    torch.testing.assert_close(rows["actions"][3:6], batch["actions"][1])


def test_a_run_that_follows_a_branch_reads_what_it_had_decided(
    tmp_path: Path, store: Store
) -> None:
    stream = {"follow": "main", "follow_every": 20}

    def grow(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == 20:
            store.append(demonstrations(20, first=100))
        if progress.done == 90:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config(store, tmp_path / "run", 120, stream=stream), grow)
    store.append(demonstrations(20, first=200))
    train(config(store, tmp_path / "run", 120, stream=stream, resume=True))
    (name,) = runs.runs(store.catalog)
    references = runs.references(store.catalog, name)
    assert [r.versions[0].number for r in references][:4] == [1, 1, 1, 1]
    versions = load_checkpoint(tmp_path / "run").document["stream"]["versions"]
    assert len(versions) == 2
    again = Stream(store.url, run=name, batch_size=32, framework="numpy")
    drawn = [next(again)["indices"] for _ in range(120)]
    for made in replays(str(tmp_path / "run")):
        np.testing.assert_array_equal(made.batch["indices"], drawn[made.step])
    assert made.step == 119
    for step in (0, 70, 119):
        found = replay(str(tmp_path / "run"), step)
        np.testing.assert_array_equal(found.batch["indices"], drawn[step])
    assert (found.rows, found.versions) == (made.rows, made.versions)


# -- successes join the demonstrations -------------------------------------------------------------


def test_successes_join_the_demonstrations(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(store, tmp_path / "run", 5))
    held: list[tuple[set[str], int]] = []

    def watched(self: Mixture) -> Any:
        joined = self.members[-1][0]
        ids = set(joined.episodes(columns=["episode_id"])["episode_id"].to_pylist())
        step, weights = self.step, self.counts(self.step)
        batch = drawn(self)
        assert int(batch["is_demonstration"].sum()) == weights[0] + weights[2]
        held.append((ids, weights[2]))
        assert sum(weights) == 32
        assert self.step == step + 1
        return batch

    drawn = Mixture.__next__
    monkeypatch.setattr(Mixture, "__next__", watched)
    result = finetune(online(store, tmp_path / "run", join_successes=True))
    monkeypatch.setattr(Mixture, "__next__", drawn)
    version = store.version(result.data[-1].version)
    rows = version.episodes(columns=["episode_id", "success", "length"]).to_pylist()
    successes = [row for row in rows if row["success"]]
    assert 0 < len(successes) < len(rows)
    # Each version that the demonstrations were decided to have holds what had succeeded by then.
    name = next(run for run in runs.runs(store.catalog) if not _is_offline(store, run))
    references = runs.references(store.catalog, name)
    assert len(references) > 2
    for reference in references:
        rollouts, joined = (
            store.catalog.refs.read(v.branch, v.number)
            for v in (reference.versions[1], reference.versions[2])
        )
        told = _episodes(store, rollouts.id, "success")
        if told:
            assert _episodes(store, joined.id) == told
            assert held[reference.step][0] == told
    assert held[-1][0] == {row["episode_id"] for row in successes[: len(held[-1][0])]}
    assert held[-1][1] > 0
    # Their part of the demonstrations' half is that of their transitions.
    weights = references[-1].mixture.weights if references[-1].mixture else ()
    found = store.version(references[-1].versions[2].id)
    mine = sum(found.episodes(columns=["length"])["length"].to_pylist())
    offline = sum(store.version().episodes(columns=["length"])["length"].to_pylist())
    share = eval_fraction(weights[2]) / (eval_fraction(weights[0]) + eval_fraction(weights[2]))
    assert share == pytest.approx(mine / (mine + offline), rel=0.1)
    assert eval_fraction(weights[1]) == 0.5


def eval_fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return int(above) / int(below or 1)


def _is_offline(store: Store, run: str) -> bool:
    return len(runs.references(store.catalog, run)[0].versions) == 1


def _episodes(store: Store, version: str, where: str | None = None) -> set[str]:
    table = store.version(version).episodes(where, columns=["episode_id"])
    return set(table["episode_id"].to_pylist())


def test_a_resumed_run_lets_the_same_successes_join(tmp_path: Path, store: Store) -> None:
    """Also where the last round's commit is there, and its checkpoint is not."""
    train(config(store, tmp_path / "run", 5))

    def run(name: str, env_steps: int, **more: Any) -> None:
        out = str(tmp_path / name)
        finetune(
            online(
                store,
                tmp_path / "run",
                env_steps=env_steps,
                out=out,
                branch=name,
                join_successes=True,
                **more,
            )
        )

    run("whole", 150)
    run("half", 80)
    folder = tmp_path / "half" / "checkpoints"
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    run("half", 120, resume=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    run("half", 150, resume=True)
    same(tmp_path / "whole", tmp_path / "half")
    last = load_checkpoint(tmp_path / "half").document["stream"]["step"] - 1
    for step in (0, last // 2, last):
        one, two = (replay(str(tmp_path / name), step) for name in ("whole", "half"))
        np.testing.assert_array_equal(one.batch["observations"], two.batch["observations"])


def test_fine_tuning_takes_over_how_rows_are_drawn(tmp_path: Path, store: Store) -> None:
    stream = {"sampler": "shuffle", "n_step": 2}
    train(config(store, tmp_path / "run", 5, stream=stream))
    finetune(online(store, tmp_path / "run", env_steps=60, stream={"residency": "ram"}))
    document = load_checkpoint(tmp_path / "run" / "finetune").document
    assert document["sampling"]["stream"] == {**stream, "residency": "ram"}
    assert document["stream"]["samplers"] == ["shuffle", "shuffle"]
    out = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="taken over"):
        finetune(online(store, tmp_path / "run", out=out, stream={"n_step": 3}))
