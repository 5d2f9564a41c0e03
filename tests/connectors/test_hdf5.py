from __future__ import annotations

import os
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from connectors.hdf5 import Limits, UnreadableError, is_hdf5, open_hdf5
from schemas.errors import NotFoundError, SourceError

MEBI = 2**20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.hdf5"


def test_reads_numbers_text_and_attributes(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["group/numbers"] = np.arange(6).reshape(3, 2)
        file["group/deep/flags"] = np.array([True, False])
        file["text"] = "Hopfen"
        file["one"] = np.array([2.5])
        file["names"] = np.array([b"demo_0", b"demo_11"])
        file.attrs.update(
            {"n": np.int64(3), "s": "ä", "b": np.bool_(True), "v": [1, 2], "none": h5py.Empty("f")}
        )
    with open_hdf5(path) as root:
        assert sorted(root.names()) == ["group", "names", "one", "text"]
        assert root.attributes() == {"n": 3, "s": "ä", "b": True, "v": [1, 2], "none": None}
        leaves = root.group("group").leaves()
        assert sorted(leaves) == ["deep/flags", "numbers"]
        np.testing.assert_array_equal(leaves["numbers"].read(1, 3), [[2, 3], [4, 5]])
        assert leaves["deep/flags"].read().dtype == np.bool_
        assert root.array("text").scalar() == "Hopfen"
        assert root.array("one").scalar() == 2.5
        assert list(root.array("names").items()) == [b"demo_0", b"demo_11"]
        with pytest.raises(UnreadableError, match="Expected a member 'absent'"):
            root.array("absent")
        with pytest.raises(UnreadableError, match="Expected a dataset 'group'"):
            root.array("group")
        with pytest.raises(SourceError, match="Expected numbers"):
            root.array("names").read()


def test_missing_file_and_folder(tmp_path: Path, path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at"), open_hdf5(path):
        pass
    with pytest.raises(SourceError, match="is not a file"), open_hdf5(tmp_path):
        pass
    assert not is_hdf5(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_file(path: Path, keep: float) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(10_000.0)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(SourceError, match="Expected a whole HDF5 file"), open_hdf5(path):
        pass


def test_damaged_chunk_is_unreadable_not_a_crash(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(50_000), compression="gzip", fletcher32=True)
        offset = file["x"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 20 : offset + 60] = os.urandom(40)
    path.write_bytes(data)
    with open_hdf5(path) as root, pytest.raises(UnreadableError, match="cannot be read"):
        root.array("x").read()


def test_links_are_never_followed(tmp_path: Path, path: Path) -> None:
    secret = tmp_path / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(3)
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink(str(secret), "/x")
        file["soft"] = h5py.SoftLink("/real")
        file["group/inner"] = h5py.ExternalLink(str(secret), "/")
        file["real"] = np.arange(3)
    with open_hdf5(path) as root:
        for name in ("external", "soft"):
            with pytest.raises(SourceError, match="links are never followed") as caught:
                root.array(name)
            assert not isinstance(caught.value, UnreadableError)
        with pytest.raises(SourceError, match="links are never followed"):
            root.group("group").leaves()
        assert root.array("real").read().tolist() == [0, 1, 2]


def test_external_storage_is_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (16,), "u1", external=[("/etc/passwd", 0, 16)])
    with open_hdf5(path) as root, pytest.raises(SourceError, match="external storage"):
        root.array("x")


def test_virtual_datasets_are_refused(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(4)
    layout = h5py.VirtualLayout((4,), "i8")
    layout[:] = h5py.VirtualSource(str(other), "x", (4,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
    with open_hdf5(path) as root, pytest.raises(SourceError, match="virtual dataset"):
        root.array("x")


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("a", "f4"), ("b", "i4")]),
        np.dtype("c8"),
        np.dtype("V4"),
        h5py.ref_dtype,
        h5py.vlen_dtype(np.float64),
    ],
    ids=str,
)
def test_other_dtypes_are_refused(path: Path, dtype: np.dtype) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2,), dtype)
    with open_hdf5(path) as root, pytest.raises(SourceError, match="it is refused"):
        root.array("x")


def test_gzip_bomb_is_refused_before_it_inflates(path: Path) -> None:
    with h5py.File(path, "w") as file:
        shape = (256 * MEBI,)
        data = file.create_dataset("x", shape, "u1", chunks=(MEBI,), compression="gzip")
        for start in range(0, shape[0], 64 * MEBI):
            data[start : start + 64 * MEBI] = 0
    assert path.stat().st_size < MEBI
    with open_hdf5(path) as root, pytest.raises(SourceError, match="decompression bomb"):
        root.array("x")


def test_claimed_terabyte_is_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("chunked", (2**40,), "u1", chunks=(1024,))
        file.create_dataset("contiguous", (2**40,), "u1")
        file.create_dataset("chunk", (4,), "u1", chunks=(2**31,), maxshape=(None,))
    with open_hdf5(path) as root:
        for name in ("chunked", "contiguous", "chunk"):
            with pytest.raises(SourceError, match="decompression bomb"):
                root.array(name)


def test_flags_that_compress_well_are_no_bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.zeros(4_000_000, bool), compression="gzip")
        assert file["x"].id.get_storage_size() * 200 < 4_000_000
    with open_hdf5(path) as root:
        assert not root.array("x").read().any()


def test_chunk_that_inflates_past_its_size_is_refused(path: Path) -> None:
    bomb = zlib.compress(bytes(8 * MEBI))
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (1024,), "u1", chunks=(1024,), compression="gzip")
        data.id.write_direct_chunk((0,), bomb)
    limits = Limits(free_bytes=MEBI)
    with open_hdf5(path, limits) as root, pytest.raises(SourceError, match="inflates past"):
        root.array("x").read()


def test_rows_beside_such_a_chunk_are_read(path: Path) -> None:
    with h5py.File(path, "w") as file:
        values = np.arange(6000, dtype="u2").reshape(3000, 2)
        data = file.create_dataset("x", data=values, chunks=(10, 1), compression="gzip")
        data.id.write_direct_chunk((1500, 1), zlib.compress(bytes(8 * MEBI)))
    with open_hdf5(path, Limits(free_bytes=MEBI)) as root:
        array = root.array("x")
        for start, stop in ((0, 1500), (1480, 1500), (1510, None), (1510, 1511), (1500, 1500)):
            np.testing.assert_array_equal(array.read(start, stop), values[start:stop])
        for start, stop in ((0, None), (0, 1501), (1505, 1506), (1509, None), (-1495, -1400)):
            with pytest.raises(SourceError, match="inflates past"):
                array.read(start, stop)


def test_large_honest_chunks_pass_the_same_check(path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8)
    with h5py.File(path, "w") as file:
        for name, options in (("plain", {}), ("summed", {"fletcher32": True, "shuffle": True})):
            file.create_dataset(name, data=values, chunks=(100_000,), compression="gzip", **options)
    with open_hdf5(path, Limits(free_bytes=MEBI)) as root:
        for name in ("plain", "summed"):
            np.testing.assert_array_equal(root.array(name).read(), values)


def test_many_rows_that_share_one_value_are_counted(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (64,), h5py.vlen_dtype(np.uint8))
        for row in range(64):
            data[row] = np.zeros(1000, np.uint8)
    limits = Limits(free_bytes=2000)
    with open_hdf5(path, limits) as root, pytest.raises(SourceError, match="more than its share"):
        list(root.array("x").items())
    with open_hdf5(path) as root:
        assert [len(item) for item in root.array("x").items()] == [1000] * 64


def test_doubled_filters_are_refused(path: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1024,))
    properties.set_deflate(9)
    properties.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((1024,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, space, properties)
    with open_hdf5(path) as root, pytest.raises(SourceError, match="at most one of"):
        root.array("x")


def test_circles_of_groups_end(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("loop")
        group["again"] = group
    with open_hdf5(path) as root, pytest.raises(SourceError, match="nested at most"):
        root.group("loop").leaves()


def test_attributes_that_claim_too_much(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["big"] = np.zeros(4000)
        file.attrs["many"] = ["text"] * 50
    limits = Limits(attribute_bytes=1000)
    with open_hdf5(path, limits) as root, pytest.raises(SourceError, match="'big'"):
        root.attributes()
    with open_hdf5(path, Limits(texts=20)) as root:
        with pytest.raises(SourceError, match="'many'"):
            root.attributes()
        assert root.attributes(skip=("many",))["big"][:2] == [0.0, 0.0]
