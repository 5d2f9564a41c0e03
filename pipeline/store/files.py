"""Which files documents name: parts, states, commits."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.document import DataFile
from schemas.state import shared_files
from schemas.version import Annotate, Append, Commit, Compact, Measure, Overlay, Part, State


def files_of_part(part: Part) -> Iterator[DataFile]:
    """Yields the files that a part names; a shard stands for all files in its folder."""
    yield part.rows
    if part.selection is not None:
        yield part.selection
    for block in part.blocks:
        yield block.file
        yield from shared_files(block)


def files_of_overlay(overlay: Overlay) -> Iterator[DataFile]:
    """Yields the files that an overlay names."""
    yield overlay.file
    yield from overlay.without


def files_of_state(state: State) -> Iterator[DataFile]:
    """Yields the files that a version's state names."""
    for part in state.parts:
        yield from files_of_part(part)
    yield from state.known
    yield from state.quarantine
    for overlay in state.overlays:
        yield from files_of_overlay(overlay)
    for score_set in state.score_sets.values():
        yield score_set.model


def files_of_commit(commit: Commit) -> Iterator[DataFile]:
    """Yields the files that a commit names itself: those that are new with it, at least."""
    for operation in commit.operations:
        if isinstance(operation, Append):
            for part in operation.parts:
                yield from files_of_part(part)
            yield from operation.known
            yield from operation.quarantine
            if operation.replaced is not None:
                for part in operation.replaced.parts:
                    yield from files_of_part(part)
                for overlay in operation.replaced.overlays:
                    yield from files_of_overlay(overlay)
        elif isinstance(operation, Measure):
            yield operation.score_set.model
            for overlay in operation.overlays:
                yield from files_of_overlay(overlay)
        elif isinstance(operation, Annotate):
            for overlay in operation.overlays:
                yield from files_of_overlay(overlay)
        elif isinstance(operation, Compact):
            yield from files_of_part(operation.added)
    if commit.state is not None:
        yield from files_of_state(commit.state)


def new_parts(commit: Commit) -> Iterator[Part]:
    """Yields the parts that a commit brings in."""
    for operation in commit.operations:
        if isinstance(operation, Append):
            yield from operation.parts
        elif isinstance(operation, Compact):
            yield operation.added


def unit_of(key: str) -> str:
    """Returns what a file lives and dies with: a shard's folder, or the file itself."""
    folder, _, rest = key.partition("/")
    return f"{folder}/{rest.split('/', 1)[0]}" if folder in ("shards", "steps") else key
