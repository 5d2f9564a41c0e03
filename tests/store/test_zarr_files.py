"""Arrays encoded here are, byte for byte, those that zarr-python writes, and it reads them."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.store.zarr_files import ArrayKind, Codec, add_array, add_group, group_file, pays

ATTRIBUTES = {"field": "a/b", "padding": "NaN where valid is false"}


def by_zarr(path: str, values: np.ndarray, kind: ArrayKind) -> dict[str, bytes]:
    """The same array in a group of zarr-python's own making."""
    files: dict = {}
    group = zarr.create_group(MemoryStore(files), attributes={"x": 1}, zarr_format=3)
    inner = tuple(max(size, 1) for size in kind.shape)
    array = group.create_array(
        path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(kind.chunk, *inner),
        shards=None if kind.shard is None else (kind.shard, *inner),
        compressors=kind.codec.in_zarr(),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=kind.dimensions,
        attributes=ATTRIBUTES,
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return {key: buffer.to_bytes() for key, buffer in files.items()}


def by_us(path: str, values: np.ndarray, kind: ArrayKind) -> dict[str, bytes]:
    files = {"zarr.json": group_file({"x": 1})}
    add_array(files, path, values, kind, ATTRIBUTES)
    return files


def kind_of(values: np.ndarray, chunk: int, shard: int | None, codec: Codec) -> ArrayKind:
    names = tuple(f"axis {axis}" for axis in range(values.ndim))
    return ArrayKind(values.dtype.str, values.shape[1:], chunk, shard, codec, names)


def values_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) * 100).astype(dtype)


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["|b1", "|u1", "|i1", "<i2", "<f2", "<i8", "<f4", "<f8"])
@pytest.mark.parametrize(
    ("shape", "chunk", "shard"),
    [
        ((100,), 16, 112),
        ((100, 3), 16, 48),
        ((96, 3), 16, 96),
        ((10, 4, 3), 64, 64),
        ((50,), 20, None),
        ((40, 2), 20, None),
        ((7, 0), 4, 8),
        ((0, 3), 4, 4),
    ],
)
def test_files_equal_those_of_zarr_python(
    dtype: str, shape: tuple[int, ...], chunk: int, shard: int | None, codec: str
) -> None:
    values = values_of(dtype, shape)
    kind = kind_of(values, chunk, shard, Codec(codec, 1, values.itemsize))  # type: ignore[arg-type]
    theirs = by_zarr("a/b", values, kind)
    ours = by_us("a/b", values, kind)
    assert ours.keys() == theirs.keys()
    for key, data in theirs.items():
        assert ours[key] == data, key


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_zarr_python_reads_them_and_notices_a_flipped_bit(codec: str) -> None:
    values = values_of("<f4", (1_000, 3))
    kind = kind_of(values, 128, 1_024, Codec(codec, 1, 4))  # type: ignore[arg-type]
    files = by_us("observations/state", values, kind)
    make = default_buffer_prototype().buffer.from_bytes
    store = MemoryStore({key: make(data) for key, data in files.items()})
    array = zarr.open_group(store, mode="r")["observations/state"]
    np.testing.assert_array_equal(array[:], values)  # type: ignore[index]
    np.testing.assert_array_equal(array[300:310], values[300:310])  # type: ignore[index]

    key = "observations/state/c.0.0"
    spoiled = bytearray(files[key])
    spoiled[100] ^= 4
    store = MemoryStore({k: make(bytes(spoiled) if k == key else d) for k, d in files.items()})
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(store, mode="r")["observations/state"][:]  # type: ignore[index]


def test_groups_equal_those_of_zarr_python() -> None:
    theirs: dict = {}
    group = zarr.create_group(MemoryStore(theirs), attributes={"p": [1, "ö"]}, zarr_format=3)
    group.create_group("a/b", attributes={"shape": (-1, 2)})
    files = {"zarr.json": group_file({"p": [1, "ö"]})}
    add_group(files, "a/b", {"shape": (-1, 2)})
    assert files == {key: buffer.to_bytes() for key, buffer in theirs.items()}


def test_values_in_another_byte_order_are_kept_by_their_value() -> None:
    values = values_of("<f4", (10, 3))
    kind = kind_of(values, 16, 16, Codec("lz4", itemsize=4))
    assert by_us("a", values.astype(">f4"), kind) == by_us("a", values, kind)


def test_noise_does_not_pay_and_a_plain_wall_does() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    wall = np.full((64, 32, 32, 3), 7, np.uint8)
    assert not pays(noise, Codec("zstd"), 16, 0.25)
    assert pays(wall, Codec("zstd"), 16, 0.25)
