"""Merging the parts of a pass in one fixed binary tree, whichever of them comes home first.

Floating-point sums depend on their order. Here the order is that of the units' numbers: two
siblings become their parent as soon as both are there, on whichever worker they meet. So every
engine, with any number of workers, arrives at the same bits, and few parts wait at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.quality.features import Layout
from pipeline.quality.passes import P, merge

Nodes = dict[tuple[int, int], Mapping[Layout, P]]
"""Merged parts by (level, index): the units index * 2^level up to those of the next index."""


def put(nodes: Nodes[P], place: tuple[int, int], part: Mapping[Layout, P]) -> None:
    """Adds a part; where its sibling is there, the two become their parent."""
    level, index = place
    while (level, index ^ 1) in nodes:
        sibling = nodes.pop((level, index ^ 1))
        part = merge(sibling, part) if index % 2 else merge(part, sibling)
        level, index = level + 1, index // 2
    nodes[level, index] = part


def join(several: Iterable[Nodes[P]]) -> Nodes[P]:
    """Returns the nodes of several lots of units, none of which is in two of them."""
    nodes: Nodes[P] = {}
    for some in several:
        for place, part in some.items():
            put(nodes, place, part)
    return nodes


def total(nodes: Nodes[P]) -> dict[Layout, P]:
    """Returns all units together: what is left without a sibling, from the first units on."""
    merged: dict[Layout, P] = {}
    for place in sorted(nodes, key=lambda place: place[1] << place[0]):
        merged = merge(merged, nodes[place])
    return merged
