"""The first pass: what a task's columns look like, and a sample of its states.

It freezes scales and clusters for the second pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.quality.blocks import Block
from pipeline.quality.clusters import cluster_count, fit_centroids
from pipeline.quality.evidence import FitStage, Frame
from pipeline.quality.features import Layout
from pipeline.quality.moments import CrossMoments, measure
from pipeline.quality.moments import merge as merge_moments
from pipeline.quality.normalizer import (
    Range,
    fit_actions,
    fit_states,
    measure_range,
    merge_ranges,
    side_by_side,
)
from pipeline.quality.sample import RowSample, merge_samples, sample_rows
from pipeline.quality.surroundings import surroundings
from pipeline.quality.visited import frozen_bins
from schemas.metrics import MeasureConfig


@dataclass(frozen=True)
class Column:
    """Moments and range of one feature block."""

    moments: CrossMoments
    """As x, in one cluster, without y."""
    span: Range

    def merge(self, other: Column) -> Column:
        """Returns the column of both sets of rows."""
        return Column(
            merge_moments(self.moments, other.moments), merge_ranges(self.span, other.span)
        )


@dataclass(frozen=True)
class Sketch:
    """What the first pass keeps of one layout."""

    states: Column
    controls: Column
    targets: Column
    sample: RowSample

    def merge(self, other: Sketch) -> Sketch:
        """Returns the sketch of both sets of rows."""
        return Sketch(
            self.states.merge(other.states),
            self.controls.merge(other.controls),
            self.targets.merge(other.targets),
            merge_samples(self.sample, other.sample),
        )


@dataclass(frozen=True)
class SketchStage:
    """The first pass."""

    config: MeasureConfig

    def of_spec(self, spec: str) -> SketchStage:
        """Returns itself: nothing is frozen yet."""
        return self

    def measure(self, block: Block) -> Sketch:
        """Returns the sketch of one block; rows with NaN are left out."""
        rows = np.flatnonzero(block.acting)
        return Sketch(
            _column(block.states[rows]),
            _column(block.actions[rows]),
            _column(block.targets[rows]),
            sample_rows(
                np.concatenate([block.states[rows], block.targets[rows]], axis=1),
                block.fingerprints[block.episodes[rows]],
                block.steps[rows],
            ),
        )

    def finalise(self, accumulator: Mapping[Layout, Sketch]) -> FitStage:
        """Returns the second pass: scales and clusters, frozen."""
        layouts = sorted(accumulator, key=lambda layout: layout.key)
        return FitStage(
            self.config, {each: _frame(each, accumulator[each], self.config) for each in layouts}
        )


def _column(rows: np.ndarray) -> Column:
    labels = np.zeros(len(rows), np.int64)
    return Column(measure(rows, np.empty((len(rows), 0)), labels, 1), measure_range(rows))


def _frame(layout: Layout, sketch: Sketch, config: MeasureConfig) -> Frame:
    controls = fit_actions(sketch.controls.moments, sketch.controls.span, layout.discrete)
    scored = layout.scored_discrete(relative=config.features.relative_actions)
    targets = fit_actions(sketch.targets.moments, sketch.targets.span, scored)
    states = fit_states(
        sketch.states.moments, sketch.states.span, config.features.pca_dims, controls.columns
    )
    wanted = cluster_count(sketch.states.moments.rows, 1 + states.predictors, config.clusters)
    sample = sketch.sample
    seen, done = np.split(sample.rows, [layout.state_dims], axis=1)
    points = states.points(states.predict_from(seen))
    centroids = fit_centroids(points, wanted, config.seed)
    known = surroundings(points, sample.owners, targets.encode(done))
    span = side_by_side(sketch.states.span, sketch.targets.span)
    return Frame(states, controls, targets, centroids, known, frozen_bins(sample.rows, span))
