"""Which episodes fit a spec, and which specs become one."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.errors import SpecMismatchError
from schemas.packed import spec_of
from schemas.spec import DatasetSpec, FieldSpec, differences
from schemas.version import dataset_spec, spec_document

F4, F8 = FieldSpec("<f4", (2,)), FieldSpec("<f8", (2,))
FULL = DatasetSpec({"observations": F4, "actions": F4, "rewards": FieldSpec("<f4", ())})
SILENT = DatasetSpec({"observations": F4})
IMITATION = DatasetSpec({"observations": F4, "actions": F4})
REWARDED = DatasetSpec({"observations": F4, "rewards": FieldSpec("<f4", ())})
ARMS = DatasetSpec({"observations": F4, "actions/left": F4, "actions/right": F4})


@pytest.mark.parametrize(
    ("one", "two", "accepts"),
    [
        (FULL, FULL, True),
        (FULL, SILENT, True),
        (FULL, IMITATION, True),
        (SILENT, FULL, False),
        (FULL, DatasetSpec({"observations": F8}), False),
        (FULL, DatasetSpec({"actions": F4}), False),
        (FULL, DatasetSpec({"observations/a": F4}), False),
        (ARMS, SILENT, True),
        (ARMS, DatasetSpec({"observations": F4, "actions/left": F4}), False),
        (ARMS, IMITATION, False),
    ],
)
def test_accepts(one: DatasetSpec, two: DatasetSpec, accepts: bool) -> None:
    assert one.accepts(two) is accepts


@pytest.mark.parametrize(
    ("one", "two", "merged"),
    [
        (FULL, SILENT, FULL),
        (SILENT, FULL, FULL),
        (IMITATION, REWARDED, FULL),
        (SILENT, ARMS, ARMS),
    ],
)
def test_merge(one: DatasetSpec, two: DatasetSpec, merged: DatasetSpec) -> None:
    assert one.merge(two, "here") == merged
    assert merged.accepts(one)
    assert merged.accepts(two)


@pytest.mark.parametrize(
    "other",
    [
        DatasetSpec({"observations": F8}),
        DatasetSpec({"observations/a": F4}),
        DatasetSpec({"observations": F4, "actions": F8}),
        DatasetSpec({"observations": F4, "actions/left": F4, "actions/right": F4}),
        DatasetSpec({"observations": F4, "depth": F4}),
    ],
)
def test_what_does_not_merge_is_named(other: DatasetSpec) -> None:
    for one, two in ((FULL, other), (other, FULL)):
        with pytest.raises(SpecMismatchError) as caught:
            one.merge(two, "here")
        assert caught.value.where == "here"
        assert differences(one, two) in str(caught.value)


def test_half_of_the_actions_does_not_merge() -> None:
    left = DatasetSpec({"observations": F4, "actions/left": F4})
    right = DatasetSpec({"observations": F4, "actions/right": F4})
    with pytest.raises(SpecMismatchError):
        left.merge(right, "here")


def test_specs_are_values() -> None:
    assert DatasetSpec({"b": F4, "a": F8}) == DatasetSpec({"a": F8, "b": F4})
    assert hash(DatasetSpec({"b": F4, "a": F8})) == hash(DatasetSpec({"a": F8, "b": F4}))
    assert dataset_spec(spec_document(ARMS)) == ARMS
    assert str(F4) == "float32[2]"


def test_spec_of_is_little_endian_and_knows_its_bytes() -> None:
    assert spec_of(np.zeros((9, 3, 2), ">f4")) == FieldSpec("<f4", (3, 2))
    assert spec_of(np.zeros((9, 3, 2), ">f4")).row_bytes == 24
    assert spec_of(np.zeros((9, 0, 2), bool)) == FieldSpec("|b1", (0, 2))
    assert spec_of(np.zeros((9, 0, 2), bool)).row_bytes == 0
