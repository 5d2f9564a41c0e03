"""Writes RLDS datasets as TFDS stores them, ArrayRecord or TFRecord, without TensorFlow.

`where` becomes `<where>/1.0.0/` (or is itself the folder of a version), which
`tfds.builder_from_directory` opens. Episodes go to the split that their label `split` names, else
to `train`.

*   If no episode has its final observation, the dataset is of Open X-Embodiment's convention: T
    steps, all real. Otherwise it is of RLDS': T+1 steps, the last one with the final observation
    and padding. There an episode without one gives up its last step (its last observation becomes
    the final one), or, where it is terminated, repeats its last observation, which nothing reads.
    `metadata.json` states the convention, and what else our own reader could only guess.
*   8-byte numbers and arrays of many values are stored as bytes, because a tf.train.Example knows
    no other floats than float32. Pictures stay as they are; raw ones (uint8 of at least 32 x 32,
    three or four channels) and videos are written as PNG.
*   Facts and columns become `episode_metadata`; the task is each step's `language_instruction`.

Both the convention and the kinds of facts are known when the last episode has come, so records are
first kept in a file beside the dataset, without flags and facts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from connectors.base import Loss
from connectors.files import new_dataset
from connectors.rlds_drafts import Drafts
from connectors.rlds_features import features_document
from connectors.rlds_layout import (
    DEFAULT_TEMPLATE,
    FEATURES_FILE,
    INFO_FILE,
    METADATA_FILE,
    is_version_text,
    is_word,
    shard_name,
)
from connectors.rlds_records import RecordFormat, RecordWriter
from schemas.episode import Episode
from schemas.errors import UsageError

VERSION = "1.0.0"
SHARD_BYTES = 256 * 2**20
_FORMATS: dict[str, RecordFormat] = {"array_record": "array_record", "tfrecord": "tfrecord"}
_DESCRIBED = ("description", "citation")


class RldsSink:
    """RLDS in TFDS' file formats as a sink; `metadata["file_format"]` chooses between them."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what an RLDS dataset cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "records of a TensorFlow dataset have a split and a number"),
            Loss("order", "episodes come back split by split"),
            Loss("labels", "only the label split is kept; an episode without one gets it"),
            Loss(
                "truncated",
                "an episode that merely stops is written as truncated, one that is also "
                "terminated as terminated only",
            ),
            Loss(
                "final_observation",
                "where some episodes have one, an episode without one that is not terminated "
                "loses its last step; that of a terminated one becomes a copy of the last",
            ),
            Loss("extras", "the last of T+1 rows, where no episode has its final observation"),
            Loss("encodings", "raw pictures and videos come back as PNG"),
            Loss(
                "final_observation",
                "episodes of one step without a final one, where others have one",
                refused=True,
            ),
            Loss(
                "specs",
                "episodes of different fields or extras",
                refused=True,
            ),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {
            "file_format": "array_record (the default) or tfrecord",
            "description": "TFDS' own, as stated",
            "citation": "TFDS' own, as stated",
        }

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one dataset folder; see `connectors.base.Sink`.

        Of the metadata, `file_format` (`array_record`, the default, or `tfrecord`), `description`
        and `citation` are used; all others are left out.
        """
        file_format = metadata.get("file_format", "array_record")
        if not isinstance(file_format, str) or file_format not in _FORMATS:
            raise UsageError(
                f"Expected file_format {' or '.join(_FORMATS)}, came {file_format!r}.", where=where
            )
        record_format = _FORMATS[file_format]
        with new_dataset(where) as draft:
            is_inner = is_version_text(Path(where).name)
            folder = draft if is_inner else draft / VERSION
            folder.mkdir(parents=True)
            name = _dataset_name(Path(where).absolute(), is_inner=is_inner)
            with Drafts(folder / "drafts") as drafts:
                for episode in episodes:
                    drafts.add(episode, _split(episode))
                splits = _write_splits(drafts, folder, name, record_format)
                info = {
                    "name": name,
                    "version": Path(where).name if is_inner else VERSION,
                    "fileFormat": record_format,
                    "moduleName": "penstock",
                    "disableShuffling": True,
                    "splits": splits,
                    **{k: metadata[k] for k in _DESCRIBED if isinstance(metadata.get(k), str)},
                }
                _write_json(folder / INFO_FILE, info)
                _write_json(folder / FEATURES_FILE, features_document(drafts.leaves))
                _write_json(folder / METADATA_FILE, drafts.statement)
            return drafts.episodes


def _write_splits(
    drafts: Drafts, folder: Path, name: str, record_format: RecordFormat
) -> list[dict[str, Any]]:
    """Writes the records of all splits into shards; returns what `dataset_info.json` says."""
    splits = []
    for split in drafts.splits:
        counts: list[int] = []
        total, size = 0, SHARD_BYTES
        writer: RecordWriter | None = None
        try:
            for record in drafts.records(split):
                if writer is None or size >= SHARD_BYTES:
                    if writer is not None:
                        writer.close()
                    writer = RecordWriter(folder / f"{split}.{len(counts)}", record_format)
                    counts.append(0)
                    size = 0
                writer.write(record)
                counts[-1] += 1
                size += len(record)
                total += len(record)
        finally:
            if writer is not None:
                writer.close()
        for at in range(len(counts)):
            file = shard_name(DEFAULT_TEMPLATE, name, split, record_format, at, len(counts))
            (folder / f"{split}.{at}").rename(folder / file)
        splits.append(
            {
                "name": split,
                "filepathTemplate": DEFAULT_TEMPLATE,
                "numBytes": str(total),
                "shardLengths": [str(count) for count in counts],
            }
        )
    return splits


def _split(episode: Episode) -> str:
    split = episode.labels.get("split")
    return split if isinstance(split, str) and is_word(split) else "train"


def _dataset_name(where: Path, *, is_inner: bool) -> str:
    """Returns the name that TFDS expects of a dataset in this place: a Python word."""
    name = re.sub(r"\W", "_", where.parent.name if is_inner else where.name, flags=re.ASCII)
    return name if re.match(r"[A-Za-z]", name) else f"dataset_{name}"


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True), "utf-8")
