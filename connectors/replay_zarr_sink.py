"""Writes replay buffers as diffusion policy and UMI read them: `data/<key>`, `meta/episode_ends`.

By default Zarr v2 in a folder, which is what their own code opens; `zarr_format=3` and `zip=true`
in the metadata choose otherwise, and a place that ends in `.zip` is a zip. Chunks are about 2 MB
along time, Blosc lz4. Every chunk is written, one that holds nothing but zeros too: a missing chunk
must always mean damage.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from connectors.base import ABOUT, Loss
from connectors.files import new_dataset
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.packed import plain, spec_of

CHUNK_BYTES = 2 * 2**20
PLAIN_NAME = "state"
"""The key that a single plain array of observations is written under."""


class ReplayZarrSink:
    """A replay buffer in Zarr as a sink; `metadata["zarr_format"]` and `metadata["zip"]` choose."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what a replay buffer cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "a replay buffer has no ids"),
            *(Loss(fact, "replay buffers say nothing about single episodes") for fact in ABOUT),
            Loss("final_observation", "there is one observation per step: it is left out"),
            Loss("terminated", "an end is only an end: no step comes back as terminated"),
            Loss("truncated", "an end is only an end: no step comes back as truncated"),
            Loss(
                "names",
                f"a plain observation array is named {PLAIN_NAME}, a single named action array "
                "becomes the plain one",
            ),
            Loss("extras", "there is no place for them"),
            Loss("encodings", "pictures and videos are written decoded"),
            Loss("names", "several action arrays", refused=True),
            Loss("texts", "observations of texts", refused=True),
            Loss("ragged", "observations of ragged arrays", refused=True),
            Loss("specs", "episodes of different fields", refused=True),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {
            "zarr_format": "2 (the default) or 3",
            "zip": "true: one zip file, as where the place ends in .zip",
        }

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one buffer; see `connectors.base.Sink`."""
        zarr_format = metadata.get("zarr_format", 2)
        if zarr_format not in (2, 3):
            raise UsageError(f"Expected zarr_format 2 or 3, came {zarr_format!r}.", where=where)
        is_zip = bool(metadata.get("zip", where.endswith(".zip")))
        with new_dataset(where) as draft, tempfile.TemporaryDirectory(dir=draft.parent) as place:
            folder = Path(place) / "buffer" if is_zip else draft
            buffer = _Buffer(folder, zarr_format)
            for episode in episodes:
                buffer.add(episode)
            buffer.close()
            if is_zip:
                _pack(folder, draft)
            return len(buffer.ends)


class _Buffer:
    """Appends rows in whole chunks to resizable arrays."""

    def __init__(self, folder: Path, zarr_format: Literal[2, 3]) -> None:
        self.ends: list[int] = []
        self._group = zarr.open_group(folder, mode="w-", zarr_format=zarr_format)
        self._format: Literal[2, 3] = zarr_format
        self._arrays: dict[str, Any] = {}
        self._pending: dict[str, list[np.ndarray]] = {}
        self._like: dict[str, tuple[str, tuple[int, ...]]] = {}

    def add(self, episode: Episode) -> None:
        rows = _rows_of(episode)
        like = {name: (array.dtype.str, array.shape[1:]) for name, array in rows.items()}
        if not self.ends:
            self._like = like
        if like != self._like:
            raise _refused(
                episode, f"the arrays of the first episode, {_said(self._like)}, came {_said(like)}"
            )
        for name, array in rows.items():
            self._append(name, array)
        self.ends.append(episode.length + (self.ends[-1] if self.ends else 0))

    def close(self) -> None:
        for name in self._pending:
            self._flush(name, is_last=True)
        if not self.ends:
            raise UsageError("Expected at least one episode to write, came none.")
        ends = np.array(self.ends, np.int64)
        array = self._create(
            "meta/episode_ends", ends.dtype, ends.shape, ends.shape, is_packed=False
        )
        array[:] = ends

    def _append(self, name: str, rows: np.ndarray) -> None:
        if name not in self._arrays:
            row_bytes = math.prod(rows.shape[1:]) * rows.itemsize
            steps = max(1, CHUNK_BYTES // max(1, row_bytes))
            shape = (0, *rows.shape[1:])
            chunks = (steps, *rows.shape[1:])
            self._arrays[name] = self._create(
                f"data/{name}", rows.dtype, shape, chunks, is_packed=True
            )
            self._pending[name] = []
        self._pending[name].append(rows)
        if sum(map(len, self._pending[name])) >= self._arrays[name].chunks[0]:
            self._flush(name, is_last=False)

    def _flush(self, name: str, *, is_last: bool) -> None:
        """Writes whole chunks, so that none is ever read back to be filled up."""
        if not self._pending[name]:
            return
        rows = np.concatenate(self._pending[name])
        array = self._arrays[name]
        whole = len(rows) if is_last else len(rows) - len(rows) % array.chunks[0]
        written = array.shape[0]
        array.resize((written + whole, *array.shape[1:]))
        array[written:] = rows[:whole]
        self._pending[name] = [rows[whole:]] if whole < len(rows) else []

    def _create(
        self,
        path: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        *,
        is_packed: bool,
    ) -> Any:
        compressors: Any = None
        if is_packed and self._format == 2:
            compressors = numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.NOSHUFFLE)
        elif is_packed:
            compressors = BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle")
        return self._group.create_array(
            path,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            compressors=compressors,
            config={"write_empty_chunks": True},
        )


def _rows_of(episode: Episode) -> dict[str, np.ndarray]:
    """Returns the rows of one episode by the buffer's key, each (T, ...)."""
    actions = list(episode.flat_actions.values())
    if len(actions) > 1 or not episode.length:
        came = "several" if actions else "no steps"
        raise _refused(episode, f"steps and one array of actions, came {came}")
    rows: dict[str, np.ndarray] = {"action": actions[0]} if actions else {}
    if episode.rewards is not None:
        rows["reward"] = episode.rewards
    for name, observed in episode.observations.items():
        key = PLAIN_NAME if name == "observations" else name.removeprefix("observations/")
        spec = spec_of(observed)
        if key in rows or key == "rewards" or not key.isprintable() or "\\" in key:
            raise _refused(episode, f"observations of other names than {key!r}")
        if any(part.strip(".") == "" or part.startswith("__") for part in key.split("/")):
            raise _refused(episode, f"names that Zarr can hold, came {key!r}")
        if not spec.is_regular or 0 in spec.shape:
            raise _refused(episode, f"observations of numbers, {name} is {spec}")
        rows[key] = plain(observed[: episode.length])
    return rows


def _pack(folder: Path, draft: Path) -> None:
    """Puts the chunks, which are compressed already, into a zip as they are."""
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())


def _said(like: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in like.items())


def _refused(episode: Episode, expected: str) -> UsageError:
    return UsageError(
        f"Expected {expected} in {episode.episode_id!r}; a replay buffer cannot hold it.",
        where=episode.episode_id,
    )
