"""What a metric run leaves behind: values with their provenance, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from schemas.document import DataFile, Document


class FeatureSpec(Document):
    """Which arrays count as state and action when episodes are scored."""

    observations: tuple[str, ...] | None = None
    """Full names of the state fields; None takes every non-image float field of at most 256
    dims (`flat` or `state` and the like)."""
    pca_dims: int = Field(default=10, ge=1)
    """States of more dims than this are clustered on so many PCA-whitened dims; fits see them all
    (up to 64 components)."""
    relative_actions: bool = False
    """Score differences of consecutive actions instead of the actions as recorded."""


class MeasureConfig(Document):
    """Settings of one metric run; part of its score set."""

    metrics: tuple[str, ...] | None = None
    """Names to compute; None takes all."""
    features: FeatureSpec = FeatureSpec()
    clusters: int | None = Field(default=None, ge=1)
    """Clusters per task; None takes min(1024, rows / (8 p)), at least 1."""
    seed: int = 0
    bootstrap: int = Field(default=200, ge=0)
    """Resamples of episodes for standard errors."""


class MetricValue(Document):
    """One dataset-level value."""

    value: float | None
    standard_error: float | None = None
    """Bootstrap over episodes."""
    episodes: int
    """Episodes that have a score."""
    coverage: float
    """Share of the version's episodes that have a score."""
    details: Mapping[str, Any] = {}


class ScoreSet(Document):
    """Scores relative to one frozen reference; values of different sets never mix."""

    id: str
    metrics: Mapping[str, str]
    """Metric name to metric version."""
    reference: str
    """Id of the version the reference model was fitted on."""
    config: MeasureConfig
    model: DataFile
    """The frozen reference model (normaliser, clusters, fits)."""
