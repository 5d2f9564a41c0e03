"""Records of a dataset that is being written: steps first, flags and facts when all are known."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from connectors.facts import stated_facts
from connectors.rlds_episode import (
    ACTION,
    ESCAPED_KEY,
    FINAL_KEY,
    FLAGS,
    JSON_KEY,
    LANGUAGE,
    OBSERVATION,
    REWARD,
    STEP_EXTRAS_KEY,
)
from connectors.rlds_example import encode_feature, join_example, split_example, wrap_feature
from connectors.rlds_features import STEPS, Leaf
from connectors.rlds_layout import LAST_ACTION_KEY
from connectors.rlds_values import decode_rows, encode_numbers, encode_pictures, encode_rows
from schemas.episode import Episode, Scalar
from schemas.errors import UsageError
from schemas.packed import Packed, Rows, Video, join, plain
from schemas.rows import RowLayout, layout_of
from schemas.spec import FieldSpec

METADATA = "episode_metadata"
_DISCOUNT = f"{STEPS}/discount"
_SIZES = struct.Struct("<QQ")
_RAW_PICTURE_SIDE = 32
_LIST_VALUES = 64
"""Arrays of at least this many values are stored as bytes."""
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class _Head:
    """What is kept of an episode beside its steps."""

    length: int
    is_terminated: bool
    final_observation: str
    task: str | None
    facts: dict[str, Scalar]


class Drafts:
    """Takes episodes of one layout, then gives back the records of each split."""

    def __init__(self, place: Path) -> None:
        self.episodes = 0
        self._place = place
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()
        self._layout: RowLayout | None = None
        self._step_leaves: dict[str, Leaf] = {}
        self._rows_known: dict[str, bool] = {}
        self._kinds: dict[str, set[type]] = {}
        self._counts: dict[str, int] = {}
        self._finals: set[str] = set()
        self._has_task = False

    def __enter__(self) -> Drafts:
        self._place.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        for split in self._files:
            self._path(split).unlink()
        self._place.rmdir()

    def add(self, episode: Episode, split: str) -> None:
        """Keeps one episode.

        Raises:
            UsageError: if it has other features than the first, or what no record can hold.
        """
        _check_ends(episode)
        fields = _step_fields(episode)
        layout = layout_of(episode)
        if self._layout is None:
            self._layout = layout
            self._step_leaves = {path: _leaf(path, rows) for path, rows in fields.items()}
            self._rows_known = {path: _is_full(path, layout) for path in fields}
            _check_names([*fields, *FLAGS.values()], episode)
        if layout.key != self._layout.key:
            raise _refuse(
                episode,
                f"the fields of the first episode, [{self._layout.spec}; "
                f"{', '.join(self._layout.extras) or 'no extras'}]",
                f"[{layout.spec}; {', '.join(layout.extras) or 'no extras'}]",
            )
        body = b"".join(
            encode_feature(name, values)
            for path, rows in fields.items()
            for name, values in encode_rows(
                self._step_leaves[path], _stored(rows, episode, path)
            ).items()
        )
        head = self._head(episode, fields)
        self._write(split, head, body)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits in the order in which they came.

        Raises:
            UsageError: if no episode has come.
        """
        if not self._files:
            raise UsageError("Expected at least one episode to write, came none.")
        return tuple(self._files)

    @property
    def has_last_action(self) -> bool:
        """True if no episode has a final observation."""
        return self._finals == {"missing"}

    @property
    def leaves(self) -> list[Leaf]:
        """All features of the records."""
        flags = [Leaf(path, "numbers", "|b1", ()) for path in FLAGS.values()]
        if self._has_discount:
            flags.append(Leaf(_DISCOUNT, "numbers", "<f4", ()))
        if self._has_language:
            flags.append(Leaf(LANGUAGE[0], "text", "str", ()))
        return [*self._step_leaves.values(), *flags, *self._fact_leaves().values()]

    @property
    def statement(self) -> dict[str, Any]:
        """What `metadata.json` says."""
        full = {f"{STEPS}/{name.removeprefix('extras/')}" for name in self._full_extras}
        extras = [p for p in self._step_leaves if _is_extra(p) and p not in full]
        return {
            LAST_ACTION_KEY: self.has_last_action,
            ESCAPED_KEY: True,
            STEP_EXTRAS_KEY: [path.removeprefix(f"{STEPS}/") for path in extras],
            JSON_KEY: sorted(name for name in self._kinds if self._fact_kind(name) is None),
        }

    def records(self, split: str) -> Iterator[bytes]:
        """Yields the finished records of one split."""
        file = self._files[split]
        file.seek(0)
        facts = self._fact_leaves()
        while sizes := file.read(_SIZES.size):
            head_size, body_size = _SIZES.unpack(sizes)
            head = _Head(**json.loads(file.read(head_size)))
            body = file.read(body_size)
            rows = self._row_count(head)
            if head.final_observation == "missing":
                body = self._resized(body, rows, head.length)
            yield join_example([body, *self._flags(head, rows), *self._said(head, facts)])

    @property
    def _full_extras(self) -> frozenset[str]:
        return self._layout.full_extras if self._layout else frozenset()

    @property
    def _has_discount(self) -> bool:
        return _DISCOUNT not in self._step_leaves

    @property
    def _has_language(self) -> bool:
        return self._has_task and LANGUAGE[0] not in self._step_leaves

    def _path(self, split: str) -> Path:
        return self._place / f"{split}.draft"

    def _head(self, episode: Episode, fields: Mapping[str, Rows]) -> _Head:
        stated = stated_facts(episode).items()
        facts: dict[str, Scalar] = {n: v for n, v in stated if v is not None}
        task = None
        if LANGUAGE[0] not in fields and episode.task:
            task = str(facts.pop("task"))
            self._has_task = True
        if episode.final_observation == "copied":
            facts[FINAL_KEY] = "copied"
        if facts.get("invalid") is True:
            raise _refuse(episode, "an episode that is not marked invalid", "one that is")
        for name, value in facts.items():
            self._kinds.setdefault(name, set()).add(_kind(value))
            self._counts[name] = self._counts.get(name, 0) + 1
        self._finals.add(str(episode.final_observation))
        self.episodes += 1
        return _Head(
            episode.length, episode.is_terminated, str(episode.final_observation), task, facts
        )

    def _write(self, split: str, head: _Head, body: bytes) -> None:
        if split not in self._files:
            file = self._stack.enter_context(self._path(split).open("w+b"))
            self._files[split] = file
        said = json.dumps(head.__dict__).encode()
        self._files[split].write(b"".join((_SIZES.pack(len(said), len(body)), said, body)))

    def _row_count(self, head: _Head) -> int:
        if self.has_last_action:
            return head.length
        if head.final_observation != "missing" or head.is_terminated:
            return head.length + 1
        if head.length < 2:
            raise UsageError(
                "Expected final observations in all episodes or in none, or two steps in one "
                "without, came one of one step; one RLDS dataset cannot hold it."
            )
        return head.length

    def _resized(self, body: bytes, rows: int, length: int) -> bytes:
        """Steps of an episode without final observation, with as many rows as its record has."""
        encoded = split_example(join_example([body]), "a draft")
        entries = []
        for path, leaf in self._step_leaves.items():
            has = length + 1 if self._rows_known[path] and _is_extra(path) else length
            if has == rows:
                names = (n for n in encoded if n == path or n.startswith(f"{path}/ragged_"))
                entries += [wrap_feature(name, encoded[name]) for name in names]
                continue
            kept = decode_rows(leaf, encoded, path)
            kept = kept[:rows] if has > rows else _lengthened(kept)
            entries += [encode_feature(n, v) for n, v in encode_rows(leaf, kept).items()]
        return b"".join(entries)

    def _flags(self, head: _Head, rows: int) -> Iterator[bytes]:
        at = np.arange(rows)
        ends = at == rows - 1
        yield encode_feature(FLAGS["is_first"], at == 0)
        yield encode_feature(FLAGS["is_last"], ends)
        yield encode_feature(FLAGS["is_terminal"], ends & head.is_terminated)
        if self._has_discount:
            is_zero = head.is_terminated & (at >= head.length - 1)
            yield encode_feature(_DISCOUNT, np.where(is_zero, 0, 1).astype(np.float32))
        if self._has_language:
            yield encode_feature(LANGUAGE[0], [(head.task or "").encode()] * rows)

    def _said(self, head: _Head, leaves: Mapping[str, Leaf]) -> Iterator[bytes]:
        for name, leaf in leaves.items():
            value = head.facts.get(name)
            if self._fact_kind(name) is None:
                text = "" if value is None else json.dumps(value)
                yield encode_feature(leaf.path, [text.encode()])
            elif leaf.kind == "text":
                yield encode_feature(leaf.path, [str(value).encode()])
            else:
                yield encode_feature(leaf.path, encode_numbers(leaf, np.array([value])))

    def _fact_kind(self, name: str) -> type | None:
        """The type that all episodes state a fact in; None if they do not all, or not alike."""
        kinds = self._kinds[name]
        is_alike = len(kinds) == 1 and self._counts[name] == self.episodes
        kind = next(iter(kinds))
        return kind if is_alike and kind is not object else None

    def _fact_leaves(self) -> dict[str, Leaf]:
        dtypes: dict[type | None, str] = {bool: "|b1", int: "<i8", float: "<f8"}
        leaves = {}
        for name in sorted(self._kinds):
            dtype = dtypes.get(self._fact_kind(name))
            path = f"{METADATA}/{name}"
            leaves[name] = (
                Leaf(path, "text", "str", ())
                if dtype is None
                else Leaf(path, "numbers", dtype, (), "bytes" if dtype == "<f8" else "none")
            )
        _check_paths([leaf.path for leaf in leaves.values()])
        return leaves


def _step_fields(episode: Episode) -> dict[str, Rows]:
    """Fields by their path in a record, with T+1 rows where the final observation is known."""
    rows = episode.length + (episode.final_observation != "missing")
    found: dict[str, Rows] = {}
    for name, array in episode.observations.items():
        found[OBSERVATION + name.removeprefix("observations")] = array
    for name, array in episode.flat_actions.items():
        found[ACTION + name.removeprefix("actions")] = array
    if episode.rewards is not None:
        found[REWARD] = episode.rewards
    for name, extra in episode.extras.items():
        path = f"{STEPS}/{name}"
        is_taken = any(path == p or path.startswith(f"{p}/") for p in (OBSERVATION, ACTION))
        if is_taken or path in found or path in FLAGS.values():
            raise _refuse(episode, "extras with names that RLDS does not use", repr(name))
        found[path] = extra
    return {path: _lengthened(r, is_step=True) if len(r) < rows else r for path, r in found.items()}


def _lengthened(rows: Rows, *, is_step: bool = False) -> Rows:
    """One more row: zeros for a step's numbers, else the last one again."""
    if isinstance(rows, np.ndarray) and is_step:
        return np.concatenate([rows, np.zeros_like(rows[:1])])
    return join([rows, rows[-1:]])


def _leaf(path: str, rows: Rows) -> Leaf:
    """The feature that holds rows like these."""
    spec = FieldSpec(rows.dtype.newbyteorder("<").str, tuple(rows.shape[1:]))
    if isinstance(rows, Packed) and rows.spec.encoding == "text":
        return Leaf(path, "text", "str", ())
    if isinstance(rows, Packed) and rows.spec.encoding == "ragged":
        return _numbers(path, FieldSpec(rows.spec.dtype, rows.spec.shape[1:]), is_list=True)
    if isinstance(rows, Packed | Video) or _is_raw_picture(rows):
        sides = spec.shape if len(spec.shape) == 3 else (*spec.shape, 1)
        is_jpeg = isinstance(rows, Packed) and rows[0].startswith(b"\xff\xd8")
        return Leaf(path, "image", spec.dtype, sides, picture="jpeg" if is_jpeg else "png")
    return _numbers(path, spec, is_list=False)


def _numbers(path: str, spec: FieldSpec, *, is_list: bool) -> Leaf:
    dtype, count = spec.numpy_dtype, int(np.prod(spec.shape, dtype=np.int64))
    if count == 0:
        raise UsageError(f"Expected arrays with values, came {path} of the shape {spec.shape}.")
    is_exact = dtype.kind in "bi" or dtype.itemsize < 8
    encoding = "none" if is_exact and count < _LIST_VALUES else "bytes"
    return Leaf(path, "numbers", spec.dtype, spec.shape, encoding, is_list=is_list)


def _is_raw_picture(rows: Rows) -> bool:
    if not isinstance(rows, np.ndarray) or rows.ndim != 4 or rows.dtype != np.uint8:
        return False
    return min(rows.shape[1:3]) >= _RAW_PICTURE_SIDE and rows.shape[3] in (3, 4)


def _stored(rows: Rows, episode: Episode, path: str) -> Rows:
    """Rows as they are encoded: pictures as PNG or JPEG, all others as they are."""
    if isinstance(rows, Packed):
        if rows.spec.encoding == "frames" and not np.diff(rows.offsets).all():
            raise _refuse(episode, f"a picture in every row of {path}", "none in some")
        return rows
    if isinstance(rows, Video) or _is_raw_picture(rows):
        return encode_pictures(plain(rows))
    return rows


def _is_full(path: str, layout: RowLayout) -> bool:
    return f"extras/{path.removeprefix(f'{STEPS}/')}" in layout.full_extras


def _is_extra(path: str) -> bool:
    roots = (OBSERVATION, ACTION, REWARD)
    return not any(path == root or path.startswith(f"{root}/") for root in roots)


def _check_ends(episode: Episode) -> None:
    if episode.length < 1:
        raise _refuse(episode, "at least one step", "none")
    if (episode.terminated | episode.truncated)[:-1].any():
        raise _refuse(episode, "an end at the last step only", "an earlier one")


def _check_names(paths: list[str], episode: Episode) -> None:
    try:
        _check_paths(paths)
    except UsageError as error:
        raise UsageError(error.message, where=episode.episode_id) from error


def _check_paths(paths: list[str]) -> None:
    """A path may not be empty in any part, nor the folder of another."""
    known = set(paths)
    for path in paths:
        parts = path.split("/")
        parents = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if "" in parts or parents & known:
            raise UsageError(f"Expected names that dictionaries can hold, came {path!r}.")


def _kind(value: Scalar) -> type:
    """The type of a fact; `object` for a whole number beyond 64 bits."""
    is_large = isinstance(value, int) and value not in _INT64
    return object if is_large else type(value)


def _refuse(episode: Episode, expected: str, came: str) -> UsageError:
    return UsageError(
        f"Expected {expected}, came {came} in {episode.episode_id!r}; one RLDS dataset cannot hold "
        f"it.",
        where=episode.episode_id,
    )
