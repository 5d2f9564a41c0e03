"""Labels from a CSV file: a column `episode_id` and the columns to add."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from schemas.errors import NotFoundError, UsageError

MAX_BYTES = 1 << 30


def read_labels(path: str) -> pa.Table:
    """Returns the columns of a CSV file, ids as text and the others as what all their values are.

    An empty cell is null; `""` is an empty text. Dates stay the text they are.

    Raises:
        NotFoundError: if there is no such file.
        UsageError: if it is no table with a column `episode_id`.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFoundError("Expected a CSV file of labels, came none.", where=path)
    if file.stat().st_size > MAX_BYTES:
        raise UsageError("Expected a CSV file of labels, came one of over 1 GB.", where=path)
    try:
        table = _read(file, {"episode_id": pa.string()})
        texts = {
            field.name: pa.string()
            for field in table.schema
            if pa.types.is_temporal(field.type) or field.name == "episode_id"
        }
        table = _read(file, texts)
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Expected a CSV file of labels, came one that does not read ({error}).", where=path
        ) from None
    names = table.column_names
    if "episode_id" not in names or len(set(names)) < len(names):
        raise UsageError(
            f"Expected a column episode_id and others of different names, came "
            f"{', '.join(map(repr, names)) or 'none'}.",
            where=path,
        )
    if table["episode_id"].null_count:
        raise UsageError(
            f"Expected an episode_id in every row, came {table['episode_id'].null_count} without.",
            where=path,
        )
    return table


def _read(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    # The file is opened here, so that nothing takes a name from data for a URL or a codec.
    with file.open("rb") as opened:
        return csv.read_csv(
            opened,
            convert_options=csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
            parse_options=csv.ParseOptions(newlines_in_values=True),
        )
