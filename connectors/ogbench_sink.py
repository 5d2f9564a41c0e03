"""Writes OGBench files: flat arrays with one row per observation, in one .npz.

A trajectory's last row holds the final observation; its action, which nothing reads, repeats the
one before. An episode whose final observation is missing or a copy loses its last step instead: its
last observation becomes the final one, with the action that was taken there, so that every
transition in the file is a real one.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np

from connectors.base import ABOUT, Loss
from connectors.files import new_dataset
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.packed import plain, spec_of

INFOS = ("qpos", "qvel", "button_states")
"""Extras that OGBench knows."""
_COPY_BYTES = 1 << 20


class OgbenchSink:
    """OGBench's .npz layout as a sink."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what an OGBench file cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "OGBench rows have no ids"),
            *(Loss(fact, "OGBench files say nothing about single episodes") for fact in ABOUT),
            Loss("rewards", "OGBench makes rewards from a goal; they are left out"),
            Loss("names", "a single named observation or action array becomes the plain one"),
            Loss("terminated", "an end is only an end: it comes back as truncated"),
            Loss("truncated", "every episode comes back as truncated at its last step"),
            Loss(
                "final_observation",
                "an episode whose final observation is missing or a copy loses its last step",
            ),
            Loss("extras", f"all but {', '.join(INFOS)} with T+1 rows in every episode"),
            Loss("encodings", "pictures and videos are written decoded"),
            Loss("names", "several observation or action arrays", refused=True),
            Loss("actions", "episodes without actions", refused=True),
            Loss("final_observation", "episodes of one step without a final one", refused=True),
            Loss("specs", "episodes of different fields", refused=True),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {}

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one file; see `connectors.base.Sink`. No metadata has a place in it."""
        written = 0
        with (
            new_dataset(where) as draft,
            tempfile.TemporaryDirectory(dir=draft.parent) as folder,
        ):
            with closing(_Columns(Path(folder))) as columns:
                for episode in episodes:
                    columns.add(episode)
                    written += 1
            columns.pack(draft)
        return written


class _Columns:
    """Gathers each array's rows in a file of its own: an .npy header needs the number of rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows = 0
        self._like: dict[str, np.ndarray] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._dropped: set[str] = set()

    def add(self, episode: Episode) -> None:
        arrays = _rows_of(episode)
        if not self._like:
            self._like = {name: array[:0] for name, array in arrays.items()}
            self._files = {name: (self._folder / name).open("wb") for name in arrays}
        for name, first in self._like.items():
            mine = arrays.get(name)
            if mine is not None and (mine.dtype, mine.shape[1:]) == (first.dtype, first.shape[1:]):
                self._files[name].write(np.ascontiguousarray(mine).tobytes())
            elif name in INFOS:
                self._dropped.add(name)
            else:
                raise _refused(
                    episode, f"{name} like the first episode's {first.dtype}{list(first.shape[1:])}"
                )
        self._rows += len(arrays["terminals"])

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def pack(self, draft: Path) -> None:
        if not self._like:
            raise UsageError("Expected at least one episode to write, came none.")
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, like in self._like.items():
                if name in self._dropped:
                    continue
                header = {
                    "descr": np.lib.format.dtype_to_descr(like.dtype),
                    "fortran_order": False,
                    "shape": (self._rows, *like.shape[1:]),
                }
                with (
                    archive.open(f"{name}.npy", "w", force_zip64=True) as member,
                    (self._folder / name).open("rb") as rows,
                ):
                    np.lib.format.write_array_header_1_0(member, header)
                    while block := rows.read(_COPY_BYTES):
                        member.write(block)


def _rows_of(episode: Episode) -> dict[str, np.ndarray]:
    """Returns one row per observation that is kept."""
    observations = list(episode.observations.values())
    actions = list(episode.flat_actions.values())
    if len(observations) != 1 or len(actions) != 1 or not spec_of(observations[0]).is_regular:
        raise _refused(episode, "one array of observations and one of actions, both numbers")
    steps = episode.length - (episode.final_observation != "present")
    if steps < 1:
        raise _refused(episode, "at least one step with an observation after it")
    if (episode.terminated | episode.truncated)[:steps][:-1].any():
        raise _refused(episode, "end flags on the last step only")
    taken = actions[0][: steps + 1]
    if len(taken) == steps:
        taken = np.concatenate([taken, taken[-1:]])
    rows = {
        "observations": plain(observations[0])[: steps + 1],
        "actions": taken,
        "terminals": (np.arange(steps + 1) == steps).astype(np.float32),
    }
    for name in INFOS:
        extra = episode.extras.get(name)
        is_regular = extra is not None and spec_of(extra).is_regular
        if extra is not None and is_regular and len(extra) >= steps + 1:
            rows[name] = plain(extra)[: steps + 1]
    return rows


def _refused(episode: Episode, expected: str) -> UsageError:
    return UsageError(
        f"Expected {expected} in {episode.episode_id!r}; OGBench cannot hold it otherwise.",
        where=episode.episode_id,
    )
