"""Which settings of streams a learner's run may be given, and batches of windows as rows.

Learners take rows: an observation, an action, what came of it. So every sampler and residency
will do that yields those, and windows are laid out as rows. What a learner would not read (goals,
returns, stacked frames) or has to answer (priorities) is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from learners.base import Batch
from learners.inputs import STEPWISE
from learners.settings import NO_NEEDS, StreamNeeds
from pipeline.stream.samplers import sampler_named
from schemas.errors import ConfigError, UnknownNameError, suggest
from schemas.stream import StreamConfig, stream_config

PLACES = ("residency", "memory", "device_memory", "prefetch", "cache_dir", "verify")
"""Say where rows are, not which; a resumed run may change them."""
FOLLOWING = ("follow", "follow_every", "service")
TAKEN = (
    *("sampler", "n_step", "weights", "window", "history", "pad", "shuffle_window"),
    *("fields", "spec", *PLACES, *FOLLOWING),
)
"""What `--stream` may set."""
OF_THE_RUN = ("batch_size", "seed", "discount", "device")


def check_stream(
    settings: Mapping[str, Any],
    sampler: str = "transition",
    needs: StreamNeeds = NO_NEEDS,
) -> None:
    """Refuses settings of streams that a learner's run does not take.

    Raises:
        UnknownNameError: for a setting that streams do not have, or an unknown sampler.
        ConfigError: for one that is not for learners, or that does not fit the others.
    """
    for name in settings:
        if name in OF_THE_RUN:
            raise ConfigError(
                f"Expected settings of the stream alone, came {name!r}, which is the run's own; "
                f"use --{name.replace('_', '-')}.",
                where=name,
            )
        if name not in TAKEN:
            known = name in StreamConfig.model_fields
            kind = ConfigError if known else UnknownNameError
            raise kind(
                f"Expected a setting of streams that learners take, came {name!r}"
                + ", which these do not read" * known
                + f"; {suggest(name, TAKEN)}",
                where=name,
            )
        if name in needs.stream():
            raise ConfigError(
                f"Expected settings that the algorithm leaves open, came {name!r}, which it sets "
                f"to {needs.stream()[name]} itself; leave it out.",
                where=name,
            )
    chosen = sampler_named(settings.get("sampler", sampler)).name
    if chosen == "prioritised":
        raise ConfigError(
            "Expected a sampler that asks for no answer, came 'prioritised', whose priorities "
            "these algorithms do not tell; use 'weighted' with a column of episodes.",
            where="sampler",
        )
    stream_config({"sampler": sampler, **settings})


def order_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide which rows are drawn: those a resumed run must keep."""
    return {name: value for name, value in settings.items() if name not in PLACES}


def again_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with which batches that a run has seen are made again, anywhere."""
    return {name: value for name, value in order_of(settings).items() if name not in FOLLOWING}


def rows_of(batches: Iterator[Batch], needs: StreamNeeds) -> Iterator[Batch]:
    """Yields batches (B, ...) as they are, and those of windows (B, T, ...) as B * T rows.

    Windows that an algorithm asks for stay windows.
    """
    for batch in batches:
        is_window = batch["mask"].ndim == 2 and needs.window is None
        yield as_rows(batch) if is_window else batch


def as_rows(batch: Batch) -> Batch:
    """Lays the steps of windows out as rows; padded ones have mask 0."""
    rows = {name: _merged(batch[name]) for name in STEPWISE if name in batch}
    if "is_demonstration" in batch:  # said of whole windows
        steps = batch["mask"].shape[1]
        rows["is_demonstration"] = batch["is_demonstration"].repeat_interleave(steps)
    return rows


def _merged(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _merged(child) for name, child in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_merged, value))
    return value.reshape(-1, *value.shape[2:])
