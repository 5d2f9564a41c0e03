"""The folder of one TensorFlow dataset: `<name>/[<config>/]<version>/` with its two documents.

File names are built from the name and splits that `dataset_info.json` states, each of which must
be a plain word, so no path is taken from the document; links are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.minari_layout import read_json
from connectors.rlds_features import Leaf, parse_features
from connectors.rlds_records import RecordFormat
from schemas.errors import NotFoundError, SourceError

INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
METADATA_FILE = "metadata.json"
"""TFDS' own place for what a builder wants to say besides."""
LAST_ACTION_KEY = "last_step_action_valid"
DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_WORD = re.compile(r"[A-Za-z0-9_][\w.+-]{0,200}", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_FORMATS: dict[str, RecordFormat] = {"tfrecord": "tfrecord", "array_record": "array_record"}
_LEFT_OUT = ("features", "schema", "splits", "fileFormat", "name", "version", "configName")


@dataclass(frozen=True)
class Shard:
    """One file of records."""

    split: str
    path: Path
    records: int | None
    """How many it should hold, where that is stated."""


@dataclass(frozen=True)
class Dataset:
    """What the documents of a dataset say."""

    folder: Path
    identity: str
    """As TFDS names it: `name:1.0.0` or `name/config:1.0.0`."""
    record_format: RecordFormat
    shards: tuple[Shard, ...]
    """Of all splits, in order."""
    leaves: tuple[Leaf, ...]
    stated: Mapping[str, Any]
    """Content of `metadata.json`; empty without one."""
    described: Mapping[str, Any]
    """Description, citation, release notes and the like."""

    @property
    def files(self) -> list[Path]:
        """All files it consists of."""
        documents = [self.folder / name for name in (INFO_FILE, FEATURES_FILE, METADATA_FILE)]
        return [path for path in documents if path.exists()] + [s.path for s in self.shards]


def version_folders(where: str) -> list[Path]:
    """Returns the folders of versions at a path: itself, or those of the folders directly in it."""
    path = Path(where)
    if _is_version(path):
        return [path]
    if not path.is_dir():
        return []
    inner = (p for p in path.iterdir() if _VERSION.fullmatch(p.name) and not p.is_symlink())
    return sorted((p for p in inner if _is_version(p)), key=lambda p: [*map(int, _numbers(p))])


def open_dataset(where: str) -> Dataset:
    """Reads the documents of the dataset at a path, a folder of one version or its parent.

    Raises:
        NotFoundError: if there is nothing.
        SourceError: if it is no RLDS dataset in a supported file format, or holds more versions.
    """
    if not Path(where).exists():
        raise NotFoundError(f"Expected a dataset, there is nothing at {where}.", where=where)
    folders = version_folders(where)
    if len(folders) != 1:
        came = ", ".join(p.name for p in folders) or "none"
        raise SourceError(
            f"Expected one version of a TensorFlow dataset ({INFO_FILE} and {FEATURES_FILE}) at "
            f"{where}, came {came}; name the folder of a version.",
            where=where,
        )
    folder = folders[0]
    info = _read(folder, INFO_FILE)
    stated = _read(folder, METADATA_FILE) if (folder / METADATA_FILE).exists() else {}
    name, version = info.get("name"), info.get("version")
    config = info.get("configName")
    parts = [name] if config in (None, "") else [name, config]
    if not all(is_word(part) for part in parts) or not is_version_text(version):
        raise SourceError(
            f"Expected a dataset's name, config and version in {folder / INFO_FILE}, came "
            f"{str(parts)[:120]} {str(version)[:40]!r}.",
            where=str(folder),
        )
    record_format = _format(info, folder)
    return Dataset(
        folder,
        f"{'/'.join(map(str, parts))}:{version}",
        record_format,
        _shards(info, str(name), record_format, folder),
        parse_features(_read(folder, FEATURES_FILE), str(folder / FEATURES_FILE)),
        stated,
        {k: v for k, v in info.items() if k not in _LEFT_OUT},
    )


def shard_name(template: str, name: str, split: str, suffix: str, index: int, count: int) -> str:
    """Returns the file name of a shard, or an empty text if the template is not a plain one."""
    x, y = f"{index:05d}", f"{count:05d}"
    parts = {
        **{"DATASET": name, "SPLIT": split, "FILEFORMAT": suffix, "SHARD_INDEX": x},
        **{"NUM_SHARDS": y, "SHARD_X_OF_Y": f"{x}-of-{y}"},
    }
    filled = _PLACEHOLDER.sub(lambda found: parts.get(found[1], "/"), template)
    return filled if is_word(filled) else ""


def _is_version(path: Path) -> bool:
    return all((path / name).is_file() for name in (INFO_FILE, FEATURES_FILE))


def _numbers(path: Path) -> list[str]:
    return path.name.split(".")


def is_word(value: Any) -> bool:
    """True for what may be part of a file's name: a word, never a path."""
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def is_version_text(value: Any) -> bool:
    """True for a version, such as `1.0.0`."""
    return isinstance(value, str) and len(value) < 40 and _VERSION.fullmatch(value) is not None


def _read(folder: Path, name: str) -> dict[str, Any]:
    _refuse_link(folder / name)
    return read_json(folder / name)


def _format(info: Mapping[str, Any], folder: Path) -> RecordFormat:
    stated = info.get("fileFormat", "tfrecord")  # before 4.9, TFDS knew no other and said nothing
    if not isinstance(stated, str) or stated not in _FORMATS:
        raise SourceError(
            f"Expected the file format {' or '.join(_FORMATS)} in {folder}, came "
            f"{str(stated)[:40]!r}, which is not supported; convert it with "
            f"`tfds convert_format --out_file_format=array_record`.",
            where=str(folder),
        )
    return _FORMATS[stated]


def _shards(
    info: Mapping[str, Any], name: str, record_format: RecordFormat, folder: Path
) -> tuple[Shard, ...]:
    splits = info.get("splits")
    splits = splits if isinstance(splits, list) else []
    shards: list[Shard] = []
    for split in splits:
        split = split if isinstance(split, Mapping) else {}
        label, lengths = split.get("name"), split.get("shardLengths")
        template = split.get("filepathTemplate") or DEFAULT_TEMPLATE
        records = _counts(lengths, split.get("numShards"))
        if (
            not isinstance(label, str)
            or not is_word(label)
            or not isinstance(template, str)
            or records is None
        ):
            raise SourceError(
                f"Expected splits with a name and the lengths of their shards in "
                f"{folder / INFO_FILE}, came {str(dict(split))[:200]}.",
                where=str(folder),
            )
        for index, count in enumerate(records):
            file = shard_name(template, name, str(label), record_format, index, len(records))
            path = folder / file
            if file and not path.exists() and count == 0:
                continue  # TFDS writes no file for a shard without records
            if not file or not path.is_file():
                raise SourceError(
                    f"Expected shard {index} of {len(records)} of the split {label!r} as "
                    f"{file or template[:80]!r} in {folder}, there is no such file.",
                    where=str(folder),
                )
            _refuse_link(path)
            shards.append(Shard(str(label), path, count))
    if not splits or len({shard.path for shard in shards}) < len(shards):
        raise SourceError(
            f"Expected splits with files of their own in {folder / INFO_FILE}, came "
            f"{len(splits)} splits.",
            where=str(folder),
        )
    return tuple(shards)


def _counts(lengths: Any, shards: Any) -> list[int | None] | None:
    """Records of each shard; None each where only their number is stated, None if neither is."""
    if isinstance(lengths, list):
        counts = [_count(length) for length in lengths]
        return None if None in counts else counts
    count = _count(shards)
    return None if not count or count > 100_000 else [None] * count


def _count(value: Any) -> int | None:
    text = str(value)
    is_whole = isinstance(value, int | str) and text.isascii() and text.isdigit() and len(text) < 16
    return int(text) if is_whole else None


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise SourceError(
            f"Expected a file in the dataset itself, {path} is a link; links are not followed.",
            where=str(path),
        )
