"""The front of the metrics: fit a reference model, score episodes against it.

`fit_reference` wires the passes of `passes.py` in this process; engines wire the same functions.
Scoring is independent per episode, given the model, so it may run anywhere on any split. An
episode that the reference was fitted on is judged by fits without it: the model knows its members
by a hash of their rows, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.quality.action import score_actions
from pipeline.quality.blocks import Block, blocks
from pipeline.quality.duplicates import signatures
from pipeline.quality.horizon import score_facts
from pipeline.quality.passes import accumulate
from pipeline.quality.reference import Placed, ReferenceModel
from pipeline.quality.registry import METRICS, chosen
from pipeline.quality.similarity import NAMES as NEIGHBOR_METRICS
from pipeline.quality.similarity import score_similarity
from pipeline.quality.sketch import SketchStage
from pipeline.quality.transition import score_transitions
from pipeline.quality.visited import visits
from schemas.episode import Episode
from schemas.metrics import MeasureConfig

VISITED = "_visited"
"""Column of sketches of the bins that an episode visits; kept as signatures are."""
SIGNATURES = "_signature"
"""Column of `duplicates.SIGNATURE` bytes; kept with the scores, shown to nobody."""
ACTION_METRICS = ("action_variance", "action_divergence", "action_divergence_h")


def needs_reference(config: MeasureConfig) -> bool:
    """True if any of the chosen metrics is relative to a reference model."""
    return any(METRICS[name].relative for name in chosen(config))


def fit_reference(stream: Callable[[], Iterable[Episode]], config: MeasureConfig) -> ReferenceModel:
    """Returns the model of the episodes of a stream.

    Args:
        stream: gives the episodes anew each time it is called; it is called twice, or not at all
            where none of the chosen metrics needs a reference.
        config: the run's settings.

    Raises:
        UnknownNameError: for an unknown metric or observation field.
    """
    if not needs_reference(config):
        return ReferenceModel(config, {})
    sketch = SketchStage(config)
    fit = sketch.finalise(accumulate(stream(), sketch))
    return fit.finalise(accumulate(stream(), fit))


def score_episodes(episodes: Iterable[Episode], model: ReferenceModel) -> pa.Table:
    """Returns `episode_id` and one nullable float64 column per chosen metric, in stream order.

    Where `duplicate_of` is chosen, its place is taken by `SIGNATURES`: whether an episode is a
    copy can be told when all signatures of a version are together (`duplicates.originals`). Where
    `unique_share` is chosen, `VISITED` stands beside it.

    Null where an episode cannot be scored: no states, actions or rewards, a layout or task that
    the reference has not (or has too few rows of), or more than 1 % of its rows not finite.
    """
    names = chosen(model.config)
    ids: list[str] = []
    facts: list[dict[str, float]] = []

    def watched() -> Iterator[Episode]:
        for episode in episodes:
            ids.append(episode.episode_id)
            facts.append(score_facts(episode, names))
            yield episode

    relative = []
    signed: dict[int, bytes] = {}
    visited: dict[int, bytes | None] = {}
    for block in blocks(watched(), model.config.features):
        placed = _place(block, model, names)
        if placed is not None:
            relative.append((block.positions, _score_block(placed, names)))
            if "unique_share" in names and placed.model.visited is not None:
                shares, seen = visits(placed.model.visited, block)
                relative.append((block.positions, {"unique_share": shares}))
                visited.update(zip(map(int, block.positions), seen, strict=True))
            if "duplicate_of" in names:
                found = signatures(placed)
                signed.update(
                    (int(at), one.tobytes()) for at, one in zip(block.positions, found, strict=True)
                )
    columns = {name: np.full(len(ids), np.nan) for name in names if not METRICS[name].is_text}
    for name in columns:
        if not METRICS[name].relative:
            columns[name][:] = [fact[name] for fact in facts]
    for positions, scores in relative:
        for name, values in scores.items():
            columns[name][positions] = values
    table = pa.table(
        {
            "episode_id": pa.array(ids, pa.string()),
            **{name: _nullable(values) for name, values in columns.items()},
        }
    )
    if "duplicate_of" in names:
        kept = pa.array([signed.get(at) for at in range(len(ids))], pa.binary())
        table = table.append_column(SIGNATURES, kept)
    if "unique_share" in names:
        kept = pa.array([visited.get(at) for at in range(len(ids))], pa.binary())
        table = table.append_column(VISITED, kept)
    return table


def _place(block: Block, model: ReferenceModel, names: Sequence[str]) -> Placed | None:
    """A block among its layout's clusters; None if that has no model, or nothing asks for it."""
    group = model.groups.get(block.layout)
    wanted = any(METRICS[name].relative for name in names)
    return group.place(block) if group is not None and wanted else None


def _score_block(placed: Placed, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The chosen relative numbers of a block's episodes."""
    scores: dict[str, np.ndarray] = {}
    if any(name in names for name in ACTION_METRICS):
        scores.update(score_actions(placed))
    if "transition_diversity" in names:
        scores.update(score_transitions(placed))
    if any(name in names for name in NEIGHBOR_METRICS):
        scores.update(score_similarity(placed, names))
    return {name: values for name, values in scores.items() if name in names}


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
