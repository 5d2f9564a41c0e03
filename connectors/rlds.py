"""Reads RLDS datasets (Open X-Embodiment among them) as TFDS stores them, without TensorFlow.

One record is one episode, `steps` and what is said about it. Two conventions are in use:

* RLDS: T+1 steps for T transitions. The last step has the final observation; its action, reward
  and discount are padding.
* Open X-Embodiment: T steps, the last action is real, and no observation follows it.

A dataset is of one convention. `metadata.json` may state it (`last_step_action_valid`; our own
sink does); otherwise the first records decide, at most 4,096 of them or 32 MiB: if the last action
of any of them has a value that is finite and not zero, last actions are real, else padding.

*   `observation` are the observations, `action` the actions, `reward` the rewards; dictionaries
    keep their names. `is_last` with `is_terminal` is an end by the task, `is_last` without it one
    that was cut off, and so is an episode whose last step is not marked: it was cut there.
    `is_first` inside an episode, or `is_last` or `is_terminal` before its end, is a fault.
*   `language_instruction` (or `observation/natural_language_instruction`) becomes the task if it is
    the same in all steps, else an extra. `discount` is left out where the end says the same: ones,
    with or without a zero at the end of a terminated episode. All other step features are extras.
*   Pictures stay encoded. Facts of an episode become facts or columns (`connectors.facts`), its
    split the label `split`. One that is marked `invalid` is a fault, as RLDS asks.
*   A record with a wrong checksum is a fault beside its healthy neighbours. Behind a broken length
    nothing can be found: the records that the dataset says are there come back as faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from connectors.base import Found, Listing, Unit
from connectors.files import fingerprint
from connectors.rlds_episode import ACTION, FLAGS, OBSERVATION, RecordReader, is_below
from connectors.rlds_example import split_example
from connectors.rlds_layout import LAST_ACTION_KEY, Dataset, Shard, open_dataset
from connectors.rlds_records import RecordIndex, index_records, read_records
from connectors.rlds_values import decode_rows
from connectors.units import plan_units
from schemas.errors import EpisodeError, SourceError
from schemas.packed import Rows

_GUESSES = {
    "real": f"{LAST_ACTION_KEY} is true: an action of the last steps looked at is not zero, so "
    "last actions are real and no observation follows them (the convention of Open X-Embodiment)",
    "padding": f"{LAST_ACTION_KEY} is false: the last actions looked at are all zero, so they are "
    "padding and the last step is the final observation (the convention of RLDS)",
    "cut_off": "an episode whose last step is not marked is_last was cut off there: truncated",
    "sizes": "numbers of steps before reading are estimated from the sizes of records",
    "pictures": "pictures of whole episodes are left out: {names}",
}
PROBED_RECORDS = 4096
PROBED_BYTES = 32 * 2**20
_MARGIN = 16
"""Bytes that a record takes at least in its file."""


class RldsSource:
    """RLDS in TFDS' file formats as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return tuple(_GUESSES.values())

    def discover(self, where: str) -> Listing:
        """Lists the records and settles the convention (see `connectors.base.Source`)."""
        dataset = open_dataset(where)
        indexes = [index_records(s.path, dataset.record_format) for s in dataset.shards]
        totals = [_total(s, i) for s, i in zip(dataset.shards, indexes, strict=True)]
        _refuse_unusable(dataset)
        probe = _probe(dataset, indexes)
        estimates = [
            probe.estimate(shard, index, total)
            for shard, index, total in zip(dataset.shards, indexes, totals, strict=True)
        ]
        units: list[Unit] = []
        position = 0
        before: dict[str, int] = {}
        for shard, index, total, lengths in zip(
            dataset.shards, indexes, totals, estimates, strict=True
        ):
            number = before.get(shard.split, 0)
            for start, stop, steps in plan_units(lengths, probe.step_bytes):
                options = {
                    "file": shard.path.name,
                    "record": start,
                    "offset": int(index.offsets[min(start, len(index.offsets) - 1)]),
                    "number": number + start,
                    LAST_ACTION_KEY: probe.has_last_action,
                }
                bounds = position + start, position + stop
                units.append(Unit("rlds", where, *bounds, steps, options))
            position += total
            before[shard.split] = number + total
        return Listing(
            format="rlds",
            where=where,
            identity=dataset.identity,
            units=tuple(units),
            episodes=position,
            steps=sum(unit.steps for unit in units),
            fingerprint=fingerprint(dataset.folder, dataset.files),
            metadata={
                **dataset.described,
                **dataset.stated,
                "splits": before,
                "file_format": dataset.record_format,
                LAST_ACTION_KEY: probe.has_last_action,
            },
            guesses=_guesses(dataset, probe, position),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads episodes one at a time; one that cannot be read comes back as a fault."""
        dataset = open_dataset(unit.where)
        options = unit.options
        shard = next((s for s in dataset.shards if s.path.name == options["file"]), None)
        if shard is None:
            raise SourceError(
                f"Expected the file {options['file']} in {unit.where}, there is none now: it "
                f"changed while it was read.",
                where=unit.where,
            )
        reader = RecordReader(dataset, shard, bool(options[LAST_ACTION_KEY]))
        start, count = options["record"], unit.stop - unit.start
        records = read_records(
            shard.path, dataset.record_format, start, start + count, options["offset"]
        )
        for at, record in enumerate(records):
            key = f"{shard.split}/{options['number'] + at}"
            episode, fault = reader.read(record, key)
            yield Found(key, unit.start + at, key, episode, fault)


@dataclass(frozen=True)
class _Probe:
    """What the first records say about all."""

    has_last_action: bool
    is_stated: bool
    rows: tuple[int, ...]
    """Steps as stored of the records that were read, from the first of the first shard."""
    sizes: tuple[int, ...]
    """Their bytes."""
    paths: tuple[Path, ...]
    """Their files."""

    @property
    def step_bytes(self) -> int:
        """Bytes of one stored step on average."""
        return sum(self.sizes) // max(1, sum(self.rows))

    def estimate(self, shard: Shard, index: RecordIndex, total: int) -> np.ndarray:
        """Returns (total,) int64 steps: exact where read, else by size; 0 for lost records."""
        rows = np.zeros(total, np.float64)
        mean = sum(self.sizes) / max(1, sum(self.rows))
        rows[: len(index.sizes)] = np.maximum(np.rint(index.sizes / max(mean, 1)), 1)
        here = [n for n, path in zip(self.rows, self.paths, strict=True) if path == shard.path]
        rows[: len(here)] = here
        steps = rows if self.has_last_action else rows - 1
        return np.maximum(steps, 0).astype(np.int64)


def _refuse_unusable(dataset: Dataset) -> None:
    if not any(is_below(leaf.path, OBSERVATION) for leaf in dataset.leaves):
        names = ", ".join(leaf.path for leaf in dataset.leaves)[:300]
        raise SourceError(
            f"Expected the feature steps/observation in {dataset.folder}, there is {names}.",
            where=str(dataset.folder),
        )


def _total(shard: Shard, index: RecordIndex) -> int:
    """Records of a shard, lost ones among them.

    Raises:
        SourceError: if the file and the dataset's information contradict each other.
    """
    found, stated = len(index.sizes), shard.records
    lost = (stated or 0) - found
    size = shard.path.stat().st_size
    if stated is None and index.damage is not None:
        return found + 1
    if stated is None or stated == found:
        return found
    if index.damage is not None and 0 < lost <= size // _MARGIN:
        return stated
    raise SourceError(
        f"Expected {stated} records in {shard.path}, as the dataset states, came {found}"
        f"{f': {index.damage}' if index.damage else ''}.",
        where=str(shard.path),
    )


def _probe(dataset: Dataset, indexes: list[RecordIndex]) -> _Probe:
    """Reads the first records, for the convention and for the bytes of a step."""
    leaves = [leaf for leaf in dataset.leaves if leaf.is_step]
    actions = [leaf for leaf in leaves if is_below(leaf.path, ACTION)]
    counted = next((n for n in leaves if n.path in FLAGS.values()), leaves[0])
    stated = dataset.stated.get(LAST_ACTION_KEY)
    has_last_action = False
    read: list[tuple[int, int, Path]] = []
    taken = 0
    for shard, index in zip(dataset.shards, indexes, strict=True):
        # Records after one that does not fit the bounds are not looked at, in any shard.
        fits = np.cumsum(index.sizes) + taken <= PROBED_BYTES
        count = min(int(fits.sum()), PROBED_RECORDS - len(read))
        count = max(count, 1) if not read and len(index.sizes) else count
        for record in read_records(shard.path, dataset.record_format, 0, count, 0):
            if isinstance(record, EpisodeError):
                read.append((0, 0, shard.path))
                continue
            taken += len(record)
            try:
                encoded = split_example(record, str(shard.path))
                rows = len(decode_rows(counted, encoded, str(shard.path)))
                tails = [decode_rows(leaf, encoded, str(shard.path))[-1:] for leaf in actions]
            except EpisodeError:  # reading says so, episode by episode
                read.append((0, 0, shard.path))
                continue
            read.append((rows, len(record), shard.path))
            has_last_action |= any(_is_real(tail) for tail in tails)
        if count < len(index.sizes):
            break
    is_stated = isinstance(stated, bool)
    return _Probe(
        has_last_action=bool(stated) if is_stated else has_last_action,
        is_stated=is_stated,
        rows=tuple(rows for rows, _, _ in read),
        sizes=tuple(size for _, size, _ in read),
        paths=tuple(path for _, _, path in read),
    )


def _is_real(tail: Rows) -> bool:
    return isinstance(tail, np.ndarray) and bool(np.any(np.isfinite(tail) & (tail != 0)))


def _guesses(dataset: Dataset, probe: _Probe, episodes: int) -> tuple[str, ...]:
    said = []
    if not probe.is_stated:
        said.append(_GUESSES["real" if probe.has_last_action else "padding"])
    said.append(_GUESSES["cut_off"])
    if len(probe.rows) < episodes:
        said.append(_GUESSES["sizes"])
    pictures = [n.path for n in dataset.leaves if n.kind == "image" and not n.is_step]
    if pictures:
        said.append(_GUESSES["pictures"].format(names=", ".join(pictures)))
    return tuple(said)
