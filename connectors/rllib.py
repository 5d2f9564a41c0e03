"""Reads RLlib's recorded experience: Parquet files of steps, or of whole episodes in msgpack.

Steps have the columns `obs`, `actions`, `rewards`, `new_obs`, `terminateds`, `truncateds`, mostly
`eps_id`, and `t` where the writer added it; episodes are in one binary column `item`.

* Rows of one `eps_id` (and `agent_id`) are an episode, ordered by `t` where there is one, else as
  they stand, file after file by name. Without `eps_id` each row is an episode of one step, which is
  how RLlib itself reads it.
* The final observation is the last `new_obs`; without the column it is missing. A `t` that is left
  out, or a `new_obs` that is not the next row's `obs`, is a gap. Rows that are there twice are
  dropped, two rows of one `t` that differ are a conflict.
* A recorded episode must be done, as RLlib demands, and begin at its first step; a second one of
  the same id is dropped. Its lookback, which belongs to an earlier chunk, is left out.
* `infos` may be pickles and are left out; columns that RLlib compressed *are* pickles: refused.
* Further columns of numbers become extras.

Ids are random per recording, so episodes are named by content.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connectors import rllib_items, rllib_steps
from connectors.base import Found, Listing, Unit
from connectors.detection import columns
from connectors.files import fingerprint
from connectors.units import check_count, plan_units
from schemas.errors import EpisodeError, NotFoundError, SourceError


class RllibSource:
    """RLlib's Parquet layouts as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return tuple(dict.fromkeys((*rllib_steps.GUESSES.values(), *rllib_items.GUESSES.values())))

    def discover(self, where: str) -> Listing:
        """Finds the episodes by their ids (see `connectors.base.Source`)."""
        root, files = _files(where)
        storage = _storage(files)
        found = storage.find(root, files)
        units = tuple(
            Unit(format="rllib", where=where, start=start, stop=stop, steps=steps)
            for start, stop, steps in plan_units(found.lengths, found.step_bytes)
        )
        return Listing(
            format="rllib",
            where=where,
            identity=None,
            units=units,
            episodes=len(found.lengths),
            steps=sum(found.lengths),
            fingerprint=fingerprint(root, files),
            guesses=tuple(found.guesses),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads episodes; one that cannot be read comes back as a fault."""
        root, files = _files(unit.where)
        storage = _storage(files)
        found = storage.find(root, files)
        check_count(unit, len(found.lengths))
        records = storage.read(found, unit.start, unit.stop)
        for position, (key, episode) in enumerate(records, unit.start):
            if isinstance(episode, EpisodeError):
                yield Found(key, position, None, None, episode)
            else:
                named = episode.replace(source=unit.where, source_key=key)
                yield Found(key, position, None, named)


def _files(where: str) -> tuple[Path, list[Path]]:
    """Returns the folder and its Parquet files, sorted; links are left out."""
    path = Path(where)
    if not path.exists():
        raise NotFoundError(
            f"Expected RLlib's Parquet files, there is nothing at {where}.", where=where
        )
    if path.is_file():
        return path.parent, [path]
    found = sorted(p for p in path.rglob("*.parquet") if p.is_file() and not _is_linked(p, path))
    if not found:
        raise SourceError(f"Expected Parquet files in {where}, there are none.", where=where)
    return path, found


def _is_linked(file: Path, root: Path) -> bool:
    """True if a link is on the way from `root`."""
    parts = file.relative_to(root).parts
    return any(root.joinpath(*parts[: n + 1]).is_symlink() for n in range(len(parts)))


def _storage(files: list[Path]) -> Any:
    """The module that reads this form: it has `find` and `read`."""
    kinds = {"item" in columns(file) for file in files}
    if len(kinds) != 1:
        raise SourceError(
            f"Expected files of steps or of episodes in {files[0].parent}, came both.",
            where=str(files[0].parent),
        )
    return rllib_items if kinds.pop() else rllib_steps
