"""The quality gate of an ingest job: rules on its episodes, and on all of them together."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.document import Document
from schemas.errors import FilterError
from schemas.filter_ast import Expression, Quantile, walk
from schemas.filter_parser import parse


class EpisodeRule(Document):
    """One rule that each episode to be added is held against; exactly one verdict is given."""

    name: str = Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z")
    """Names the reason: `gate:<name>`."""
    quarantine: str | None = None
    """A filter; an episode that it holds for is kept out, its neighbours go in."""
    refuse: str | None = None
    """A filter; an episode that it holds for refuses the whole job."""

    @model_validator(mode="after")
    def _one_verdict(self) -> Self:
        if (self.quarantine is None) == (self.refuse is None):
            raise ValueError("expected either quarantine or refuse, with a filter")
        try:
            tree = parse(self.where)
        except FilterError as error:
            raise ValueError(error.message) from None
        if any(isinstance(node, Quantile) for node in walk(tree)):
            raise ValueError("expected a number: one episode has no quantiles")
        return self

    @property
    def where(self) -> str:
        """The filter."""
        return self.quarantine or self.refuse or ""

    @property
    def tree(self) -> Expression:
        """The filter, parsed."""
        return parse(self.where)


class Drift(Document):
    """How far the new episodes may lie from those the branch has."""

    threshold: float = Field(gt=0)
    """Largest standardised mean shift, in standard deviations of the branch's own values."""
    then: Literal["warn", "refuse"] = "warn"
    min_episodes: int = Field(default=20, ge=1)
    """Both sides need so many episodes; with fewer, nothing is said."""


class Gate(Document):
    """What must hold before a job's episodes are committed."""

    episodes: tuple[EpisodeRule, ...] = ()
    max_quarantined_fraction: float | None = Field(default=None, ge=0, le=1)
    """Of all episodes that a run reads: those quarantined, whatever the reason."""
    min_episodes: int | None = Field(default=None, ge=1)
    """Healthy episodes that the sources must have, known ones included."""
    drift: Drift | None = None

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [rule.name for rule in self.episodes]
        if len(set(names)) != len(names):
            raise ValueError("expected rules of different names")
        return self

    @property
    def may_refuse(self) -> bool:
        """True if it may refuse a job whole."""
        return (
            any(rule.refuse is not None for rule in self.episodes)
            or self.max_quarantined_fraction is not None
            or self.min_episodes is not None
            or (self.drift is not None and self.drift.then == "refuse")
        )
