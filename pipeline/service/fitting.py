"""Which episodes fit a branch: by the specs that it has, and by those of what waits to join it.

What was acknowledged must come into a version. So an episode that waits in the log counts as the
branch's already: the first one of an empty branch settles its spec, as it will when it is sealed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.service.assemble import Ended
from pipeline.store.joining import REMEMBERED
from pipeline.store.specs import cast_episode, cast_target, join
from schemas.arrow import schema_layout
from schemas.episode import Episode
from schemas.errors import NameTakenError, SpecMismatchError
from schemas.spec import DatasetSpec

ADVICE = (
    "send what the branch holds, or have the service started with --new-spec NAME or for a branch "
    "of its own"
)
"""What an actor can do about fields that do not fit."""


class Joins(NamedTuple):
    """What decides which spec an episode joins."""

    spec: DatasetSpec
    kind: str
    """As `schemas.episode.Episode.kind`: rollouts may be cast."""
    episode_id: str


def joins_of(waiting: Iterable[Ended]) -> list[Joins]:
    """Returns what episodes will ask of the branch, in their order."""
    specs: dict[int, DatasetSpec] = {}  # by the schema, which most of them share
    found = []
    for ended in waiting:
        spec = specs.get(id(ended.schema))
        if spec is None:
            spec = specs[id(ended.schema)] = schema_layout(ended.schema).spec
        found.append(Joins(spec, ended.facts.kind, ended.episode_id))
    return found


class Known(NamedTuple):
    """What the episodes of a moment are held against."""

    specs: Mapping[str, DatasetSpec]
    """By name."""
    fitting: dict[int, DatasetSpec]
    """Specs that one of those holds already, by their identity: most episodes share theirs."""


class Fitting:
    """The specs of a branch, and which episodes fit them.

    `check` may be called from any thread; what changes the specs from one at a time.
    """

    def __init__(self, specs: Mapping[str, DatasetSpec], new_spec: str | None) -> None:
        """Begins with the specs of a branch.

        Args:
            specs: by name.
            new_spec: name of the spec that episodes join which fit none of them.
        """
        self._new_spec = new_spec
        self.known = Known(dict(specs), {})
        """Another one after each change."""

    def check(self, episode: Episode) -> Episode:
        """Returns an episode as the branch would hold it: cast, if only dtypes keep it out.

        Raises:
            SpecMismatchError, NameTakenError: if there is no spec for it.
        """
        known, spec = self.known, episode.spec
        if id(spec) in known.fitting:
            return episode
        cast, _ = self._joined(known, Joins(spec, episode.kind, episode.episode_id))
        return episode if cast is spec else cast_episode(episode, cast)

    def take(self, one: Joins) -> None:
        """Counts the spec of an episode among the branch's.

        Raises:
            SpecMismatchError, NameTakenError: if there is no place for it.
        """
        known = self.known
        if id(one.spec) in known.fitting:
            return
        _, (name, joined) = self._joined(known, one)
        if known.specs.get(name) != joined:
            self.known = Known({**known.specs, name: joined}, {})

    def begin_again(self, specs: Mapping[str, DatasetSpec], waiting: Iterable[Joins]) -> None:
        """Goes on from other specs; what fits neither them nor what came before it is left out.

        Args:
            specs: of the branch.
            waiting: the episodes that are to join it, in their order.
        """
        if specs and self.known.specs == specs:
            return  # what waits fitted before, and adds nothing
        self.known = Known(dict(specs), {})
        for one in waiting:
            try:
                self.take(one)
            except (SpecMismatchError, NameTakenError):
                continue  # it will be quarantined: it decides nothing

    def _joined(self, known: Known, one: Joins) -> tuple[DatasetSpec, tuple[str, DatasetSpec]]:
        """Returns what an episode is cast to, and the spec that it joins then, with its name."""
        target = cast_target(known.specs, one.spec) if one.kind == "rollout" else None
        spec = target or one.spec
        new = self._new_spec if known.specs else None
        name, joined = join(known.specs, spec, new, one.episode_id, ADVICE)
        if spec is one.spec and known.specs.get(name) is joined:
            if len(known.fitting) >= REMEMBERED:
                known.fitting.clear()
            known.fitting[id(spec)] = spec
        return spec, (name, joined)
