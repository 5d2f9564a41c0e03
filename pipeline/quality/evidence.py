"""The second pass: cross-moments of state, action and change of state in every cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.quality.blocks import Block
from pipeline.quality.clusters import assign
from pipeline.quality.columns import moving_columns
from pipeline.quality.features import Layout
from pipeline.quality.fits import fit_clusters
from pipeline.quality.moments import CrossMoments, measure
from pipeline.quality.moments import merge as merge_moments
from pipeline.quality.normalizer import ActionScale, StateScale
from pipeline.quality.reference import GroupModel, Members, ReferenceModel, of_spec
from pipeline.quality.surroundings import Surroundings
from pipeline.quality.visited import Visited, visit
from schemas.metrics import MeasureConfig


@dataclass(frozen=True)
class Frame:
    """Frozen scales and clusters of one layout."""

    states: StateScale
    controls: ActionScale
    targets: ActionScale
    centroids: np.ndarray  # (C, D) float64
    surroundings: Surroundings | None
    visited: Visited
    """Limits of bins."""


@dataclass(frozen=True)
class Evidence:
    """What the second pass keeps of one layout."""

    policy: CrossMoments
    dynamics: CrossMoments
    visited: Visited
    fingerprints: np.ndarray  # (E,) uint64, of the episodes seen

    def merge(self, other: Evidence) -> Evidence:
        """Returns the evidence of both sets of rows."""
        return Evidence(
            merge_moments(self.policy, other.policy),
            merge_moments(self.dynamics, other.dynamics),
            self.visited.merge(other.visited),
            np.concatenate([self.fingerprints, other.fingerprints]),
        )


@dataclass(frozen=True)
class FitStage:
    """The second pass, with what the first one froze."""

    config: MeasureConfig
    frames: Mapping[Layout, Frame]

    def of_spec(self, spec: str) -> FitStage:
        """Returns the pass over one spec's episodes, by layouts that name no spec."""
        return FitStage(self.config, of_spec(self.frames, spec))

    def measure(self, block: Block) -> Evidence | None:
        """Returns the evidence of one block; None for a layout that the first pass did not see."""
        frame = self.frames.get(block.layout)
        if frame is None:
            return None
        x = frame.states.predict_from(np.nan_to_num(block.states, posinf=0.0, neginf=0.0))
        labels = assign(frame.states.points(x), frame.centroids)
        clusters = len(frame.centroids)
        acting, moving = block.acting, block.moving
        drives = np.concatenate([x[moving], frame.controls.encode(block.actions[moving])], axis=1)
        change = block.changes[moving][:, moving_columns(block.layout.states, frame.states.kept)]
        return Evidence(
            measure(
                x[acting], frame.targets.encode(block.targets[acting]), labels[acting], clusters
            ),
            measure(drives, change, labels[moving], clusters),
            visit(frame.visited, block),
            block.fingerprints,
        )

    def finalise(self, accumulator: Mapping[Layout, Evidence]) -> ReferenceModel:
        """Returns the reference model of the episodes that both passes saw."""
        return ReferenceModel(
            self.config,
            {
                layout: _group(layout, frame, accumulator[layout])
                for layout, frame in self.frames.items()
                if layout in accumulator
            },
        )


def _group(layout: Layout, frame: Frame, evidence: Evidence) -> GroupModel:
    distinct, copies = np.unique(evidence.fingerprints, return_counts=True)
    return GroupModel(
        layout,
        frame.states,
        frame.controls,
        frame.targets,
        frame.centroids,
        frame.surroundings,
        Members(distinct, copies.astype(np.float64)),
        visited=evidence.visited,
        policy=fit_clusters(evidence.policy),
        dynamics=fit_clusters(evidence.dynamics) if evidence.dynamics.yy.shape[1] else None,
    )
