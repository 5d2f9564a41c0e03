"""The physical ceiling that `penstock bench stream` holds everyone against, for `bench_child.py`.

What nothing can beat that makes random batches of tensors out of one packed matrix: random numbers,
one gather for many batches, and the arrays of a training step cut per batch as views. No plan, no
provenance, no resume, no padding; what is gathered into is used again, so that a batch is only good
until the next gather. Of several ways the fastest of a run is its ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.stream.bench_child import Batch
from pipeline.stream.bench_data import (
    BATCH,
    CLIPS,
    FRAMES,
    WINDOW,
    WINDOWS,
    bounds,
    read_source,
)

VERSION = f"NumPy {np.__version__}, torch {torch.__version__}"
AT_ONCE = 64  # batches of transitions that one gather serves
WINDOWS_AT_ONCE = 4  # batches of windows, 0.5 MB
WORDS = 16  # of a record: 11 observation and 3 action dims, reward, terminated
_CUTS = ((0, 11), (11, 14), (14, 15), (WORDS, WORDS + 11), (15, 16))
"""Columns of a (row, next row) pair that a training step reads."""


def l1_single(place: Path) -> Callable[[], Batch]:
    """numpy.take on a matrix of 27 columns, each batch by itself and for good."""
    matrix, cuts = _rows(place)
    random = np.random.default_rng(0)

    def batch() -> Batch:
        drawn = random.integers(0, len(matrix), BATCH)
        taken = torch.from_numpy(np.take(matrix, drawn, axis=0, mode="clip"))
        return [taken[:, start:stop] for start, stop in cuts]

    return batch


def l1_take(place: Path) -> Callable[[], Batch]:
    """numpy.take on a matrix of 27 columns, 64 batches at once."""
    matrix, cuts = _rows(place)
    random = np.random.default_rng(0)
    buffer = np.empty((AT_ONCE * BATCH, matrix.shape[1]), np.float32)

    def gather() -> torch.Tensor:
        drawn = random.integers(0, len(matrix), len(buffer))
        np.take(matrix, drawn, axis=0, out=buffer, mode="clip")
        return torch.from_numpy(buffer).view(AT_ONCE, BATCH, -1)

    return _cut(gather, cuts)


def l1_select(place: Path) -> Callable[[], Batch]:
    """torch.index_select on overlapping (row, next row) windows, 64 batches at once."""
    records, steps = _packed(place)
    pairs = records.as_strided((len(records) - 1, 2 * WORDS), (WORDS, 1))
    return _cut(_selected(pairs, steps, (AT_ONCE, BATCH, 2 * WORDS)), _CUTS)


def l2_select(place: Path) -> Callable[[], Batch]:
    """torch.index_select on overlapping windows within episodes, 4 batches at once."""
    records, steps = _packed(place)
    windows = records.as_strided((len(records) - WINDOW + 1, WINDOW * WORDS), (WORDS, 1))
    starts = steps[_fits(place, WINDOW)]
    shape = (WINDOWS_AT_ONCE, WINDOWS, WINDOW, WORDS)
    return _cut(_selected(windows, starts, shape), ((0, 11), (11, 14), (14, 15)))


def l2_single(place: Path) -> Callable[[], Batch]:
    """torch.index_select on overlapping windows within episodes, each batch by itself."""
    records, steps = _packed(place)
    windows = records.as_strided((len(records) - WINDOW + 1, WINDOW * WORDS), (WORDS, 1))
    starts = steps[_fits(place, WINDOW)]

    def batch() -> Batch:
        drawn = starts.index_select(0, torch.randint(len(starts), (WINDOWS,)))
        taken = windows.index_select(0, drawn).view(WINDOWS, WINDOW, WORDS)
        return [taken[..., start:stop] for start, stop in ((0, 11), (11, 14), (14, 15))]

    return batch


def l3(place: Path) -> Iterator[Batch]:
    """Packed file read whole, one permutation, 64 batches at once."""
    records = torch.from_numpy(np.load(_file(place), allow_pickle=False))
    steps = torch.from_numpy(np.load(_file(place, "steps"), allow_pickle=False))
    pairs = records.as_strided((len(records) - 1, 2 * WORDS), (WORDS, 1))
    shuffled = steps[torch.randperm(len(steps))]
    for rows in torch.split(shuffled, AT_ONCE * BATCH):
        for batch in torch.split(pairs.index_select(0, rows), BATCH):
            yield [batch[:, start:stop] for start, stop in _CUTS]


def l4_take(place: Path) -> Callable[[], Batch]:
    """numpy.take on the mapped pictures, one batch at once."""
    pictures = read_source(place)["observations"]
    starts = np.flatnonzero(_fits(place, FRAMES))
    random, frames = np.random.default_rng(0), np.arange(FRAMES)

    def batch() -> Batch:
        rows = starts[random.integers(0, len(starts), CLIPS)][:, None] + frames
        return [torch.from_numpy(np.take(pictures, rows, axis=0, mode="clip"))]

    return batch


def l4_select(place: Path) -> Callable[[], Batch]:
    """torch.index_select on overlapping windows of the mapped pictures, one buffer."""
    pictures = read_source(place)["observations"]
    starts = torch.from_numpy(np.flatnonzero(_fits(place, FRAMES)))
    size = pictures[0].size
    flat = torch.from_numpy(np.load(_source(place), mmap_mode="c", allow_pickle=False)).view(-1)
    windows = flat.as_strided((len(pictures) - FRAMES + 1, FRAMES * size), (size, 1))
    shape = (CLIPS, FRAMES, *pictures.shape[1:])
    gather = _selected(windows, starts, (1, *shape), torch.uint8)
    return lambda: [gather()[0]]


def prepare_numbers(place: Path) -> None:
    """Packs steps and final observations into one matrix, and says where the steps are."""
    source = read_source(place)
    start, stop = bounds(source)
    steps = np.arange(stop[-1]) + np.repeat(np.arange(len(stop)), stop - start)
    records = np.zeros((stop[-1] + len(stop), WORDS), np.float32)
    columns = [source[n] for n in ("observations", "actions", "rewards", "terminated")]
    records[steps] = np.concatenate([_flat(column) for column in columns], axis=1)
    records[steps[stop - 1] + 1, :11] = source["last_observations"]
    _file(place).parent.mkdir()
    np.save(_file(place), records, allow_pickle=False)
    np.save(_file(place, "steps"), steps, allow_pickle=False)


# -- within --------------------------------------------------------------------------------------


def _cut(
    gather: Callable[[], torch.Tensor], cuts: tuple[tuple[int, int], ...]
) -> Callable[[], Batch]:
    """Returns what hands out the batches of one gather, then gathers again."""
    ready: list[Batch] = []

    def batch() -> Batch:
        if not ready:
            taken = gather()
            rows, sizes = taken.flatten(0, 1), [taken.shape[1]] * len(taken)
            parts = (torch.unsafe_split_with_sizes(rows[..., a:b], sizes) for a, b in cuts)
            ready.extend(zip(*parts, strict=True))
        return ready.pop()

    return batch


def _selected(
    windows: torch.Tensor,
    starts: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Callable[[], torch.Tensor]:
    """Returns what gathers random windows into one buffer of some shape."""
    buffer = torch.empty(shape[0] * shape[1], windows.shape[1], dtype=dtype)

    def gather() -> torch.Tensor:
        drawn = starts.index_select(0, torch.randint(len(starts), (len(buffer),)))
        torch.index_select(windows, 0, drawn, out=buffer)
        return buffer.view(shape)

    return gather


def _rows(place: Path) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """All that a training step reads of each transition, side by side, and where its parts lie."""
    source = read_source(place)
    columns = [source[n] for n in ("observations", "actions", "rewards", "next_observations")]
    matrix = np.concatenate([_flat(c) for c in [*columns, source["terminated"]]], axis=1)
    return matrix, ((0, 11), (11, 14), (14, 15), (15, 26), (26, 27))


def _packed(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Records of all steps and final observations, and the rows of the steps."""
    return (
        torch.from_numpy(np.load(_file(place), allow_pickle=False)),
        torch.from_numpy(np.load(_file(place, "steps"), allow_pickle=False)),
    )


def _fits(place: Path, window: int) -> np.ndarray:
    """At which steps a window begins that fits its episode, (N,) bool."""
    start, stop = bounds(read_source(place))
    return np.arange(stop[-1]) + window <= np.repeat(stop, stop - start)


def _flat(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32).reshape(len(array), -1)


def _file(place: Path, name: str = "records") -> Path:
    return place / "ceilings" / f"{name}.npy"


def _source(place: Path) -> Path:
    return place / "source" / "observations.npy"
