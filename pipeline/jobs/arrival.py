"""Before a commit: is every file that it will refer to really there, as the committer sees it?

A worker on another host may have written to a folder that only looks like the store's, or through a
cache that has not reached the others yet. A version must never refer to what its readers cannot
see.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.store.catalog import Catalog
from pipeline.store.writer import WrittenBlock
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, TransientError
from schemas.state import shared_files


def check_arrived(catalog: Catalog, written: Iterable[WrittenBlock], *, reread: bool) -> None:
    """Checks the files of blocks that are about to be committed.

    Args:
        catalog: the store, as the committer sees it.
        written: the blocks.
        reread: read every file back and check its sum, as for workers on other hosts; else only
            lists of files and small files are read, and of the others the size is looked at.

    Raises:
        TransientError: if a file is missing, short or different; nothing is committed then.
    """
    for one in written:
        try:
            files = catalog.own_files(one.block)
            if reread:
                for file in catalog.block_files(one.block):
                    catalog.read(file)
            elif len(files) == 1:
                catalog.read(files[0])
            else:
                _check_sizes(catalog, files)
            _check_shared(catalog, shared_files(one.block))
        except DamagedStoreError as error:
            raise TransientError(
                f"Expected what the workers wrote, came something else ({error.message}); nothing "
                f"is committed. Make sure that every worker sees the same store, then run it "
                f"again.",
                where=error.where,
            ) from error


def _check_shared(catalog: Catalog, files: Iterable[DataFile]) -> None:
    """Media files have one folder for all of the store, which is too many to list."""
    for file in files:
        if not catalog.objects.exists(file.key):
            raise DamagedStoreError(
                "expected a file that blocks share, came no file", where=f"{catalog.url}/{file.key}"
            )


def _check_sizes(catalog: Catalog, files: list[DataFile]) -> None:
    folder = files[0].key.rpartition("/")[0]
    sizes = {entry.key: entry.bytes for entry in catalog.objects.entries(folder)}
    for file in files:
        if sizes.get(file.key) != file.bytes:
            raise DamagedStoreError(
                f"expected {file.bytes} bytes, came {sizes.get(file.key, 'no file')}",
                where=f"{catalog.url}/{file.key}",
            )
