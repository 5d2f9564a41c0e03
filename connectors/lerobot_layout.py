"""Where a LeRobot dataset lies, what its `info.json` says, and which rows each episode has.

Versions v2.1 (a Parquet file and an MP4 file per camera for each episode) and v3.0 (files that hold
many episodes) differ only here: both become a list of `EpisodeRow`s. Paths are made from templates
that the dataset states itself, so they are held inside its folder: only the known names may be
filled in, no part may be `..`, and no link is followed.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from connectors.arrow_files import open_parquet, read_groups
from connectors.lerobot_features import Feature, parse_features
from schemas.errors import NotFoundError, SourceError

INFO_FILE = "meta/info.json"
V21, V30 = "v2.1", "v3.0"
VERSIONS = (V21, V30)
DATA_PATH = {
    V21: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    V30: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATH = {
    V21: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    V30: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
FACTS_COLUMN = "penstock_facts"
"""Column of the episodes table in which our own sink keeps facts, as JSON."""
_FILL = re.compile(r"\{([a-z_]+)(?::0?(\d)d)?\}")
_JSON_BYTES = 64 * 2**20
_LINES_BYTES = 1 << 30
_NAME_BYTES = 255
_TABLE_COLUMNS = ("episode_index", "length", "tasks", FACTS_COLUMN)
_PLACES = ("data/chunk_index", "data/file_index", "dataset_from_index")


@dataclass(frozen=True)
class VideoPlace:
    """Where an episode's frames of one camera lie."""

    path: Path
    start: float
    """Seconds into the file at which the episode begins."""


@dataclass(frozen=True)
class EpisodeRow:
    """One episode as the dataset's tables state it."""

    index: int
    length: int
    data: Path
    first: int
    """The value of `index` in its first row."""
    videos: Mapping[str, VideoPlace]
    facts: Mapping[str, Any]
    """Further columns of the table, as plain JSON values."""


@dataclass(frozen=True)
class Dataset:
    """What `info.json` says, checked, and the tables beside it."""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    info: Mapping[str, Any]
    table: pa.Table
    """One row per episode, in the order of their indices."""
    lengths: list[int]
    tasks: Mapping[int, str]

    def rows(self, start: int, stop: int) -> list[EpisodeRow]:
        """Returns the episodes at some positions."""
        return list(_episode_rows(self, start, stop))

    def path(self, role: str, fill: Mapping[str, int | str]) -> Path:
        """Returns the path that a template of `info.json` gives; see the module's docstring.

        Raises:
            SourceError: if it leaves the folder, or asks for what is not known.
        """
        default = (DATA_PATH if role == "data_path" else VIDEO_PATH)[self.version]
        template = self.info.get(role) or default
        if not isinstance(template, str):
            raise _bad(self.root, f"Expected {role} as text, came {template!r}")
        return _inside(self.root, _filled(template, fill, self.root), role)


def open_dataset(where: str) -> Dataset:
    """Reads `info.json`, the table of episodes and the tasks.

    Raises:
        NotFoundError: if there is nothing at `where`.
        SourceError: if they cannot be read or contradict one another.
    """
    root = Path(where)
    if not (root / INFO_FILE).exists():
        there = "no meta/info.json in it" if root.exists() else "nothing at it"
        raise NotFoundError(f"Expected a LeRobot folder, there is {there}: {where}.", where=where)
    info = _read_info(root)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise _bad(
            root,
            f"Expected codebase_version {' or '.join(VERSIONS)}, came {version!r}; convert the "
            f"dataset with LeRobot",
        )
    table = _episodes_v21(root) if version == V21 else _episodes_v30(root)
    lengths = _column(table, "length", root)
    indices = _column(table, "episode_index", root)
    if any(n < 0 for n in lengths) or len(set(indices)) < len(indices):
        raise _bad(root, "Expected lengths of at least 0 and every episode once in its table")
    for name, came in (("total_episodes", len(lengths)), ("total_frames", sum(lengths))):
        if info.get(name, came) != came:
            raise _bad(
                root, f"Expected {name} {info[name]!r} in its table of episodes, came {came}"
            )
    return Dataset(
        root=root,
        version=version,
        fps=_fps(info, root),
        features=parse_features(info.get("features"), str(root)),
        info=info,
        table=table.take(
            pa.array(sorted(range(len(indices)), key=indices.__getitem__), pa.int64())
        ),
        lengths=[lengths[at] for at in sorted(range(len(indices)), key=indices.__getitem__)],
        tasks=_tasks(root, version),
    )


def dataset_files(root: Path) -> list[Path]:
    """Returns all files of a dataset that may be read; links are left out."""
    found = (path for part in ("meta", "data", "videos") for path in (root / part).rglob("*"))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _read_info(root: Path) -> dict[str, Any]:
    path = _inside(root, INFO_FILE, "info.json")
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError("larger than 64 MiB")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(root, f"Expected JSON in meta/info.json: {error}") from error
    if not isinstance(found, dict):
        raise _bad(root, f"Expected a JSON object in meta/info.json, came {type(found).__name__}")
    return found


def _fps(info: Mapping[str, Any], root: Path) -> float:
    fps = info.get("fps")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= 1e6:
        raise _bad(root, f"Expected fps as a positive number, came {fps!r}")
    return float(fps)


# -- tables --------------------------------------------------------------------------------------


def _episodes_v30(root: Path) -> pa.Table:
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise _bad(root, "Expected a table of episodes in meta/episodes, there is none")
    tables = []
    for file in files:
        path = _inside(root, file.relative_to(root).as_posix(), "a table of episodes")
        with open_parquet(path) as opened:
            names = [n for n in opened.schema_arrow.names if not n.startswith(("stats/", "meta/"))]
            tables.append(read_groups(opened, path, columns=names))
    try:
        return pa.concat_tables(tables, promote_options="default").combine_chunks()
    except pa.ArrowException as error:
        raise _bad(root, f"Expected tables of episodes of one schema: {error}") from error


def _episodes_v21(root: Path) -> pa.Table:
    return _read_lines(root, "meta/episodes.jsonl", ("episode_index", "length"))


def _read_lines(root: Path, name: str, integers: tuple[str, ...]) -> pa.Table:
    """Reads a file of one JSON object per line."""
    path = _inside(root, name, name)
    try:
        size = path.stat().st_size
        if size > _LINES_BYTES:
            raise ValueError("larger than 1 GiB")
        schema = pa.schema([(column, pa.int64()) for column in integers])
        table = pyarrow.json.read_json(
            path,
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=max(size, 1)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
        )
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _bad(root, f"Expected one JSON object per line in {name}: {error}") from error
    return table.combine_chunks()


def _tasks(root: Path, version: str) -> dict[int, str]:
    """Returns the texts of tasks by number; v3.0 keeps them as the index of a pandas table."""
    if version == V21:
        if not (root / "meta" / "tasks.jsonl").exists():
            return {}
        table = _read_lines(root, "meta/tasks.jsonl", ("task_index",))
    elif (root / "meta" / "tasks.parquet").exists():
        path = _inside(root, "meta/tasks.parquet", "tasks")
        with open_parquet(path) as opened:
            table = read_groups(opened, path)
    else:
        return {}
    names = [n for n in ("task", "__index_level_0__") if n in table.column_names]
    texts = table.column(names[0]).to_pylist() if names else []
    numbers = _column(table, "task_index", root)
    if len(texts) != len(numbers) or not all(isinstance(text, str) for text in texts):
        raise _bad(root, f"Expected a text for every task, came columns {table.column_names}")
    return dict(zip(numbers, texts, strict=True))


def _episode_rows(dataset: Dataset, start: int, stop: int) -> Iterator[EpisodeRow]:
    root, table = dataset.root, dataset.table.slice(start, stop - start)
    indices, lengths = (_column(table, n, root) for n in ("episode_index", "length"))
    keys = [f.name for f in dataset.features.values() if f.is_video]
    further = _further(table)
    if dataset.version == V21:
        size = dataset.info.get("chunks_size", 1000)
        if not isinstance(size, int) or size < 1:
            raise _bad(root, f"Expected chunks_size as a positive integer, came {size!r}")
        first = sum(dataset.lengths[:start])
        for at, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            fill: dict[str, int | str] = {
                "episode_chunk": index // size,
                "episode_index": index,
            }
            data = dataset.path("data_path", fill)
            videos = {
                key: VideoPlace(dataset.path("video_path", {**fill, "video_key": key}), 0.0)
                for key in keys
            }
            yield EpisodeRow(index, length, data, first, videos, further[at])
            first += length
        return
    places = {name: _column(table, name, root) for name in _PLACES}
    spots = {key: _video_columns(table, key, root) for key in keys}
    path = functools.cache(
        lambda role, *fill: dataset.path(role, dict(fill))
    )  # few files, many rows
    for at, (index, length) in enumerate(zip(indices, lengths, strict=True)):
        chunk, file, first = (places[name][at] for name in _PLACES)
        data = path("data_path", ("chunk_index", chunk), ("file_index", file))
        videos = {}
        for key, (chunks, files, starts) in spots.items():
            where = (("chunk_index", chunks[at]), ("file_index", files[at]))
            videos[key] = VideoPlace(path("video_path", ("video_key", key), *where), starts[at])
        yield EpisodeRow(index, length, data, first, videos, further[at])


def _video_columns(
    table: pa.Table, key: str, root: Path
) -> tuple[list[int], list[int], list[float]]:
    chunks, files = (_column(table, f"videos/{key}/{n}_index", root) for n in ("chunk", "file"))
    name = f"videos/{key}/from_timestamp"
    is_real = name in table.column_names and pa.types.is_floating(table.schema.field(name).type)
    starts: list[float] = table.column(name).to_pylist() if is_real else []
    if not is_real or None in starts or not all(map(math.isfinite, starts)):
        raise _bad(root, f"Expected seconds in the column {name!r} of its table of episodes")
    return chunks, files, starts


def _further(table: pa.Table) -> list[dict[str, Any]]:
    """What the table says of each episode besides where it lies."""
    names = [
        name
        for name in table.column_names
        if name not in ("episode_index", "length", "tasks", "dataset_to_index", *_PLACES)
        and not name.startswith(("videos/", "data/"))
    ]
    return table.select(names).to_pylist() if names else [{}] * len(table)


def _column(table: pa.Table, name: str, root: Path) -> list[int]:
    """Returns a column of whole numbers."""
    came = table.schema.field(name).type if name in table.column_names else None
    is_whole = came is not None and pa.types.is_integer(came)
    values = table.column(name).to_pylist() if is_whole else []
    if not is_whole or None in values:
        raise _bad(
            root, f"Expected whole numbers in the column {name!r} of its tables, came {came}"
        )
    return values


# -- paths ---------------------------------------------------------------------------------------


def _filled(template: str, fill: Mapping[str, int | str], root: Path) -> str:
    """Fills a template's names in, without `str.format`: that obeys far more than it should."""

    def value(match: re.Match[str]) -> str:
        name, digits = match.groups()
        if name not in fill:
            raise _bad(root, f"Expected names of {sorted(fill)} in {template!r}, came {name!r}")
        found = fill[name]
        return f"{found:0{int(digits)}d}" if digits and isinstance(found, int) else str(found)

    path = _FILL.sub(value, template)
    if "{" in path or "}" in path:
        raise _bad(root, f"Expected a path template, came {template!r}")
    return path


def _inside(root: Path, relative: str, role: str) -> Path:
    """Returns a path below the root; refuses those that leave it, and links on the way."""
    parts = relative.split("/")
    if not all(map(_is_name, parts)):
        raise _bad(root, f"Expected {role} inside the dataset's folder, came {relative!r}")
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise _bad(root, f"Expected files in the folder itself, {relative} is a link; copy it")
    return path


def _is_name(part: str) -> bool:
    """True for what any file system takes as a name, and none as a way elsewhere."""
    is_plain = part.isprintable() and "\\" not in part and len(part.encode()) <= _NAME_BYTES
    return is_plain and part not in ("", ".", "..")


def _bad(root: Path, said: str) -> SourceError:
    return SourceError(f"{said}, in {root}.", where=str(root))
