"""Episodes as a report shows them: action and reward strips, rows of pictures, texts.

Only the pictures that are shown are decoded, one at a time; pictures of all episodes together stay
within a size. An episode that cannot be read or decoded says why in its place.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.jobs.report_data import Pick
from pipeline.jobs.report_plots import MAX_STEPS, MAX_TRACES, Plots
from pipeline.store.store import Version
from schemas.episode import Episode
from schemas.errors import NotFoundError, PenstockError
from schemas.packed import Packed, Rows, Video

FRAMES = 6
"""Pictures in a row."""
CAMERAS = 3
"""Rows of pictures of one episode."""
SIDE = 112
"""Pixels of a thumbnail's longer side, at most."""
SMALL = 48
"""Pixels under which a thumbnail's longer side is enlarged."""
GAP = 4
MAX_PICTURE_BYTES = 6_000_000
"""PNG bytes of all rows of pictures on a page."""
MAX_EPISODE_BYTES = 1 << 30
"""Undecoded numbers of an episode that is read for a report."""
MAX_TEXTS = 3
MIN_SIDE = 8
"""Pixels from which an array of bytes counts as pictures."""


@dataclass(frozen=True)
class PictureRow:
    """Evenly spaced pictures of one field."""

    field: str
    steps: list[int]
    uri: str
    """A PNG as a `data:` address."""


@dataclass(frozen=True)
class Shown:
    """One episode's section."""

    pick: Pick
    length: int = 0
    strips: str = ""
    """SVG."""
    said: str = ""
    """What the strips are of."""
    pictures: list[PictureRow] = field(default_factory=list)
    texts: list[tuple[str, list[str], int]] = field(default_factory=list)
    """Field, some of its distinct texts, and how many there are."""
    problems: list[str] = field(default_factory=list)


class Shower:
    """Makes the sections of a page, within its budget of pictures."""

    def __init__(self, version: Version, plots: Plots) -> None:
        self._version, self._plots = version, plots
        self._left = MAX_PICTURE_BYTES
        self._row_bytes = {
            name: sum(f.row_bytes for f in spec.fields.values() if f.encoding == "raw")
            for name, spec in version.specs.items()
        }

    def show(self, pick: Pick) -> Shown:
        """Returns the section of one episode."""
        row_bytes = max(self._row_bytes.values(), default=0)
        if row_bytes * pick.facts.get("length", 0) > MAX_EPISODE_BYTES:
            return Shown(pick, problems=["Too large to be shown here: over 1 GB of numbers."])
        try:
            episode = self._version.episode(pick.episode_id)
        except NotFoundError as error:
            return Shown(pick, problems=[error.message])
        except PenstockError as error:
            return Shown(pick, problems=[f"Could not be read: {error.message}"])
        strips, said = self._strips(episode)
        shown = Shown(pick, episode.length, strips, said, texts=_texts(episode))
        self._add_pictures(episode, shown)
        return shown

    def _strips(self, episode: Episode) -> tuple[str, str]:
        arrays = episode.flat_actions
        flat = [array.reshape(len(array), -1).astype(float) for array in arrays.values()]
        actions = np.concatenate(flat, axis=1) if flat else None
        rewards = None if episode.rewards is None else episode.rewards.astype(float)
        dims = 0 if actions is None else actions.shape[1]
        said = f"{dims} action dims" if dims else "No actions are known"
        if dims > MAX_TRACES:
            said += f" (the first {MAX_TRACES} drawn)"
        said += ", on one scale, above the reward." if dims and rewards is not None else "."
        if rewards is None:
            said += " No rewards are known."
        if episode.length > MAX_STEPS:
            said += f" {MAX_STEPS} evenly spaced of {episode.length:,} steps are drawn."
        is_discrete = all(array.dtype.kind in "biu" for array in arrays.values())
        alt = f"Actions and rewards over {episode.length} steps. {said}"
        return self._plots.strips(actions, rewards, is_discrete, alt), said

    def _add_pictures(self, episode: Episode, shown: Shown) -> None:
        """Adds rows of pictures, or why there are none."""
        fields = {**episode.observations}
        fields.update({f"extras/{name}": rows for name, rows in episode.extras.items()})
        cameras = {name: rows for name, rows in fields.items() if _is_pictures(rows)}
        for name, rows in list(cameras.items())[:CAMERAS]:
            if self._left <= 0:
                shown.problems.append(
                    f"No more pictures: the page holds {MAX_PICTURE_BYTES // 1_000_000} MB of them."
                )
                return
            try:
                steps = _spaced(rows)
                thumbs = [_thumb(pixels) for pixels in _decoded(rows, steps)]
            except PenstockError as error:
                shown.problems.append(f"Pictures of {name}: {error.message}")
                continue
            if thumbs:
                data = self._plots.picture(_side_by_side(thumbs))
                self._left -= len(data)
                uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                shown.pictures.append(PictureRow(name, steps, uri))
        if len(cameras) > CAMERAS:
            shown.problems.append(f"{len(cameras) - CAMERAS} more cameras are not shown.")


def _is_pictures(rows: Rows) -> bool:
    """True for pictures and videos, and for raw bytes of the shape of pictures."""
    if isinstance(rows, Video):
        return True
    if isinstance(rows, Packed):
        return rows.spec.encoding == "frames"
    if rows.dtype != np.uint8 or rows.ndim not in (3, 4):
        return False
    height, width = rows.shape[1:3] if not _is_channels_first(rows) else rows.shape[2:4]
    has_colours = rows.ndim == 3 or _is_channels_first(rows) or rows.shape[3] in (1, 3, 4)
    return bool(min(height, width) >= MIN_SIDE and has_colours)


def _is_channels_first(rows: np.ndarray) -> bool:
    return rows.ndim == 4 and rows.shape[1] in (1, 3) and rows.shape[3] not in (1, 3, 4)


def _spaced(rows: Rows) -> list[int]:
    """Positions of evenly spaced rows that have a picture."""
    if isinstance(rows, Packed):
        there = np.flatnonzero(np.diff(rows.offsets))
    elif isinstance(rows, Video):
        there = np.flatnonzero(rows.index >= 0)
    else:
        there = np.arange(len(rows))
    if not len(there):
        return []
    at = np.unique(np.linspace(0, len(there) - 1, min(len(there), FRAMES)).astype(int))
    return [int(step) for step in there[at]]


def _decoded(rows: Rows, steps: list[int]) -> Iterator[np.ndarray]:
    """Yields (H, W[, C]) pixels of some rows."""
    if isinstance(rows, Video):
        at = np.array(steps, np.int64)
        yield from Video(rows.spec, rows.media, rows.index[at], rows.timestamps[at]).decode()
        return
    for step in steps:
        if isinstance(rows, Packed):
            yield rows[step : step + 1].decode()[0]
        else:
            yield rows[step].transpose(1, 2, 0) if _is_channels_first(rows) else rows[step]


def _thumb(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels as (h, w, 3) uint8, whole pixels averaged or repeated; no alpha."""
    if pixels.dtype != np.uint8:  # depth: nearest black, farthest white
        low, high = int(pixels.min(initial=65535)), int(pixels.max(initial=0))
        pixels = ((pixels - float(low)) * (255.0 / max(high - low, 1))).astype(np.uint8)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    height, width = pixels.shape[:2]
    by = -(-max(height, width) // SIDE)
    if by > 1 and min(height, width) >= by:
        cut = pixels[: height // by * by, : width // by * by].astype(np.uint16)
        blocks = cut.reshape(height // by, by, width // by, by, 3)
        return np.asarray(blocks.mean((1, 3)).astype(np.uint8))
    if by > 1:  # a line of pixels
        return pixels[::by, ::by]
    times = max(1, SMALL // max(height, width, 1))
    return np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)


def _side_by_side(thumbs: list[np.ndarray]) -> np.ndarray:
    """One picture of all, a grey gap between neighbours."""
    height = max(thumb.shape[0] for thumb in thumbs)
    width = sum(thumb.shape[1] + GAP for thumb in thumbs) - GAP
    row = np.full((height, width, 3), 128, np.uint8)
    left = 0
    for thumb in thumbs:
        row[: thumb.shape[0], left : left + thumb.shape[1]] = thumb
        left += thumb.shape[1] + GAP
    return row


def _texts(episode: Episode) -> list[tuple[str, list[str], int]]:
    """Fields of text with their first distinct texts."""
    fields = {**episode.observations}
    fields.update({f"extras/{name}": rows for name, rows in episode.extras.items()})
    found = []
    for name, rows in fields.items():
        if isinstance(rows, Packed) and rows.spec.encoding == "text":
            distinct = [raw for raw in dict.fromkeys(rows) if raw]
            said = [raw.decode() for raw in distinct[:MAX_TEXTS]]
            found.append((name, said, len(distinct)))
    return found
