"""Whether what a contender of the benchmark delivers is what the source holds.

Speed counts only for batches that are right. So, after its time was taken, each contender hands
over further batches, and every row is found again in the source by what it observes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.stream.bench_data import SIDE, Arrays, bounds

EXPECTED_ENDS = 20
"""Ends that must be expected before their absence says anything."""
_NEAR = 1e-4
"""Greatest difference: some contenders normalise and undo it."""


class Rows:
    """Finds the steps of a source that rows are of.

    Args:
        source: its arrays.
    """

    def __init__(self, source: Arrays) -> None:
        self.source = source
        self.ends = np.asarray(source["terminated"]) | np.asarray(source["truncated"])
        self.episode = np.cumsum(self.ends) - self.ends
        self._keys = _keys(source["observations"])
        self._order = np.argsort(self._keys)

    def find(self, observations: np.ndarray) -> np.ndarray:
        """Returns the step of each observation, (n,) int64; -1 where it is of none."""
        keys = _keys(observations)
        place = np.searchsorted(self._keys, keys, sorter=self._order)
        steps = self._order[np.minimum(place, len(self._order) - 1)]
        return np.where(self._keys[steps] == keys, steps, -1)


def check_transitions(rows: Rows, batch: Sequence[Any]) -> dict[str, Any]:
    """Compares transitions with the source.

    Args:
        rows: of the source.
        batch: observations, actions, rewards, next observations, terminated; None for what is not
            delivered.

    Returns:
        How many rows and ends came, the ends over those expected, and `failing`, in words.
    """
    _, actions, rewards, following, terminated = (
        None if one is None else _flat(np.asarray(one)) for one in batch
    )
    source, steps = rows.source, rows.find(_flat(np.asarray(batch[0])))
    failing = ["rows that the source does not hold"] * bool((steps < 0).any())
    known = steps >= 0
    steps = steps[known]
    for what, came, name in (
        ("actions", actions, "actions"),
        ("rewards", rewards, "rewards"),
        ("terminated", terminated, "terminated"),
    ):
        failing += _differing(what, came, known, source[name][steps])
    # What follows a terminated step is read by nobody, so nobody needs to deliver it.
    cut, follows = np.asarray(source["truncated"])[steps], source["next_observations"][steps]
    failing += ["no next observations"] * (following is None)
    within = ~rows.ends[steps]
    failing += _differing("next observations within episodes", following, known, follows, within)
    failing += _differing("next observations at truncated ends", following, known, follows, cut)
    shares = {}
    for name in ("terminated", "truncated"):
        flags = np.asarray(source[name])
        expected = flags.mean() * len(steps)
        ended = int(flags[steps].sum())
        shares[f"{name}_ends"] = f"{ended} of {expected:.0f}"
        if expected >= EXPECTED_ENDS and ended < expected / 3:
            failing.append(f"{ended} {name} ends of {expected:.0f} expected")
    return {"rows": len(known), **shares, "failing": failing}


def check_windows(rows: Rows, batch: Sequence[Any]) -> dict[str, Any]:
    """Compares windows with the source: steps follow each other within one episode.

    Args:
        rows: of the source.
        batch: observations (B, T, O), actions, rewards and, if windows are padded, the mask.
    """
    seen, actions, rewards = (np.asarray(one) for one in batch[:3])
    shape = seen.shape[:2]
    has_mask = len(batch) > 3 and batch[3] is not None
    mask = np.asarray(batch[3]).reshape(shape) > 0 if has_mask else np.ones(shape, bool)
    steps = rows.find(seen.reshape(-1, seen.shape[-1])).reshape(shape)
    source = rows.source
    failing = ["rows that the source does not hold"] * bool((steps[mask] < 0).any())
    failing += _broken_windows(steps, rows.episode[steps], mask)
    for name, came in (("actions", actions), ("rewards", rewards)):
        held = source[name][steps[mask]]
        is_right = np.allclose(came.reshape(*shape, -1)[mask], _flat(held), atol=_NEAR)
        failing += [name] * (not is_right)
    return {"windows": len(steps), "valid": round(float(mask.mean()), 4), "failing": failing}


def check_pictures(source: Arrays, batch: Sequence[Any]) -> dict[str, Any]:
    """Compares windows of pictures with the source, pixel by pixel.

    Args:
        source: its arrays.
        batch: pictures (B, T, H, W, 3) uint8, and the mask if windows are padded; float and
            channels first are understood, too.
    """
    came = np.asarray(batch[0])
    kind, shape = str(came.dtype), came.shape[:2]
    has_mask = len(batch) > 1 and batch[1] is not None
    mask = np.asarray(batch[1]).reshape(shape) > 0 if has_mask else np.ones(shape, bool)
    if came.dtype != np.uint8:
        came = np.round(came * (255 if came.max() <= 1 else 1)).astype(np.uint8)
    if came.shape[-1] != 3:
        came = np.moveaxis(came, 2, -1)
    start, stop = bounds(source)
    row = (came[:, :, 0, 0].astype(np.int64) << np.array([0, 8, 16])).sum(-1)
    steps = row - row // (stop[0] - start[0] + 1)  # every episode has one picture more than steps
    failing = ["pictures that the source does not hold"] * bool((steps[mask] >= stop[-1]).any())
    steps = np.minimum(steps, stop[-1] - 1)
    failing += _broken_windows(steps, np.searchsorted(stop, steps, side="right"), mask)
    held = source["observations"][steps[mask]]
    failing += ["pixels"] * (not np.array_equal(held, came[mask].reshape(-1, SIDE, SIDE, 3)))
    valid = round(float(mask.mean()), 4)
    return {"windows": len(came), "valid": valid, "dtype": kind, "failing": failing}


def saved_batch(archive: Mapping[str, np.ndarray], count: int) -> list[np.ndarray | None]:
    """Returns the arrays of a batch that a contender saved, None for those it does not deliver."""
    return [archive.get(str(number)) for number in range(count)]


def _keys(observations: np.ndarray) -> np.ndarray:
    """The first two numbers of each observation as one, (n,) uint64."""
    pair: np.ndarray = np.ascontiguousarray(observations[:, :2], np.float32)
    return pair.view(np.uint64)[:, 0]


def _broken_windows(steps: np.ndarray, episode: np.ndarray, mask: np.ndarray) -> list[str]:
    """Says what is wrong with the order of some windows, (B, T) each."""
    both = mask[:, 1:] & mask[:, :-1]
    failing = ["steps that do not follow each other"] * bool((np.diff(steps)[both] != 1).any())
    failing += ["windows over episodes' ends"] * bool((np.diff(episode)[both] != 0).any())
    failing += ["masks with holes"] * bool((np.diff(mask.astype(np.int8)) != 0).sum(1).max() > 1)
    return failing + ["windows without a step"] * bool(not mask.any(1).all())


def _differing(
    what: str,
    came: np.ndarray | None,
    known: np.ndarray,
    held: np.ndarray,
    where: np.ndarray | None = None,
) -> list[str]:
    """Says which share of some rows differs; nothing if none does."""
    if came is None:
        return [f"no {what}"] if where is None else []
    is_right = (np.abs(came[known] - _flat(held)) < _NEAR).all(1)
    is_right = is_right if where is None else is_right[where]
    if is_right.all():
        return []
    return [f"{what} wrong in {1 - is_right.mean():.2%} of them"]


def _flat(held: np.ndarray) -> np.ndarray:
    return held.reshape(len(held), int(np.prod(held.shape[1:]))).astype(np.float32)
