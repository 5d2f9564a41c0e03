"""Where a run's batches come from: references pinned to versions, opened as one stream.

A reference such as `STORE@main` names something that moves. A run pins it to a version id at its
start and keeps the id in its checkpoints, so that a resumed run reads the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from learners.base import Batch
from learners.normaliser import Normaliser, fit_normaliser
from pipeline.store.reader import Version
from pipeline.store.store import open_store, parse_ref
from pipeline.stream.cache import Progress as Packing
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.errors import SpecMismatchError, UsageError
from schemas.spec import DatasetSpec


class BatchStream(Protocol):
    """Endless batches that can stop and go on exactly."""

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches for ever."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position as a few plain numbers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


@dataclass(frozen=True)
class Pinned:
    """One version of a store, and its weight in a mixture."""

    store: str
    version: str
    """Its id."""
    weight: float = 1.0

    def open(self) -> Version:
        """Returns the version."""
        return open_store(self.store).version(self.version)

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn."""

    batch_size: int
    seed: int
    discount: float
    device: str
    sampler: str = "transition"
    episode_ids: bool = False
    """Whether batches name their episodes."""


def pin(references: Sequence[str]) -> tuple[Pinned, ...]:
    """Pins references `STORE[@REF][=WEIGHT]` to the versions they name now.

    Raises:
        NotFoundError: if a store or a version is not there.
        UsageError: if there is no reference, or a weight is not positive.
    """
    if not references:
        raise UsageError("Expected at least one store to read, came none.")
    pinned = []
    for reference in references:
        address, weight = _split_weight(reference)
        store, ref = parse_ref(address)
        opened = open_store(store)
        pinned.append(Pinned(opened.url, opened.version(ref).id, weight))
    return tuple(pinned)


def open_stream(
    pinned: Sequence[Pinned], sampling: Sampling, packing: Packing | None = None
) -> Stream | Mixture:
    """Opens one stream over pinned versions: a plain one, or a mixture by their weights.

    Args:
        pinned: which versions.
        sampling: size, order and form of the batches.
        packing: told, while the packed cache is filled, of the blocks done and to do.
    """
    if len(pinned) == 1:
        return _stream(pinned[0].open(), sampling, packing)
    return Mixture(
        [(_stream(one.open(), sampling, packing), one.weight) for one in pinned],
        batch_size=sampling.batch_size,
        seed=sampling.seed,
    )


def open_growing(
    offline: Sequence[Pinned], online: Version, offline_fraction: float, sampling: Sampling
) -> Mixture:
    """Opens a mixture of pinned versions and, last, of one that is to grow.

    Args:
        offline: share `offline_fraction` of each batch by their weights; demonstrations.
        online: has the rest; `Mixture.follow` moves it on.
        offline_fraction: from 0 to below 1.
        sampling: size, order and form of the batches.
    """
    total = sum(one.weight for one in offline)
    # Products of decimals, rounded back to decimals: the mixture takes weights as written.
    shares = [round(offline_fraction * one.weight, 9) for one in offline]
    shares.append(round((1 - offline_fraction) * total, 9))
    versions = [*(one.open() for one in offline), online]
    return Mixture(
        [(_stream(v, sampling), share) for v, share in zip(versions, shares, strict=True)],
        batch_size=sampling.batch_size,
        seed=sampling.seed,
        demonstration=[True] * len(offline) + [False],
    )


def run_name(algo: str, run: str) -> str:
    """Returns what stores call a run."""
    return f"{algo}-{run[:12]}"


def fit(pinned: Sequence[Pinned], standardise: bool) -> Normaliser:
    """Fits a normaliser on all pinned versions together."""
    versions = [one.open() for one in pinned]
    return fit_normaliser(versions, float_fields(only_spec(versions)), standardise)


def only_spec(versions: Sequence[Version]) -> DatasetSpec:
    """Returns the one spec of some versions.

    Raises:
        SpecMismatchError: if they hold several.
    """
    specs = [spec for version in versions for spec in version.specs.values()]
    if not specs:
        raise SpecMismatchError("Expected a version with episodes, came an empty one.")
    if any(spec != specs[0] for spec in specs):
        raise SpecMismatchError(
            f"Expected data of one spec to learn from, came: {' | '.join(map(str, specs))}; curate "
            f"the episodes of one (`--where \"spec == 'NAME'\"`)."
        )
    return specs[0]


def float_fields(spec: DatasetSpec) -> tuple[str, ...]:
    """Returns the sorted names of the observation fields that learners take in.

    Raises:
        SpecMismatchError: if there is no float field.
    """
    found = tuple(
        name
        for name, field in sorted(spec.fields.items())
        if name.split("/")[0] == "observations"
        and field.encoding == "raw"
        and field.numpy_dtype.kind == "f"
    )
    if not found:
        raise SpecMismatchError(f"Expected a float observation field, came [{spec}].")
    return found


def _stream(version: Version, sampling: Sampling, packing: Packing | None = None) -> Stream:
    return Stream(
        version,
        sampler=sampling.sampler,
        batch_size=sampling.batch_size,
        seed=sampling.seed,
        device=sampling.device,
        framework="torch",
        discount=sampling.discount,
        episode_ids=sampling.episode_ids,
        progress=packing,
    )


def _split_weight(reference: str) -> tuple[str, float]:
    address, equals, text = reference.rpartition("=")
    if not equals:
        return reference, 1.0
    try:
        weight = float(text)
    except ValueError:
        return reference, 1.0
    if not weight > 0:
        raise UsageError(f"Expected a positive weight, came {text!r}.", where=reference)
    return address, weight
