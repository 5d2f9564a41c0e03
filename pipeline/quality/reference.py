"""The frozen model that scores are relative to: scales, clusters, fits and who is in them.

Fitted on one version and stored with the score set. It is plain arrays and a JSON document, so it
outlives any class layout; there is no pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from pipeline.quality.blocks import Block
from pipeline.quality.clusters import assign
from pipeline.quality.features import Layout, layout_from_key
from pipeline.quality.fits import ClusterFits
from pipeline.quality.moments import CrossMoments
from pipeline.quality.normalizer import ActionScale, StateScale
from pipeline.quality.surroundings import Surroundings
from pipeline.quality.visited import Visited
from schemas.errors import DamagedStoreError
from schemas.metrics import MeasureConfig

P = TypeVar("P")

FIRST_SPEC = "default"
"""The spec whose layouts name none."""
FORMAT = 1
"""Number of the array layout that `to_arrays` writes."""


@dataclass(frozen=True)
class Members:
    """Which episodes the reference was fitted on, by the hash of their rows."""

    fingerprints: np.ndarray  # (M,) uint64, ascending, distinct
    copies: np.ndarray  # (M,) float64, how often each is there

    def count(self, fingerprints: np.ndarray) -> np.ndarray:
        """Returns (E,) how often each of these episodes is in the reference; 0 if not."""
        if not len(self.fingerprints):
            return np.zeros(len(fingerprints))
        at = np.searchsorted(self.fingerprints, fingerprints)
        at = np.minimum(at, len(self.fingerprints) - 1)
        return np.where(self.fingerprints[at] == fingerprints, self.copies[at], 0.0)


@dataclass(frozen=True)
class GroupModel:
    """Everything frozen for the rows of one layout: one task, one set of fields."""

    layout: Layout
    states: StateScale
    controls: ActionScale
    """Of actions as recorded, which drive the system."""
    targets: ActionScale
    """Of actions as scored; differs from `controls` where actions are scored as differences."""
    centroids: np.ndarray  # (C, D) float64
    surroundings: Surroundings | None
    """A sample of states; None where there are too few."""
    members: Members
    policy: ClusterFits | None
    """Action on state; None where the task has too few rows."""
    dynamics: ClusterFits | None
    """Change of state on state and action; None where it has too few rows."""
    visited: Visited | None = None
    """Bins of states and actions; None in models of before they were counted."""

    def place(self, block: Block) -> Placed:
        """Returns a block's rows among this model's clusters."""
        states = np.nan_to_num(block.states, posinf=0.0, neginf=0.0)
        predictors = self.states.predict_from(states)
        return Placed(
            block,
            self,
            predictors,
            assign(self.states.points(predictors), self.centroids),
            self.members.count(block.fingerprints),
        )


@dataclass(frozen=True)
class Placed:
    """A block whose rows know their predictors and clusters; faulty rows stand anywhere."""

    block: Block
    model: GroupModel
    predictors: np.ndarray  # (N, M) float64
    labels: np.ndarray  # (N,) int64
    copies: np.ndarray  # (E,) float64, how often each episode is in the reference


@dataclass(frozen=True)
class ReferenceModel:
    """The models of all layouts of a reference version, and the settings they were made with."""

    config: MeasureConfig
    groups: Mapping[Layout, GroupModel]

    def of_spec(self, spec: str) -> ReferenceModel:
        """Returns the models of one spec's layouts, by layouts that name no spec."""
        return ReferenceModel(self.config, of_spec(self.groups, spec))

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the model as named arrays and a JSON-able document."""
        arrays: dict[str, np.ndarray] = {}
        groups = []
        for number, (layout, group) in enumerate(self.groups.items()):
            for part in ("states", "controls", "targets", "members"):
                _put(arrays, f"{number}/{part}", getattr(group, part))
            arrays[f"{number}/centroids"] = group.centroids
            for part in ("surroundings", "visited"):
                if getattr(group, part) is not None:
                    _put(arrays, f"{number}/{part}", getattr(group, part))
            strengths = {}
            for part, fit in (("policy", group.policy), ("dynamics", group.dynamics)):
                if fit is not None:
                    _put(arrays, f"{number}/{part}", fit.moments)
                    arrays[f"{number}/{part}/noise"] = fit.noise
                    strengths[part] = fit.strength
            groups.append({"layout": layout.key, "strengths": strengths})
        config = self.config.model_dump(mode="json")
        return arrays, {"format": FORMAT, "config": config, "groups": groups}


def of_spec(parts: Mapping[Layout, P], spec: str) -> dict[Layout, P]:
    """Returns what there is of one spec's layouts, by layouts that name no spec."""
    return {
        replace(layout, spec=None): part
        for layout, part in parts.items()
        if (layout.spec or FIRST_SPEC) == spec
    }


def with_spec(parts: Mapping[Layout, P], spec: str) -> dict[Layout, P]:
    """Inverse of `of_spec`."""
    name = None if spec == FIRST_SPEC else spec
    return {replace(layout, spec=name): part for layout, part in parts.items()}


def from_arrays(arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> ReferenceModel:
    """Inverse of `ReferenceModel.to_arrays`.

    Raises:
        DamagedStoreError: if the document is of another format, or an array is missing.
    """
    if document.get("format") != FORMAT:
        raise DamagedStoreError(
            f"Expected a reference model of format {FORMAT}, came {document.get('format')!r}; "
            f"measure with --reference to make a new one."
        )
    groups = {}
    try:
        for number, entry in enumerate(document["groups"]):
            layout = layout_from_key(entry["layout"])
            groups[layout] = GroupModel(
                layout,
                states=_get(StateScale, arrays, f"{number}/states"),
                controls=_get(ActionScale, arrays, f"{number}/controls"),
                targets=_get(ActionScale, arrays, f"{number}/targets"),
                centroids=arrays[f"{number}/centroids"],
                surroundings=_get(Surroundings, arrays, f"{number}/surroundings")
                if f"{number}/surroundings/points" in arrays
                else None,
                visited=_get(Visited, arrays, f"{number}/visited")
                if f"{number}/visited/sketch" in arrays
                else None,
                members=_get(Members, arrays, f"{number}/members"),
                policy=_get_fit(arrays, f"{number}/policy", entry["strengths"].get("policy")),
                dynamics=_get_fit(arrays, f"{number}/dynamics", entry["strengths"].get("dynamics")),
            )
    except KeyError as error:
        raise DamagedStoreError(
            f"Expected the reference model's part {error}, it is not there."
        ) from error
    return ReferenceModel(MeasureConfig.model_validate(document["config"]), groups)


def _put(arrays: dict[str, np.ndarray], prefix: str, value: Any) -> None:
    for item in fields(value):
        if getattr(value, item.name) is not None:
            arrays[f"{prefix}/{item.name}"] = getattr(value, item.name)


def _get(kind: type[Any], arrays: Mapping[str, np.ndarray], prefix: str) -> Any:
    named = {item.name: f"{prefix}/{item.name}" for item in fields(kind)}
    optional = {item.name for item in fields(kind) if item.default is None}
    return kind(**{n: arrays[at] for n, at in named.items() if n not in optional or at in arrays})


def _get_fit(
    arrays: Mapping[str, np.ndarray], prefix: str, strength: float | None
) -> ClusterFits | None:
    if strength is None:
        return None
    return ClusterFits(_get(CrossMoments, arrays, prefix), strength, arrays[f"{prefix}/noise"])
