"""What a learner tells a service of itself while both run: a heartbeat of bounded size."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from schemas.document import Document

BEAT_BYTES = 1 << 14
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(ge=0, le=1e9)]


class Heartbeat(Document):
    """Where a learner is, and how much more it wants to be inserted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    step: _Count
    """Updates taken."""
    version: Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
    """Of the branch of rollouts, as the learner reads it."""
    versions_behind: _Count = 0
    """How many newer ones that branch has."""
    samples: _Count = 0
    """Rows drawn of rollouts, of all batches so far."""
    inserted: _Count = 0
    """Steps of rollouts that this learner may draw from."""
    insert_room: _Count | None = None
    """Steps that may be pushed beyond the branch's version `room_since`; None for any number. When
    they are used up, actors are told to wait with their next episodes."""
    room_since: _Count = 0
    """Number of that version of the branch."""
    pull_wait_seconds: _Seconds = 0.0
    """How long the learner waited for rollouts since its last heartbeat."""
    valid_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    """After so long without another heartbeat the service forgets this one."""


class PolicyNote(Document):
    """What a policy's file says of itself."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    run: Annotated[str, Field(max_length=128)]
    step: _Count
    algo: Annotated[str, Field(max_length=128)]
