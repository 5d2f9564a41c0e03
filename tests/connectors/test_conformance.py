"""Every dataset of a small set through every pair of formats: exactly the declared losses.

A dataset is written in one format and read back, which makes it a dataset of that format; then it
is written in another and read back again. What differs must be declared by the second format;
what a format declares must be seen to differ, or to be refused, somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors import registry
from connectors.base import ABOUT, Aspect
from schemas.episode import Episode
from schemas.errors import UsageError
from tests.connectors.conformance import CASES, Case, differences, matching
from tests.connectors.contracts import check_guesses

FORMATS = tuple(f.name for f in registry.FORMATS.values() if f.is_read and f.is_written)

STORAGES: dict[str, tuple[dict[str, Any], ...]] = {
    "minari": tuple({"data_format": name} for name in ("hdf5", "arrow", "parquet")),
    "lerobot": tuple(
        {"codebase_version": version, "use_videos": is_video}
        for version in ("v3.0", "v2.1")
        for is_video in (False, True)
    ),
    "rlds": ({"file_format": "array_record"}, {"file_format": "tfrecord"}),
    "replay_zarr": ({"zarr_format": 2}, {"zarr_format": 3}, {"zip": True}),
}
"""The metadata that make a format's every storage; other formats have one."""


def convert(
    name: str, episodes: list[Episode], where: Path, case: Case
) -> list[tuple[str | None, Episode]] | None:
    """Native ids and episodes as they come back from a format; None where it refuses them."""
    try:
        registry.sink(name).write(iter(episodes), str(where), case.metadata)
    except UsageError:
        assert not where.exists(), "a refused export left something"
        return None
    source = registry.source(name)
    listing = source.discover(str(where))
    check_guesses(source, listing)
    found = [f for unit in listing.units for f in source.read(unit)]
    assert [f.fault for f in found if f.fault] == []
    return [(f.native_id, f.episode) for f in found if f.episode is not None]


def judge(
    name: str, episodes: list[Episode], where: Path, case: Case
) -> tuple[set[tuple[Aspect, bool]], list[Episode] | None]:
    """Checks one conversion; returns what was lost, or why it was refused, and what came back."""
    losses = registry.sink(name).losses()
    lossy = {loss.aspect for loss in losses if not loss.refused}
    refusing = {loss.aspect for loss in losses if loss.refused}
    came = convert(name, episodes, where, case)
    if came is None:
        reasons = refusing & {*case.needs, *_given(episodes)}
        assert reasons, f"{name} refuses {case.name} without having declared why"
        return {(reason, True) for reason in reasons}, None
    assert len(came) == len(episodes)
    lost: set[str] = set()
    places = matching(episodes, [two for _, two in came])
    if places != sorted(places):
        lost.add("order")
        came = [came[place] for place in places]
    for one, (native, two) in zip(episodes, came, strict=True):
        lost |= differences(one, two)
        lost |= {"ids"} if native is None or native != one.episode_id else set()
    assert lost <= lossy, f"{name} loses {sorted(lost - lossy)} of {case.name}, undeclared"
    # As the next format will meet them; equal content may come twice.
    named = [two.replace(episode_id=f"case/{at}") for at, (_, two) in enumerate(came)]
    return {(aspect, False) for aspect in lossy if aspect in lost}, named


def _given(episodes: list[Episode]) -> set[str]:
    """Aspects that these episodes bring along, whatever the case is about."""
    stated = {
        name
        for name in (*ABOUT, "extras")
        if any(getattr(episode, name) not in (None, {}, "demonstration") for episode in episodes)
    }
    missing = any(episode.final_observation != "present" for episode in episodes)
    unknown = {
        name
        for name in ("actions", "rewards")
        if any(getattr(episode, name) is None for episode in episodes)
    }
    return stated | unknown | ({"final_observation"} if missing else set())


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_pair_loses_what_it_declares(tmp_path: Path, case: Case, first: str) -> None:
    _, held = judge(first, case.make(), tmp_path / f"{first}-v0", case)
    if held is None:
        return
    needs = case.needs  # what the first format gave up is no longer asked of the second
    for second in FORMATS:
        judge(second, held, tmp_path / f"{first}-{second}-v0", replace(case, needs=needs))


@pytest.mark.parametrize("name", FORMATS)
def test_every_declared_loss_is_real(tmp_path: Path, name: str) -> None:
    seen: set[tuple[Aspect, bool]] = set()
    for at, options in enumerate(STORAGES.get(name, ({},))):
        for case in CASES:
            chosen = replace(case, metadata={**case.metadata, **options})
            seen |= judge(name, case.make(), tmp_path / f"{at}{case.name}-v0", chosen)[0]
    declared = {(loss.aspect, loss.refused) for loss in registry.sink(name).losses()}
    assert declared == seen, f"never seen: {sorted(declared - seen)}"


class Watched(Mapping[str, Any]):
    """Metadata that remember what was asked for."""

    def __init__(self, stated: Mapping[str, Any]) -> None:
        self.stated = stated
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self.stated[name]

    def __iter__(self) -> Iterator[str]:
        self.asked.add("*")
        return iter(self.stated)

    def __len__(self) -> int:
        return len(self.stated)


@pytest.mark.parametrize("name", FORMATS)
def test_a_sink_uses_the_metadata_it_declares(tmp_path: Path, name: str) -> None:
    sink = registry.sink(name)
    asked = set()
    for case in CASES:
        if case.name in ("plain", "facts", "jpeg"):
            watched = Watched({"use_videos": True})
            with suppress(UsageError):
                sink.write(iter(case.make()), str(tmp_path / f"{case.name}-v0"), watched)
            asked |= {"*"} if "*" in watched.asked else watched.asked
    assert asked == set(sink.options())
    assert all(sink.options().values())
