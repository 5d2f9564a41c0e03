"""Reason codes of what is wrong with data, and what to do about each: the one table of them.

A code says why an episode is refused, or (with a `source_` before it) a whole source. They are
stable: scripts match on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ADVICE: Mapping[str, str] = {
    "length_mismatch": "The arrays do not belong to the same steps: write the episode again from "
    "its recording, or leave it out.",
    "nan": "Find what wrote NaN (a sensor that dropped out, a division by zero) and repair or "
    "leave out the episode; Penstock never fills values in.",
    "inf": "Find what overflowed and repair or leave out the episode; Penstock never clips.",
    "bad_dtype": "Convert the field to bool, integers or floats of at most 8 bytes, and flags to "
    "0 and 1.",
    "bad_timestamp": "Make timestamps finite, rising and in seconds.",
    "gap": "Steps are missing in the middle: record again, or split the episode there.",
    "flags_inconsistent": "Flags contradict one another: set each end on the last step only, "
    "terminated or truncated.",
    "unreadable": "The data is damaged or not there: get a fresh copy of the file, or leave the "
    "episode out.",
    "id_conflict": "Two episodes with other content share an id: give one another id, or ingest "
    "with --on-change replace.",
    "refused": "A service did not take the episode: what it said of it tells why.",
    "source_untrusted": "The source contradicts itself or is damaged as a whole: get a fresh copy, "
    "or name its format if it was taken for another.",
}
"""Code -> what to do."""

UNKNOWN = "See the message."


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a source."""

    source: str
    """The source as it was listed: path or URL."""
    where: str
    """Position of the episode within the source; the source itself where all of it is wrong."""
    code: str
    message: str

    @property
    def advice(self) -> str:
        """What to do."""
        return ADVICE.get(self.code, UNKNOWN)
