"""From what a maker wrote to a pinned version of a store, through the project's own connector."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.remote import ROOT, python_of
from connectors.ogbench import OgbenchSource
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.errors import SourceError
from schemas.packed import plain


def make(world: str, maker: str, out: Path, options: Sequence[str]) -> Path:
    """Lets a maker of `benchmarks.simulators` write data, unless they are there.

    Args:
        world: whose simulator it needs; its name without the package is the maker's first word.
        maker: its module.
        out: the file.
        options: further words.
    """
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"part-{out.name}")  # so that a file with the name is a whole one
    command = [str(python_of(world)), "-m", f"benchmarks.simulators.{maker}"]
    command += [world.partition("/")[2], str(part), *options]
    command += ["--processes", str(os.cpu_count() or 1)]
    subprocess.run(command, check=True, cwd=ROOT)
    part.rename(out)
    return out


def ingest(file: Path, store: Path, branch: str) -> str:
    """Takes a file into a store; returns `STORE@VERSION`, which never changes."""
    opened = open_store(store, create=True)
    version = opened.append(episodes(file), f"from {file.name}", branch=branch)
    return f"{opened.url}@{version.id}"


def episodes(file: Path) -> Iterator[Episode]:
    """Yields the episodes of a file, with rewards and ends as it states them."""
    source = OgbenchSource()
    for unit in source.discover(str(file)).units:
        for found in source.read(unit):
            if found.episode is None:
                raise found.fault or SourceError("Expected an episode, came none.", where=str(file))
            whole = found.episode.replace(episode_id=f"{file.stem}/{found.position}")
            yield from pieces(whole) if "masks" in whole.extras else [demonstration(whole)]


def demonstration(whole: Episode) -> Episode:
    """Returns an episode whose rewards and success stand beside it."""
    success = bool(plain(whole.extras["success"]).any())
    rewards = plain(whole.extras["rewards"])[: whole.length]
    return whole.replace(
        rewards=rewards, terminated=success, truncated=not success, success=success, extras={}
    )


def pieces(whole: Episode) -> Iterator[Episode]:
    """Cuts a long trajectory wherever its task is done (mask 0), and yields the episodes.

    OGBench keeps such trajectories whole and sets masks within them. An episode ends where its task
    does, so there is one more for each such step; the transitions are the same ones, each once.
    """
    masks = plain(whole.extras["masks"])[: whole.length]
    rewards = plain(whole.extras["rewards"])[: whole.length]
    ends = (np.flatnonzero(masks == 0) + 1).tolist()
    ends += [whole.length] * (not ends or ends[-1] != whole.length)
    for number, stop in enumerate(ends):
        start = ends[number - 1] if number else 0
        is_done = bool(masks[stop - 1] == 0)
        yield whole.replace(
            episode_id=f"{whole.episode_id}/{number}",
            observations={n: a[start : stop + 1] for n, a in whole.observations.items()},
            actions=whole.flat_actions["actions"][start:stop],
            rewards=rewards[start:stop],
            terminated=is_done,
            truncated=not is_done,
            success=is_done,
            extras={},
        )
