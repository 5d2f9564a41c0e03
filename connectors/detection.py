"""Says which format a path is, by looking inside: a table of rules, one row per thing to tell.

A rule names the kind of thing (a folder, an HDF5 file, ...) and the members it needs and lacks.
Exactly one format must fit. Where none or several do, the error says what was seen, member by
member, and which formats come nearest.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.d4rl import REQUIRED
from connectors.hdf5 import is_hdf5, open_hdf5
from connectors.minari_layout import data_folder
from connectors.parquet_parts import find_files, open_part
from connectors.rlds_layout import FEATURES_FILE, INFO_FILE, version_folders
from schemas.errors import NotFoundError, SourceError

Kind = Literal["folder", "hdf5", "npz", "parquet", "pickle", "other"]

HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
_PICKLE_HEADS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MOST_NAMES = 10_000
_DEPTH = 4
"""How deep the first file of a suffix is looked for below a folder."""


@dataclass(frozen=True)
class Look:
    """What is at a path; what costs anything is looked at when a rule asks for it."""

    path: Path

    @cached_property
    def kind(self) -> Kind:
        """Told from the first bytes; only Python's pickles are told by suffix too."""
        if self.path.is_dir():
            return "folder"
        if is_hdf5(self.path):
            return "hdf5"
        head = self.head
        if head.startswith(_PICKLE_HEADS) or self.path.suffix.lower() in PICKLE_SUFFIXES:
            return "pickle"
        if head.startswith(b"PAR1"):
            return "parquet"
        return "npz" if head.startswith(b"PK\x03\x04") and self._arrays else "other"

    @cached_property
    def head(self) -> bytes:
        """The first 8 bytes of a file."""
        with self.path.open("rb") as file:
            return file.read(8)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What is in it: entries of a folder, members of an HDF5 file, arrays, columns."""
        match self.kind:
            case "folder":
                return tuple(sorted(p.name for p in islice(self.path.iterdir(), _MOST_NAMES)))
            case "hdf5":
                with open_hdf5(self.path) as file:
                    return tuple(file.names())
            case "npz":
                return self._arrays
            case "parquet":
                return columns(self.path)
        return ()

    def has(self, pattern: str) -> bool:
        """True if a member has this name, glob or (in a folder) relative path."""
        if "/" in pattern:
            return (self.path / pattern).exists()
        return any(fnmatchcase(name, pattern) for name in self.names)

    def first(self, suffix: str) -> Look | None:
        """The first file with a suffix, the path itself or below a folder; links are skipped."""
        if self.path.is_file():
            return self if self.path.suffix == suffix else None
        found = next(_below(self.path, suffix, _DEPTH), None)
        return Look(found) if found else None

    @property
    def says(self) -> str:
        """In words, for people."""
        match self.kind:
            case "folder":
                return f"a folder with {_some(self.names)}"
            case "hdf5":
                return f"an HDF5 file with {_some(self.names)}"
            case "npz":
                return f"an npz file with the arrays {_some(self.names)}"
            case "parquet":
                return f"a Parquet file with the columns {_some(self.names)}"
        return f"a file that begins with {self.head!r}"

    @cached_property
    def _arrays(self) -> tuple[str, ...]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return ()
        arrays = [name.removesuffix(".npy") for name in found if name.endswith(".npy")]
        return tuple(sorted(arrays)) if len(arrays) == len(found) else ()


@dataclass(frozen=True)
class Rule:
    """One way to recognise one format."""

    format: str
    kind: Kind
    needs: tuple[str, ...] = ()
    """Members that must all be there: names, globs, or relative paths."""
    lacks: tuple[str, ...] = ()
    """Members that must not."""
    also: Callable[[Look], bool] = lambda _look: True
    """Asked last, where names alone do not tell."""
    when: str = ""
    """What `also` asks, in words."""

    def fits(self, look: Look) -> bool:
        """True if a path looks like the format."""
        return (
            look.kind == self.kind
            and all(look.has(name) for name in self.needs)
            and not any(look.has(name) for name in self.lacks)
            and self.also(look)
        )

    def nearness(self, look: Look) -> int:
        """How many of its members are there."""
        return sum(look.has(name) for name in self.needs) if look.kind == self.kind else 0


def _parquet_has(*names: str) -> Callable[[Look], bool]:
    """A test of the first Parquet file below: it has these columns."""

    def test(look: Look) -> bool:
        first = look.first(".parquet")
        return first is not None and first.kind == "parquet" and set(names) <= set(first.names)

    return test


def _npz_has(*names: str) -> Callable[[Look], bool]:
    """A test of the first npz file below: it has these arrays."""

    def test(look: Look) -> bool:
        first = look.first(".npz")
        return first is not None and first.kind == "npz" and set(names) <= set(first.names)

    return test


def _is_minari(look: Look) -> bool:
    return data_folder(str(look.path)) is not None


def _has_versions(look: Look) -> bool:
    return bool(version_folders(str(look.path)))


def _is_steps(look: Look) -> bool:
    """True for a table of steps; its columns decide, not its name."""
    try:
        with open_part(find_files(str(look.path)).steps[0]) as part:
            return {"episode_id", "step"} <= set(part.schema.names)
    except (SourceError, NotFoundError):
        return False


def _is_zarr_zip(look: Look) -> bool:
    """True for a zip of a replay buffer in Zarr."""
    if not look.head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(look.path) as archive:
            names = archive.NameToInfo
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return any(f"meta/episode_ends/{name}" in names for name in (".zarray", "zarr.json"))


D3RLPY = ("columns", "num_episodes")
D3RLPY_V1 = ("episode_terminals", "discrete_action")

_MINARI = "with Minari's metadata, its own or in `data`"
_STEPS = "whose columns include `episode_id` and `step`"
RULES: tuple[Rule, ...] = (
    Rule("minari", "folder", lacks=(FEATURES_FILE,), also=_is_minari, when=_MINARI),
    Rule("rlds", "folder", needs=(INFO_FILE, FEATURES_FILE)),
    Rule("rlds", "folder", also=_has_versions, when="of versions, each such a folder"),
    Rule("lerobot", "folder", needs=("meta/info.json",)),
    Rule("minari", "hdf5", also=_is_minari, when="that is Minari's `main_data.hdf5`"),
    Rule(
        "robomimic",
        "hdf5",
        needs=("data",),
        also=lambda look: not _is_minari(look),
        when="that is not Minari's",
    ),
    *(Rule("d4rl", "hdf5", needs=(n,), lacks=("data", *D3RLPY, *D3RLPY_V1)) for n in REQUIRED),
    Rule("d3rlpy", "hdf5", needs=D3RLPY),
    *(Rule("d3rlpy", "hdf5", needs=("observations", "terminals", n)) for n in D3RLPY_V1),
    Rule("torchrl", "folder", needs=("storage/storage_metadata.json",)),
    Rule("torchrl", "folder", needs=("storage_metadata.json",)),
    Rule("torchrl", "folder", needs=("meta.json", "*.memmap")),
    Rule(
        "rllib",
        "folder",
        also=_parquet_has("eps_id", "obs", "actions"),
        when="whose first Parquet file has the columns `eps_id`, `obs`, `actions`",
    ),
    Rule("rllib", "parquet", needs=("eps_id", "obs", "actions")),
    Rule(
        "rllib",
        "folder",
        also=_parquet_has("item"),
        when="whose first Parquet file has the column `item`",
    ),
    Rule("rllib", "parquet", needs=("item",)),
    Rule(
        "vd4rl",
        "folder",
        needs=("*.npz",),
        also=_npz_has("image", "action", "is_first"),
        when="the first of them with `image`, `action`, `is_first`",
    ),
    Rule("vd4rl", "npz", needs=("image", "action", "is_first")),
    Rule("replay_zarr", "folder", needs=("data", "meta/episode_ends")),
    Rule("replay_zarr", "other", also=_is_zarr_zip, when="that is a zip with `meta/episode_ends`"),
    Rule("parquet", "folder", also=_is_steps, when=f"with a table {_STEPS}"),
    Rule("parquet", "parquet", needs=("episode_id", "step")),
    Rule("parquet", "other", also=_is_steps, when=f"of Arrow or Feather {_STEPS}"),
    Rule("ogbench", "npz", needs=("observations", "actions", "terminals"), lacks=("rewards",)),
)


def detect(where: str) -> str:
    """Returns the name of the format of a file or folder.

    Raises:
        NotFoundError: if there is nothing at `where`.
        SourceError: if it is of no known format, or of several; says what was seen.
    """
    path = Path(where)
    if not path.exists():
        raise NotFoundError(f"Expected a dataset, there is nothing at {where}.", where=where)
    look = Look(path)
    if look.kind == "pickle":
        raise _pickled(where)
    fitting = sorted({rule.format for rule in RULES if rule.fits(look)})
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(fitting)
        raise SourceError(
            f"Expected a dataset of one format, {where} looks like {names}: it is {look.says}; "
            f"say which it is, as in {fitting[0]}:{where}.",
            where=where,
        )
    if look.kind == "folder" and any(look.has(f"*{suffix}") for suffix in PICKLE_SUFFIXES):
        raise _pickled(where)
    raise SourceError(
        f"Expected a dataset of a known format, {where} is {look.says}; {_nearest(look)}name the "
        f"format if there is one for it.",
        where=where,
    )


def hdf5_files(where: str) -> list[str]:
    """Returns the HDF5 files in a folder that holds nothing else; else nothing."""
    path = Path(where)
    if not path.is_dir() or path.is_symlink():
        return []
    files = [p for p in path.iterdir() if not p.name.startswith(".")]
    if not all(p.suffix.lower() in HDF5_SUFFIXES and p.is_file() for p in files):
        return []
    return [str(p) for p in sorted(files)]


def columns(path: Path) -> tuple[str, ...]:
    """Returns the names of a Parquet file's columns, nothing where it cannot be read."""
    try:
        return tuple(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return ()


def _below(folder: Path, suffix: str, depth: int) -> Iterator[Path]:
    entries = sorted(islice(folder.iterdir(), _MOST_NAMES))
    plain = [entry for entry in entries if not entry.is_symlink()]
    yield from (entry for entry in plain if entry.suffix == suffix and entry.is_file())
    if depth > 1:
        for entry in plain:
            if entry.is_dir():
                yield from _below(entry, suffix, depth - 1)


def _nearest(look: Look) -> str:
    """The formats that share most with what was seen, and what they need."""
    ranked = sorted(((rule.nearness(look), rule) for rule in RULES), key=lambda pair: -pair[0])
    near = [rule for count, rule in ranked if count and count == ranked[0][0]][:2]
    said = " or ".join(f"{rule.format} (needs {', '.join(rule.needs)})" for rule in near)
    return f"nearest is {said}; " if near else ""


def _pickled(where: str) -> SourceError:
    return SourceError(
        f"Expected data, {where} holds Python pickles, whose loading runs whatever code they "
        f"bring: they are never opened here; where you trust the file, convert it to npz or HDF5 "
        f"yourself (docs/formats.md has the lines for HIL-SERL's and others).",
        where=where,
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing in it"
