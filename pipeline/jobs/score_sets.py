"""The two ends of a metric run: what is there to be scored, and the one commit of the scores.

Both run once, wherever the engine likes; in between, workers do what `scoring.py` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.jobs.scoring import Work, works_of
from pipeline.quality import registry
from pipeline.quality.dataset import GROUPS, dataset_values
from pipeline.quality.duplicates import named_originals
from pipeline.quality.reference import ReferenceModel, from_arrays
from pipeline.quality.score import SIGNATURES, VISITED
from pipeline.store import layout
from pipeline.store.catalog import Catalog
from pipeline.store.reader import Version
from pipeline.store.scores import (
    Scores,
    commit_scores,
    load_model,
    save_model,
    scored_ids,
    set_column,
)
from pipeline.store.store import Store
from schemas.errors import UsageError
from schemas.metrics import MeasureConfig, MetricValue, ScoreSet
from schemas.version import Measure, VersionRef

FACTS = ("length", "episode_return")
"""Metrics that are columns of every episode row already."""
FEW = 4
"""A message for the log names up to so many metrics."""


@dataclass(frozen=True)
class Prepared:
    """A metric run, ready to be carried out; small enough to send anywhere."""

    catalog: Catalog
    version: VersionRef
    """What is scored."""
    target: str
    """The branch that the scores go to."""
    since: int
    """Number of that branch's newest version."""
    run_id: str
    config: MeasureConfig
    """With the metrics by name."""
    known: ScoreSet | None
    """The set that the scores join; None where a reference is to be fitted."""
    score_set: str
    """Id of the set, known or new."""
    reference: str
    """Id of the version that the reference model is of."""
    to_fit: tuple[Work, ...]
    to_score: tuple[Work, ...]
    scored: int
    """Episodes that lack some of the metrics."""
    reused: int

    def measured(self) -> Version:
        """The version that is scored."""
        commit = self.catalog.refs.read(self.version.branch, self.version.number)
        return Version(self.catalog, commit)


@dataclass(frozen=True)
class Measured:
    """The outcome of a metric run."""

    version: Version
    score_set: str
    reference: str
    """Id of the version that the scores are relative to."""
    fitted: bool
    """True if its reference model was fitted for this run; False if it was there."""
    metrics: dict[str, MetricValue]
    episodes_scored: int
    """Episodes that lacked some of the metrics, and were read for them."""
    episodes_reused: int


# -- before --------------------------------------------------------------------------------------


def prepare(
    store: Store,
    ref: str,
    config: MeasureConfig,
    *,
    reference: str | None = None,
    branch: str | None = None,
    pieces: int = 1,
) -> Prepared:
    """Says what a metric run has to do.

    Args:
        store: where.
        ref: the version; where it is not a branch's head, `branch` says where the scores go.
        config: which metrics, of which features.
        reference: fit a new reference on this version; by default the branch's first one holds.
        branch: where the scores go; made at the version if there is none of that name.
        pieces: into how many works to cut it, about, if it has as many units.

    Raises:
        UsageError: if the version is not a branch's head and no branch is named.
        UnknownNameError: for an unknown metric.
    """
    config = config.model_copy(update={"metrics": registry.chosen(config)})
    version, target = _target(store, ref, branch)
    known = None if reference is not None else _fitting_set(version, config)
    base = version if reference is None else store.version(reference)
    score_set = known.id if known else layout.new_id()
    patterns, lacking = _lacking(version, score_set, registry.chosen(config))
    is_relative = any(registry.METRICS[name].relative for name in registry.chosen(config))
    everything = np.ones(len(base), bool)
    return Prepared(
        catalog=store.catalog,
        version=version.commit.ref,
        target=target,
        since=store.branches()[target].number,
        run_id=layout.new_id(),
        config=config,
        known=known,
        score_set=score_set,
        reference=known.reference if known else base.id,
        to_fit=works_of(base, everything, pieces) if is_relative and not known else (),
        to_score=tuple(
            work
            for number, metrics in enumerate(patterns)
            if metrics
            for work in works_of(version, lacking == number, pieces, metrics)
        ),
        scored=sum(int((lacking == at).sum()) for at, some in enumerate(patterns) if some),
        reused=sum(int((lacking == at).sum()) for at, some in enumerate(patterns) if not some),
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


def _fitting_set(version: Version, config: MeasureConfig) -> ScoreSet | None:
    """Returns a set that the version shows and that the wanted metrics may join.

    They may if they would be computed just as if they had been wanted from the start: with equal
    settings, by equal definitions, and from a model that was fitted, if they need one.
    """
    state = version.state
    wanted = registry.versions(config)
    for name in dict.fromkeys(record.score_set for record in state.metrics.values()):
        known = state.score_sets[name]
        is_alike = known.networks is None and _comparable(known.config) == _comparable(config)
        is_same = all(known.metrics.get(one, number) == number for one, number in wanted.items())
        if is_alike and is_same and (_is_fitted(known.metrics) or not _is_fitted(wanted)):
            return known
    return None


def shown_model(version: Version) -> ReferenceModel | None:
    """Returns the reference model of the scores that a version shows; None if there is none."""
    state = version.state
    for name in dict.fromkeys(record.score_set for record in state.metrics.values()):
        known = state.score_sets[name]
        if known.networks is None and _is_fitted(known.metrics):
            return from_arrays(*load_model(version.store, known.model))
    return None


def _is_fitted(metrics: Iterable[str]) -> bool:
    """True if some of the metrics are relative to a model."""
    known = [registry.METRICS[name] for name in metrics if name in registry.METRICS]
    return any(metric.relative for metric in known)


def _comparable(config: MeasureConfig) -> MeasureConfig:
    """The settings that decide an episode's score; which metrics there are does not, say."""
    plain = MeasureConfig()
    ignored = ("metrics", "bootstrap", "return_random", "return_expert")
    return config.model_copy(update={name: getattr(plain, name) for name in ignored})


def _lacking(
    version: Version, score_set: str, names: Sequence[str]
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Returns the sets of metrics that episodes lack, and (E,) which of them each lacks."""
    ids = version.episodes(columns=["episode_id"])["episode_id"].combine_chunks()
    state = version.state
    wanted = [name for name in names if name not in FACTS]
    lacks = np.zeros((len(ids), len(wanted)), bool)
    found: dict[tuple[str, ...], np.ndarray] = {}
    for at, name in enumerate(wanted):
        files = [o.file.key for o in state.overlays if name in o.columns]
        if tuple(files) not in found:
            known = scored_ids(version.store, state, score_set, name)
            has = pc.is_in(ids, value_set=known)
            found[tuple(files)] = ~has.to_numpy(zero_copy_only=False)
        lacks[:, at] = found[tuple(files)]
    patterns, which = np.unique(lacks, axis=0, return_inverse=True)
    named = [tuple(np.array(wanted, object)[pattern]) for pattern in patterns]
    return named, which.reshape(-1)


# -- after ---------------------------------------------------------------------------------------


def known_model(prepared: Prepared) -> ReferenceModel:
    """Returns the model of the set that the scores join; an empty one for a new set."""
    if prepared.known is None:
        return ReferenceModel(prepared.config, {})
    model = from_arrays(*load_model(prepared.catalog, prepared.known.model))
    return replace(model, config=prepared.config)


def finish(prepared: Prepared, model: ReferenceModel, scored: Sequence[pa.Table]) -> Measured:
    """Commits scores, once however often it is called.

    Args:
        prepared: what was to be done.
        model: the reference that the scores are relative to.
        scored: tables of scores, none of which has a column of an episode that another has.
    """
    version = prepared.measured()
    fresh = [_with_copies(version, prepared, table, scored) for table in scored]
    everything = version.episodes()
    known = ["episode_id", "task", *FACTS, *(n for n in GROUPS if n in everything.column_names)]
    joined = everything.select(known)
    for name in registry.chosen(prepared.config):
        if name not in FACTS:
            column = _column(version, prepared.score_set, fresh, joined["episode_id"], name)
            joined = joined.append_column(name, column)
    if "unique_share" in registry.chosen(prepared.config):
        seen = _column(version, prepared.score_set, fresh, joined["episode_id"], VISITED)
        joined = joined.append_column(VISITED, seen.cast(pa.binary()))
    values = dataset_values(joined, model, prepared.config)
    shown = version.state.metrics
    is_news = any(
        name not in shown
        or shown[name].value != value
        or shown[name].score_set != prepared.score_set
        for name, value in values.items()
    )
    if prepared.scored or is_news:
        score_set = _set_of(prepared, model)
        kept = [
            table.drop_columns([n for n in FACTS if n in table.column_names]) for table in fresh
        ]
        first = kept[0] if kept else joined.select(["episode_id"]).slice(0, 0)
        total = prepared.scored + prepared.reused
        what = ", ".join(values) if len(values) <= FEW else f"{len(values)} metrics"
        commit = commit_scores(
            prepared.catalog,
            prepared.target,
            Scores(score_set, first, values, tuple(kept[1:])),
            f"measure {what} ({prepared.scored} of {total} episodes new)",
            base=version.commit,
            run_id=prepared.run_id,
            since=prepared.since,
        )
        version = Version(prepared.catalog, commit)
    return outcome(prepared, version, values)


def outcome(prepared: Prepared, version: Version, values: dict[str, MetricValue]) -> Measured:
    """Returns what a run tells of itself."""
    return Measured(
        version=version,
        score_set=prepared.score_set,
        reference=prepared.reference,
        fitted=prepared.known is None,
        metrics=values,
        episodes_scored=prepared.scored,
        episodes_reused=prepared.reused,
    )


def committed(prepared: Prepared) -> Measured | None:
    """Returns the outcome of a run whose commit was made elsewhere, or None if none was made."""
    refs = prepared.catalog.refs
    head = refs.head(prepared.target)
    for number in range(prepared.since + 1, (head.number if head else 0) + 1):
        commit = refs.read(prepared.target, number)
        if commit.run_id == prepared.run_id:
            said = [one for one in commit.operations if isinstance(one, Measure)]
            values = {name: record.value for one in said for name, record in one.metrics.items()}
            return outcome(prepared, Version(prepared.catalog, commit), values)
    return None


def _set_of(prepared: Prepared, model: ReferenceModel) -> ScoreSet:
    """The set that the scores go to; a new one's model is stored."""
    wanted = registry.versions(prepared.config)
    if prepared.known is not None:
        metrics = {**prepared.known.metrics, **wanted}
        return prepared.known.model_copy(update={"metrics": metrics})
    return ScoreSet(
        id=prepared.score_set,
        metrics=wanted,
        reference=prepared.reference,
        config=prepared.config,
        model=save_model(prepared.catalog, *model.to_arrays()),
    )


def _with_copies(
    version: Version, prepared: Prepared, table: pa.Table, scored: Sequence[pa.Table]
) -> pa.Table:
    """Returns scores with `duplicate_of`: the earlier episode that each is a copy of."""
    if SIGNATURES not in table.column_names:
        return table
    ids = version.episodes(columns=["episode_id"])["episode_id"]
    signed = _column(version, prepared.score_set, scored, ids, SIGNATURES)
    before = _column(version, prepared.score_set, (), ids, "duplicate_of")
    signing = [one["episode_id"] for one in scored if SIGNATURES in one.column_names]
    asked = pc.is_in(ids, value_set=pa.concat_arrays([c for one in signing for c in one.chunks]))
    names = ids.to_pylist()
    found = named_originals(
        names,
        signed.to_pylist(),
        asked.to_numpy(),
        before.is_valid().to_numpy(zero_copy_only=False),
    )
    at = pc.index_in(table["episode_id"], value_set=ids.combine_chunks())
    return table.append_column(
        "duplicate_of", pa.array(found, pa.string()).take(at.combine_chunks())
    )


def _column(
    version: Version, score_set: str, fresh: Sequence[pa.Table], ids: pa.ChunkedArray, name: str
) -> pa.ChunkedArray:
    """Returns a column of fresh and of older scores for some episodes, null where there is none."""
    parts = [table.select(["episode_id", name]) for table in fresh if name in table.column_names]
    older = set_column(version.store, version.state, score_set, name)
    parts += [older] if older is not None else []
    if not parts:
        return pa.chunked_array([pa.nulls(len(ids), pa.string())])
    known = pa.concat_tables(parts, promote_options="default").combine_chunks()
    at = pc.index_in(ids, value_set=known["episode_id"].combine_chunks())
    return known[name].combine_chunks().take(at.combine_chunks())
