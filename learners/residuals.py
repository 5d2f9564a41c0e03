"""What networks leave over of episodes they have not seen: divergence and diversity, out of fold.

Fits in clusters of similar states are exact where a policy is locally linear, and blind above some
six curved state dims: too few rows share a cluster. There a small network predicts better. Episodes
are split into folds by a hash of their rows, so that copies share a fold; one network per fold is
trained on the other folds, and every episode is scored by the one that has not seen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from learners.networks import MLP
from learners.optimiser import cosine_rate, descend, flatten, make_adam
from learners.run import threads
from pipeline.quality.action import MAX_FAULTY_SHARE, episode_means
from pipeline.quality.blocks import Block, blocks
from pipeline.quality.columns import moving_columns
from pipeline.quality.dataset import standard_errors
from pipeline.quality.evidence import Frame
from pipeline.quality.features import Layout
from pipeline.quality.passes import accumulate, merge
from pipeline.quality.reference import of_spec, with_spec
from pipeline.quality.registry import NETWORK_METRICS
from pipeline.quality.sample import mix
from pipeline.quality.sketch import Sketch, SketchStage
from pipeline.quality.transition import pooled_noise, surprisal
from pipeline.store import layout as names
from pipeline.store.reader import Version
from pipeline.store.scores import Scores, commit_scores, save_model, scored_ids
from schemas.errors import UsageError
from schemas.metrics import FeatureSpec, MeasureConfig, MetricValue, NetworkConfig, ScoreSet

POLICY, DYNAMICS = NETWORK_METRICS
LEAST_ROWS = 100
"""Below so many rows of a task there is nothing to train on."""
PREDICT_ROWS = 65_536


@dataclass(frozen=True)
class Residuals:
    """The outcome of a run."""

    version: Version
    score_set: str
    metrics: Mapping[str, MetricValue]
    episodes_scored: int
    """0 if all were scored by such networks already."""


@dataclass(frozen=True)
class Problem:
    """Rows of one layout to predict, each owned by an episode."""

    x: np.ndarray  # (N, p) float32
    y: np.ndarray  # (N, q) float32, in units of about one
    scale: np.ndarray  # (q,) float64, what y was divided by
    owners: np.ndarray  # (N,) int64, position of the row's episode
    folds: np.ndarray  # (N,) int64
    trains: np.ndarray  # (N,) bool, rows that networks are trained on


def measure_residuals(
    version: Version,
    config: NetworkConfig,
    features: FeatureSpec | None = None,
    *,
    branch: str | None = None,
    device: str = "cpu",
) -> Residuals:
    """Scores all of a version's episodes by networks, and commits a score set of their own.

    All rows of one spec are held in memory: 4 bytes for each number of state, action and change.

    Args:
        version: what to score; new episodes want another run, which trains on all of them.
        config: how networks are trained.
        features: which arrays count as state and action.
        branch: where the scores go; by default the version's, whose head it must be.
        device: where networks are trained.

    Raises:
        UsageError: if the version is not its branch's head and no branch is named.
    """
    features = features or FeatureSpec()
    target = branch or version.branch
    head = version.store.refs.head(target)
    if head is None or (branch is None and head.id != version.id):
        raise UsageError(
            f"Expected a branch's newest version, came {version.branch}:{version.number}; name a "
            f"branch that is there for the scores."
        )
    ids = version.episodes(columns=["episode_id"])["episode_id"]
    known = _known(version, config, features, ids)
    if known is not None:
        return known
    scores = {name: np.full(len(ids), np.nan) for name in NETWORK_METRICS}
    weights: dict[str, np.ndarray] = {}
    order = {name: at for at, name in enumerate(ids.to_pylist())}
    for spec in version.specs:
        _score_spec(version, spec, (config, features, device), order, scores, weights)
    lengths = version.episodes(columns=["length"])["length"].to_numpy()
    measured = MeasureConfig(metrics=tuple(NETWORK_METRICS), features=features, seed=config.seed)
    score_set = ScoreSet(
        id=names.new_id(),
        metrics={name: metric.version for name, metric in NETWORK_METRICS.items()},
        reference=version.id,
        config=measured,
        model=save_model(version.store, weights, {"networks": config.model_dump(mode="json")}),
        networks=config,
    )
    values = _values(scores, lengths, measured)
    columns = {
        name: pa.array(one, pa.float64(), mask=~np.isfinite(one)) for name, one in scores.items()
    }
    commit = commit_scores(
        version.store,
        target,
        Scores(score_set, pa.table({"episode_id": ids, **columns}), values),
        f"residuals of {config.folds} networks trained for {config.epochs} epochs",
        base=version.commit,
    )
    return Residuals(Version(version.store, commit), score_set.id, values, len(ids))


def _known(
    version: Version, config: NetworkConfig, features: FeatureSpec, ids: pa.ChunkedArray
) -> Residuals | None:
    """What the version shows already, if it is of all its episodes and of equal settings."""
    state = version.state
    record = state.metrics.get(POLICY)
    if record is None:
        return None
    score_set = state.score_sets[record.score_set]
    if score_set.networks != config or score_set.config.features != features:
        return None
    scored = scored_ids(version.store, state, score_set.id, POLICY)
    if not pc.all(pc.is_in(ids, value_set=scored), min_count=0).as_py():
        return None
    values = {name: state.metrics[name].value for name in NETWORK_METRICS}
    return Residuals(version, score_set.id, values, 0)


def _score_spec(
    version: Version,
    spec: str,
    settings: tuple[NetworkConfig, FeatureSpec, str],
    order: Mapping[str, int],
    scores: Mapping[str, np.ndarray],
    weights: dict[str, np.ndarray],
) -> None:
    """Fills in the scores of one spec's episodes, and the networks' weights."""
    config, features, device = settings
    where = f"spec == '{spec}'"
    stage = SketchStage(MeasureConfig(features=features, clusters=1, seed=config.seed))
    sketched: dict[Layout, Sketch] = {}
    sketched = merge(sketched, with_spec(accumulate(version.iter_episodes(where), stage), spec))
    frames = of_spec(stage.finalise(sketched).frames, spec)
    ids: list[int] = []

    def watched() -> Any:
        for episode in version.iter_episodes(where):
            ids.append(order[episode.episode_id])
            yield episode

    alike: dict[Layout, list[Block]] = {}
    for block in blocks(watched(), features):
        alike.setdefault(block.layout, []).append(block)
    places = np.array(ids, np.int64)
    for layout, some in alike.items():
        frame = frames[layout]
        faulty = {POLICY: "faulty_actions", DYNAMICS: "faulty_transitions"}
        for name, problem in problems(frame, layout, some, config).items():
            if len(problem.y) < LEAST_ROWS:
                continue
            with threads(1):  # small networks gain nothing from more, and equal sums repeat
                residual, trained = out_of_fold(problem, config, device)
            readings = _readings(name, residual, problem, frame)
            found = episode_means(readings, problem.owners, len(places))
            for block in some:
                share = getattr(block, faulty[name]) > MAX_FAULTY_SHARE * block.lengths
                found[block.positions[share]] = np.nan
            mine = np.concatenate([block.positions for block in some])
            scores[name][places[mine]] = found[mine]
            weights |= {f"{spec}/{layout.key}/{name}/{part}": w for part, w in trained.items()}


def problems(
    frame: Frame, layout: Layout, some: list[Block], config: NetworkConfig
) -> dict[str, Problem]:
    """Returns what is to be predicted of some blocks of one layout, by metric."""
    found: dict[str, list[tuple[np.ndarray, ...]]] = {POLICY: [], DYNAMICS: []}
    moving = moving_columns(layout.states, frame.states.kept)
    for block in some:
        x = frame.states.predict_from(np.nan_to_num(block.states, posinf=0.0, neginf=0.0))
        owners, marks = block.positions[block.episodes], block.fingerprints[block.episodes]
        a, m = block.acting, block.moving
        found[POLICY].append((x[a], frame.targets.encode(block.targets[a]), owners[a], marks[a]))
        drives = np.concatenate([x[m], frame.controls.encode(block.actions[m])], axis=1)
        found[DYNAMICS].append((drives, block.changes[m][:, moving], owners[m], marks[m]))
    made = {}
    for name, parts in found.items():
        x, y, owners, marks = (np.concatenate(one) for one in zip(*parts, strict=True))
        if not y.shape[1]:
            continue
        deviation = y.std(0) if name == DYNAMICS and len(y) else np.ones(y.shape[1])
        scale = np.where(deviation > 0, deviation, 1.0)
        made[name] = Problem(
            x=x.astype(np.float32),
            y=(y / scale).astype(np.float32),
            scale=scale,
            owners=owners,
            folds=(mix(marks, np.full(len(marks), config.seed)) % config.folds).astype(np.int64),
            trains=_within(marks, config),
        )
    return made


def _within(marks: np.ndarray, config: NetworkConfig) -> np.ndarray:
    """(N,) bool, the rows of whole episodes, by their hash, that make `max_rows` at most."""
    hashes = mix(marks, np.full(len(marks), config.seed + 1))
    if len(hashes) <= config.max_rows:
        return np.ones(len(hashes), bool)
    return np.asarray(hashes < np.sort(hashes)[config.max_rows])


def out_of_fold(
    problem: Problem, config: NetworkConfig, device: str = "cpu"
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Trains one network per fold on the others; returns (N, q) residuals and the weights.

    The networks lie side by side and see the same batches, each without the rows of its own fold.
    """
    generator = torch.Generator().manual_seed(config.seed)
    sizes = (problem.x.shape[1], *config.hidden, problem.y.shape[1])
    network = MLP(sizes, [generator], members=config.folds).to(device)
    network = _rescaled(network)
    flat = flatten(network.parameters())
    optimiser = make_adam((flat, config.learning_rate))
    x, y = torch.as_tensor(problem.x, device=device), torch.as_tensor(problem.y, device=device)
    folds = torch.as_tensor(problem.folds, device=device)
    members = torch.arange(config.folds, device=device)[:, None]
    rows = torch.as_tensor(np.flatnonzero(problem.trains))
    batches = -(-len(rows) // config.batch_size)
    for epoch in range(config.epochs):
        shuffled = rows[torch.randperm(len(rows), generator=generator)].to(device)
        for number, batch in enumerate(torch.split(shuffled, config.batch_size)):
            done = epoch * batches + number
            rate = cosine_rate(config.learning_rate, done, config.epochs * batches)
            optimiser.set_rate(0, rate)
            seen = (folds[batch] != members).to(x.dtype)[:, :, None]  # (folds, B, 1)
            error = (network(x[None, batch])[0] - y[batch]) * seen
            descend(optimiser, error.square().mean())
    residual = np.empty_like(problem.y)
    with torch.no_grad():
        for start in range(0, len(x), PREDICT_ROWS):
            part = slice(start, start + PREDICT_ROWS)
            own = folds[part][None, :, None].expand(1, -1, y.shape[1])
            predicted = network(x[None, part])[0].gather(0, own)[0]
            residual[part] = (y[part] - predicted).cpu().numpy()
    named = {
        name: value.detach().cpu().numpy().copy() for name, value in network.named_parameters()
    }
    return residual, named


def _rescaled(network: MLP) -> MLP:
    """Starts near zero, so that early updates fit the data and not the initial output."""
    with torch.no_grad():
        network.weights[-1].mul_(0.01)
    return network


def _readings(name: str, residual: np.ndarray, problem: Problem, frame: Frame) -> np.ndarray:
    """(N,) per-step readings of residuals, in the metric's unit."""
    raw = residual.astype(np.float64) * problem.scale
    if name == POLICY:
        return np.asarray((raw**2).sum(1) / frame.targets.dims)
    return surprisal(raw, pooled_noise(raw.T @ raw / max(len(raw), 1)), 0.0)


def _values(
    scores: Mapping[str, np.ndarray], lengths: np.ndarray, config: MeasureConfig
) -> dict[str, MetricValue]:
    values = {}
    for name, found in scores.items():
        scored = np.isfinite(found)
        steps = lengths[scored].astype(np.float64)
        weighted = float(np.average(found[scored], weights=steps)) if steps.sum() else None
        (error,) = standard_errors(found[None, scored], steps[None], config.bootstrap, config.seed)
        values[name] = MetricValue(
            value=weighted,
            standard_error=error,
            episodes=int(scored.sum()),
            rows=int(steps.sum()),
            coverage=float(scored.mean()) if len(found) else 0.0,
        )
    return values
