"""Records that lie on a device, and batches gathered there: residency `gpu`.

The records are uploaded once, as they lie in the cache. A gather is then one `index_select` of
whole records on the device, and every field a view into it, as on the host. The class knows
`torch.device` alone and runs on the CPU just so.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch

from pipeline.stream import device_plan
from pipeline.stream.cache_index import CachedBlock
from pipeline.stream.record import RecordLayout
from pipeline.stream.torch_adapter import torch_device
from pipeline.stream.transport import Transport, torch_dtype
from schemas.errors import UsageError
from schemas.sizes import said_bytes
from schemas.stream import StreamConfig

if TYPE_CHECKING:
    from pipeline.stream.source import OpenVersion

PIECE_BYTES = 64 << 20
"""Of records that are uploaded at a time."""


class DeviceRecords:
    """The records of a version on a device.

    Args:
        matrix: (rows, words) int32, on the device.
        blocks: that lie in it.
    """

    def __init__(self, matrix: torch.Tensor, blocks: Mapping[str, CachedBlock]) -> None:
        self.matrix = matrix
        self.blocks = dict(blocks)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns records by their rows of any shape, (*rows.shape, words) int32."""
        if self.matrix.is_cuda:
            # Memory of the stream that uploaded it, read on the one that is current now.
            self.matrix.record_stream(torch.cuda.current_stream(self.matrix.device))
        return self.matrix.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)

    def joined(
        self, parts: Sequence[Mapping[str, Any]], rows: torch.Tensor, on_host: np.ndarray
    ) -> dict[str, Any]:
        """Returns columns of several sources put together, each in the order of some rows.

        Args:
            parts: columns by name, tensors or arrays of objects.
            rows: (steps, rows) int64, of the parts one after the other.
            on_host: the same.
        """
        found = {}
        for name, first in parts[0].items():
            values = [part[name] for part in parts]
            if isinstance(first, np.ndarray):
                found[name] = np.concatenate(values)[on_host]
            else:
                found[name] = torch.cat(values)[rows]
        return found

    def columns(self, opened: OpenVersion, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Returns everything batches hold, by flat name; as `batches.columns` does on the host.

        Args:
            opened: the version.
            sent: what `device_plan.plan_columns` returned, as it arrived on the device.
        """
        config, layout = opened.config, opened.layout
        if config.is_windowed:
            found = self._windows(opened, sent)
        else:
            found = self._transitions(opened, sent)
        if device_plan.NEXT in sent:
            records = self.take(sent[device_plan.NEXT])
            for name in layout.names("observations"):
                frames = view(layout, records, name)
                axis = records.ndim - 2
                found[f"next_{name}"] = frames if config.frame_stack > 1 else frames.select(axis, 0)
        if device_plan.GOALS in sent and opened.goals is not None:
            records = self.take(sent[device_plan.GOALS])
            found["goals"] = view(layout, records, opened.goals.field)
        if device_plan.REACHED in sent:
            reached = sent[device_plan.REACHED]
            found["terminated"] = found["terminated"] | reached
            found["discounts"] = found["discounts"].masked_fill(reached, 0)
            found.pop("rewards_mask", None)
        ready = {n: v for n, v in sent.items() if not n.startswith(device_plan.FOR_DEVICE)}
        return {**found, **ready}

    def _transitions(self, opened: OpenVersion, sent: Mapping[str, Any]) -> dict[str, Any]:
        layout, real = opened.layout, real_dtype(opened.config)
        now, after = self.take(sent[device_plan.PAIRS]).unbind(-2)
        found = {name: view(layout, now, name) for name in layout.names("observations")}
        for name in _step_fields(opened):
            found[name] = _step_field(opened, sent, name, now)
        for name in layout.names("observations"):
            found[f"next_{name}"] = view(layout, after, name)
        for name in ("terminated", "truncated"):
            found[name] = view(layout, now, name)
        found["discounts"] = (~found["terminated"]).to(real) * opened.config.discount
        found["mask"] = torch.ones(now.shape[:-1], dtype=real, device=now.device)
        for root in sorted(opened.lacks):
            found[f"{root}_mask"] = _has(opened, sent, root, now).to(real)
        return found

    def _windows(self, opened: OpenVersion, sent: Mapping[str, Any]) -> dict[str, Any]:
        config, layout, real = opened.config, opened.layout, real_dtype(opened.config)
        anchors, first, stop = (
            sent[name][..., None]
            for name in (device_plan.ANCHORS, device_plan.FIRST, device_plan.STOP)
        )
        before, after = config.reach
        slots = torch.arange(before + after + 1, device=anchors.device)
        inside = (slots >= first) & (slots < stop)
        # Where a row leaves its episode: the nearest observation, and the nearest step.
        seen = following = self.take(anchors - before + torch.clamp(slots, first, stop))
        steps = self.take(anchors - before + torch.clamp(slots, first, stop - 1))
        real_steps = steps.masked_fill(~inside[..., None], 0)
        if config.pad == "zero" and config.frame_stack > 1:
            seen = following = seen.masked_fill((slots < first)[..., None], 0)
        elif config.pad == "zero":
            is_next = (slots > first) & (slots <= stop)
            following = seen.masked_fill(~is_next[..., None], 0)
            seen = seen.masked_fill(~inside[..., None], 0)
        axes = _Axes(config, anchors.ndim - 1)
        found = {
            name: axes.along(view(layout, seen, name), stack=True)
            for name in layout.names("observations")
        }
        for name in _step_fields(opened):
            root = name.split("/", 1)[0]
            if config.pad == "zero" or root == "rewards":
                values = _step_field(opened, sent, name, real_steps, inside)
            else:
                values = _step_field(opened, sent, name, steps)
            found[name] = axes.along(values, chunk=root == "actions")
        for name in layout.names("observations"):
            found[f"next_{name}"] = axes.following(view(layout, following, name))
        mask = inside.to(real)
        for name in ("terminated", "truncated"):
            found[name] = axes.along(view(layout, real_steps, name))
        found["discounts"] = (~found["terminated"]).to(real) * config.discount
        found["mask"] = axes.along(mask)
        if config.has_steps:
            found["discounts"] = found["discounts"] * found["mask"]
        if config.action_chunk is not None:
            name = "action_chunk_mask" if config.has_steps else "mask"
            found[name] = axes.along(mask, chunk=True)
        if config.frame_stack > 1:
            found["frame_stack_mask"] = axes.along(mask, stack=True)
        for root in sorted(opened.lacks):
            has = _has(opened, sent, root, steps).to(real) * mask
            found[f"{root}_mask"] = axes.along(has, chunk=root == "actions")
        return found


class _Axes:
    """The axes of windows, cut from values by slot without a copy; as `windows.Slots` does.

    Args:
        config: the stream's settings.
        axis: of the slots.
    """

    def __init__(self, config: StreamConfig, axis: int) -> None:
        self._config, self._axis = config, axis

    def along(
        self, values: torch.Tensor, *, stack: bool = False, chunk: bool = False
    ) -> torch.Tensor:
        """Returns the part of (..., S, *shape) that a batch holds, with its axes."""
        config = self._config
        if stack and config.frame_stack > 1:
            return self._cut(values, 0, config.frame_stack)
        if chunk and config.action_chunk is not None:
            return self._cut(values, config.frame_stack - 1, config.action_chunk)
        return self._cut(values, config.frame_stack - 1, None)

    def following(self, values: torch.Tensor) -> torch.Tensor:
        """Returns `along` with stacked frames, one step later."""
        frames = self._config.frame_stack
        return self._cut(values, 1, frames if frames > 1 else None)

    def _cut(self, values: torch.Tensor, first: int, more: int | None) -> torch.Tensor:
        config, axis = self._config, self._axis
        steps = config.history + (config.window or 1)
        values = values.narrow(axis, first, steps + (more or 1) - 1)
        if more is not None:
            values = values.unfold(axis, more, 1).movedim(-1, axis + 1)
        return values if config.has_steps else values.select(axis, 0)


_HELD: WeakValueDictionary[tuple[torch.device, str], DeviceRecords] = WeakValueDictionary()
"""What was uploaded last of each cache, as long as a stream reads it."""
_ONE_AT_A_TIME = threading.Lock()


def hold(
    records: np.ndarray, blocks: Mapping[str, CachedBlock], device: str, cache: Path
) -> DeviceRecords:
    """Returns records on a device, uploaded where they are not there yet.

    Streams of one cache share what is there. A version that follows another has its rows and
    more, so only those are uploaded.

    Args:
        records: (rows, words) int32 of the cache.
        blocks: where the wanted ones lie in them.
        device: where they are to lie.
        cache: the file that they are of.

    Raises:
        UsageError: if the device has no room for them.
    """
    place = torch_device(device)
    with _ONE_AT_A_TIME:
        latest = _HELD.get((place, str(cache)))
        known = len(latest.matrix) if latest is not None and _agree(latest, blocks) else 0
        if latest is not None and known >= len(records) > 0:
            return latest
        try:
            matrix = torch.empty(records.shape, dtype=torch.int32, device=place)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"Expected room for {said_bytes(records.nbytes)} of records on {place}, came "
                f"{said_bytes(free_memory(device))}; use residency='ram', or fewer fields=."
            ) from error
        if latest is not None and known:
            matrix[:known] = latest.matrix
        _upload(records, matrix, known)
        before = latest.blocks if latest is not None and known else {}
        found = DeviceRecords(matrix, {**before, **blocks})
        _HELD[place, str(cache)] = found
        return found


def _upload(records: np.ndarray, matrix: torch.Tensor, start: int) -> None:
    """Copies rows from some on, in pieces, through the buffers of a transport."""
    transport = Transport(matrix.device)
    step = max(1, PIECE_BYTES // (records.shape[1] * records.itemsize))
    for at in range(start, len(records), step):
        piece = transport.send({"records": records[at : at + step]})
        matrix[at : at + step] = transport.receive(piece)["records"]
    if matrix.is_cuda:  # whoever reads it may do so on another stream
        torch.cuda.current_stream(matrix.device).synchronize()


def _agree(latest: DeviceRecords, blocks: Mapping[str, CachedBlock]) -> bool:
    """True if all of some blocks are as they lie on a device already, or lie behind all there.

    A cache that was cleared and filled anew may hold the same blocks at other places.
    """
    behind = len(latest.matrix)
    return all(
        latest.blocks[name] == block if name in latest.blocks else block.start >= behind
        for name, block in blocks.items()
    )


def free_memory(device: str) -> int:
    """Returns the bytes that may still be taken of a CUDA device."""
    place = torch_device(device)
    free, _ = torch.cuda.mem_get_info(place)
    return free + torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)


def view(layout: RecordLayout, records: torch.Tensor, name: str) -> torch.Tensor:
    """Returns one field of gathered records without a copy.

    Args:
        layout: of the records.
        records: (..., words) int32, whose words lie side by side.
        name: full field name.

    Returns:
        (..., *shape) of the field's dtype.
    """
    field = layout.by_name[name]
    dtype = torch_dtype(np.dtype(field.dtype))
    count = int(np.prod(field.shape, dtype=np.int64))
    values = records.view(dtype).narrow(-1, field.offset // dtype.itemsize, count)
    return values.view(*records.shape[:-1], *field.shape)


def real_dtype(config: StreamConfig) -> torch.dtype:
    """Returns the dtype of masks, discounts and weights."""
    return torch.float64 if config.dtype == "float64" else torch.float32


def _step_fields(opened: OpenVersion) -> list[str]:
    """Fields of steps by full name: of the records, and added ones."""
    roots = ("actions", "rewards", "extras")
    held = [name for root in roots for name in opened.layout.names(root)]
    return list(dict.fromkeys([*held, *opened.added]))


def _step_field(
    opened: OpenVersion,
    sent: Mapping[str, Any],
    name: str,
    records: torch.Tensor,
    inside: torch.Tensor | None = None,
) -> torch.Tensor:
    """A field of steps: what records hold, with what was added laid over; 0 but inside."""
    if name not in opened.added:
        return view(opened.layout, records, name)
    over: torch.Tensor = sent[device_plan.OVER + name]
    if inside is not None:
        over = torch.where(_wide(inside, over), over, torch.zeros_like(over))
    has = sent.get(device_plan.HAS + name)
    if has is None or name not in opened.layout.by_name:
        return over
    return torch.where(_wide(has, over), over, view(opened.layout, records, name))


def _has(
    opened: OpenVersion, sent: Mapping[str, Any], root: str, records: torch.Tensor
) -> torch.Tensor:
    """Where an episode has actions or rewards, in its records or added."""
    found = view(opened.layout, records, f"has_{root}")
    beside = sent.get(device_plan.HAS + root)
    return found if beside is None else found | beside


def _wide(flags: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Flags with the axes that values have besides."""
    return flags.view(*flags.shape, *[1] * (values.ndim - flags.ndim))
