"""The stages of the demo, each a call of what users call themselves.

Demonstrations come from a scripted controller whose action noise, and so whose quality, is known;
nothing after collection is told about it. So the table at the end can say whether scores found the
quality, and whether learning got past the demonstrations.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from connectors import gymnasium, registry
from learners.finetune import FinetuneConfig, finetune
from learners.run import Report, RunResult
from learners.runlog import EVALUATIONS, read_table
from learners.scripted import ENVIRONMENT, NOISE_LEVELS, PoleBalancer
from learners.train import TrainConfig, train
from pipeline.cli.output import note
from pipeline.cli.progress import count_bar
from pipeline.curation.select import Curation, apply
from pipeline.jobs import engines
from pipeline.jobs.measure import measure_version
from pipeline.store.layout import new_id
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.jobs import IngestJob
from schemas.metrics import MeasureConfig

DATASET = "penstock/double-pendulum-mixed-v0"
TAG = "demo-clean"
WORKERS = 2


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    episodes_per_level: int
    seeds: int
    bc_steps: int
    iql_steps: int
    env_steps: int
    evaluate_every: int
    """Environment steps between evaluations while fine-tuning."""
    evaluation_episodes: int


FULL = Scale(
    episodes_per_level=25,
    seeds=3,
    bc_steps=2_000,
    iql_steps=3_000,
    env_steps=16_000,
    evaluate_every=4_000,
    evaluation_episodes=10,
)
QUICK = Scale(
    episodes_per_level=15,
    seeds=1,
    bc_steps=1_000,
    iql_steps=1_500,
    env_steps=8_000,
    evaluate_every=8_000,
    evaluation_episodes=5,
)

# Small networks, a shorter horizon and rewards scaled to about one: what makes a few thousand
# updates enough. The same for every seed; scores are of the last checkpoint.
OFFLINE: dict[str, Any] = {"batch_size": 256, "discount": 0.98}
BC_SETTINGS: dict[str, Any] = {"hidden": [64, 64], "standardise": True, "learning_rate": 1e-3}
IQL_SETTINGS: dict[str, Any] = {
    "hidden": [64, 64],
    "standardise": True,
    "temperature": 1.0,
    "value_rate": 2e-3,
    "critic_rate": 2e-3,
    "policy_rate": 1e-3,
    "tau": 0.02,
    "reward_scale": 0.1,
}
ONLINE: dict[str, Any] = {
    "updates_per_step": 0.5,
    "warmup_steps": 500,
    "exploration": "gaussian",
    "noise": 0.2,
    "settings": {"temperature": 10.0},
}


@dataclass
class DemoReport:
    """Everything the demo found out."""

    environment: str
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Dataset values of the ingested version."""
    ranking: dict[str, Any] = field(default_factory=dict)
    """How the scores rank the known qualities."""
    curated: dict[str, Any] = field(default_factory=dict)
    seeds: list[dict[str, Any]] = field(default_factory=list)
    """Returns of BC, IQL offline and IQL fine-tuned, by seed."""
    summary: dict[str, Any] = field(default_factory=dict)


def run(folder: Path, scale: Scale, *, quiet: bool = False) -> DemoReport:
    """Runs all stages in a folder.

    Raises:
        UsageError: if the folder holds something that no demo made.
    """
    _make_room(folder)
    report = DemoReport(ENVIRONMENT)
    store = str(folder / "store")
    with _stage(report, "collect", quiet):
        dataset, noises = _collect(folder / "minari", scale)
    with _stage(report, "ingest", quiet):
        _ingest(report, dataset, store)
    with _stage(report, "measure", quiet):
        _measure(report, store, noises)
    with _stage(report, "curate", quiet):
        _curate(report, store)
    with _stage(report, "learn", quiet):
        report.seeds = _learn(folder, store, scale, quiet)
    report.summary = _summary(report.seeds)
    return report


class _stage:  # noqa: N801 - reads like a function
    """Times a stage and says that it began."""

    def __init__(self, report: DemoReport, name: str, quiet: bool) -> None:
        self._report, self._name, self._quiet = report, name, quiet

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        if not self._quiet:
            note(f"{self._name} ...")

    def __exit__(self, *_: object) -> None:
        self._report.stages[self._name] = round(time.perf_counter() - self._began, 2)


def _make_room(folder: Path) -> None:
    """Empties a folder that an earlier demo made; touches no other."""
    marker = folder / ".penstock-demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise UsageError(
                "Expected a new folder, or one an earlier demo made, for --dir; came one with "
                "other files.",
                where=str(folder),
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


# -- data ----------------------------------------------------------------------------------------


def _collect(folder: Path, scale: Scale) -> tuple[Path, list[float]]:
    """Writes demonstrations as a Minari dataset; returns it and each episode's noise."""
    where = folder / DATASET
    noises = [level for level in NOISE_LEVELS for _ in range(scale.episodes_per_level)]
    registry.sink("minari").write(
        _demonstrations(scale), str(where), {"dataset_id": DATASET, "algorithm_name": "scripted"}
    )
    return where, noises


def _demonstrations(scale: Scale) -> Iterator[Episode]:
    for number, level in enumerate(NOISE_LEVELS):
        yield from gymnasium.collect(
            ENVIRONMENT, PoleBalancer(level), scale.episodes_per_level, seed=10_000 * number
        )


def _ingest(report: DemoReport, dataset: Path, store: str) -> None:
    job = IngestJob(sources=(str(dataset),), into=store, tag="demo-raw", run_id=new_id())
    done = engines.run(job)
    again = engines.run(job.model_copy(update={"run_id": new_id(), "tag": None}))
    report.versions["ingested"] = done.version or ""
    report.metrics["episodes_added"] = done.episodes_added
    report.metrics["steps_added"] = done.steps_added
    report.metrics["episodes_added_again"] = again.episodes_added


def _measure(report: DemoReport, store: str, noises: list[float]) -> None:
    """Scores the episodes and holds the scores against the noise they were made with."""
    measured = measure_version(open_store(store), "main", MeasureConfig())
    report.versions["measured"] = measured.version.id
    report.metrics |= {name: metric.value for name, metric in measured.metrics.items()}
    table = measured.version.episodes(columns=["episode_id", "action_divergence", "episode_return"])
    order = [int(name.rsplit("_", 1)[1]) for name in table["episode_id"].to_pylist()]
    known = np.array(noises)[order]
    scores = table["action_divergence"].to_numpy()
    returns = table["episode_return"].to_numpy()
    scored = np.isfinite(scores)
    report.ranking = {
        "spearman": float(stats.spearmanr(known[scored], scores[scored]).statistic),
        "scored": int(scored.sum()),
        "levels": [
            {
                "noise": level,
                "episodes": int((known == level).sum()),
                "action_divergence": float(np.nanmean(scores[known == level])),
                "episode_return": float(returns[known == level].mean()),
            }
            for level in NOISE_LEVELS
        ],
        "points": {"noise": known.tolist(), "action_divergence": scores.tolist()},
    }


def _curate(report: DemoReport, store: str) -> None:
    """Keeps the half of the episodes with the lowest divergence, as a tagged version."""
    opened = open_store(store)
    wanted = Curation(
        where="action_divergence <= quantile(action_divergence, 0.5)", unscored="drop"
    )
    selection = apply(opened.version("main"), wanted)
    version = selection.commit(branch="clean")
    opened.tag(TAG, version)
    report.versions["curated"] = version.id
    report.curated = {
        "filter": selection.derivation.where,
        "resolved": selection.derivation.resolved,
        "episodes": len(version),
        "of": len(selection.mask),
    }


# -- learning ------------------------------------------------------------------------------------


def _learn(folder: Path, store: str, scale: Scale, quiet: bool) -> list[dict[str, Any]]:
    """Trains, fine-tunes and evaluates every seed, two at a time."""
    context = multiprocessing.get_context("spawn")
    total = scale.seeds * (scale.bc_steps + scale.iql_steps + scale.env_steps)
    with context.Manager() as manager, count_bar("learn", total, quiet=quiet) as advance:
        done = manager.dict()
        with ProcessPoolExecutor(min(WORKERS, scale.seeds), mp_context=context) as pool:
            futures = [
                pool.submit(_learn_seed, str(folder), store, scale, seed, done)
                for seed in range(scale.seeds)
            ]
            while not all(future.done() for future in futures):
                advance(sum(done.values()))
                time.sleep(0.3)
            return [future.result() for future in futures]


def _learn_seed(folder: str, store: str, scale: Scale, seed: int, done: Any) -> dict[str, Any]:
    """One seed: BC and IQL offline on the curated version, then IQL online through the store."""
    runs = Path(folder) / "runs"

    def progress(stage: str) -> Report:
        return lambda now: done.__setitem__(f"{seed}/{stage}", now.done)

    bc = _offline("bc", runs / f"bc-{seed}", store, scale, seed, progress("bc"))
    iql = _offline("iql", runs / f"iql-{seed}", store, scale, seed, progress("iql"))
    tuned = finetune(
        FinetuneConfig(
            run=str(runs / f"iql-{seed}"),
            environment=ENVIRONMENT,
            into=store,
            branch=f"online-{seed}",
            env_steps=scale.env_steps,
            evaluate_every=scale.evaluate_every,
            evaluate_episodes=scale.evaluation_episodes,
            seed=seed,
            **ONLINE,
        ),
        progress("finetune"),
    )
    return {
        "seed": seed,
        "bc": _returns(bc),
        "iql_offline": _returns(iql),
        "iql_finetuned": _returns(tuned),
        "updates_per_second": {"bc": bc.updates_per_second, "iql": iql.updates_per_second},
        "curve": _curve(Path(tuned.run)),
    }


def _offline(
    algo: str, out: Path, store: str, scale: Scale, seed: int, report: Report
) -> RunResult:
    is_iql = algo == "iql"
    return train(
        TrainConfig(
            algo=algo,
            data=(f"{store}@{TAG}",),
            out=str(out),
            steps=scale.iql_steps if is_iql else scale.bc_steps,
            seed=seed,
            environment=ENVIRONMENT,
            evaluate_episodes=scale.evaluation_episodes,
            settings=IQL_SETTINGS if is_iql else BC_SETTINGS,
            **OFFLINE,
        ),
        report,
    )


def _returns(result: RunResult) -> dict[str, Any]:
    evaluation = result.evaluation
    if evaluation is None:
        return {}
    return {
        "mean_return": evaluation.mean_return,
        "interval": list(evaluation.interval),
        "returns": list(evaluation.returns),
    }


def _curve(run: Path) -> list[dict[str, float]]:
    """Evaluations while fine-tuning, by environment steps."""
    rows = read_table(run / EVALUATIONS)
    return [
        {"env_steps": float(row["env_steps"]), "mean_return": float(row["mean_return"])}
        for row in rows
    ]


def _summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of the last checkpoints, and in how many seeds the order holds."""
    names = ("bc", "iql_offline", "iql_finetuned")
    means = {n: [seed[n]["mean_return"] for seed in seeds] for n in names}
    tuned, offline, cloned = means["iql_finetuned"], means["iql_offline"], means["bc"]
    return {
        **{name: float(np.mean(values)) for name, values in means.items()},
        "seeds": len(seeds),
        "finetuned_above_offline": sum(t > o for t, o in zip(tuned, offline, strict=True)),
        "finetuned_above_bc": sum(t > b for t, b in zip(tuned, cloned, strict=True)),
    }
