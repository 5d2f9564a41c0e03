"""A version in other libraries' own types, so that nobody must switch learner to try a store.

The store knows no streams, and none of these libraries. Where a view is asked for, and only there,
it loads the module that makes it by name (`VIEWS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

VIEWS = "pipeline.stream.views"


class Views:
    """What a version looks like to TorchRL, LeRobot, Minari and d3rlpy.

    Every view shows the steps that the version keeps, and no transition whose next observation is
    not known. Those that are files or memory maps lie in the cache, made once per version and
    machine, and may be deleted when nobody uses them.

    All raise `MissingExtraError` where the library is not installed, and `UsageError` where the
    version's episodes are of several specs or the library cannot hold them.
    """

    def as_torchrl(
        self,
        *,
        batch_size: int = 256,
        dtype: str | None = "float32",
        cache_dir: str | None = None,
    ) -> Any:
        """Returns a `torchrl.data.TensorDictReplayBuffer` of all transitions, memory-mapped.

        Args:
            batch_size: transitions that `sample()` returns.
            dtype: of all floats; None keeps theirs.
            cache_dir: by default `$PENSTOCK_CACHE`, or `~/.cache/penstock`.
        """
        make = _view("torchrl")
        return make(self, batch_size=batch_size, dtype=dtype, cache_dir=cache_dir)

    def as_lerobot(
        self,
        *,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        image_transforms: Callable[..., Any] | None = None,
        use_videos: bool = False,
        cache_dir: str | None = None,
    ) -> Any:
        """Returns a `LeRobotDataset` over files in the cache; encoded frames stay as they are.

        Args:
            delta_timestamps: LeRobot's own: seconds around each step, by feature.
            image_transforms: LeRobot's own, of each picture.
            use_videos: True writes pictures that are no video yet as one.
            cache_dir: as in `as_torchrl`.
        """
        return _view("lerobot")(
            self,
            delta_timestamps=delta_timestamps,
            image_transforms=image_transforms,
            use_videos=use_videos,
            cache_dir=cache_dir,
        )

    def as_minari(self) -> Any:
        """Returns a `minari.MinariDataset` that reads episodes from the store when asked."""
        return _view("minari")(self)

    def as_d3rlpy(self, *, dtype: str | None = "float32") -> Any:
        """Returns a `d3rlpy.dataset.ReplayBuffer` of all episodes, in memory.

        Args:
            dtype: of floats in observations and actions; None keeps theirs.
        """
        return _view("d3rlpy")(self, dtype=dtype)


def _view(library: str) -> Callable[..., Any]:
    found: Callable[..., Any] = import_module(f"{VIEWS}.{library}").view
    return found
