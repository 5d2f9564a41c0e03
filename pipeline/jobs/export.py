"""The way out: a version's episodes written in another format."""

from __future__ import annotations

from connectors import registry
from pipeline.store.store import Version


def export_version(version: Version, name: str, where: str, choose: str | None = None) -> int:
    """Writes a version's episodes to a new dataset and returns how many.

    Args:
        version: what to write.
        name: the format.
        where: the new dataset's path.
        choose: a filter; None writes all.
    """
    metadata: dict[str, object] = {}
    for source in version.state.sources.values():  # the first source to state a fact is kept
        metadata = {**source.metadata, **metadata}
    return registry.sink(name).write(version.iter_episodes(choose), where, metadata)
