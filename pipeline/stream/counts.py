"""How many rows of each source came before a step, and where those of a batch stand.

Shares may change from a step on; what was counted before stays.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from pipeline.store.runs import MixtureReference
from pipeline.stream.shares import Annealed, Shares
from schemas.errors import ConfigError

_KNOWN = 256


class Counts:
    """How many rows of each source stand in the batches before a step.

    Args:
        shares: of the sources, from step 0 on.
        sources: how many there are.
    """

    def __init__(self, shares: Shares | Annealed, sources: int) -> None:
        self._shares: dict[int, Shares | Annealed] = {0: shares}
        self._since = [0]
        self._counts = functools.lru_cache(maxsize=256)(self._counted)
        self._known = {0: (0,) * sources}

    def at(self, step: int) -> tuple[int, ...]:
        """Returns the rows of each source in one global batch."""
        return self._counts(step)

    def before(self, step: int) -> tuple[int, ...]:
        """Returns the rows of each source in all batches before one."""
        # Copies, as threads of several mixtures that were cut from one may be here at once.
        since = max(known for known in list(self._known) if known <= step)
        found = self._known[since]
        for one in range(since, step):
            counts = self._counts(one)
            found = tuple(total + more for total, more in zip(found, counts, strict=True))
        self._known.pop(step, None)
        self._known[step] = found  # last, so that what was not asked for the longest stands first
        if len(self._known) > _KNOWN:
            self._known.pop(next(one for one in list(self._known) if one), None)
        return found

    def shares(self, step: int) -> Shares | Annealed:
        """Returns the shares that apply at a step."""
        return self._shares[self._since[bisect.bisect_right(self._since, step) - 1]]

    def change(self, step: int, shares: Shares | Annealed, *, keep: bool = True) -> None:
        """Counts by other shares from a step on, until the next change.

        Args:
            step: the first.
            shares: of the sources.
            keep: whether later changes stay.
        """
        self._shares = {since: s for since, s in self._shares.items() if keep or since < step}
        self._shares[step] = shares
        self._since = sorted(self._shares)
        self._counts.cache_clear()
        self._known = {known: rows for known, rows in self._known.items() if known <= step}

    def state(self) -> dict[str, list[str]]:
        """Returns the weights that were changed, by their first step, as plain texts."""
        return {
            str(step): [str(weight) for weight in self._shares[step].weights]
            for before, step in itertools.pairwise(self._since)
            if self._shares[before].weights != self._shares[step].weights
        }

    def load(self, state: Mapping[str, Sequence[str]], batch_size: int) -> None:
        """Inverse of `state`.

        Raises:
            ConfigError: if it is none.
        """
        try:
            changes = {
                int(step): Shares([Fraction(weight) for weight in weights], batch_size)
                for step, weights in state.items()
            }
        except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                "Expected weights by their first step, came something else; load a state that "
                "state_dict() returned."
            ) from error
        self._shares = {0: self._shares[0]}
        self._since = [0]
        self.change(0, self._shares[0])
        for step, shares in changes.items():
            self.change(step, shares)

    def _counted(self, step: int) -> tuple[int, ...]:
        return self.shares(step).counts(step)


class Mixed:
    """What a mixture's runs are told of its shares, and tell it.

    Args:
        shares: from step 0 on.
        counts: of these shares.
        batch_size: rows of the global batch.
        seed: the order.
    """

    def __init__(
        self, shares: Shares | Annealed, counts: Counts, batch_size: int, seed: int
    ) -> None:
        self._shares, self._counts = shares, counts
        self._size, self._seed = batch_size, seed

    def reference(self, sources: Sequence[int], step: int) -> MixtureReference:
        """Returns how some of its sources are mixed from a step on."""
        shares = self._shares
        return MixtureReference(
            batch_size=self._size,
            seed=self._seed,
            sources=tuple(sources),
            weights=_texts(self._counts.shares(step).weights),
            anneal=(shares.steps, _texts(shares.start), _texts(shares.end))
            if isinstance(shares, Annealed)
            else None,
        )

    def decide(self, step: int, mixture: MixtureReference) -> None:
        """Mixes so from a step on."""
        if isinstance(self._shares, Annealed):
            return
        shares = self._counts.shares(step)
        weights = [Fraction(weight) for weight in mixture.weights]
        if weights != shares.weights:
            shares = Shares(weights, self._size)
        self._counts.change(step, shares)


@functools.lru_cache(maxsize=256)
def interleave(counts: tuple[int, ...]) -> np.ndarray:
    """Returns which source each row of a batch is of, spread evenly, (sum of counts,) int64."""
    owners = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - np.array(counts), counts)
    places = (2 * within + 1) / (2 * np.repeat(counts, counts))
    spread = owners[np.argsort(places, kind="stable")]
    spread.flags.writeable = False  # shared by all who ask
    return spread


def own_rows(counts: tuple[int, ...], share: slice) -> list[slice]:
    """Returns which rows of each source a rank takes of a batch.

    Args:
        counts: rows of each source in the global batch.
        share: the rank's rows of it.
    """
    owners = interleave(counts)
    before = np.bincount(owners[: share.start], minlength=len(counts))
    until = np.bincount(owners[: share.stop], minlength=len(counts))
    return [slice(int(a), int(b)) for a, b in zip(before, until, strict=True)]


def row_order(counts: Sequence[tuple[int, ...]], share: slice) -> np.ndarray:
    """Returns where each row of a rank's batches stands in the joined draws, (steps, rows) int64.

    Args:
        counts: rows of each source in each global batch.
        share: the rank's rows of them.
    """
    owners = np.stack([interleave(one)[share] for one in counts])
    # Draws of one source follow each other in this very order, source after source.
    order = np.empty(owners.size, np.int64)
    order[np.argsort(owners.reshape(-1), kind="stable")] = np.arange(owners.size)
    return order.reshape(owners.shape)


def _texts(weights: Sequence[Fraction]) -> tuple[str, ...]:
    return tuple(map(str, weights))
