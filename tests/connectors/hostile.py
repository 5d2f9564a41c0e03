"""A catalogue of bad inputs: what each is, and the one outcome it must have.

An outcome is `refused` (exit code 6 and a kind; nothing is committed), `quarantined` (exit code 3
and a reason; the healthy neighbours are committed) or `accepted` (exit code 0, and what had to be
guessed is said). Bombs are marked: the suite reads them in a process whose memory it measures.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from tests.connectors import test_ogbench, test_replay_zarr, test_rllib, test_vd4rl
from tests.connectors.makers import d4rl_arrays, demo, write_hdf5, write_robomimic
from tests.connectors.small import SMALL

MEBI = 2**20
Outcome = Literal["refused", "quarantined", "accepted"]


@dataclass(frozen=True)
class Bad:
    """One bad input."""

    name: str
    format: str
    make: Callable[[Path], str]
    """Makes it in an empty folder; returns where it is."""
    outcome: Outcome
    code: str
    """The kind of the refusal, the reason of the quarantine, or nothing."""
    says: str
    """A pattern of what the user reads."""
    is_bomb: bool = False


def small(name: str, place: Path) -> str:
    """Makes the valid dataset of a parser."""
    return next(one for one in SMALL if one.name == name).make(place)


# -- changes that several formats take -----------------------------------------------------------


def cut(name: str, pattern: str, keep: float) -> Callable[[Path], str]:
    """Ends a file too early."""

    def make(place: Path) -> str:
        where = small(name, place)
        path = _one(place, pattern)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return where

    return make


def edited(name: str, pattern: str, edit: Callable[[Path], Any]) -> Callable[[Path], str]:
    """Changes one file of a valid dataset."""

    def make(place: Path) -> str:
        where = small(name, place)
        edit(_one(place, pattern))
        return where

    return make


def stated(name: str, pattern: str, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Changes what a JSON file states."""

    def edit(path: Path) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edited(name, pattern, edit)


def _one(place: Path, pattern: str) -> Path:
    found = sorted(path for path in place.rglob(pattern) if path.is_file())
    assert found, f"nothing matches {pattern}"
    return found[0]


def linked(path: Path) -> None:
    """Puts a link to the same content, elsewhere, in the place of a file."""
    target = path.parents[3] / "elsewhere" if len(path.parents) > 3 else path.parent / "elsewhere"
    target.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(target)


# -- HDF5 ----------------------------------------------------------------------------------------


def d4rl(**changes: Any) -> Callable[[Path], str]:
    """A D4RL file with some arrays changed; None leaves one out."""

    def make(place: Path) -> str:
        arrays = {**d4rl_arrays(), **changes}
        kept = {name: array for name, array in arrays.items() if array is not None}
        return write_hdf5(place / "a.hdf5", kept)

    return make


def hdf5(edit: Callable[[h5py.File], Any]) -> Callable[[Path], str]:
    """A D4RL file that somebody changed with h5py."""

    def make(place: Path) -> str:
        where = d4rl()(place)
        with h5py.File(where, "r+") as file:
            edit(file)
        return where

    return make


def instead(name: str, put: Callable[[h5py.File], Any]) -> Callable[[Path], str]:
    """A D4RL file with something else in the place of one dataset."""

    def edit(file: h5py.File) -> None:
        del file[name]
        put(file)

    return hdf5(edit)


def _external_file(place: Path) -> str:
    secret = write_hdf5(place / "secret.h5", {"x": np.zeros((14, 3), np.float32)})
    folder = place / "data"
    folder.mkdir()
    where = d4rl()(folder)
    with h5py.File(where, "r+") as file:
        del file["observations"]
        file["observations"] = h5py.ExternalLink(secret, "x")
    return where


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((14, 3), "<f4")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (14, 3))
    file.create_virtual_dataset("observations", layout)


def _hdf5_bomb(file: h5py.File) -> None:
    made = file.create_dataset(
        "observations", (2**21, 256), "f4", chunks=(2**14, 256), compression="gzip"
    )
    chunk = zlib.compress(bytes(2**14 * 256 * 4), 9)
    for start in range(0, 2**21, 2**14):
        made.id.write_direct_chunk((start, 0), chunk)


def _hdf5_chunk_bomb(place: Path) -> str:
    where = d4rl()(place)
    with h5py.File(where, "r+") as file:
        del file["observations"]
        made = file.create_dataset(
            "observations", (14, 3), "f4", chunks=(14, 3), compression="gzip"
        )
        made.id.write_direct_chunk((0, 0), zlib.compress(bytes(512 * MEBI), 9))
    return where


def _pointer_bomb(place: Path) -> str:
    """A mask whose text claims 3 GB in its pointer."""
    where = write_robomimic(place / "a.hdf5", {"demo_0": demo(3)})
    with h5py.File(where, "r+") as file:
        made = file.create_dataset("mask/train", (1,), h5py.string_dtype())
        made[0] = "demo_0"
        offset = made.id.get_offset()
    data = bytearray(Path(where).read_bytes())
    data[offset : offset + 4] = struct.pack("<I", 3_000_000_000)
    Path(where).write_bytes(data)
    return where


def _attribute_bomb(place: Path) -> str:
    """A text attribute whose pointer claims 3 GB."""
    where = d4rl()(place)
    with h5py.File(where, "r+") as file:
        file.attrs["note"] = "n" * 77
    data = bytearray(Path(where).read_bytes())
    at = data.find(struct.pack("<I", 77))
    while at >= 0:
        address = int.from_bytes(data[at + 4 : at + 12], "little")
        if data[address : address + 4] == b"GCOL":
            data[at : at + 4] = struct.pack("<I", 3_000_000_000)
        at = data.find(struct.pack("<I", 77), at + 4)
    Path(where).write_bytes(data)
    return where


def _groups(file: h5py.File) -> None:
    infos = file.create_group("infos")
    for number in range(4100):
        infos.create_dataset(str(number), (14,), "u1")


def _many_groups(place: Path) -> str:
    with h5py.File(place / "a.hdf5", "w", libver="latest") as file:
        data = file.create_group("data")
        for number in range(3_000):
            data.create_group(f"demo_{number}")
    return str(place / "a.hdf5")


def _latin(file: h5py.File) -> None:
    infos = file.create_group("infos")
    infos.id.links.create_soft(b"\xff\xfe", b"/rewards")


def _deep(file: h5py.File) -> None:
    file.create_group("infos/" + "/".join("abcdefghijklmnopqrstuvwxyz"))


def demos(**changes: Any) -> Callable[[Path], str]:
    """A healthy demonstration, and one with changes."""

    def make(place: Path) -> str:
        return write_robomimic(place / "a.hdf5", {"demo_0": demo(4), "demo_1": demo(5, **changes)})

    return make


def _gap() -> np.ndarray:
    following = d4rl_arrays()["next_observations"].copy()
    following[2] += 1
    return following


def _nan_at(name: str, row: int, value: float) -> dict[str, np.ndarray]:
    made = d4rl_arrays()[name].copy()
    made[row] = value
    if name == "observations":  # the same row, said twice
        following = d4rl_arrays()["next_observations"].copy()
        following[row - 1] = value
        return {name: made, "next_observations": following}
    return {name: made}


# -- npz, pickles, TorchRL -----------------------------------------------------------------------


def npz(**changes: Any) -> Callable[[Path], str]:
    """An OGBench file with some arrays changed."""

    def make(place: Path) -> str:
        return test_ogbench.write(place / "a.npz", {**test_ogbench.arrays(), **changes})

    return make


def members(**changes: bytes) -> Callable[[Path], str]:
    """An OGBench archive with some members' bytes replaced."""

    def make(place: Path) -> str:
        where = npz()(place)
        with zipfile.ZipFile(where) as archive:
            kept = {name: archive.read(name) for name in archive.namelist()}
        kept |= {f"{name}.npy": data for name, data in changes.items()}
        with zipfile.ZipFile(where, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in kept.items():
                archive.writestr(name, data)
        return where

    return make


def npy(shape: str, dtype: str = "<f4", data: bytes = b"", version: int = 1) -> bytes:
    """An npy file with a header that says what it is told to."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def _npz_bomb(place: Path) -> str:
    where = place / "a.npz"
    with zipfile.ZipFile(where, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in test_ogbench.arrays().items():
            if name != "observations":
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
        with archive.open("observations.npy", "w") as file:
            file.write(npy("(15, 17000000)"))
            for _ in range(15):
                file.write(bytes(17000000 * 4))
    return str(where)


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/penstock-was-here",))


def _pickle(name: str) -> Callable[[Path], str]:
    def make(place: Path) -> str:
        (place / name).write_bytes(pickle.dumps(Trap()))
        return str(place / name)

    return make


def _vd4rl_with_pickle(place: Path) -> str:
    parts = test_vd4rl.arrays(3, image=np.zeros((4, 8, 8, 3), np.uint8))
    test_vd4rl.save(place / "walker", 0, {**parts, "note": np.array([Trap()], object)})
    return str(place / "walker")


def _vd4rl(**changes: Any) -> Callable[[Path], str]:
    def make(place: Path) -> str:
        image = np.zeros((4, 8, 8, 3), np.uint8)
        test_vd4rl.save(place / "walker", 0, test_vd4rl.arrays(3, image=image))
        test_vd4rl.save(place / "walker", 1, {**test_vd4rl.arrays(3, image=image), **changes})
        return str(place / "walker")

    return make


# -- Zarr ----------------------------------------------------------------------------------------


def buffers(ends: Any = (5, 6, 14), **options: Any) -> Callable[[Path], str]:
    """A replay buffer in Zarr."""

    def make(place: Path) -> str:
        arrays = {**test_replay_zarr.arrays(), **options.pop("more", {})}
        return test_replay_zarr.write(place / "z.zarr", arrays, ends, **options)

    return make


def _blosc_bomb(path: Path) -> None:
    path.write_bytes(numcodecs.Blosc("zstd").encode(bytes(512 * MEBI)))


def _meta(**changes: Any) -> Callable[[Path], str]:
    return stated("zarr_v2", "data/state/.zarray", lambda said: said.update(changes))


def _zip_slip(place: Path) -> str:
    where = small("zarr_zip", place)
    with zipfile.ZipFile(where, "a") as archive:
        archive.writestr("../../escaped", b"x")
    return where


def _zstd_bomb(place: Path) -> str:
    options = {"zarr_format": 3, "compressors": [zarr.codecs.ZstdCodec()]}
    where = test_replay_zarr.write(place / "z.zarr", test_replay_zarr.arrays(), **options)
    path = Path(where, "data", "state", "c", "1", "0")
    path.write_bytes(numcodecs.Zstd(3).encode(bytes(512 * MEBI)))
    return where


# -- tables --------------------------------------------------------------------------------------


def steps_table(**changes: Any) -> dict[str, Any]:
    """Two episodes as a table of steps."""
    made = {
        "episode_id": [0, 0, 0, 1, 1],
        "step": [0, 1, 2, 0, 1],
        "observation": [1.0, 2.0, 3.0, 4.0, 5.0],
        "action": [0.1, 0.2, 0.3, 0.4, 0.5],
        "reward": [1.0, 1.0, 1.0, 1.0, 1.0],
        "terminated": [False, False, True, False, False],
        "truncated": [False, False, False, False, True],
    }
    return {name: column for name, column in {**made, **changes}.items() if column is not None}


def table(**changes: Any) -> Callable[[Path], str]:
    """A Parquet file of steps with some columns changed."""

    def make(place: Path) -> str:
        pq.write_table(pa.table(steps_table(**changes)), place / "steps.parquet")
        return str(place / "steps.parquet")

    return make


def _parts(place: Path) -> str:
    folder = place / "steps"
    folder.mkdir()
    pq.write_table(pa.table(steps_table()), folder / "a.parquet")
    pq.write_table(pa.table(steps_table(action=["x"] * 5)), folder / "b.parquet")
    return str(folder)


def _dictionary_bomb(place: Path) -> str:
    rows = 2**16
    columns = {
        "episode_id": np.zeros(rows, int),
        "step": np.arange(rows),
        "observation": np.zeros(rows),
        "note": pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 60_000], pa.large_string())
        ),
    }
    # Without Arrow's own schema the file says plain text: it would expand.
    where = place / "steps.parquet"
    pq.write_table(pa.table(columns), where, compression="zstd", store_schema=False)
    return str(where)


def _run_length_bomb(place: Path) -> str:
    rows = 2**24
    columns = {
        "episode_id": np.zeros(rows, np.int64),
        "step": np.zeros(rows, np.int64),
        "observation": np.zeros(rows),
    }
    pq.write_table(pa.table(columns), place / "steps.parquet", compression="zstd")
    return str(place / "steps.parquet")


def _picture_bomb(place: Path) -> str:
    """A PNG whose header says 60,000 x 60,000, in a LeRobot dataset of 32 x 32 pictures."""
    where = small("lerobot_png", place)
    path = _one(Path(where), "data/*/*.parquet")
    found = pq.read_table(path)
    name = next(n for n in found.column_names if "image" in n)
    rows = found.column(name).to_pylist()
    data = bytearray(rows[1]["bytes"])
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    rows[1]["bytes"] = bytes(data)
    at = found.column_names.index(name)
    kind = found.schema.field(name).type
    pq.write_table(found.set_column(at, found.schema.field(at), pa.array(rows, kind)), path)
    return where


def _message_bomb(place: Path) -> str:
    where = small("rllib_items", place)
    found = pq.read_table(where)
    items = found.column("item").to_pylist()
    items[0] = b"\xdd\xff\xff\xff\xff"  # an array of four billion entries
    pq.write_table(pa.table({"item": pa.array(items, pa.binary())}), where)
    return where


def _columns(**changes: Any) -> Callable[[Path], str]:
    def make(place: Path) -> str:
        return test_rllib.write(place / "a.parquet", test_rllib.steps(**changes))

    return make


def _feather_bomb(place: Path) -> str:
    sink = io.BytesIO()
    zeros = pa.table({"episode_id": np.zeros(2**26, int), "step": np.zeros(2**26, int)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, zeros.schema, options=options) as writer:
        writer.write_table(zeros)
    (place / "steps.arrow").write_bytes(sink.getvalue())
    return str(place / "steps.arrow")


def _gzipped(place: Path) -> str:
    (place / "steps.parquet").write_bytes(gzip.compress(bytes(256 * MEBI)))
    return str(place / "steps.parquet")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def _record_length(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0:8] = struct.pack("<Q", 2**62)
    path.write_bytes(data)


def _movie_header(path: Path) -> None:
    """Says that the film is 60,000 pixels wide and high."""
    data = bytearray(path.read_bytes())
    at = data.find(b"stsd")
    entry = at + 4 + 8 + 8  # past version, count, and the entry's own size and name
    data[entry + 24 : entry + 28] = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(data)


def _nested_json(path: Path) -> None:
    path.write_text("[" * 200_000)


def _unlink(path: Path) -> None:
    path.unlink()


BAD: tuple[Bad, ...] = (
    # HDF5
    Bad("hdf5_cut", "d4rl", cut("d4rl", "*.hdf5", 0.7), "refused", "bad_source", "whole HDF5"),
    Bad("hdf5_empty_file", "d4rl", cut("d4rl", "*.hdf5", 0), "refused", "bad_source", "HDF5 file"),
    Bad("external_link", "d4rl", _external_file, "refused", "bad_source", "never followed"),
    Bad(
        "soft_link",
        "d4rl",
        instead("actions", lambda f: f.__setitem__("actions", h5py.SoftLink("/rewards"))),
        "refused",
        "bad_source",
        "never followed",
    ),
    Bad(
        "external_storage",
        "d4rl",
        instead(
            "actions",
            lambda f: f.create_dataset("actions", (14, 2), "u1", external=[("/etc/passwd", 0, 28)]),
        ),
        "refused",
        "bad_source",
        "external storage",
    ),
    Bad(
        "virtual",
        "d4rl",
        instead("observations", _virtual),
        "refused",
        "bad_source",
        "virtual dataset",
    ),
    Bad(
        "compound",
        "d4rl",
        d4rl(actions=np.zeros(14, [("a", "f4"), ("b", "i4")])),
        "refused",
        "bad_source",
        "came dtype",
    ),
    Bad("complex", "d4rl", d4rl(actions=np.zeros((14, 2), "c8")), "refused", "bad_source", "dtype"),
    Bad(
        "vlen_floats",
        "d4rl",
        instead(
            "actions", lambda f: f.create_dataset("actions", (14,), h5py.vlen_dtype(np.float32))
        ),
        "refused",
        "bad_source",
        "came dtype",
    ),
    Bad(
        "references",
        "d4rl",
        instead("actions", lambda f: f.create_dataset("actions", (14,), h5py.ref_dtype)),
        "refused",
        "bad_source",
        "came dtype",
    ),
    Bad(
        "text_actions",
        "d4rl",
        d4rl(actions=np.array([b"left"] * 14)),
        "refused",
        "bad_source",
        "Expected numbers",
    ),
    Bad("no_actions", "d4rl", d4rl(actions=None), "refused", "bad_source", "actions missing"),
    Bad(
        "short_rewards",
        "d4rl",
        d4rl(rewards=np.zeros(9, np.float32)),
        "refused",
        "bad_source",
        "one length",
    ),
    Bad(
        "flags_of_7",
        "d4rl",
        d4rl(terminals=np.full(14, 7)),
        "refused",
        "bad_source",
        "0 and 1",
    ),
    Bad("nan", "d4rl", d4rl(**_nan_at("actions", 7, np.nan)), "quarantined", "nan", "nan: 1"),
    Bad("inf", "d4rl", d4rl(**_nan_at("rewards", 2, np.inf)), "quarantined", "inf", "inf: 1"),
    Bad("gap", "d4rl", d4rl(next_observations=_gap()), "quarantined", "gap", "gap: 1"),
    Bad(
        "no_rows",
        "d4rl",
        d4rl(**{name: array[:0] for name, array in d4rl_arrays().items()}),
        "refused",
        "bad_source",
        "at least one episode",
    ),
    Bad(
        "claimed_terabyte",
        "d4rl",
        instead(
            "observations",
            lambda f: f.create_dataset("observations", (2**38, 3), "f4", chunks=(1024, 3)),
        ),
        "refused",
        "bad_source",
        "bomb",
        is_bomb=True,
    ),
    Bad(
        "gzip_bomb",
        "d4rl",
        instead("observations", _hdf5_bomb),
        "refused",
        "bad_source",
        "bomb",
        is_bomb=True,
    ),
    Bad("chunk_bomb", "d4rl", _hdf5_chunk_bomb, "refused", "bad_source", "bomb", is_bomb=True),
    Bad("attribute_bomb", "d4rl", _attribute_bomb, "refused", "bad_source", "1,073", is_bomb=True),
    Bad("deep_groups", "d4rl", hdf5(_deep), "refused", "bad_source", "nested at most"),
    Bad("many_datasets", "d4rl", hdf5(_groups), "refused", "bad_source", "at most 4096"),
    Bad(
        "name_in_latin_1",
        "d4rl",
        hdf5(_latin),
        "refused",
        "bad_source",
        "printable text",
    ),
    Bad(
        "big_endian",
        "d4rl",
        d4rl(actions=np.zeros((14, 2), ">f4")),
        "accepted",
        "",
        "3 episodes added",
    ),
    Bad(
        "action_out_of_range",
        "d4rl",
        d4rl(actions=np.full((14, 2), 1e30, np.float32)),
        "accepted",
        "",
        "3 episodes added",
    ),
    Bad(
        "no_timeouts",
        "d4rl",
        d4rl(timeouts=None, next_observations=None),
        "accepted",
        "",
        "guessed: no timeouts",
    ),
    Bad("many_groups", "robomimic", _many_groups, "quarantined", "unreadable", "unreadable: 3000"),
    Bad(
        "demo_without_obs",
        "robomimic",
        demos(obs__eef=None, obs__image=None),
        "quarantined",
        "unreadable",
        "unreadable: 1",
    ),
    Bad(
        "demo_of_two_lengths",
        "robomimic",
        demos(rewards=np.zeros(3)),
        "quarantined",
        "length_mismatch",
        "length_mismatch: 1",
    ),
    Bad(
        "demo_of_no_steps",
        "robomimic",
        demos(
            **{
                name: np.zeros((0, *shape))
                for name, shape in {
                    "actions": (2,),
                    "rewards": (),
                    "dones": (),
                    "states": (4,),
                    "obs__eef": (3,),
                    "obs__image": (8, 8, 3),
                }.items()
            }
        ),
        "quarantined",
        "length_mismatch",
        "length_mismatch: 1",
    ),
    Bad(
        "demo_nan",
        "robomimic",
        demos(obs__eef=np.full((5, 3), np.nan)),
        "quarantined",
        "nan",
        "nan: 1",
    ),
    Bad("pointer_bomb", "robomimic", _pointer_bomb, "refused", "bad_source", "bomb", is_bomb=True),
    # Minari
    Bad(
        "minari_lies",
        "minari",
        stated("minari_hdf5", "metadata.json", lambda m: m.update(total_episodes=2**40)),
        "refused",
        "bad_source",
        "metadata counts",
    ),
    Bad(
        "minari_deep_json",
        "minari",
        edited("minari_arrow", "data/metadata.json", _nested_json),
        "refused",
        "bad_source",
        "JSON",
    ),
    Bad(
        "minari_steps",
        "minari",
        stated("minari_parquet", "data/1/metadata.json", lambda m: m.update(total_steps=99)),
        "quarantined",
        "length_mismatch",
        "length_mismatch: 1",
    ),
    Bad(
        "minari_link",
        "minari",
        edited("minari_arrow", "data/1/*.arrow", linked),
        "quarantined",
        "unreadable",
        "1 quarantined",
    ),
    Bad(
        "minari_cut",
        "minari",
        cut("minari_parquet", "data/1/*.parquet", 0.5),
        "quarantined",
        "unreadable",
        "unreadable: 1",
    ),
    # LeRobot
    Bad(
        "future_version",
        "lerobot",
        stated("lerobot_png", "info.json", lambda i: i.update(codebase_version="v9.0")),
        "refused",
        "bad_source",
        "v9.0",
    ),
    Bad(
        "path_escape",
        "lerobot",
        stated("lerobot_png", "info.json", lambda i: i.update(data_path="../../etc/passwd")),
        "refused",
        "bad_source",
        "inside the dataset's folder|path template",
    ),
    Bad(
        "absolute_path",
        "lerobot",
        stated("lerobot_v21", "info.json", lambda i: i.update(data_path="/etc/passwd")),
        "refused",
        "bad_source",
        "inside the dataset's folder|path template",
    ),
    Bad(
        "url_in_data",
        "lerobot",
        stated("lerobot_png", "info.json", lambda i: i.update(data_path="http://[::1]/x.parquet")),
        "refused",
        "bad_source",
        "inside the dataset's folder|path template",
    ),
    Bad(
        "lerobot_link",
        "lerobot",
        edited("lerobot_png", "data/*/*.parquet", linked),
        "refused",
        "bad_source",
        "link",
    ),
    Bad("png_bomb", "lerobot", _picture_bomb, "quarantined", "", "1 quarantined", is_bomb=True),
    Bad(
        "video_header",
        "lerobot",
        edited("lerobot_video", "*.mp4", _movie_header),
        "quarantined",
        "",
        "quarantined",
        is_bomb=True,
    ),
    Bad(
        "video_gone",
        "lerobot",
        edited("lerobot_video", "*.mp4", _unlink),
        "quarantined",
        "unreadable",
        "unreadable",
    ),
    Bad(
        "video_cut",
        "lerobot",
        cut("lerobot_video", "*.mp4", 0.5),
        "quarantined",
        "unreadable",
        "unreadable",
    ),
    # RLDS
    Bad(
        "array_record_flip",
        "rlds",
        edited("rlds_array_record", "*.array_record-*", _flip),
        "refused",
        "bad_source",
        ".",
    ),
    Bad(
        "tfrecord_flip",
        "rlds",
        edited("rlds_tfrecord", "*.tfrecord-*", _flip),
        "quarantined",
        "unreadable",
        "unreadable: 1",
    ),
    Bad(
        "tfrecord_length",
        "rlds",
        edited("rlds_tfrecord", "*.tfrecord-*", _record_length),
        "quarantined",
        "unreadable",
        "unreadable",
        is_bomb=True,
    ),
    Bad(
        "tfrecord_cut",
        "rlds",
        cut("rlds_tfrecord", "*.tfrecord-*", 0.6),
        "quarantined",
        "unreadable",
        "unreadable: 1",
    ),
    Bad(
        "rlds_features",
        "rlds",
        edited("rlds_tfrecord", "features.json", _nested_json),
        "refused",
        "bad_source",
        "JSON",
    ),
    # Zarr
    Bad(
        "missing_chunk",
        "replay_zarr",
        edited("zarr_v2", "data/state/3.0", _unlink),
        "quarantined",
        "unreadable",
        "unreadable: 1",
    ),
    Bad(
        "blosc_bomb",
        "replay_zarr",
        edited("zarr_v2", "data/state/3.0", _blosc_bomb),
        "quarantined",
        "unreadable",
        "unreadable: 1",
        is_bomb=True,
    ),
    Bad(
        "zstd_bomb",
        "replay_zarr",
        _zstd_bomb,
        "quarantined",
        "unreadable",
        "unreadable",
        is_bomb=True,
    ),
    Bad(
        "object_codec",
        "replay_zarr",
        _meta(dtype="|O", filters=[{"id": "pickle"}]),
        "refused",
        "bad_source",
        "came dtype",
    ),
    Bad(
        "pickle_filter",
        "replay_zarr",
        _meta(filters=[{"id": "pickle", "protocol": 5}]),
        "refused",
        "bad_source",
        "may run code",
    ),
    Bad("huge_shape", "replay_zarr", _meta(shape=[2**60, 3]), "refused", "bad_source", "sizes"),
    Bad("no_chunks", "replay_zarr", _meta(chunks=[0, 3]), "refused", "bad_source", "chunks"),
    Bad(
        "huge_chunks",
        "replay_zarr",
        _meta(chunks=[2**40, 3]),
        "refused",
        "bad_source",
        "at most",
        is_bomb=True,
    ),
    Bad(
        "zarr_link",
        "replay_zarr",
        edited("zarr_v2", "data/state/0.0", linked),
        "refused",
        "bad_source",
        "link",
    ),
    Bad("zip_slip", "replay_zarr", _zip_slip, "refused", "bad_source", "leads elsewhere"),
    Bad("zip_cut", "replay_zarr", cut("zarr_zip", "*.zip", 0.8), "refused", "bad_source", "zip"),
    Bad("ends_fall", "replay_zarr", buffers((5, 3, 14)), "refused", "bad_source", "ends"),
    Bad("ends_beyond", "replay_zarr", buffers((5, 6, 99)), "refused", "bad_source", "."),
    Bad("twice_the_end", "replay_zarr", buffers((5, 5, 14)), "refused", "bad_source", "ends"),
    # npz and pickles
    Bad(
        "npz_objects",
        "ogbench",
        npz(observations=np.array([Trap()] * 15, object)),
        "refused",
        "bad_source",
        "unpickling",
    ),
    Bad("npz_bomb", "ogbench", _npz_bomb, "refused", "bad_source", ".", is_bomb=True),
    Bad(
        "npy_claim",
        "ogbench",
        members(observations=npy("(99999999999999, 3)")),
        "refused",
        "bad_source",
        "the archive holds",
        is_bomb=True,
    ),
    Bad(
        "npy_code",
        "ogbench",
        members(observations=npy("__import__('os').getpid()")),
        "refused",
        "bad_source",
        ".",
    ),
    Bad(
        "npy_version",
        "ogbench",
        members(observations=npy("(15, 3)", version=9)),
        "refused",
        "bad_source",
        "version",
    ),
    Bad(
        "npz_nan",
        "ogbench",
        npz(observations=np.full((15, 3), np.nan, np.float32)),
        "quarantined",
        "nan",
        "nan: 3",
    ),
    Bad(
        "vd4rl_lengths",
        "vd4rl",
        _vd4rl(reward=np.zeros(2, np.float32)),
        "quarantined",
        "length_mismatch",
        "1 quarantined",
    ),
    Bad("vd4rl_pickle", "vd4rl", _vd4rl_with_pickle, "quarantined", "", "1 quarantined"),
    Bad("pickle", "", _pickle("buffer.pkl"), "refused", "bad_source", "pickles"),
    Bad("torch_pickle", "", _pickle("buffer.pt"), "refused", "bad_source", "pickles"),
    Bad("pickle_named_npz", "ogbench", _pickle("a.npz"), "refused", "bad_source", "whole .npz"),
    Bad(
        "torchrl_name",
        "torchrl",
        stated(
            "torchrl",
            "storage/meta.json",
            lambda m: m.update({"../x": {"dtype": "torch.float32", "shape": [1]}}),
        ),
        "refused",
        "bad_source",
        "plain names",
    ),
    Bad(
        "torchrl_shape",
        "torchrl",
        stated("torchrl", "storage/meta.json", lambda m: m["action"].update(shape=[2**40, 2**40])),
        "refused",
        "bad_source",
        "whole numbers|bytes for shape",
        is_bomb=True,
    ),
    Bad(
        "torchrl_cut",
        "torchrl",
        cut("torchrl", "storage/action.memmap", 0.5),
        "refused",
        "bad_source",
        "bytes for shape",
    ),
    # tables
    Bad("step_gap", "parquet", table(step=[0, 1, 3, 0, 1]), "quarantined", "gap", "gap: 1"),
    Bad("step_twice", "parquet", table(step=[0, 1, 1, 0, 1]), "quarantined", "gap", "gap: 1"),
    Bad(
        "out_of_order",
        "parquet",
        table(step=[2, 0, 1, 1, 0], terminated=[True, *[False] * 4], truncated=[False] * 5),
        "accepted",
        "",
        "2 episodes added",
    ),
    Bad(
        "null_id", "parquet", table(episode_id=[0, 0, None, 1, 1]), "refused", "bad_source", "null"
    ),
    Bad(
        "null_action",
        "parquet",
        table(action=[0.1, None, 0.3, 0.4, 0.5]),
        "quarantined",
        "",
        "1 quarantined",
    ),
    Bad(
        "step_overflow",
        "parquet",
        table(step=pa.array([0, 1, 2**64 - 1, 0, 1], pa.uint64())),
        "quarantined",
        "gap",
        "gap: 1",
    ),
    Bad("parts_differ", "parquet", _parts, "refused", "bad_source", "has others"),
    Bad(
        "dictionary_bomb",
        "parquet",
        _dictionary_bomb,
        "refused",
        "bad_source",
        "bomb",
        is_bomb=True,
    ),
    Bad(
        "run_length_bomb",
        "parquet",
        _run_length_bomb,
        "refused",
        "bad_source",
        "bomb",
        is_bomb=True,
    ),
    Bad("feather_bomb", "parquet", _feather_bomb, "refused", "bad_source", "bomb", is_bomb=True),
    Bad("gzip_not_parquet", "parquet", _gzipped, "refused", "bad_source", ".", is_bomb=True),
    Bad(
        "parquet_cut",
        "parquet",
        cut("rllib_steps", "*.parquet", 0.9),
        "refused",
        "bad_source",
        "cannot be read",
    ),
    Bad(
        "msgpack_bomb",
        "rllib",
        _message_bomb,
        "quarantined",
        "unreadable",
        "1 quarantined",
        is_bomb=True,
    ),
    Bad("rllib_text", "rllib", _columns(rewards=["x"] * 10), "quarantined", "", "quarantined"),
    # d3rlpy
    Bad(
        "d3rlpy_count",
        "d3rlpy",
        edited("d3rlpy", "*.h5", lambda p: _rewrite(p, "num_episodes", 2**40)),
        "refused",
        "bad_source",
        "num_episodes",
    ),
    Bad(
        "d3rlpy_future",
        "d3rlpy",
        edited("d3rlpy", "*.h5", lambda p: _rewrite(p, "version", "9.9")),
        "refused",
        "bad_source",
        "version",
    ),
    Bad(
        "d3rlpy_nothing",
        "d3rlpy",
        edited("d3rlpy", "*.h5", lambda p: _rewrite(p, "terminated_0", h5py.Empty("f4"))),
        "quarantined",
        "",
        "1 quarantined",
    ),
)


def _rewrite(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = value
