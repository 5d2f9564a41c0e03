"""What every source and every sink must do, whatever its format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from connectors.base import Aspect, Found, Listing, Sink, Source
from schemas.episode import Episode
from schemas.errors import EpisodeError, NotFoundError, UsageError
from schemas.identity import digest


def read_all(source: Source, where: str) -> list[Found]:
    """Everything a source finds, in order."""
    listing = source.discover(where)
    check_guesses(source, listing)
    return [found for unit in listing.units for found in source.read(unit)]


def healthy(source: Source, where: str) -> list[Episode]:
    """All episodes of a dataset that has no faults."""
    found = read_all(source, where)
    assert [f.fault for f in found if f.fault] == []
    return [f.episode for f in found if f.episode is not None]


def check_source(source: Source, where: str) -> tuple[Listing, list[Found]]:
    """Runs the contract on one dataset; returns what was found for further checks."""
    listing = source.discover(where)
    assert listing == source.discover(where), "discovery is not a pure function of the files"
    assert listing.where == where
    check_guesses(source, listing)
    _check_units(listing)
    found = [f for unit in listing.units for f in source.read(unit)]
    _check_found(listing, found)
    # Engines read units in any order, in other processes, from what JSON carries.
    for unit in reversed(listing.units):
        assert type(unit)(**json.loads(json.dumps(unit.__dict__))) == unit
        again = list(source.read(unit))
        assert [_content(f) for f in again] == [_content(f) for f in found[unit.start : unit.stop]]
    return listing, found


def check_missing(source: Source, tmp_path: Path) -> None:
    """A dataset that is not there is said to be not there."""
    with pytest.raises(NotFoundError, match="nothing at"):
        source.discover(str(tmp_path / "absent"))


def check_guesses(source: Source, listing: Listing) -> None:
    """What a listing guesses is what its reader declares, word for word but for what it found."""
    declared = [re.escape(text) for text in source.guesses()]
    patterns = [re.sub(r"\\{\w+\\}", ".+", text) for text in declared]
    for guess in listing.guesses:
        assert any(re.fullmatch(pattern, guess) for pattern in patterns), f"undeclared: {guess}"


def check_sink(
    sink: Sink,
    source: Source,
    episodes: Sequence[Episode],
    place: Path,
    metadata: dict[str, object],
) -> list[Episode]:
    """Runs the contract on some episodes; returns what came back."""
    losses = sink.losses()
    assert losses
    assert all(loss.aspect in get_args(Aspect) and loss.says for loss in losses)
    where = str(place / "out-v0")
    assert sink.write(iter(episodes), where, metadata) == len(episodes)
    came = healthy(source, where)
    assert len(came) == len(episodes)
    before = _tree(place)
    with pytest.raises(UsageError, match="exists already"):
        sink.write(iter(episodes), where, metadata)
    _check_leaves_nothing(sink, episodes, str(place / "broken-v0"), metadata)
    assert _tree(place) == before, "a refused or broken write left something behind"
    return came


def assert_same(
    one: Episode, two: Episode, facts: Sequence[str] = (), rename: Callable[[str], str] = str
) -> None:
    """Equal arrays, dtypes and flags, bit for bit, and the named facts."""
    left = {rename(name): array for name, array in one.arrays.items()}
    assert left.keys() == two.arrays.keys()
    for name, array in left.items():
        other = two.arrays[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(other).tobytes(), name
    for flag in ("terminated", "truncated"):
        np.testing.assert_array_equal(getattr(one, flag), getattr(two, flag), flag)
    for fact in facts:
        assert getattr(one, fact) == getattr(two, fact), fact


def _check_units(listing: Listing) -> None:
    position = 0
    for unit in listing.units:
        assert unit.format == listing.format
        assert unit.where == listing.where
        assert unit.start == position < unit.stop
        position = unit.stop
    assert position == listing.episodes
    assert sum(unit.steps for unit in listing.units) == listing.steps
    assert json.loads(json.dumps(listing.metadata)) == listing.metadata


def _check_found(listing: Listing, found: list[Found]) -> None:
    assert [f.position for f in found] == list(range(listing.episodes))
    assert len({f.key for f in found}) == len(found)
    for f in found:
        assert (f.native_id is None) == (listing.identity is None)
        assert (f.episode is None) == (f.fault is not None)
        if f.episode is not None:
            assert f.episode.episode_id == ""
            assert f.episode.source
            assert f.episode.source_key
        else:
            assert isinstance(f.fault, EpisodeError)
            assert f.fault.code


def _content(found: Found) -> tuple[object, ...]:
    said = digest(found.episode) if found.episode else found.fault and found.fault.message
    return (found.key, found.position, found.native_id, said)


def _check_leaves_nothing(
    sink: Sink, episodes: Sequence[Episode], where: str, metadata: dict[str, object]
) -> None:
    def broken() -> object:
        yield from episodes
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        sink.write(broken(), where, metadata)  # type: ignore[arg-type]


def _tree(place: Path) -> list[str]:
    return sorted(str(path) for path in place.rglob("*"))
