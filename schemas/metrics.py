"""What a metric run leaves behind: values with their provenance, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

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
    angles: tuple[str, ...] = ()
    """Fields, or single dims as `FIELD:DIM`, in radians: read as cosine and sine, and their
    changes round the shorter way."""
    grippers: tuple[str, ...] = ()
    """Action fields, or single dims as `FIELD:DIM`, that open and close: rounded to whole numbers
    and read as classes. Nothing is taken for a gripper unless named."""
    embedding: str | None = None
    """An observation field or extra that holds an embedding of the pictures; part of the state.
    Its changes are not scored, since they have no unit."""
    encoder: str | None = None
    """Id of the frozen encoder that made it, so that those of two encoders never mix."""

    @model_validator(mode="after")
    def _encoder_is_named(self) -> FeatureSpec:
        if (self.embedding is None) != (self.encoder is None):
            raise ValueError("an embedding needs the id of its encoder, and the other way round")
        return self


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
    return_random: float | None = None
    """Mean return of a random policy, where `trajectory_quality` is 0."""
    return_expert: float | None = None
    """Mean return of a reference policy, where `trajectory_quality` is 1."""


class NetworkConfig(Document):
    """How the networks are trained whose residuals on episodes they have not seen are scores."""

    folds: int = Field(default=4, ge=2)
    """Networks; each episode belongs to one fold, by a hash of its rows, and is scored by the one
    network that was trained without that fold."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers."""
    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    """Of Adam; decays to 0 over the epochs along a cosine."""
    max_rows: int = Field(default=1_000_000, ge=1)
    """Rows of one task that networks are trained on at most: whole episodes, by their hash."""
    seed: int = 0


class MetricValue(Document):
    """One dataset-level value."""

    value: float | None
    standard_error: float | None = None
    """Bootstrap over episodes."""
    episodes: int
    """Episodes that have a score."""
    rows: int | None = None
    """Steps of these."""
    coverage: float
    """Share of the version's episodes that have a score."""
    details: Mapping[str, Any] = {}


class ScoreSet(Document):
    """Scores relative to one frozen reference; values of different sets never mix."""

    id: str
    metrics: Mapping[str, str]
    """Metric name to metric version; grows where others join that the model suffices for."""
    reference: str
    """Id of the version the reference model was fitted on."""
    config: MeasureConfig
    """As it was when the set began, seed and features included."""
    model: DataFile
    """The frozen reference model (normaliser, clusters, fits), or networks."""
    networks: NetworkConfig | None = None
    """Of scores by networks, how these were trained; None for scores by a reference model."""
