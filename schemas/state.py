"""How a chain of commits becomes the state of a version, and how large a state is.

`apply` is the only place that says what an operation means.
"""

from __future__ import annotations

from collections.abc import Iterable

from schemas.document import DataFile
from schemas.version import (
    Annotate,
    Append,
    Block,
    Compact,
    Measure,
    Operation,
    Part,
    Replaced,
    State,
    Totals,
)


def apply(state: State, operations: Iterable[Operation]) -> State:
    """Returns the state after some operations.

    A `Reset` cannot be applied: its commit carries the state.
    """
    for operation in operations:
        if isinstance(operation, Append):
            if operation.replaced is not None:
                state = _without(state, operation.replaced)
            state = state.model_copy(
                update={
                    "specs": {**state.specs, **operation.specs},
                    "parts": (*state.parts, *operation.parts),
                    "known": (*state.known, *operation.known),
                    "quarantine": (*state.quarantine, *operation.quarantine),
                    "sources": {**state.sources, **operation.sources},
                }
            )
        elif isinstance(operation, Measure):
            state = state.model_copy(
                update={
                    "overlays": (*state.overlays, *operation.overlays),
                    "score_sets": {
                        **state.score_sets,
                        operation.score_set.id: operation.score_set,
                    },
                    "metrics": {**state.metrics, **operation.metrics},
                }
            )
        elif isinstance(operation, Annotate):
            overlays = (*state.overlays, *operation.overlays)
            state = state.model_copy(update={"overlays": overlays})
        elif isinstance(operation, Compact):
            parts = _compacted(state.parts, operation)
            state = state.model_copy(update={"parts": parts})
    return state


def _without(state: State, replaced: Replaced) -> State:
    """Puts parts and overlays without the replaced episodes where those with them stood."""
    cut = {part.id: part for part in replaced.parts}
    parts = tuple(cut.get(part.id, part) for part in state.parts)
    said = {overlay.file.key: overlay for overlay in replaced.overlays}
    return state.model_copy(
        update={
            "parts": tuple(part for part in parts if part.episodes or part.id not in cut),
            "overlays": tuple(said.get(one.file.key, one) for one in state.overlays),
        }
    )


def _compacted(parts: tuple[Part, ...], operation: Compact) -> tuple[Part, ...]:
    """Puts the new part where the first of the old ones stood."""
    removed = set(operation.removed)
    # A damaged branch may have lost the commits that named the old ones.
    first = next((at for at, part in enumerate(parts) if part.id in removed), len(parts))
    kept = [part for part in parts if part.id not in removed]
    return (*kept[:first], operation.added, *kept[first:])


def size_of(parts: Iterable[Part]) -> int:
    """Returns the bytes of some parts' rows, blocks and media files, each of these once."""
    size = 0
    media: dict[str, int] = {}
    for part in parts:
        size += part.rows.bytes + sum(block.bytes for block in part.blocks)
        media.update(
            {file.key: file.bytes for block in part.blocks for file in shared_files(block)}
        )
    return size + sum(media.values())


def shared_files(block: Block) -> tuple[DataFile, ...]:
    """Returns the files that a block names and others may name too."""
    return block.media if block.sources is None else (*block.media, block.sources)


def totals(state: State) -> Totals:
    """Returns the sizes of a state."""
    size = size_of(state.parts) + sum(overlay.file.bytes for overlay in state.overlays)
    return Totals(episodes=state.episodes, steps=state.steps, bytes=size)
