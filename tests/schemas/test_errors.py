"""Errors keep what they say on their way between processes."""

from __future__ import annotations

import pickle

import pytest

from schemas import errors
from schemas.errors import EpisodeError, PenstockError, missing_extra, suggest


def subclasses(cls: type[PenstockError]) -> list[type[PenstockError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in subclasses(child))]


TREE = [cls for cls in subclasses(PenstockError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_pickled_errors_keep_everything(cls: type[PenstockError]) -> None:
    arguments = {"code": "nan"} if issubclass(cls, EpisodeError) else {}
    error = cls("Expected one thing, came another.", where="here", **arguments)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert (str(back), back.message, back.where) == (str(error), error.message, "here")
    assert (back.kind, back.exit_code) == (error.kind, error.exit_code)
    assert getattr(back, "code", None) == getattr(error, "code", None)


def test_kinds_are_unique_and_exit_codes_are_those_of_the_interface() -> None:
    kinds = [cls.kind for cls in TREE]
    assert len(set(kinds)) == len(kinds)
    assert {cls.exit_code for cls in TREE} <= {1, 2, 4, 5, 6}
    assert errors.UsageError.exit_code == 2
    assert errors.LockHeldError.exit_code == 4
    assert errors.TransientError.exit_code == 5
    assert errors.DamagedStoreError.exit_code == 6


def test_suggestions() -> None:
    assert suggest("lenght", ["length", "task"]) == "did you mean 'length'?"
    assert suggest("x", []) == "there are none"
    assert suggest("qqq", ["b", "a"]) == "known: a, b"
    assert suggest("zzz", [f"name{k:02d}" for k in range(13)]).endswith(", ...")


def test_missing_extra_says_how_to_install() -> None:
    error = missing_extra("learners", "torch")
    assert "pip install 'penstock[learners]'" in str(error)
    assert "torch" in str(error)
