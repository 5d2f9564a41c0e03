"""Episodes as a report shows them: action and reward strips, rows of pictures, texts.

Only the pictures that are shown are decoded, one at a time; pictures of all episodes together stay
within a size. An episode that cannot be read or decoded says why in its place.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import numpy as np

from pipeline.jobs.report_data import Pick
from pipeline.jobs.report_plots import MAX_STEPS, MAX_TRACES, Plots
from pipeline.store.store import Version
from schemas.episode import Episode
from schemas.errors import NotFoundError, PenstockError
from schemas.packed import Packed
from schemas.thumbnails import cameras, png, strip

FRAMES = 6
"""Pictures in a row."""
CAMERAS = 3
"""Rows of pictures of one episode."""
MAX_PICTURE_BYTES = 6_000_000
"""PNG bytes of all rows of pictures on a page."""
MAX_EPISODE_BYTES = 1 << 30
"""Undecoded numbers of an episode that is read for a report."""
MAX_TEXTS = 3


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
        found = cameras(episode)
        for name, rows in list(found.items())[:CAMERAS]:
            if self._left <= 0:
                shown.problems.append(
                    f"No more pictures: the page holds {MAX_PICTURE_BYTES // 1_000_000} MB of them."
                )
                return
            try:
                steps, pixels = strip(rows, FRAMES)
            except PenstockError as error:
                shown.problems.append(f"Pictures of {name}: {error.message}")
                continue
            if pixels is not None:
                data = png(pixels)
                self._left -= len(data)
                uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                shown.pictures.append(PictureRow(name, steps, uri))
        if len(found) > CAMERAS:
            shown.problems.append(f"{len(found) - CAMERAS} more cameras are not shown.")


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
