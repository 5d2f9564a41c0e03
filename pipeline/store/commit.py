"""The commit protocol: find the head, create the next number exclusively, rebase and retry.

A branch is a folder of densely numbered commit files. To commit is to create the next number
exclusively; whoever loses the race reads the winner's commit, plans again on top of it and tries
the next number. A lost reply looks like a lost race, so a writer first asks whether the commit in
its way is its own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from pipeline.store import ids, layout
from pipeline.store.blocks import data_file
from pipeline.store.objects import Objects
from pipeline.store.recent import Recent
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, NameTakenError, NotFoundError, TransientError
from schemas.state import apply, totals
from schemas.version import Close, Commit, Operation, State, VersionRef

CHECKPOINT_EVERY = 50
"""Every so many commits carry the whole state; a reader opens at most this many."""
RETRY_SECONDS = 120.0
KEEP_COMMITS = 4 * CHECKPOINT_EVERY
KEEP_STATES = 64


@dataclass(frozen=True)
class Draft:
    """What a commit should say, planned on one particular head."""

    operations: tuple[Operation, ...]
    jump: State | None = None
    """The state to carry, where the operations are a jump."""
    parent: VersionRef | None = None
    """The parent, where it is not the branch's head."""
    note: str = ""
    """What the message is to end with: what came out only as the commit was planned."""


Plan = Callable[[Commit | None, State], Draft | None]
"""Plans a commit on a head and its state; None means there is nothing to commit."""


class Refs:
    """Commits of all branches of one store, read once and kept: they never change."""

    def __init__(
        self,
        objects: Objects,
        *,
        guard: Callable[[Commit], None],
        index: Callable[[DataFile], np.ndarray],
    ) -> None:
        """Opens the commits of a store.

        Args:
            objects: where.
            guard: may still refuse a commit just before it is made.
            index: reads an id index.
        """
        self._objects = objects
        self._guard = guard
        self._index = index
        self._commits = Recent(KEEP_COMMITS)
        self._states = Recent(KEEP_STATES)
        self._heads: dict[str, int] = {}
        self._settled: dict[str, int] = {}
        """Number up to which a branch's commits are known to be durable."""

    # -- reading -------------------------------------------------------------------------------

    def read(self, branch: str, number: int) -> Commit:
        """Returns one commit.

        Raises:
            NotFoundError: if the branch has no such number.
            DamagedStoreError: if the file is not a commit.
        """
        key = layout.commit(branch, number)

        def load() -> Commit:
            try:
                data = self._objects.read(key)
            except FileNotFoundError:
                raise NotFoundError(
                    f"Expected a version {branch}:{number}, came none; `penstock log` lists them.",
                    where=key,
                ) from None
            return _parse(data, key)

        return self._commits.get(key, load)

    def head(self, branch: str) -> Commit | None:
        """Returns the newest commit of a branch, or None if it has none.

        Starts at the largest number known to exist (numbers are dense and commits are never
        deleted, so a stale hint only costs a few steps), gallops, then bisects.
        """
        low = self._heads.get(branch, 0) or self._hinted(branch)
        step = 1
        while self._exists(branch, low + step):
            low += step
            step *= 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._exists(branch, middle) else (low, middle)
        if low:
            self._heads[branch] = low
        return self.read(branch, low) if low else None

    def state(self, commit: Commit) -> State:
        """Returns everything a commit shows, from the nearest commit that carries a state."""
        return self._states.get(commit.id, lambda: self._fold(commit))

    def _fold(self, commit: Commit) -> State:
        chain: list[Commit] = []
        at: Commit | None = commit
        state = State()
        while at is not None:
            if at.state is not None:
                state = at.state
                break
            if at.id in self._states:
                state = self.state(at)
                break
            chain.append(at)
            at = self.read(at.branch, at.number - 1) if at.number > 1 else None
        for later in reversed(chain):
            state = apply(state, later.operations)
        return state

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yields a commit and its ancestors, newest first, across branches.

        Those that cannot be read are left out; finding them is the doctor's business.
        """
        at: Commit | None = commit
        while at is not None:
            yield at
            at = self._readable(at.parent.branch, at.parent.number) if at.parent else None

    def _readable(self, branch: str, number: int) -> Commit | None:
        """Returns the newest commit up to a number that can be read."""
        for at in range(number, 0, -1):
            with contextlib.suppress(NotFoundError, DamagedStoreError):
                return self.read(branch, at)
        return None

    def heads(self) -> dict[str, Commit]:
        """Returns the newest commit of every branch, closed ones included."""
        heads = {name: self.head(name) for name in sorted(self._objects.names(layout.BRANCHES))}
        return {name: head for name, head in heads.items() if head}

    def branches(self) -> dict[str, Commit]:
        """Returns the head of every branch that is not closed."""
        return {name: head for name, head in self.heads().items() if not head.closed}

    def has_seen(self, branch: str) -> bool:
        """True if this process knows that the branch has a commit; asks nobody."""
        return branch in self._heads

    # -- writing -------------------------------------------------------------------------------

    def settle(self, commit: Commit) -> None:
        """Makes sure that a commit outlives a crash of the machine.

        It can be seen a moment before its writer has made it durable, and for as long as nobody
        does if that writer dies just then. Nothing may be built on it, or be promised because of
        it, before.
        """
        if commit.number > self._settled.get(commit.branch, 0):
            self._objects.settle(layout.commit(commit.branch, commit.number))
            self._settled[commit.branch] = commit.number

    def publish(
        self, branch: str, plan: Plan, *, message: str, run_id: str, base: int | None = None
    ) -> Commit | None:
        """Commits what `plan` says on top of the branch's head, again and again until it holds.

        Args:
            branch: where.
            plan: called with each head that the commit is tried on.
            message: one line for the log.
            run_id: the job's own id; if a commit since `base` bears it, the job is done.
            base: number of the branch's newest version when the job began (0: none), for a job
                whose process may have died after its commit; by default what it is now.

        Returns:
            The commit, or None if the plan found nothing to do.

        Raises:
            NameTakenError: if the branch is closed.
            TransientError: if others kept winning the race for two minutes.
        """
        jitter = random.Random(run_id)
        deadline = time.monotonic() + RETRY_SECONDS
        for attempt in range(1_000_000):
            # A head that was seen a moment ago saves a request: if it is no longer the newest, the
            # number after it is taken, and only then is the newest looked for. Not where a process
            # may have died after its commit: it would plan again before it finds that.
            is_fresh = attempt == 0 and base is None
            head = (self._seen(branch) if is_fresh else None) or self.head(branch)
            number = head.number if head else 0
            if head is not None:
                self.settle(head)
            base = number if base is None else base
            for own in (self.read(branch, n) for n in range(base + 1, number + 1)):
                if own.run_id == run_id:
                    return own
            if head is not None and head.closed:
                raise NameTakenError(f"The branch {branch!r} is closed; choose another name.")
            draft = plan(head, self.state(head) if head else State())
            if draft is None:
                return None
            commit = self._commit(branch, head, draft, message, run_id)
            self._guard(commit)
            data = commit.model_dump_json().encode()
            key = layout.commit(branch, commit.number)
            commit = _parse(data, key)  # what others will read, and proof that they can
            if self._objects.put_if_absent(key, data) or self._is_own(key, commit):
                self._commits.put(key, commit)
                self._remember(commit)
                return commit
            if time.monotonic() > deadline:
                break
            time.sleep(jitter.uniform(0, min(0.25, 0.002 * 2 ** min(attempt, 8))))
        raise TransientError(
            f"Other writers kept committing to {branch!r} for {RETRY_SECONDS:.0f} s; run it again.",
            where=self._objects.url,
        )

    def _commit(
        self, branch: str, head: Commit | None, draft: Draft, message: str, run_id: str
    ) -> Commit:
        """Returns the commit document of a draft, with a state at checkpoints and jumps."""
        number = head.number + 1 if head else 1
        before = self.state(head) if head else State()
        state = draft.jump or apply(before, draft.operations)
        keep_state = draft.jump is not None or number % CHECKPOINT_EVERY == 0
        if keep_state:
            # Whatever it jumps to, a branch forgets no id that it has seen.
            seen = {file.key: file for file in (*before.known, *state.known)}
            known = self._merge_known(tuple(seen.values()))
            state = state.model_copy(update={"known": known})
        now = dt.datetime.now(dt.UTC)
        ancestors = [head] if head else []
        if draft.parent is not None:
            ancestors.append(self.read(draft.parent.branch, draft.parent.number))
            self.settle(ancestors[-1])
        for ancestor in ancestors:  # time never runs backwards from parent to child
            now = max(now, ancestor.created_at + dt.timedelta(microseconds=1))
        return Commit(
            id=layout.new_id(),
            run_id=run_id,
            branch=branch,
            number=number,
            parent=draft.parent or (head.ref if head else None),
            message=message + draft.note,
            created_at=now,
            operations=draft.operations,
            totals=totals(state),
            state=state if keep_state else None,
        )

    def _merge_known(self, files: tuple[DataFile, ...]) -> tuple[DataFile, ...]:
        count = ids.mergeable([file.bytes for file in files])
        if not count:
            return files
        merged = ids.encode(np.concatenate([self._index(file) for file in files[-count:]]))
        key = layout.id_index(layout.new_id())
        self._objects.put({key: merged})
        return (*files[:-count], data_file(key, merged))

    def _is_own(self, key: str, commit: Commit) -> bool:
        """True if the commit in the way is ours: its reply was lost, not its race."""
        return _parse(self._objects.read(key), key).id == commit.id

    def _seen(self, branch: str) -> Commit | None:
        """Returns the newest commit this process knows of."""
        number = self._heads.get(branch)
        return self.read(branch, number) if number else None

    def _remember(self, commit: Commit) -> None:
        self._heads[commit.branch] = self._settled[commit.branch] = commit.number
        if commit.number % CHECKPOINT_EVERY == 0:
            hint = str(commit.number).encode()
            with contextlib.suppress(TransientError):  # the commit stands, hint or no hint
                self._objects.overwrite(layout.head_hint(commit.branch), hint)

    def _hinted(self, branch: str) -> int:
        """Returns the hint if a commit of that number exists, else 0."""
        try:
            text = self._objects.read(layout.head_hint(branch))[:13]
        except FileNotFoundError:
            return 0
        number = int(text) if text.isdigit() else 0
        return number if number and self._exists(branch, number) else 0

    def _exists(self, branch: str, number: int) -> bool:
        key = layout.commit(branch, number)
        return key in self._commits or self._objects.exists(key)


def close_plan(head: Commit | None, _state: State) -> Draft | None:
    """Plans the end of a branch."""
    return Draft((Close(),)) if head else None


def _parse(data: bytes, key: str) -> Commit:
    try:
        return Commit.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedStoreError(
            f"Expected a commit, came something else ({first['msg']}); `penstock doctor` says "
            f"which versions are whole.",
            where=key,
        ) from None
