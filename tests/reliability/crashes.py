"""Which states a disk may be in after a crash, from the calls that were made before it.

The model takes no more for granted than POSIX does. A name is on the disk for sure only after its
folder was synced; until then any subset of the changes of any folders may be there. The content of
a file is sure only after the file was synced; until then it may be empty, cut, zeros of the right
length, or all there, behind what was synced of it before. A folder whose own name is lost takes
everything in it along.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.reliability.kernel import Call


@dataclass
class Node:
    """A file or a folder."""

    is_folder: bool
    content: bytes = b""
    synced: bytes | None = b""
    """None while the content is not sure."""
    sure: int = 0
    """So many bytes at the begin are synced, whatever comes behind them."""
    uncut: bytes | None = None
    """What the file was before it was truncated, while that may be undone."""
    names: dict[str, Node] = field(default_factory=dict)
    """Of a folder: the names that are on the disk for sure."""
    pending: list[tuple[str, Node | None, str]] = field(default_factory=list)
    """Changes that may be lost: (name, what it now means, name that goes away with it)."""

    def current(self) -> dict[str, Node]:
        """Names as running processes see them."""
        return _changed(self.names, self.pending)


Tree = dict[str, bytes]
"""Visible files by path; a folder's path ends in a slash."""
_Names = Callable[[Node], dict[str, Node]]
_Content = Callable[[Node], bytes]


class Model:
    """What is sure and what is not, after some calls."""

    def __init__(self) -> None:
        self.root = Node(is_folder=True)

    def apply(self, call: Call) -> None:
        """Takes one more call into account."""
        if call.verb == "note":
            return
        folder, name = self._place(call.path)
        if call.verb == "mkdir":
            folder.pending.append((name, Node(is_folder=True), ""))
        elif call.verb == "create":
            folder.pending.append((name, Node(is_folder=False), ""))
        elif call.verb == "write":
            node = folder.current()[name]
            node.content, node.synced = node.content + call.data, None
        elif call.verb == "fsync":
            node = folder.current()[name]
            node.synced = node.content
            node.sure, node.uncut = len(node.content), None
        elif call.verb == "truncate":
            node = folder.current()[name]
            node.uncut, node.synced = node.content, None
            node.content = node.content[: call.size]
            node.sure = min(node.sure, call.size)
        elif call.verb == "sync_dir":
            node = self._folder(call.path)
            node.names, node.pending = node.current(), []
        elif call.verb == "link":
            self._name(call.to, folder.current()[name])
        elif call.verb == "rename":
            target, new = self._place(call.to)
            assert target is folder, "only renames within a folder are modelled"
            folder.pending.append((new, folder.current()[name], name))
        elif call.verb in ("unlink", "rmdir"):
            folder.pending.append((name, None, ""))
        else:
            raise AssertionError(f"unknown call {call.verb}")

    def now(self) -> Tree:
        """What running processes see."""
        return self._tree(lambda folder: folder.current(), lambda file: file.content)

    def states(self, limit: int, rng: random.Random) -> Iterator[Tree]:
        """Yields states after a crash now: all if they are few, else `limit` of them.

        When there are too many: everything lost, everything kept, each single change lost, each
        single change kept, and random subsets.
        """
        folders = [node for node in self._folders() if node.pending]
        files = [node for node in self._files() if node.synced is None]
        widths = [2] * sum(len(node.pending) for node in folders) + [4] * len(files)
        total = 1
        for width in widths:
            total *= width
        for choice in _choices(widths, total, limit, rng):
            yield self._crashed(folders, files, choice)

    # -- within --------------------------------------------------------------------------------

    def _crashed(self, folders: Sequence[Node], files: Sequence[Node], choice: list[int]) -> Tree:
        at = 0
        kept: dict[int, list[tuple[str, Node | None, str]]] = {}
        for folder in folders:
            bits = choice[at : at + len(folder.pending)]
            at += len(folder.pending)
            kept[id(folder)] = [c for c, bit in zip(folder.pending, bits, strict=True) if bit]
        content = {
            id(file): _content(file, variant)
            for file, variant in zip(files, choice[at:], strict=True)
        }
        return self._tree(
            lambda folder: _changed(folder.names, kept.get(id(folder), ())),
            lambda file: content.get(id(file), file.content),
        )

    def _tree(self, names_of: _Names, content_of: _Content) -> Tree:
        tree: Tree = {}

        def walk(folder: Node, prefix: str) -> None:
            for name, node in names_of(folder).items():
                if node.is_folder:
                    tree[f"{prefix}{name}/"] = b""
                    walk(node, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = content_of(node)

        walk(self.root, "")
        return tree

    def _folder(self, path: str) -> Node:
        node = self.root
        for part in path.split("/") if path else ():
            node = node.current()[part]
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        above, _, name = path.rpartition("/")
        return self._folder(above), name

    def _name(self, path: str, node: Node) -> None:
        folder, name = self._place(path)
        folder.pending.append((name, node, ""))

    def _folders(self) -> Iterator[Node]:
        return (node for node in self._nodes() if node.is_folder)

    def _files(self) -> Iterator[Node]:
        return (node for node in self._nodes() if not node.is_folder)

    def _nodes(self) -> Iterator[Node]:
        """Every node that some state may show."""
        seen: set[int] = set()
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            waiting += node.names.values()
            waiting += [new for _, new, _ in node.pending if new is not None]


def _choices(
    widths: Sequence[int], total: int, limit: int, rng: random.Random
) -> Iterator[list[int]]:
    if total <= limit:
        yield from map(list, itertools.product(*(range(width) for width in widths)))
        return
    lost, kept = [0] * len(widths), [width - 1 for width in widths]
    yield lost
    yield kept
    for at, width in enumerate(widths):
        yield [*lost[:at], width - 1, *lost[at + 1 :]]
        for value in range(width - 1):
            yield [*kept[:at], value, *kept[at + 1 :]]
    for _ in range(limit - 2 - 2 * len(widths)):
        share = rng.random()
        yield [rng.randrange(w) if w > 2 else int(rng.random() < share) for w in widths]


def _changed(
    names: dict[str, Node], changes: Sequence[tuple[str, Node | None, str]]
) -> dict[str, Node]:
    if not changes:
        return names
    found = dict(names)
    for name, node, gone in changes:
        found.pop(gone, None)
        if node is None:
            found.pop(name, None)
        else:
            found[name] = node
    return found


def _content(file: Node, variant: int) -> bytes:
    sure, rest = file.content[: file.sure], file.content[file.sure :]
    lost = sure if file.uncut is None else file.uncut
    return (lost, sure + rest[: len(rest) // 2], sure + bytes(len(rest)), file.content)[variant]
