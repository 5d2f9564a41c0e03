"""Filters proposed with their evidence; nothing is applied.

A filter that keeps good episodes must beat keeping as many at random. So every candidate's kept
episodes are held against random subsets of the same size, as many of each task, on a target that
people care about: success, or return. Many candidates are tried, so the best of them would look
good on noise: a filter counts as better than random only if its gain is rare among the *largest*
gains that all candidates together reach when the target is shuffled within tasks (Westfall and
Young's max-T), and if it remains once episodes' lengths are accounted for.

Of several tasks each has thresholds of its own, quantiles within the task: their metrics spread
differently, and one threshold for all would keep all of one task and little of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from pipeline.store.reader import Version
from schemas import filter as filters
from schemas.errors import UsageError
from schemas.filter_ast import Column, Quantile
from schemas.table import METRIC_COLUMNS

FRACTIONS = (0.25, 0.5, 0.75)
DRAWS = 400
"""Random subsets, and resamples of what is kept."""
SHUFFLES = 1000
"""Of the target, for how far chance alone takes the best of all candidates."""
MOST_EPISODES = 10_000
"""Of more, so many drawn at random are looked at."""
LEAST_KEPT = 8
LEAST_COVERAGE = 0.5
"""A metric that fewer of the episodes have proposes nothing."""
LEVEL = 0.05
"""Of intervals."""
CHANCE = 0.01
"""A filter is proposed only if chance does as well more rarely than this."""
_CHUNK = 64


@dataclass(frozen=True)
class Evidence:
    """One candidate filter against as many episodes at random."""

    where: str
    kept: int
    of: int
    kept_mean: float
    """Of the target, over the kept episodes that have one."""
    random_mean: float
    """Over random subsets of the same size, as many of each task."""
    gain: float
    low: float
    high: float
    """95 % bootstrap interval of the gain."""
    controlled_gain: float
    controlled_low: float
    controlled_high: float
    """The same of what is left of the target after a regression on log length."""
    least_share: float
    """What it keeps of the task that it keeps least of."""
    p: float
    """Chance of such a gain, by the best of all candidates, if the target hung on none of them."""

    @property
    def beats_random(self) -> bool:
        """True if the gain is neither chance nor length."""
        return self.low > 0 and self.controlled_low > 0 and self.p < CHANCE


@dataclass(frozen=True)
class Suggestion:
    """What was found."""

    target: str
    episodes: int
    """That were looked at: those with a target."""
    tasks: int
    """Of these episodes; no task counts as one."""
    tried: int
    candidates: tuple[Evidence, ...]
    """The most promising, best first."""

    @property
    def proposed(self) -> Evidence | None:
        """The best filter that beats random, if one does."""
        return next((one for one in self.candidates if one.beats_random), None)

    def sentence(self) -> str:
        """Returns the finding in a sentence."""
        best, several = self.proposed, self.tasks > 1
        if best is None:
            return (
                f"None of {self.tried} filters beats keeping as many of the {self.episodes:,} "
                f"episodes at random on {self.target}; nothing is proposed."
            )
        return (
            f"Keeping {best.kept:,} of {best.of:,} episodes where {best.where} raises mean "
            f"{self.target} from {best.random_mean:.4g} at random to {best.kept_mean:.4g} "
            f"(gain {best.gain:.4g}, 95 % interval {best.low:.4g} to {best.high:.4g}; "
            f"{best.controlled_gain:.4g} with length accounted for; p {best.p:.3g} over "
            f"{self.tried} filters)"
            + (f", and keeps {best.least_share:.0%} or more of every task." if several else ".")
        )


def suggest(
    version: Version, target: str | None = None, *, seed: int = 0, most: int = 5
) -> Suggestion:
    """Returns filters over the version's metrics that may raise a target, with their evidence.

    Args:
        version: whose episodes; scored.
        target: a column of numbers or truth values; by default `success`, or `episode_return`
            where success does not differ or is not known.
        seed: of all draws.
        most: candidates to return.

    Raises:
        UsageError: if no target differs between episodes, or no metric was measured.
    """
    table = version.episodes()
    name, values = _target(table, target)
    has = np.flatnonzero(np.isfinite(values))
    rng = np.random.default_rng(seed)
    if len(has) > MOST_EPISODES:
        has = np.sort(rng.choice(has, MOST_EPISODES, replace=False))
    texts, masks = _candidates(table, has, name)
    if not texts:
        raise UsageError(
            "Expected metrics that differ between episodes, came none; run `penstock measure` "
            "first."
        )
    table, values = table.take(pa.array(has)), values[has]
    tasks = _codes(table["task"])
    controlled = _without_length(values, table["length"].to_numpy(), tasks)
    targets = np.stack([values, controlled])
    chances = _chances(masks, values, tasks, rng)
    gains = _gains(masks, values, tasks)
    order = np.argsort(-_standardised(gains, masks), kind="stable")[: 2 * most]
    found = [_evidence(texts[at], masks[at], targets, tasks, chances[at], rng) for at in order]
    found.sort(key=lambda one: (not one.beats_random, one.p, -one.controlled_low))
    count = len(np.unique(tasks))
    return Suggestion(name, len(values), count, len(texts), tuple(found[:most]))


def _evidence(
    text: str,
    mask: np.ndarray,
    targets: np.ndarray,
    tasks: np.ndarray,
    chance: float,
    rng: np.random.Generator,
) -> Evidence:
    """What speaks for one filter.

    Args:
        text: the filter.
        mask: (E,) bool, what it keeps.
        targets: (2, E), the target, and what length leaves of it.
        tasks: (E,) int.
        chance: of such a gain.
        rng: of the draws.
    """
    raw, rest = _intervals(mask, targets, tasks, rng)
    kept_mean = float(targets[0][mask].mean())
    there, counts = np.unique(tasks, return_counts=True)
    shares = np.bincount(tasks, weights=mask)[there] / counts
    return Evidence(
        where=text,
        kept=int(mask.sum()),
        of=len(mask),
        kept_mean=kept_mean,
        random_mean=kept_mean - raw[0],
        gain=raw[0],
        low=raw[1],
        high=raw[2],
        controlled_gain=rest[0],
        controlled_low=rest[1],
        controlled_high=rest[2],
        least_share=float(shares.min()),
        p=float(chance),
    )


def _target(table: pa.Table, target: str | None) -> tuple[str, np.ndarray]:
    for name in (target,) if target is not None else ("success", "episode_return"):
        if name not in table.column_names:
            raise UsageError(f"Expected a column as --target, came {name!r}.")
        values = _numbers(table[name])
        if values is None:
            raise UsageError(
                f"Expected a target of numbers or truth values, came {name} of {table[name].type}."
            )
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() < finite.max():
            return name, values
    raise UsageError(
        f"Expected a target that differs between episodes, came {target or 'success and return'} "
        f"that {'does' if target else 'do'} not; name another with --target, or annotate success."
    )


def _numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """A column as float64, null as NaN; None if it holds no numbers."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each value, null among them, (E,) int64."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def _candidates(
    table: pa.Table, looked_at: np.ndarray, target: str
) -> tuple[list[str], np.ndarray]:
    """Filters as text, single thresholds, then pairs; what each keeps, (C, E) bool.

    Args:
        table: of all episodes: quantiles are over these, as where the filter is applied.
        looked_at: (E,) positions of those with a target.
        target: its name.
    """
    is_by_task = _is_by_task(table)
    singles: list[tuple[str, str, np.ndarray]] = []
    for name in METRIC_COLUMNS:
        if name not in table.column_names or name == target:
            continue
        values = _numbers(table[name])
        if values is None or np.isfinite(values[looked_at]).mean() < LEAST_COVERAGE:
            continue
        for text in _thresholds(name, values[looked_at], is_by_task):
            mask = filters.evaluate(filters.parse(text), table)
            singles.append((name, text, mask[looked_at]))
    found = [(text, mask) for _, text, mask in singles]
    for (one, text, mask), (other, more, too) in combinations(singles, 2):
        if one != other:
            found.append((f"{text} and {more}", mask & too))
    count = len(looked_at)
    fit = {
        mask.tobytes(): (text, mask)
        for text, mask in reversed(found)  # of equal masks the shortest filter stays
        if max(LEAST_KEPT, count // 20) <= mask.sum() <= count - LEAST_KEPT
    }
    kept = list(reversed(fit.values()))
    masks = np.stack([mask for _, mask in kept]) if kept else np.zeros((0, count), bool)
    return [text for text, _ in kept], masks


def _is_by_task(table: pa.Table) -> bool:
    """True for several tasks of some episodes each; of one or two a quantile says nothing."""
    count = len(np.unique(_codes(table["task"])))
    return count > 1 and table.num_rows >= LEAST_KEPT * count


def _thresholds(name: str, values: np.ndarray, is_by_task: bool) -> list[str]:
    """Filters by one metric: above and below quantiles within each task, or numbers for all."""
    column = Column(name)
    if is_by_task:
        bounds = [str(Quantile(column, fraction, Column("task"))) for fraction in FRACTIONS]
    else:
        numbers = np.unique(np.quantile(values[np.isfinite(values)], FRACTIONS))
        bounds = [repr(float(f"{number:.6g}")) for number in numbers]
    return [f"{column} {sign} {bound}" for bound in bounds for sign in ("<=", ">=")]


def _centred(values: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Values less the mean of their task: what is left is what random subsets have as 0."""
    means = np.bincount(tasks, weights=values) / np.maximum(np.bincount(tasks), 1)
    return np.asarray(values - means[tasks], np.float64)


def _gains(masks: np.ndarray, values: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Kept mean less the expected mean of a subset with as many of each task, (C,)."""
    centred = _centred(values, tasks)
    counts = np.maximum(masks.sum(axis=1), 1)
    return np.asarray(np.array([centred[mask].sum() for mask in masks]) / counts)


def _standardised(gains: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Gains in units of how much subsets of their size differ by chance, up to one factor."""
    kept = masks.sum(axis=1)
    return np.asarray(gains / np.sqrt(1 / kept - 1 / masks.shape[1]), np.float64)


def _chances(
    masks: np.ndarray, values: np.ndarray, tasks: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """How often the best of all candidates gains as much on shuffled targets, (C,)."""
    seen = _standardised(_gains(masks, values, tasks), masks)
    shuffled = np.stack([_shuffled(values, tasks, rng) for _ in range(SHUFFLES)], axis=1)
    centred = shuffled - (values - _centred(values, tasks))[:, None]
    most = np.full(SHUFFLES, -np.inf)
    for first in range(0, len(masks), _CHUNK):
        some = masks[first : first + _CHUNK]
        gains = some.astype(np.float32) @ centred.astype(np.float32)
        kept = some.sum(axis=1)[:, None]
        reached = gains / kept / np.sqrt(1 / kept - 1 / masks.shape[1])
        most = np.maximum(most, reached.max(axis=0))
    above = (most[None, :] >= seen[:, None] - 1e-9).sum(axis=1)
    return np.asarray((above + 1) / (SHUFFLES + 1))


def _shuffled(values: np.ndarray, tasks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values in another order within each task."""
    order = np.argsort(tasks, kind="stable")
    mixed = np.lexsort((rng.random(len(values)), tasks))
    found = np.empty_like(values)
    found[order] = values[mixed]
    return found


def _intervals(
    mask: np.ndarray, targets: np.ndarray, tasks: np.ndarray, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Gain over random subsets of the same size and tasks, with its 95 % bootstrap interval.

    Each draw resamples the kept episodes within tasks and takes another random subset.

    Args:
        mask: (E,) bool, the kept episodes.
        targets: (K, E), each of which gets its interval from the same draws.
        tasks: (E,) int.
        rng: of the draws.
    """
    kept = int(mask.sum())
    differences = np.zeros((len(targets), DRAWS))
    for task in np.unique(tasks[mask]):
        mine, every = np.flatnonzero(mask & (tasks == task)), np.flatnonzero(tasks == task)
        again = rng.choice(mine, (DRAWS, len(mine)))
        keys = rng.random((DRAWS, len(every)), np.float32)
        drawn = every[np.argpartition(keys, len(mine) - 1, axis=1)[:, : len(mine)]]
        for target, difference in zip(targets, differences, strict=True):
            difference += target[again].sum(axis=1) - target[drawn].sum(axis=1)
    bounds = np.quantile(differences / kept, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
    gains = [float(_gains(mask[None], target, tasks)[0]) for target in targets]
    return [(gain, float(low), float(high)) for gain, low, high in zip(gains, *bounds, strict=True)]


def _without_length(values: np.ndarray, lengths: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """What is left of the target after a regression on log length within tasks."""
    x = _centred(np.log(np.maximum(lengths, 1).astype(np.float64)), tasks)
    spread = float(x @ x)
    slope = float(x @ _centred(values, tasks)) / spread if spread > 0 else 0.0
    return np.asarray(values - slope * x)
