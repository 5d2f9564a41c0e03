"""Scoring a version: fit the reference or take the one there is, score what is new, commit.

Scores are relative to a frozen reference, by default the first version measured on the branch, so
that later episodes are judged by the same standard and only they are scored.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.jobs.progress import Listener
from pipeline.quality import registry
from pipeline.quality.dataset import dataset_values
from pipeline.quality.duplicates import named_originals
from pipeline.quality.reference import ReferenceModel, from_arrays, of_specs
from pipeline.quality.score import SIGNATURES, fit_reference, score_episodes
from pipeline.store import layout
from pipeline.store.scores import (
    Scores,
    commit_scores,
    load_model,
    save_model,
    scored_ids,
    set_columns,
)
from pipeline.store.store import Store, Version
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.metrics import MeasureConfig, MetricValue, ScoreSet

FACTS = ("length", "episode_return")
"""Metrics that are columns of every episode row already."""


@dataclass(frozen=True)
class Measured:
    """The outcome of a metric run."""

    version: Version
    score_set: str
    metrics: dict[str, MetricValue]
    episodes_scored: int
    episodes_reused: int


def measure_version(
    store: Store,
    ref: str,
    config: MeasureConfig,
    *,
    reference: str | None = None,
    branch: str | None = None,
    listener: Listener | None = None,
) -> Measured:
    """Scores a version's episodes and commits the scores as an overlay.

    Args:
        store: where.
        ref: the version; where it is not a branch's head, `branch` says where the scores go.
        config: which metrics, of which features.
        reference: fit a new reference on this version; by default the branch's first one holds.
        branch: where the scores go; made at the version if there is none of that name.
        listener: hears of episodes and steps as they are scored.

    Raises:
        UsageError: if the version is not a branch's head and no branch is named.
    """
    version, target = _target(store, ref, branch)
    score_set, model = _reference(store, version, config, reference)
    known = scored_ids(store.catalog, version.state, score_set.id)
    table = version.episodes()
    new = pc.invert(pc.is_in(table["episode_id"], value_set=known))
    fresh = set(table.filter(new)["episode_id"].to_pylist())
    scores = _with_copies(version, score_set.id, _score(version, fresh, model, listener))
    values = dataset_values(_all_scores(version, score_set.id, scores), model, model.config)
    columns = [name for name in scores.column_names if name not in FACTS]
    shown = version.state.metrics
    if fresh or any(name not in shown or shown[name].value != values[name] for name in values):
        said = f"measure {', '.join(values)} ({len(fresh)} of {table.num_rows} episodes new)"
        new_scores = Scores(score_set, scores.select(columns), values)
        commit = commit_scores(store.catalog, target, new_scores, said, base=version.commit)
        version = Version(store.catalog, commit)
    return Measured(
        version=version,
        score_set=score_set.id,
        metrics=values,
        episodes_scored=len(fresh),
        episodes_reused=table.num_rows - len(fresh),
    )


def _target(store: Store, ref: str, branch: str | None) -> tuple[Version, str]:
    """Returns the version to score and the branch whose head it is."""
    version = store.version(ref)
    heads = store.branches()
    if branch is None:
        if heads.get(version.branch, version).id != version.id:
            raise UsageError(
                f"Expected a branch's newest version, came {ref!r}; say --branch NAME to put the "
                f"scores on a branch of their own."
            )
        return version, version.branch
    if branch not in heads:
        return store.branch(branch, version), branch
    return version, branch


def _reference(
    store: Store, version: Version, config: MeasureConfig, reference: str | None
) -> tuple[ScoreSet, ReferenceModel]:
    """Returns the score set to use: one that the version shows and that fits, or a new one."""
    wanted = registry.versions(config)
    if reference is None:
        for known in _shown_sets(version):
            same = _comparable(known.config) == _comparable(config)
            if same and wanted.items() <= known.metrics.items():
                return known, from_arrays(*load_model(store.catalog, known.model))
    base = version if reference is None else store.version(reference)
    model = of_specs(
        {
            spec: fit_reference(functools.partial(_of_spec, base, spec), config)
            for spec in base.specs
        },
        config,
    )
    file = save_model(store.catalog, *model.to_arrays())
    score_set = ScoreSet(
        id=layout.new_id(), metrics=wanted, reference=base.id, config=config, model=file
    )
    return score_set, model


def _score(
    version: Version, wanted: Collection[str], model: ReferenceModel, listener: Listener | None
) -> pa.Table:
    """Returns the scores of some episodes by id, each by the models of its own spec."""
    tables = [score_episodes((), model)]
    for spec in version.specs if wanted else ():
        episodes = (one for one in _of_spec(version, spec) if one.episode_id in wanted)
        tables.append(score_episodes(_watched(episodes, listener), model.of_spec(spec)))
    return pa.concat_tables(tables)


def _of_spec(version: Version, spec: str) -> Iterator[Episode]:
    """Yields the episodes of one spec: those of others are never compared with them."""
    is_only = len(version.specs) == 1
    return version.iter_episodes() if is_only else version.iter_episodes(f"spec == '{spec}'")


def _shown_sets(version: Version) -> list[ScoreSet]:
    state = version.state
    shown = dict.fromkeys(record.score_set for record in state.metrics.values())
    return [state.score_sets[name] for name in shown]


def _comparable(config: MeasureConfig) -> MeasureConfig:
    """The settings that decide a score; which metrics and how many resamples do not."""
    return config.model_copy(update={"metrics": None, "bootstrap": 0})


def _with_copies(version: Version, score_set: str, fresh: pa.Table) -> pa.Table:
    """Returns fresh scores with `duplicate_of`: the earlier episode that each is a copy of."""
    if SIGNATURES not in fresh.column_names:
        return fresh
    signed = _joined(version, score_set, fresh, [SIGNATURES])
    ids = signed["episode_id"].to_pylist()
    named = dict(zip(ids, named_originals(ids, signed[SIGNATURES].to_pylist()), strict=True))
    copies = [named[name] for name in fresh["episode_id"].to_pylist()]
    return fresh.append_column("duplicate_of", pa.array(copies, pa.string()))


def _all_scores(version: Version, score_set: str, fresh: pa.Table) -> pa.Table:
    """Returns the scores of all the version's episodes in order, with their lengths and tasks."""
    hidden = ("episode_id", SIGNATURES, *FACTS)
    return _joined(version, score_set, fresh, [n for n in fresh.column_names if n not in hidden])


def _joined(version: Version, score_set: str, fresh: pa.Table, names: list[str]) -> pa.Table:
    """Returns the version's episodes in order with some columns of fresh and of older scores."""
    facts = version.episodes(columns=["episode_id", "task", *FACTS])
    older = set_columns(version.store, version.state, score_set)
    stacked = [
        table.select(["episode_id", *names]) for table in (fresh, older) if table is not None
    ]
    scores = pa.concat_tables(stacked).combine_chunks()
    at = pc.index_in(facts["episode_id"], value_set=scores["episode_id"].combine_chunks())
    for name in names:
        facts = facts.append_column(name, scores[name].take(at))
    return facts


def _watched(episodes: Iterable[Episode], listener: Listener | None) -> Iterator[Episode]:
    for episode in episodes:
        yield episode
        if listener is not None:
            listener(1, episode.length)
