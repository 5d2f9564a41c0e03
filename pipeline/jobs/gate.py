"""The quality gate: each new episode against rules, then all of a run's episodes together.

Episodes are judged where they are read, before anything of them is written; what travels from
there are verdicts. A rule sees what an episode says of itself: its facts and own columns, the
metrics that need no reference, the counts of the integrity check; and where the branch has been
measured, its relative metrics against the same frozen reference. Without one those are null, and
a rule that comes out null does not hold.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pipeline.jobs import drift
from pipeline.quality import integrity
from pipeline.quality.reference import ReferenceModel, from_arrays
from pipeline.quality.registry import METRICS
from pipeline.quality.score import score_episodes
from pipeline.store.scores import load_model
from pipeline.store.store import Version, open_store
from schemas.document import DataFile
from schemas.episode import Episode
from schemas.errors import FilterError, GateError, UnknownNameError
from schemas.filter import check, evaluate
from schemas.filter_ast import columns_of
from schemas.gate import Drift, EpisodeRule, Gate
from schemas.metrics import MeasureConfig, ScoreSet
from schemas.table import EpisodeRow, rows_to_table
from schemas.version import State

BATCH_EPISODES = 256
BATCH_STEPS = 8_192
"""Episodes are judged so many at a time, and held in memory meanwhile."""
_COUNTS = (
    *("nan_rows", "inf_rows", "backward_rows", "gap_rows", "early_ends"),
    *("faulty_rows", "constant_channels", "saturated_share"),
)
"""Of the integrity check, beside its score."""

New = tuple[Episode, EpisodeRow]


@dataclass(frozen=True)
class Verdict:
    """The first rule that holds for an episode."""

    rule: EpisodeRule
    says: str


def score_set_of(state: State) -> ScoreSet | None:
    """Returns the score set that a version shows, the one of most metrics if it shows several."""
    shown = [record.score_set for record in state.metrics.values()]
    return state.score_sets[max(shown, key=shown.count)] if shown else None


def unmeasured(gate: Gate, score_set: ScoreSet | None) -> tuple[str, ...]:
    """Returns the relative metrics that rules name and no reference answers for."""
    named = {name for rule in gate.episodes for name in columns_of(rule.tree)}
    answered = set(score_set.metrics) if score_set else set()
    return tuple(
        sorted(n for n in named if n in METRICS and METRICS[n].relative and n not in answered)
    )


class Judge:
    """Holds new episodes against the rules of a gate."""

    def __init__(self, gate: Gate, store: str, score_set: ScoreSet | None) -> None:
        """Takes what it needs by reference: it is made where the episodes are read.

        Args:
            gate: the rules.
            store: URL of the store that holds the frozen reference.
            score_set: names it; None if there is none.
        """
        self._rules = [(rule, rule.tree) for rule in gate.episodes]
        self._model = _model(store, score_set.model) if score_set else None

    def judged(self, episodes: Iterable[New]) -> Iterator[tuple[New, Verdict | None]]:
        """Yields every episode with what holds for it, in order, some at a time.

        Raises:
            UnknownNameError: if a rule names a column that the episodes have not.
            FilterError: if a rule does not fit the types of the columns.
        """
        waiting: list[New] = []
        steps = 0
        for new in episodes:
            waiting.append(new)
            steps += new[0].length
            if len(waiting) == BATCH_EPISODES or steps >= BATCH_STEPS:
                yield from self._verdicts(waiting)
                waiting, steps = [], 0
        if waiting:
            yield from self._verdicts(waiting)

    def _verdicts(self, batch: Sequence[New]) -> Iterator[tuple[New, Verdict | None]]:
        table = self._table(batch)
        types = {field.name: field.type for field in table.schema}
        held: list[Verdict | None] = [None] * len(batch)
        for rule, tree in self._rules:
            try:
                check(tree, types)
            except (UnknownNameError, FilterError) as error:
                error.where = f"gate rule {rule.name!r}"
                raise
            for at in np.flatnonzero(evaluate(tree, table)):
                if held[at] is None or rule.refuse is not None:
                    held[at] = Verdict(rule, _says(rule, _values(table, rule, int(at))))
        yield from zip(batch, held, strict=True)

    def _table(self, batch: Sequence[New]) -> pa.Table:
        """The columns that rules may name, one row per episode."""
        table = rows_to_table([row for _, row in batch])
        episodes = [episode for episode, _ in batch]
        plain = score_episodes(episodes, ReferenceModel(MeasureConfig(metrics=_PLAIN), {}))
        relative = score_episodes(episodes, self._model) if self._model else plain
        columns = {}
        for name, metric in METRICS.items():
            scores = relative if metric.relative else plain
            is_there = name in scores.column_names
            columns[name] = scores[name] if is_there else pa.nulls(len(batch), pa.float64())
        counts = [asdict(integrity.check(episode)) for episode in episodes]
        for name in _COUNTS:
            columns[name] = pa.array([count[name] for count in counts], pa.float64())
        for name, values in columns.items():
            if name not in table.column_names:
                table = table.append_column(name, values)
        return table


_PLAIN = tuple(name for name, metric in METRICS.items() if not metric.relative)


@functools.lru_cache(maxsize=2)
def _model(store: str, file: DataFile) -> ReferenceModel:
    """One model per process: it is read once."""
    return from_arrays(*load_model(open_store(store).catalog, file))


def _values(table: pa.Table, rule: EpisodeRule, at: int) -> dict[str, object]:
    """Returns what an episode's columns hold that a rule names."""
    return {name: table[name][at].as_py() for name in sorted(columns_of(rule.tree))}


def _says(rule: EpisodeRule, values: dict[str, object]) -> str:
    shown = ", ".join(
        f"{name} = {value:.6g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in values.items()
    )
    return f"The rule {rule.name!r} holds ({rule.where}): {shown}."


# -- all episodes of a run -----------------------------------------------------------------------


@dataclass(frozen=True)
class Totals:
    """What a run found, for the rules about all of it."""

    healthy: int
    """Episodes that are in or come in, those of unchanged sources included."""
    read: int
    """Episodes that this run read, quarantined ones included."""
    quarantined: int
    refused: Sequence[str]
    """What holds for the episodes that refuse the job."""


def check_totals(gate: Gate, totals: Totals) -> None:
    """Refuses a run by what its episodes are together.

    Raises:
        GateError: naming every reason.
    """
    reasons = list(totals.refused[:3])
    if len(totals.refused) > 3:
        reasons.append(f"And {len(totals.refused) - 3} more episodes like these.")
    if gate.min_episodes is not None and totals.healthy < gate.min_episodes:
        reasons.append(f"Expected {gate.min_episodes:,} healthy episodes, came {totals.healthy:,}.")
    share = totals.quarantined / totals.read if totals.read else 0.0
    if gate.max_quarantined_fraction is not None and share > gate.max_quarantined_fraction:
        reasons.append(
            f"Expected at most {gate.max_quarantined_fraction:.1%} of the episodes quarantined, "
            f"came {share:.1%} ({totals.quarantined:,} of {totals.read:,})."
        )
    if reasons:
        raise refused(reasons)


def check_drift(rules: Drift, version: Version, episodes: int, new: drift.Spreads) -> list[str]:
    """Returns warnings of fields that moved.

    Args:
        rules: how far they may move.
        version: what the branch has.
        episodes: how many the new ones are.
        new: their spreads.

    Raises:
        GateError: if any moved too far and the rules say to refuse.
    """
    if min(episodes, len(version)) < rules.min_episodes:
        return []
    old = drift.merge(map(drift.spreads_of, _sample(version)))
    moved = {
        name: shift
        for name, shift in sorted(drift.shifts(old, new).items())
        if shift > rules.threshold
    }
    says = [
        f"{name} moved by {shift:.3g} standard deviations of {version.branch}:{version.number} "
        f"(more than {rules.threshold:g})."
        for name, shift in moved.items()
    ]
    if says and rules.then == "refuse":
        raise refused(says)
    return says


def _sample(version: Version) -> Iterator[Episode]:
    if len(version) <= drift.MAX_EPISODES:
        yield from version.iter_episodes()
        return
    ids = version.episodes(columns=["episode_id"])["episode_id"]
    for number in drift.sampled(len(version)):
        yield version.episode(ids[number].as_py())


def refused(reasons: Sequence[str]) -> GateError:
    """Returns the error that refuses a job, with its reasons."""
    said = " ".join(reasons)
    return GateError(
        f"The quality gate refused the job, nothing is committed: {said}", reasons=reasons
    )
