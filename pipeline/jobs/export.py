"""The way out: a version's episodes written in another format."""

from __future__ import annotations

from connectors import registry
from pipeline.store.store import Version
from schemas.errors import UsageError


def export_version(version: Version, name: str, where: str, choose: str | None = None) -> int:
    """Writes a version's episodes to a new dataset and returns how many.

    Args:
        version: what to write.
        name: the format.
        where: the new dataset's path.
        choose: a filter; None writes all.

    Raises:
        UsageError: if the episodes are of several specs: a dataset of any format has one.
    """
    specs = sorted(set(version.episodes(choose, columns=["spec"])["spec"].to_pylist()))
    if len(specs) > 1:
        raise UsageError(
            f"Expected episodes of one spec to export, came {' and '.join(specs)}; choose one with "
            f"--where \"spec == '{specs[0]}'\"."
        )
    metadata: dict[str, object] = {}
    for source in version.state.sources.values():  # the first source to state a fact is kept
        metadata = {**source.metadata, **metadata}
    return registry.sink(name).write(version.iter_episodes(choose), where, metadata)
