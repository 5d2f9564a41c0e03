"""A version opened for streaming: its rows in the cache, and which of them are transitions."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.store.reader import EpisodeIndex, Version
from pipeline.stream.added import Added, added_fields
from pipeline.stream.cache import Pack, PackedCache, Progress, cache_root
from pipeline.stream.cache_index import CachedBlock
from pipeline.stream.encoded_cache import EncodedRecords, open_pictures, write_pictures
from pipeline.stream.fetching import read_fields, window_over
from pipeline.stream.fields import (
    added_arrays,
    chosen_specs,
    common_fields,
    episodes_of,
    lacking_with,
    record_fields,
    streamed_dtype,
)
from pipeline.stream.forgetting import forget_erased
from pipeline.stream.goals import Goals
from pipeline.stream.index import TransitionIndex, transition_index
from pipeline.stream.pictures import is_picture, kept_encoded
from pipeline.stream.record import WORD, RecordLayout, pack_pieces, plan_record, with_more
from pipeline.stream.residency import choose, pack_threads
from pipeline.stream.returns import Sums, make_sums
from pipeline.stream.runs import can_take_runs, lined_up, take_runs
from pipeline.stream.samplers import sampler_named
from pipeline.stream.windowed import WindowedRecords
from schemas.errors import UnknownNameError, UsageError, suggest
from schemas.sizes import said_bytes
from schemas.spec import FieldSpec
from schemas.stream import StreamConfig
from schemas.version import Block

if TYPE_CHECKING:
    from pipeline.stream.on_device import DeviceRecords


@dataclass(frozen=True)
class OpenVersion:
    """What batches of one version are made from."""

    version: Version
    config: StreamConfig
    spec: str
    """Name of the spec; of several whose common fields are streamed, the names joined by `+`."""
    layout: RecordLayout
    records: np.ndarray  # (rows, words) int32, the cache or a copy of it; empty if `windowed`
    index: TransitionIndex
    lacks: frozenset[str]
    """Of `actions` and `rewards`, those that some of its episodes do not have."""
    place: str
    """Where the records are, in words."""
    table: Any = None
    """What the sampler knows of the version beside its index."""
    sums: Sums = field(default_factory=Sums)
    goals: Goals | None = None
    added: Mapping[str, Added] = field(default_factory=dict)
    """Fields that were added to the version's steps, which lie over the records."""
    not_streamed: tuple[str, ...] = ()
    """Fields of the spec that records do not hold: texts and ragged rows."""

    windowed: WindowedRecords | None = None
    """What holds the records, if that is a few blocks at a time."""
    encoded: EncodedRecords | None = None
    """What decodes pictures into them, if these stay encoded in the cache."""
    device: DeviceRecords | None = None
    """A copy of the records where batches are made, if that is a device."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns records by their rows of any shape, (*rows.shape, words) int32."""
        if self.windowed is not None:
            return self.windowed.take(rows)
        if self.encoded is not None:
            return self.encoded.take(rows)
        # Rows are in range by construction; checking them again would cost a pass.
        found: np.ndarray = np.take(self.records, rows, axis=0, mode="clip")
        return found

    def has_runs(self, count: int) -> bool:
        """True if runs of so many records can be taken at once."""
        is_plain = self.windowed is None and self.encoded is None
        return is_plain and can_take_runs(self.records, count)

    def take_runs(self, first: np.ndarray, count: int) -> np.ndarray:
        """Returns records that follow each other, (*first.shape, count, words) int32.

        Args:
            first: int64, any shape; the row each run begins with, up to `count` before the end.
            count: of each run, for which `has_runs`.
        """
        return take_runs(self.records, first, count)

    def is_like(self, other: OpenVersion) -> bool:
        """True if batches of both have the same keys and dtypes."""
        named = self.layout.by_name.keys() | self.added.keys()
        others = other.layout.by_name.keys() | other.added.keys()
        return self.layout == other.layout and self.lacks == other.lacks and named == others


def open_rows(
    version: Version,
    config: StreamConfig,
    verified: set[str] | None = None,
    progress: Progress | None = None,
) -> OpenVersion:
    """Packs what is missing from the cache and opens a version for streaming.

    Args:
        version: which one.
        config: the stream's settings.
        verified: blocks whose checksums were compared before; grows.
        progress: told of each block that was packed.

    Raises:
        UsageError: if the version holds no transition, or several specs, and neither one of them
            nor fields that they have in common were chosen.
        UnknownNameError: for an unknown field or spec.
        DiskFullError, DamagedCacheError: if the cache cannot be filled or trusted.
        DamagedStoreError: if a block of the store cannot be trusted.
    """
    specs = chosen_specs(version, config)
    index = version.index()
    kept = episodes_of(version, specs)
    arrays = added_arrays(version, config)
    used = np.unique(index.data if kept is None else index.data[kept])
    names = [index.data_ids[number] for number in used]
    blocks = {b.id: b for part in version.state.parts for b in part.blocks if b.id in set(names)}
    fields = record_fields(version, specs, blocks, config, arrays)
    encoded = {n: f for n, f in fields.items() if config.pictures == "decode" and is_picture(f)}
    stored = plan_record({n: f for n, f in fields.items() if n not in encoded}, config.dtype)
    layout = with_more(stored, encoded) if encoded else stored
    spec = "+".join(specs)
    if config.residency == "windowed":
        numbered = {name: (int(k), blocks[name]) for name, k in zip(names, used, strict=True)}
        window = window_over(version, config, (layout, stored), numbered)
        held = _in_window(version, blocks, layout, window)
    else:
        rows_of = {name: blocks[name].rows for name in names}
        folder = cache_root(config.cache_dir) / version.store.id / f"{specs[0]}-{layout.key}"
        erasures = version.store.erasures
        forget_erased(folder.parent, erasures.rewrites.keys())
        files = {name: erasures.resolve(blocks[name].file).key for name in names}
        pack = functools.partial(_pack, version, blocks, stored, folder, list(encoded))
        cache = PackedCache(folder, stored, verified, pack_threads(config), files)
        form = config.model_copy(update={"residency": "mmap"}) if encoded else config
        held = _in_cache(cache, form, rows_of, pack, progress)
        held = _with_pictures(held, cache, layout, encoded, verify=config.verify)
    transitions = _transitions(version, config, index, held.blocks, kept)
    dtypes = {name: streamed_dtype(name, mine, layout, config) for name, mine in arrays.items()}
    added = added_fields(arrays, index, kept, dtypes)
    rows = int((index.length + 1).sum())
    return OpenVersion(
        version=version,
        config=config,
        table=sampler_named(config.sampler).prepare(version, transitions, config),
        sums=make_sums(config, transitions.spans, held.records, layout, added, rows),
        goals=_goals(config, layout, int(index.length.max(initial=1))),
        spec=spec,
        layout=layout,
        records=held.records,
        windowed=held.windowed,
        encoded=held.encoded,
        index=transitions,
        lacks=lacking_with(held.lacks, layout, added),
        added=added,
        place=held.place,
        device=held.device,
        not_streamed=tuple(n for n, f in common_fields(version, specs).items() if not f.is_regular),
    )


def open_order(version: Version, config: StreamConfig) -> tuple[TransitionIndex, Any]:
    """Returns what a stream draws from, and what its sampler knows of it; no record is read.

    Rows are told by their places in the version; where records are is not known.

    Raises:
        UsageError: as for `open_rows`.
    """
    index, kept = version.index(), episodes_of(version, chosen_specs(version, config))
    sizes = {b.id: b.rows for part in version.state.parts for b in part.blocks}
    starts = np.cumsum([0, *sizes.values()])[:-1].tolist()
    placed = {
        name: CachedBlock(start, rows, 0)
        for start, (name, rows) in zip(starts, sizes.items(), strict=True)
    }
    transitions = _transitions(version, config, index, placed, kept)
    return transitions, sampler_named(config.sampler).prepare(version, transitions, config)


@dataclass(frozen=True)
class _Held:
    """Where the records of a version are."""

    blocks: Mapping[str, CachedBlock]
    records: np.ndarray
    windowed: WindowedRecords | None
    place: str
    lacks: frozenset[str]
    device: DeviceRecords | None = None
    encoded: EncodedRecords | None = None


def _in_cache(
    cache: PackedCache,
    config: StreamConfig,
    rows: Mapping[str, int],
    pack: Pack,
    progress: Progress | None,
) -> _Held:
    cached, records = cache.hold(rows, pack, progress)
    if config.verify:
        cache.verify(records, cached)
    choice = choose(config, records.nbytes)
    where = {"ram": "a copy in memory of ", "gpu": f"a copy on {config.device} of "}
    place = where.get(choice.residency, "")
    place += f"the memory-mapped cache {cache.path} ({choice.why})"
    lacks = _lacks(records, cache.layout, cached)
    if choice.residency == "gpu":
        from pipeline.stream.on_device import hold  # noqa: PLC0415 - an optional extra

        device = hold(records, cached, config.device, cache.path)
        return _Held(cached, records, None, place, lacks, device)
    is_copied = choice.residency == "ram"
    return _Held(cached, lined_up(records) if is_copied else records, None, place, lacks)


def _with_pictures(
    held: _Held,
    cache: PackedCache,
    layout: RecordLayout,
    encoded: Mapping[str, FieldSpec],
    *,
    verify: bool,
) -> _Held:
    """The same with what stays encoded beside the cache, if anything does."""
    if not encoded:
        return held
    placed = sorted(held.blocks.items(), key=lambda item: item[1].start)
    pictures = [open_pictures(cache.folder, name, encoded, verify=verify) for name, _ in placed]
    blocks = [block for _, block in placed]
    records = EncodedRecords(layout, held.records, blocks, pictures, list(encoded))
    return replace(held, encoded=records, place=f"{held.place}, with pictures encoded beside it")


def _in_window(
    version: Version, blocks: Mapping[str, Block], layout: RecordLayout, window: WindowedRecords
) -> _Held:
    place = (
        f"the store, into a buffer of {window.slots} chunks ({said_bytes(window.nbytes)}) that is "
        f"filled in the background, without a cache file"
    )
    known = [version.store.block_layout(block).fields for block in blocks.values() if block.rows]
    # As `pack` tells it: which of the fields that are streamed each block has.
    lacks = frozenset(
        root
        for root in ("actions", "rewards")
        if layout.names(root)
        and not all(any(name in held for name in layout.names(root)) for held in known)
    )
    none = np.zeros((0, layout.words), WORD)
    return _Held(window.blocks, none, window, place, lacks)


def _transitions(
    version: Version,
    config: StreamConfig,
    index: EpisodeIndex,
    cached: Mapping[str, CachedBlock],
    kept: np.ndarray | None,
) -> TransitionIndex:
    finished = config.returns is not None
    found = transition_index(
        index,
        cached,
        kept,
        room=config.reach if config.pad == "none" else (0, 1),
        finished=finished,
    )
    if not len(found):
        wanted = "transition of a finished episode" if finished else "transition"
        wanted += " with room for its window" * (found.too_short > 0)
        raise UsageError(
            f"Expected at least one {wanted} in {version.branch}:{version.number}, came none; "
            f"add episodes, or stream another version.",
            where=version.store.url,
        )
    return found


def _goals(config: StreamConfig, layout: RecordLayout, longest: int) -> Goals | None:
    """How goals are drawn, if they are."""
    if config.goals is None:
        return None
    known = layout.names("observations")
    name = known[0] if config.goal_field is None and len(known) == 1 else config.goal_field
    if name is None:
        raise UsageError(
            f"Expected goal_field=, the observation field that goals are of, came none; "
            f"known: {', '.join(known) or 'none'}."
        )
    if name not in known:
        raise UnknownNameError(
            f"Expected an observation field for goals, came {name!r}; {suggest(name, known)}"
        )
    return Goals.of(config, name, longest)


def _pack(
    version: Version,
    blocks: Mapping[str, Block],
    stored: RecordLayout,
    folder: Path,
    encoded: Sequence[str],
    name: str,
) -> Iterator[np.ndarray]:
    """The records of one block of the store; what stays encoded is written beside the cache."""
    rows = read_fields(version, blocks[name], (*stored.by_name, *encoded))
    if encoded:
        write_pictures(folder, name, kept_encoded(rows, encoded))
        rows = {field: values for field, values in rows.items() if field not in encoded}
    return pack_pieces(stored, rows)


def _lacks(
    records: np.ndarray, layout: RecordLayout, cached: Mapping[str, CachedBlock]
) -> frozenset[str]:
    """All rows of a block have the same fields, so its first row speaks for it."""
    first = np.array([block.start for block in cached.values() if block.rows], np.int64)
    heads = records[first][:, None]
    return frozenset(
        root
        for root in ("actions", "rewards")
        if layout.names(root) and not layout.view(heads, f"has_{root}").all()
    )
