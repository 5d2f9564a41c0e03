"""One record of an RLDS dataset as an episode; `connectors.rlds` states the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from connectors.facts import episode_facts, json_or_text
from connectors.rlds_example import split_example
from connectors.rlds_features import STEPS
from connectors.rlds_layout import Dataset, Shard
from connectors.rlds_values import Encoded, decode_metadata, decode_rows
from schemas.episode import FINAL_OBSERVATIONS, Episode, FinalObservation
from schemas.errors import EpisodeError
from schemas.nesting import escape
from schemas.packed import Packed, Rows

STEP_EXTRAS_KEY = "step_extras"
"""In `metadata.json`: extras whose last of T+1 rows is padding."""
JSON_KEY = "json_metadata"
"""In `metadata.json`: facts that are JSON texts, because not all episodes have them alike."""
ESCAPED_KEY = "escaped_names"
"""In `metadata.json`: true if names are our own (`schemas.nesting`), so tuples stay tuples."""
FINAL_KEY = "final_observation"
"""Fact of an episode, where some final observations are copies."""
OBSERVATION, ACTION, REWARD = f"{STEPS}/observation", f"{STEPS}/action", f"{STEPS}/reward"
DISCOUNT = f"{STEPS}/discount"
FLAGS = {name: f"{STEPS}/{name}" for name in ("is_first", "is_last", "is_terminal")}
LANGUAGE = (f"{STEPS}/language_instruction", f"{OBSERVATION}/natural_language_instruction")


@dataclass(frozen=True)
class RecordReader:
    """Turns the records of one file into episodes."""

    dataset: Dataset
    shard: Shard
    has_last_action: bool

    def read(
        self, record: bytes | EpisodeError, key: str
    ) -> tuple[Episode | None, EpisodeError | None]:
        """Returns an episode, or why there is none."""
        if isinstance(record, EpisodeError):
            return None, record
        try:
            return self._episode(record, key), None
        except EpisodeError as fault:
            return None, fault

    def _episode(self, record: bytes, key: str) -> Episode:
        encoded = split_example(record, key)
        facts = _facts(self.dataset, encoded, key)
        steps = {
            leaf.path: decode_rows(leaf, encoded, key)
            for leaf in self.dataset.leaves
            if leaf.is_step
        }
        rows = _length(steps, key)
        length = rows if self.has_last_action else rows - 1
        if length < 1:
            raise EpisodeError(
                f"Expected at least one step in {key}, came {rows} rows "
                f"{'with' if self.has_last_action else 'without'} a last action.",
                code="length_mismatch",
                where=key,
            )
        is_terminated = _end(steps, key, length)
        last = np.arange(length) == length - 1
        extras = _extras(steps, self.dataset, length, is_terminated)
        task, is_stated = _task(steps, length), facts.get("task") is not None
        if task is None or (task and is_stated):
            extras.update({_extra_name(n): r for n, r in steps.items() if n in LANGUAGE})
        elif not is_stated:
            facts["task"] = task or None
        rewards = steps.get(REWARD)
        is_reward = isinstance(rewards, np.ndarray) and rewards[:1].size == 1
        if rewards is not None and not is_reward:
            extras["reward"] = rewards
        is_escaped = self.dataset.stated.get(ESCAPED_KEY) is True
        actions = _named(steps, ACTION, "actions", is_escaped)
        final: FinalObservation = facts.pop(FINAL_KEY, None) or "present"
        return Episode(
            episode_id="",
            observations=_named(steps, OBSERVATION, "observations", is_escaped),
            actions={n: a[:length] for n, a in actions.items()} or None,
            rewards=np.reshape(rewards[:length], -1) if is_reward and rewards is not None else None,
            terminated=last & is_terminated,
            truncated=last & (not is_terminated),
            final_observation="missing" if self.has_last_action else final,
            extras=extras,
            labels={"split": self.shard.split},
            source=self.dataset.identity,
            source_key=f"{self.shard.path.name}: {key}",
            **facts,
        )


def _facts(dataset: Dataset, encoded: Encoded, key: str) -> dict[str, Any]:
    """Arguments of `Episode` that the record's metadata speaks of.

    Raises:
        EpisodeError: with code `unreadable` if the episode is marked invalid.
    """
    as_json = dataset.stated.get(JSON_KEY)
    texts = frozenset(str(name) for name in as_json) if isinstance(as_json, list) else frozenset()
    found: dict[str, Any] = {}
    for leaf in dataset.leaves:
        if leaf.is_step:
            continue
        name = leaf.path.removeprefix("episode_metadata/")
        name = leaf.path if name in found else name
        value = decode_metadata(leaf, encoded, key)
        found[name] = _from_json(value, key) if name in texts and isinstance(value, str) else value
    if found.get("invalid") is True:
        raise EpisodeError(
            f"Expected an episode that its dataset holds to be valid, {key} is marked invalid "
            f"there; RLDS asks to leave it out.",
            code="unreadable",
            where=key,
        )
    found.pop("invalid", None)
    final = found.get(FINAL_KEY)
    final = found.pop(FINAL_KEY) if final in FINAL_OBSERVATIONS else None
    return {**episode_facts(found), FINAL_KEY: final if final != "missing" else None}


def _from_json(text: str, key: str) -> Any:
    return json_or_text(text) if text else None


def is_below(path: str, root: str) -> bool:
    """True for a path and all within it."""
    return path == root or path.startswith(f"{root}/")


def _length(steps: Mapping[str, Rows], key: str) -> int:
    lengths = {path: len(rows) for path, rows in steps.items()}
    if len(set(lengths.values())) > 1:
        came = ", ".join(f"{path} {length}" for path, length in lengths.items())
        raise EpisodeError(
            f"Expected step features of one length in {key}, came {came[:400]}.",
            code="length_mismatch",
            where=key,
        )
    return next(iter(lengths.values()))


def _end(steps: Mapping[str, Rows], key: str, length: int) -> bool:
    """True if the episode ended by its task; checks that it begins and ends only once."""
    inside = {"is_first": (1, None), "is_last": (0, -1), "is_terminal": (0, length - 1)}
    for name, (start, stop) in inside.items():
        flags = np.asarray(steps.get(FLAGS[name], ())).reshape(-1)
        if flags[start:stop].any():
            at = start + int(np.argmax(flags[start:stop] != 0))
            raise EpisodeError(
                f"Expected one episode in {key}, step {at} of {len(flags)} is marked {name}.",
                code="flags_inconsistent",
                where=key,
            )
    terminal = np.asarray(steps.get(FLAGS["is_terminal"], ())).reshape(-1)
    return bool(terminal[length - 1 :].any())


def _extras(
    steps: Mapping[str, Rows], dataset: Dataset, length: int, is_terminated: bool
) -> dict[str, Rows]:
    taken = (REWARD, *FLAGS.values(), *LANGUAGE)
    stated = dataset.stated.get(STEP_EXTRAS_KEY)
    cut = frozenset(str(name) for name in stated) if isinstance(stated, list) else frozenset()
    extras: dict[str, Rows] = {}
    for path, rows in steps.items():
        is_action = is_below(path, ACTION) and _is_number(rows)
        if path in taken or is_action or is_below(path, OBSERVATION):
            continue
        name = _extra_name(path)
        if path == DISCOUNT and isinstance(rows, np.ndarray):
            if name in cut or not _is_derivable(rows[:length].reshape(length, -1), is_terminated):
                extras[name] = rows[:length]
        else:
            extras[name] = rows[:length] if name in cut else rows
    return extras


def _is_derivable(discounts: np.ndarray, is_terminated: bool) -> bool:
    last = discounts[-1]
    return bool(
        (discounts[:-1] == 1).all() and ((last == 1).all() or (is_terminated and not last.any()))
    )


def _is_number(rows: Rows) -> bool:
    return isinstance(rows, np.ndarray)


def _extra_name(path: str) -> str:
    return path.removeprefix(f"{STEPS}/")


def _task(steps: Mapping[str, Rows], length: int) -> str | None:
    """The instruction that all steps repeat, an empty one too; None where there is none such."""
    for path in LANGUAGE:
        rows = steps.get(path)
        if isinstance(rows, Packed) and rows.spec.encoding == "text":
            first, size = rows[0], int(rows.offsets[length])
            is_alike = first * length == rows.data[:size].tobytes()
            is_alike &= bool((np.diff(rows.offsets[: length + 1]) == len(first)).all())
            return first.decode() if is_alike else None
    return None


def _named(steps: Mapping[str, Rows], root: str, name: str, is_escaped: bool) -> dict[str, Any]:
    """Fields of a group by their full names."""
    found: dict[str, Any] = {}
    for path, rows in steps.items():
        if (
            is_below(path, root)
            and path not in LANGUAGE
            and (root == OBSERVATION or _is_number(rows))
        ):
            parts = path[len(root) :].split("/")[1:]
            found["/".join([name, *(parts if is_escaped else map(escape, parts))])] = rows
    return found
