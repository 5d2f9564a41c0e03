"""What is done to batches after they are drawn and brought to their device.

Fields are scaled by statistics, images resized, cut, moved and scaled. The arithmetic is one for
NumPy and torch, on any device, and goes row by row, so that a row comes out the same in any batch.
Where rows are cut or moved is drawn from the plan: a function of seed, step and the row's place in
the global batch, the same for any number of ranks and after a resume.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream import plan
from pipeline.stream.arrays import Arrays
from pipeline.stream.images import Image, Offsets, offsets
from pipeline.stream.record import RecordField, RecordLayout
from pipeline.stream.source import OpenVersion
from pipeline.stream.statistics import field_statistics
from schemas.errors import ConfigError, UnknownNameError, suggest
from schemas.nesting import unescape
from schemas.stream import StreamConfig
from schemas.transforms import FieldStatistics, Scaling

FLOORS: Mapping[Scaling, float] = {"standard": 1e-3, "range": 1e-6}
"""What standard deviations and half ranges count as at least, so that constants stay finite."""

Change = Callable[..., Any]
"""From an array, and with `drawn=` where its rows are cut, to what takes its place."""


@dataclass(frozen=True)
class _Role:
    """One entry of a batch that changes."""

    path: tuple[str, ...]
    name: str
    """Of the field that it is of."""
    number: int
    """Tells apart independent draws."""


@dataclass
class Transforms:
    """Changes the batches of one stream, or of a mixture, as their settings say."""

    config: StreamConfig
    layout: RecordLayout
    versions: Sequence[tuple[Version, str | None]]
    """Those that the first batch is drawn from, each with the spec whose episodes are streamed
    where it has others; statistics are theirs for good."""
    goals: str | None
    """Field that goals are of."""
    arrays: Arrays
    _statistics: dict[str, FieldStatistics] = field(default_factory=dict)
    _changes: dict[str, Change] = field(default_factory=dict)
    _roles: list[_Role] = field(default_factory=list)

    @classmethod
    def of(cls, config: StreamConfig, opened: Sequence[OpenVersion], arrays: Arrays) -> Transforms:
        """Returns what changes batches of some versions.

        Raises:
            UnknownNameError, ConfigError: if it does not fit the fields that are streamed.
        """
        versions = {(one.version.id, _spec(one)): (one.version, _spec(one)) for one in opened}
        goals = None if opened[0].goals is None else opened[0].goals.field
        return cls(config, opened[0].layout, [*versions.values()], goals, arrays)

    def __post_init__(self) -> None:
        self._statistics = dict(self.config.statistics or {})
        self._roles = self._find_roles()

    def __call__(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """Returns a batch with its fields changed.

        Args:
            batch: nested, the rows of this rank.
            step: its number.
        """
        if not self._changes:
            self._changes = {name: self._change(name) for name in self._names()}
        for role in self._roles:
            change = functools.partial(self._changes[role.name], drawn=self._offsets(role, step))
            batch = replaced(batch, role.path, change)
        return batch

    def statistics(self) -> dict[str, FieldStatistics]:
        """Returns what fields are scaled by; read from the versions where it is not known yet."""
        for name in self.config.normalize:
            if name not in self._statistics:
                values = _values(self.layout.by_name[name])
                self._statistics[name] = field_statistics(self.versions, name, values)
        return self._statistics

    def state(self) -> dict[str, Any]:
        """Returns the statistics as plain values, for `load`; empty if nothing is scaled."""
        found = self.statistics()
        return {"statistics": {n: found[n].model_dump(mode="json") for n in found}} if found else {}

    def known(self) -> dict[str, FieldStatistics]:
        """Returns the statistics that are known without reading; `know` is the inverse."""
        return dict(self._statistics)

    def know(self, statistics: Mapping[str, FieldStatistics]) -> None:
        """Scales by some statistics from now on; those of the settings stay.

        Raises:
            ConfigError: if they are not of these fields.
        """
        self._check(statistics)
        self._statistics = {**statistics, **(self.config.statistics or {})}
        self._changes = {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Scales by the statistics of a state from now on.

        Raises:
            ConfigError: if it has none.
        """
        if not self.config.normalize:
            return
        try:
            told = state["statistics"]
            found = {n: FieldStatistics.model_validate(told[n]) for n in self.config.normalize}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "Expected a state with the statistics of its stream, came another; load a state "
                "that state_dict() returned."
            ) from error
        self.know(found)

    def describe(self) -> str:
        """Says what is done."""
        parts = []
        for name, kind in self.config.normalize.items():
            by = "mean and standard deviation" if kind == "standard" else "smallest and largest"
            of = self.statistics()[name]
            source = f"version {'+'.join(v[:8] for v in (of.version or '').split('+'))}"
            parts.append(f"{name} by {by} of {of.count:,} rows ({source})")
        said = f" Normalised: {'; '.join(parts)}." if parts else ""
        changed = [f"{name} ({_said(image)})" for name, image in self.config.images.items()]
        return said + (f" Images: {'; '.join(changed)}." if changed else "")

    # -- within --------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return sorted({*self.config.normalize, *self.config.images})

    def _find_roles(self) -> list[_Role]:
        layout = self.layout
        found: list[_Role] = []
        for name in self._names():
            if name not in layout.by_name or name in _FLAGS:
                known = [known for known in layout.by_name if known not in _FLAGS]
                raise UnknownNameError(
                    f"Expected a streamed field to transform, came {name!r}; {suggest(name, known)}"
                )
            if name in self.config.images:
                self._image(name)  # refuses what does not fit, before any batch
            held = layout.by_name[name]
            if name in self.config.normalize and (held.dtype == "|b1" or 0 in held.shape):
                raise ConfigError(
                    f"Expected numbers to normalise, came {name!r} of {np.dtype(held.dtype)}"
                    f"{list(held.shape)}; leave it out of normalize=.",
                    where=name,
                )
            root, *rest = name.split("/")
            paths = [(root, *rest)]
            if root == "observations":
                paths.append((f"next_{root}", *rest))
                paths += [("goals",)] * (self.goals == name)
            number = len(found)
            found += [_Role(path, name, number + k) for k, path in enumerate(paths)]
        self._check(self._statistics)
        return found

    def _check(self, statistics: Mapping[str, FieldStatistics]) -> None:
        for name, one in statistics.items():
            values = _values(self.layout.by_name[name])
            if len(one.mean) not in (1, values):
                raise ConfigError(
                    f"Expected statistics of {values} numbers for {name!r}, came {len(one.mean)}; "
                    f"use those of a version with the same fields.",
                    where=name,
                )

    def _image(self, name: str) -> Image:
        held = self.layout.by_name[name]
        return Image.of(name, self.config.images[name], held.shape, np.dtype(held.dtype))

    def _offsets(self, role: _Role, step: int) -> Offsets | None:
        image = self.config.images.get(role.name)
        if image is None or not image.is_random:
            return None
        config = self.config
        mine = plan.share(config.batch_size, config.rank, config.world_size)
        words = plan.random(config.seed, step, config.batch_size, domain=plan.IMAGE + role.number)
        return offsets(words[0, mine], self._image(role.name))

    def _change(self, name: str) -> Change:
        """What is done to the entries of one field."""
        held, config = self.layout.by_name[name], self.config
        kind, image = config.normalize.get(name), config.images.get(name)
        made = self._image(name) if image is not None else None
        # Floating-point fields keep their dtype, and integers get that of the stream.
        real: str = "float32" if config.dtype == "keep" else config.dtype
        real = held.dtype if np.dtype(held.dtype).kind == "f" else real
        work = "float64" if np.dtype(real) == np.float64 else "float32"
        constants: tuple[np.ndarray, np.ndarray] | None = None
        if kind is not None:
            constants = shift_and_scale(self.statistics()[name], kind, held.shape, work)
        arrays, placed = self.arrays, _Placed(self.arrays)

        def change(array: Any, drawn: Offsets | None = None) -> Any:
            if constants is not None:
                shift, scale = (placed(part, array) for part in constants)
                array = (arrays.cast(array, work) - shift) / scale
            if made is not None:
                array = made.apply(array, drawn, arrays, work)
            is_real = constants is not None or (made is not None and made.makes_real)
            return arrays.cast(array, real) if is_real else array

        return change


class _Placed:
    """Constants that were brought to a device, kept there."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._known: dict[tuple[int, str], Any] = {}

    def __call__(self, array: np.ndarray, like: Any) -> Any:
        key = id(array), str(getattr(like, "device", ""))
        if key not in self._known:
            self._known[key] = self._arrays.put(array, like)
        return self._known[key]


_FLAGS = ("terminated", "truncated", "has_actions", "has_rewards")


def shift_and_scale(
    statistics: FieldStatistics, kind: Scaling, shape: tuple[int, ...], dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is taken from a field's values and what they are divided by.

    Args:
        statistics: of the field.
        kind: `standard` or `range`.
        shape: of a row; one number for all of it stays one.
        dtype: of the result.
    """
    if kind == "standard":
        shift, scale = np.array(statistics.mean), np.array(statistics.std)
    else:
        low, high = np.array(statistics.min), np.array(statistics.max)
        shift, scale = low / 2 + high / 2, high / 2 - low / 2
    found = [part.astype(dtype) for part in (shift, np.maximum(scale, FLOORS[kind]))]
    form = shape if len(shift) == int(np.prod(shape, dtype=np.int64)) else ()
    first, second = (part.reshape(form) for part in found)
    return first, second


def replaced(tree: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """Returns a nested batch with the array at a path changed; mappings on the way are copied.

    Args:
        tree: mappings and tuples of arrays.
        path: parts of the field's full name.
        change: from the array to the one that takes its place.
    """
    if not path:
        return change(tree)
    part, *rest = path
    if isinstance(tree, tuple):
        at = int(part)
        return (*tree[:at], replaced(tree[at], rest, change), *tree[at + 1 :])
    key = unescape(part)
    return {**tree, key: replaced(tree[key], rest, change)}


def _values(held: RecordField) -> int:
    return int(np.prod(held.shape, dtype=np.int64))


def _spec(opened: OpenVersion) -> str | None:
    """The spec whose episodes are streamed, where a version has others."""
    return opened.spec if opened.spec in opened.version.specs else None


def _said(image: Any) -> str:
    said = image.model_dump(exclude_defaults=True, exclude={"layout"})
    return ", ".join(
        f"{name} {'x'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in said.items()
    )
