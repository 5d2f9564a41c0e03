"""Where a run's batches come from: references pinned to versions, opened as one stream.

A reference such as `STORE@main` names something that moves. A run pins it to a version id at its
start and keeps the id in its checkpoints, so that a resumed run reads the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from learners.base import Batch
from learners.bounds import action_bounds
from learners.environments import count_choices
from learners.layout import is_choice
from learners.normaliser import Normaliser, Picture, fit_normaliser
from learners.ranks import ALONE, Ranks
from learners.settings import NO_NEEDS, StreamNeeds
from pipeline.store.reader import Version
from pipeline.store.store import open_store, parse_ref
from pipeline.stream.cache import Progress as Packing
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.errors import ConfigError, SpecMismatchError, UsageError
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
    stream: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of streams, those of `learners.sampling`."""
    needs: StreamNeeds = NO_NEEDS
    """What the algorithm asks for."""
    episode_ids: bool = False
    """Whether batches name their episodes."""
    ranks: Ranks = ALONE
    """The processes that share each batch."""
    reads: tuple[str, ...] | None = None
    """Full names of the observation fields that the learner takes in; None streams all of them."""

    @property
    def rows(self) -> int:
        """Rows of what one update takes."""
        return self.batch_size * self.needs.batches

    def settings(self, version: Version) -> dict[str, Any]:
        """Returns all settings of a stream of a version."""
        ranks = self.ranks
        found = {
            "batch_size": self.rows,
            "seed": self.seed,
            "discount": self.discount,
            "device": self.device,
            "framework": "torch",
            "sampler": self.sampler,
            "episode_ids": self.episode_ids,
            **({"rank": ranks.rank, "world_size": ranks.size} if ranks.size > 1 else {}),
            "fields": fields_read(version, self.reads),
            **self.stream,
            **self.needs.stream(),
        }
        return with_sampler_of_windows(found)


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
    pinned: Sequence[Pinned],
    sampling: Sampling,
    packing: Packing | None = None,
    run: str | None = None,
) -> Stream | Mixture:
    """Opens one stream over pinned versions: a plain one, or a mixture by their weights.

    Args:
        pinned: which versions.
        sampling: size, order and form of the batches.
        packing: told, while the packed cache is filled, of the blocks done and to do.
        run: what stores call the run that reads it; None for one that is read again.
    """
    versions, flags = [one.open() for one in pinned], demonstrations(len(pinned), sampling.needs)
    if len(pinned) == 1:
        only = versions[0]
        return Stream(only, progress=packing, **sampling.settings(only), run=run)
    streams = [Stream(one, progress=packing, **sampling.settings(one)) for one in versions]
    return Mixture(
        [(stream, one.weight) for stream, one in zip(streams, pinned, strict=True)],
        batch_size=sampling.rows,
        seed=sampling.seed,
        demonstration=flags,
        run=run,
    )


def fields_read(version: Version, reads: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Returns the fields of a version to stream; None where that is all of them.

    Observations that nobody reads, pictures above all, are neither decoded nor kept nor gathered.

    Args:
        version: what is streamed.
        reads: full names of the observation fields that are read; None for all.
    """
    if reads is None or len(version.specs) != 1:
        return None
    (spec,) = version.specs.values()
    regular = [name for name, field in spec.fields.items() if field.is_regular]
    wanted = [name for name in regular if name.split("/")[0] != "observations" or name in reads]
    if len(wanted) == len(regular):
        return None
    added = [name for name in version.step_arrays() if name == "rewards"]
    return tuple(sorted({*wanted, *added}))


def demonstrations(sources: int, needs: StreamNeeds) -> list[bool]:
    """Returns which of some offline sources are demonstrations: all, or the first few.

    Raises:
        ConfigError: if there are to be more than there are sources.
    """
    first = sources if needs.demonstrations is None else needs.demonstrations
    if first > sources:
        raise ConfigError(
            f"Expected at most as many sources of demonstrations as there are of data, {sources}, "
            f"came {first}.",
            where="demonstrations",
        )
    return [source < first for source in range(sources)]


def run_name(algo: str, run: str) -> str:
    """Returns what stores call a run."""
    return f"{algo}-{run[:12]}"


def fit(
    pinned: Sequence[Pinned],
    standardise: bool,
    *,
    pixels: bool = False,
    environment: str | None = None,
) -> Normaliser:
    """Fits a normaliser on all pinned versions together.

    Args:
        pinned: the versions.
        standardise: False lets observations in as they are.
        pixels: whether pictures are taken in, too.
        environment: where the policy is to act; it says how many discrete actions there are, or
            between which bounds others lie. Without one the data do.

    Raises:
        SpecMismatchError: if there is nothing to take in, or actions of another kind.
    """
    versions = [one.open() for one in pinned]
    spec = only_spec(versions)
    pictures = picture_fields(spec) if pixels else ()
    fields = float_fields(spec, pixels)
    choices, bounds = None, None
    if is_choice(spec.fields.get("actions")):
        choices = 0 if environment is None else count_choices(environment)
    elif environment is not None:
        bounds = action_bounds(environment)
    fitted = fit_normaliser(versions, fields, standardise, pictures, choices, bounds)
    return replace(fitted, spec=spec)


def check_recorded(pinned: Sequence[Pinned], algo: str, reads: Sequence[str]) -> None:
    """Refuses versions of which some steps lack what an algorithm reads of them.

    Args:
        pinned: the versions.
        algo: name of the algorithm.
        reads: fields of each step, of `Learner.reads`.

    Raises:
        SpecMismatchError: naming the field, and how many episodes are without.
    """
    for one in pinned:
        version = one.open()
        spec, added = only_spec([version]), version.step_arrays()
        for name in reads:
            if name not in spec.fields and name not in added:
                raise SpecMismatchError(
                    f"Expected steps with {name} for {algo}, came data without [{spec}]"
                    + "; annotate rewards, or learn with bc" * (name == "rewards")
                    + ".",
                    where=one.store,
                )
        if "rewards" in reads:
            bare = version.episodes("episode_return is null", columns=["episode_id"]).num_rows
            if bare:
                raise SpecMismatchError(
                    f"Expected rewards of every episode for {algo}, came {bare} episodes without; "
                    f"curate the others (`--where 'episode_return is not null'`), or annotate "
                    f"rewards.",
                    where=one.store,
                )


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


def float_fields(spec: DatasetSpec, pixels: bool = False) -> tuple[str, ...]:
    """Returns the sorted names of the observation fields that learners take in as numbers.

    Args:
        spec: of the data.
        pixels: whether pictures are taken in beside them; then there may be none.

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
    if not found and not pixels:
        raise SpecMismatchError(
            f"Expected a float observation field, came [{spec}]; for learners that have it, "
            f"pixels=true takes in pictures."
        )
    return found


def picture_fields(spec: DatasetSpec) -> tuple[Picture, ...]:
    """Returns the observation fields that are uint8 pictures, as arrays or encoded, by name.

    Raises:
        SpecMismatchError: if there is none.
    """
    found = tuple(
        Picture(name, field.shape)
        for name, field in sorted(spec.fields.items())
        if name.split("/")[0] == "observations"
        and field.is_regular
        and field.numpy_dtype == np.uint8
        and len(field.shape) in (2, 3)
    )
    if not found:
        raise SpecMismatchError(
            f"Expected uint8 pictures among the observations for pixels=true, came [{spec}]."
        )
    return found


def with_sampler_of_windows(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings of a stream, with the sampler that draws its windows uniformly, if any."""
    has_steps = settings.get("window") is not None or settings.get("history", 0) > 0
    has_windows = has_steps or settings.get("frame_stack", 1) > 1
    is_uniform = settings["sampler"] == "transition"
    return {**settings, "sampler": "window"} if has_windows and is_uniform else settings


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
