"""What a connector is: a `Source` that discovers and reads, a `Sink` that writes.

`discover` is cheap and returns units of work as small references (a file and a range), because
engines ship references, never rows. `read` turns one unit into episodes; an episode that cannot be
read whole comes back as a fault beside its healthy neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from schemas.episode import Episode
from schemas.errors import EpisodeError

UNIT_STEPS = 65_536
"""Steps that one unit of work should hold at most, unless a single episode is longer or
rows are known to be narrow (`connectors.units`)."""


@dataclass(frozen=True)
class Unit:
    """A reference to some consecutive episodes of a source: the element that engines pass on."""

    format: str
    where: str
    """Path or URL of the dataset as the user named it."""
    start: int
    """Position of the first episode in the dataset's own order."""
    stop: int
    """One past the last."""
    steps: int
    """Steps in these episodes, as far as discovery can tell; for balance and progress."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What `read` needs besides, as plain JSON values (row ranges, file names)."""


@dataclass(frozen=True)
class Listing:
    """What discovery found out about one dataset."""

    format: str
    where: str
    identity: str | None
    """The dataset's own identity (a Minari id), namespace of its episodes' ids; None for bare
    files, whose episodes are named by content."""
    units: tuple[Unit, ...]
    episodes: int
    steps: int
    fingerprint: str
    """Changes when the dataset's files do (sizes and modification times)."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Dataset-level facts worth keeping with the commit, as plain JSON values."""
    guesses: tuple[str, ...] = ()
    """What the reader had to guess, in words; each is one that `Source.guesses` declares."""


@dataclass(frozen=True)
class Found:
    """One episode as its source states it, or why it cannot be read."""

    key: str
    """Position within the dataset: `episode_3`, `demo_0`, `rows 100:222`."""
    position: int
    """Index in the dataset's own order."""
    native_id: str | None
    """The dataset's own id of the episode, where the dataset has an identity; else None."""
    episode: Episode | None
    """With an empty `episode_id`: the job names it."""
    fault: EpisodeError | None = None


Aspect = Literal[
    "final_observation",
    "terminated",
    "truncated",
    "actions",
    "rewards",
    "extras",
    "columns",
    "labels",
    "task",
    "policy",
    "policy_version",
    "kind",
    "seed",
    "success",
    "collected_at",
    "fps",
    "dtypes",
    "names",
    "encodings",
    "pixels",
    "pictures",
    "videos",
    "texts",
    "ragged",
    "specs",
    "order",
    "ids",
]
"""What of an episode a format may fail to hold: a fact or field of its own name, or

*   `actions`, `rewards`: their absence, which the format cannot say;
*   `dtypes`: values come back with another dtype (and its precision);
*   `names`: observations or actions come back under other names, or flat instead of nested;
*   `encodings`: pictures, texts or ragged rows come back in another encoding, without loss;
*   `pixels`: pictures come back changed within a stated bound;
*   `pictures`, `videos`, `texts`, `ragged`: observations of that encoding, in any form;
*   `specs`: episodes of different fields in one dataset;
*   `order`: episodes come back in another order;
*   `ids`: native episode ids.
"""


ABOUT: tuple[Aspect, ...] = (
    *("task", "policy", "policy_version", "kind", "seed", "success", "collected_at", "fps"),
    *("columns", "labels"),
)
"""What is said about an episode as a whole; formats without a place for it lose all of it."""


@dataclass(frozen=True)
class Loss:
    """One thing that a written format cannot hold. The conformance tests check each of them."""

    aspect: Aspect
    says: str
    """In words, for whoever exports: what is lost, and when."""
    refused: bool = False
    """True if an export of such episodes is refused, rather than done without it."""


class Source(Protocol):
    """A readable format. Stateless: a class with three static functions would do."""

    def guesses(self) -> tuple[str, ...]:
        """Declares what the reader may have to guess, in words; `{names}` stand for what is found.

        A listing says which of them were needed (`Listing.guesses`).
        """
        ...

    def discover(self, where: str) -> Listing:
        """Lists a dataset without reading its rows.

        Raises:
            NotFoundError: if there is nothing at `where`.
            SourceError: if what is there cannot be trusted whole.
        """
        ...

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads the episodes of one unit in order."""
        ...


class Sink(Protocol):
    """A writable format."""

    def losses(self) -> tuple[Loss, ...]:
        """Declares what the format cannot hold; all that differs after write and read."""
        ...

    def options(self) -> Mapping[str, str]:
        """Declares the names of the metadata that `write` uses, and what for.

        `*` stands for any name.
        """
        ...

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes episodes to a new dataset at `where`; returns how many.

        Raises:
            UsageError: if `where` exists already, or an episode does not fit the format.
        """
        ...
