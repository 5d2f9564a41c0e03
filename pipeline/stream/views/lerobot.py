"""A version as LeRobot's dataset: written once in LeRobot's own files, opened by its own class.

LeRobot's class reads files and nothing else, so the first view of a version writes them into the
cache; pictures and videos go there as they are stored, not decoded. The writer is our sink for the
format. Streams know no connectors, so it is asked for by name (`CONNECTORS`), here and only here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.store.reader import Version
from pipeline.stream.views.episodes import kept, missing, one_spec
from pipeline.stream.views.folders import made_once

try:
    from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset
except ImportError as error:
    raise missing("lerobot", error) from error

CONNECTORS = "connectors.registry"


def view(
    version: Version,
    *,
    delta_timestamps: Mapping[str, Sequence[float]] | None,
    image_transforms: Callable[..., Any] | None,
    use_videos: bool,
    cache_dir: str | None,
) -> LeRobotDataset:
    """Returns LeRobot's dataset of all episodes; see `Version.as_lerobot`."""
    one_spec(version)
    shown = kept(version).with_steps()
    chosen = {"codebase_version": CODEBASE_VERSION, "use_videos": use_videos}
    metadata: dict[str, Any] = dict(chosen)
    for source in version.state.sources.values():  # the first source to state a fact is kept
        metadata = {**source.metadata, **metadata}
    sink = import_module(CONNECTORS).sink("lerobot")

    def write(draft: Path) -> None:
        sink.write(shown.read(), str(draft), metadata)

    folder = made_once("lerobot", shown, chosen, write, cache_dir=cache_dir)
    return LeRobotDataset(
        f"penstock/{version.id}",
        root=folder,
        delta_timestamps=None
        if delta_timestamps is None
        else {name: list(times) for name, times in delta_timestamps.items()},
        image_transforms=image_transforms,
    )
