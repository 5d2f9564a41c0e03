"""The way out: a version's episodes written in another format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from connectors import registry
from pipeline.store.store import Version
from schemas.errors import UnknownNameError, UsageError, suggest


def export_version(
    version: Version,
    name: str,
    where: str,
    choose: str | None = None,
    options: Mapping[str, object] | None = None,
) -> int:
    """Writes a version's episodes to a new dataset and returns how many.

    Args:
        version: what to write.
        name: the format.
        where: the new dataset's path.
        choose: a filter; None writes all.
        options: metadata that say how to write, before what the sources state.

    Raises:
        UsageError: if the episodes are of several specs: a dataset of any format has one.
    """
    specs = sorted(set(version.episodes(choose, columns=["spec"])["spec"].to_pylist()))
    if len(specs) > 1:
        raise UsageError(
            f"Expected episodes of one spec to export, came {' and '.join(specs)}; choose one with "
            f"--where \"spec == '{specs[0]}'\"."
        )
    metadata: dict[str, object] = dict(options or {})
    for source in version.state.sources.values():  # the first source to state a fact is kept
        metadata = {**source.metadata, **metadata}
    return registry.sink(name).write(version.iter_episodes(choose), where, metadata)


def parse_options(name: str, stated: Sequence[str]) -> dict[str, object]:
    """Returns the metadata that texts `NAME=VALUE` state; a value is JSON, or else a text.

    Raises:
        UsageError: if one is not of that form.
        UnknownNameError: if the format's sink does not use it, naming the nearest.
    """
    known = registry.sink(name).options() if stated else {}
    options: dict[str, object] = {}
    for text in stated:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"Expected an option as NAME=VALUE, came {text!r}.")
        if key not in known and "*" not in known:
            raise UnknownNameError(
                f"Expected an option that {name} knows, came {key!r}; {suggest(key, list(known))}"
            )
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options
