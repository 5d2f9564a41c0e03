"""A store as a crash left it, and a memory of checks, so that each different answer is got once.

A check is a function of what it reads. Crash states that answer all its questions alike cannot be
told apart by it, so its verdict on one holds for all of them; every state is still asked.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from pipeline.store import layout
from pipeline.store.objects import TEMPORARY, Entry
from tests.reliability.crashes import Tree
from tests.reliability.memory import MemoryObjects

Question = tuple[str, str]


class Left:
    """The files of a crashed store, below a folder of a tree."""

    def __init__(self, tree: Tree, root: str) -> None:
        start = f"{root}/"
        self.files = {
            key[len(start) :]: data
            for key, data in tree.items()
            if key.startswith(start) and not key.endswith("/")
        }
        self._tree, self._start = tree, start
        self._names: dict[str, frozenset[str]] | None = None

    def answer(self, question: Question) -> Hashable:
        """What the disk says."""
        verb, key = question
        if verb == "read":
            data = self.files.get(key)
            return None if data is None else hash(data)
        if verb == "exists":
            return key in self.files
        if verb == "names":
            return self._all_names().get(key, frozenset())
        return frozenset((key, hash(data)) for key, data in self.files.items())

    def _all_names(self) -> dict[str, frozenset[str]]:
        if self._names is None:
            found: dict[str, set[str]] = {}
            for path in self._tree:
                if path.startswith(self._start) and path != self._start:
                    folder, _, name = path[len(self._start) :].rstrip("/").rpartition("/")
                    if not name.startswith(TEMPORARY):
                        found.setdefault(folder, set()).add(name)
            self._names = {folder: frozenset(names) for folder, names in found.items()}
        return self._names


class LeftObjects(MemoryObjects):
    """`Objects` on top of a crashed store: what is written now lies beside it."""

    url = "crashed"

    def __init__(self, left: Left) -> None:
        super().__init__()
        self.left = left
        self.asked: list[tuple[Question, Hashable]] = []
        self._gone: set[str] = set()
        self._crashed_at = self.clock = dt.datetime.now(dt.UTC)

    def read(self, key: str) -> bytes:
        if key in self.files or key in self._gone:
            return super().read(key)
        if self._ask("read", key) is None:
            raise FileNotFoundError(key)
        return self.left.files[key]

    def exists(self, key: str) -> bool:
        if key in self.files or key in self._gone:
            return super().exists(key)
        return bool(self._ask("exists", key))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        self._write(key, data)
        return True

    def names(self, prefix: str) -> Iterator[str]:
        found = set(super().names(prefix))
        asked = self._ask("names", prefix)
        assert isinstance(asked, frozenset)
        found |= {name for name in asked if f"{prefix}/{name}" not in self._gone}
        return iter(sorted(found))

    def entries(self, prefix: str) -> Iterator[Entry]:
        yield from super().entries(prefix)
        for key, data in sorted(self.everything().items()):
            if key.startswith(f"{prefix}/") and key not in self.files:
                yield Entry(key, len(data), self._crashed_at)

    def delete(self, key: str) -> None:
        super().delete(key)
        self._gone.add(key)

    def everything(self) -> dict[str, bytes]:
        """All files as they are now."""
        self._ask("everything", "")
        left = {key: data for key, data in self.left.files.items() if key not in self._gone}
        return {**left, **self.files}

    def _write(self, key: str, data: bytes) -> None:
        super()._write(key, data)
        self._gone.discard(key)

    def _ask(self, verb: str, key: str) -> Hashable:
        answer = self.left.answer((verb, key))
        self.asked.append(((verb, key), answer))
        return answer


Check = Callable[[LeftObjects], None]
"""Raises if something is wrong."""


@dataclass
class _Step:
    question: Question | None = None
    answers: dict[Hashable, _Step] = field(default_factory=dict)
    verdict: str | None = None
    """Of a finished check: empty if all is well."""


@dataclass
class Checked:
    """A check and what it has said so far."""

    check: Check
    ran: int = 0
    """How often it was really run."""
    _first: _Step = field(default_factory=_Step)

    def __call__(self, left: Left) -> str:
        """Returns what is wrong with a store, or an empty text."""
        known = self._recall(left)
        if known is not None:
            return known
        objects = LeftObjects(left)
        self.ran += 1
        with _numbered_ids():
            verdict = _verdict(self.check, objects)
        self._remember(objects.asked, verdict)
        return verdict

    def _recall(self, left: Left) -> str | None:
        step = self._first
        while step.verdict is None:
            if step.question is None:
                return None
            following = step.answers.get(left.answer(step.question))
            if following is None:
                return None
            step = following
        return step.verdict

    def _remember(self, asked: list[tuple[Question, Hashable]], verdict: str) -> None:
        step = self._first
        for question, answer in asked:
            if step.question is None and step.verdict is None:
                step.question = question
            if step.question != question:
                return  # it went another way this time: not remembered
            step = step.answers.setdefault(answer, _Step())
        if step.question is None:
            step.verdict = verdict


def _verdict(check: Check, objects: LeftObjects) -> str:
    try:
        check(objects)
    except Exception as error:  # whatever goes wrong on a crashed store is a finding
        trace = error.__traceback__
        places = []
        while trace is not None:
            places.append(f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
            trace = trace.tb_next
        return f"{type(error).__name__}: {error} ({' '.join(places[-5:])})"
    return ""


class _numbered_ids:  # noqa: N801 - a context manager that reads like a function
    """Makes fresh ids the same in every run, so that checks ask the same questions."""

    def __enter__(self) -> None:
        self._real = layout.new_id
        count = iter(range(1, 1 << 62))
        layout.new_id = lambda: f"{next(count):032x}"

    def __exit__(self, *_: object) -> None:
        layout.new_id = self._real
