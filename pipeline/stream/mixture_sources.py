"""What a mixture is made of: streams, and mixtures that count as their streams, with weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.stream.endless import Endless
from pipeline.stream.loader import Stream
from pipeline.stream.shares import Anneal, exact_weight
from schemas.errors import ConfigError, UsageError
from schemas.stream import shortened

if TYPE_CHECKING:
    from pipeline.stream.mixture import Mixture

Weighted: TypeAlias = "tuple[Stream | Mixture, float | Fraction]"
"""A source with its weight."""


def pairs(sources: Any) -> list[Weighted]:
    """Returns what a mixture is made of, checked.

    Raises:
        UsageError: for anything but pairs of a stream and its weight.
    """
    is_one = isinstance(sources, Endless) or not isinstance(sources, Iterable)
    found = [sources] if is_one else list(sources)
    for pair in found:
        is_pair = isinstance(pair, Sequence) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], Endless):
            raise UsageError(
                f"Expected pairs of a stream and its weight, such as [(stream, 0.3), (other, "
                f"0.7)], came {shortened(pair)}."
            )
    return found


def apart(
    sources: Sequence[Weighted], demonstration: Sequence[bool] | None
) -> Iterator[tuple[Stream, Fraction, bool]]:
    """Yields streams with weight and flag; a mixture's streams share its weight and take its flag.

    Args:
        sources: with their weights.
        demonstration: which of them count as demonstrations; by default the first alone.

    Raises:
        ConfigError: for flags or weights that do not fit, or an annealed mixture among them.
    """
    flags = [k == 0 for k in range(len(sources))] if demonstration is None else demonstration
    if len(flags) != len(sources):
        raise ConfigError(
            f"Expected one demonstration flag for each of {len(sources)} streams, came "
            f"{list(flags)}."
        )
    for (source, weight), flag in zip(sources, flags, strict=True):
        outer = exact_weight(weight)
        if isinstance(source, Stream):
            yield source, outer, bool(flag)
        else:
            for stream, inner in source.parts():
                yield stream, outer * inner, bool(flag)


def of_streams(sources: Sequence[Weighted], anneal: Anneal | None) -> Anneal | None:
    """Returns an anneal, which speaks of streams alone.

    Raises:
        ConfigError: if a mixture is among the sources.
    """
    if anneal is not None and not all(isinstance(source, Stream) for source, _ in sources):
        raise ConfigError("Expected streams where weights are annealed, came a mixture; name its.")
    return anneal
