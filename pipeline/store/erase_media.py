"""What becomes of media files when episodes are erased: those that nobody else uses go too.

A media file is whole or not at all: where a kept episode has frames in the same file, the file
stays, the frames of the erased episode with it, until the last episode that uses it goes. A scrub
says so (`Scrubbed.shared_media`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.store import layout
from pipeline.store.blocks import data_file
from pipeline.store.catalog import Catalog
from pipeline.store.media import media_of
from schemas.document import DataFile
from schemas.version import Block

FindBlocks = Callable[[], Iterable[Block]]


def named_media(catalog: Catalog, block: Block) -> dict[str, DataFile]:
    """Returns the media files that a block's rows name now, by key.

    A block whose rows were rewritten may name fewer than its commit says.
    """
    if not block.media or catalog.erasures.resolve(block.file) == block.file:
        return {file.key: file for file in block.media}
    fields = [n for n, f in catalog.block_layout(block).fields.items() if f.encoding == "video"]
    names = set(media_of(catalog.read_block(block, fields).values()))
    return {file.key: file for file in block.media if layout.sha256_of(file.key) in names}


def drop_media(catalog: Catalog, find_blocks: FindBlocks) -> list[str]:
    """Deletes media files that only erased episodes used; returns their keys.

    They are struck out first: from then on no commit may name them. A commit that did just before
    is seen by the second look, and keeps the bytes under another key.

    Args:
        catalog: the store.
        find_blocks: yields the blocks of every commit.
    """
    used, listed = _look(catalog, find_blocks)
    unused = listed.keys() - used.keys() - catalog.erasures.dropped
    if unused:
        catalog.erasures.add(set(), {}, unused)
    objects = catalog.objects
    left = [
        key
        for key in sorted(catalog.erasures.dropped - catalog.erasures.rewrites.keys())
        if objects.exists(key)
    ]
    if not left:
        return []
    used, _ = _look(catalog, find_blocks)
    for key in left:
        if key in used:
            data = catalog.read(used[key])
            fresh = layout.media(layout.sha256_of(key), layout.new_id())
            objects.put({fresh: data})
            catalog.erasures.add(set(), {key: data_file(fresh, data)})
        objects.delete(key)
    return [key for key in left if key not in used]


def _look(
    catalog: Catalog, find_blocks: FindBlocks
) -> tuple[dict[str, DataFile], dict[str, DataFile]]:
    """Media files that rows name, and those that blocks list, by key."""
    used: dict[str, DataFile] = {}
    listed: dict[str, DataFile] = {}
    for block in find_blocks():
        if block.media:
            used.update(named_media(catalog, block))
            listed.update({file.key: file for file in block.media})
    return used, listed
