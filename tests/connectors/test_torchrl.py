from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.torchrl import TorchrlSource
from schemas.errors import SourceError
from tests.connectors.contracts import check_missing, check_source, healthy, read_all
from tests.data.make_formats import LENGTHS, TERMINATED, episodes

SOURCE = TorchrlSource()
SAMPLES = Path(__file__).parents[1] / "data" / "formats"
FORMS = ["partial", "full", "flat", "flat_partial", "bare"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a buffer that is not full."""
    return Path(shutil.copytree(SAMPLES / "torchrl_partial", tmp_path / "buffer"))


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    stated = json.loads(path.read_text())
    edit(stated)
    path.write_text(json.dumps(stated))


def rewrite(path: Path, dtype: str, edit: Callable[[np.ndarray], Any]) -> None:
    rows = np.fromfile(path, dtype)
    edit(rows)
    rows.tofile(path)


@pytest.mark.parametrize("form", FORMS)
def test_what_torchrl_itself_wrote(form: str) -> None:
    listing, found = check_source(SOURCE, str(SAMPLES / f"torchrl_{form}"))
    assert (listing.episodes, listing.steps) == (3, sum(LENGTHS))
    for f, true, terminated in zip(found, episodes(), TERMINATED, strict=True):
        episode = f.episode
        assert episode is not None
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(episode.arrays[name], true[name], name)
            assert episode.arrays[name].dtype == np.float32
        assert (episode.is_terminated, episode.is_truncated) == (terminated, not terminated)
        assert episode.final_observation == "present"
        assert list(episode.extras) == ["collector/traj_ids"]
    said = " ".join(listing.guesses)
    assert ("may have lost its start" in said) == (form == "full")


def test_a_change_of_trajectory_ends_an_episode(copy: Path) -> None:
    next_ = copy / "storage" / "next"
    for name in ("done", "truncated", "terminated"):
        rewrite(next_ / f"{name}.memmap", "u1", lambda rows: rows.fill(0))
    listing, found = check_source(SOURCE, str(copy))
    assert [f.episode.length for f in found if f.episode] == list(LENGTHS)
    assert not any(f.episode.is_terminated or f.episode.is_truncated for f in found if f.episode)
    assert any("merely stops" in guess for guess in listing.guesses)


def test_missing_steps_are_a_gap(copy: Path) -> None:
    rewrite(copy / "storage" / "next" / "observation.memmap", "<f4", lambda x: x.__setitem__(4, 9))
    faults = [f.fault.code if f.fault else None for f in read_all(SOURCE, str(copy))]
    assert faults == ["gap", None, None]


def test_zeros_in_place_of_a_final_observation_are_not_one(copy: Path) -> None:
    path = copy / "storage" / "next" / "observation.memmap"
    rewrite(path, "<f4", lambda rows: rows.reshape(-1, 3)[4].fill(0))
    first, *others = healthy(SOURCE, str(copy))
    assert (first.final_observation, len(first.observations["observations"])) == ("missing", 5)
    assert [e.final_observation for e in others] == ["present", "present"]


def test_a_repeated_last_observation_is_a_copy(copy: Path) -> None:
    now = np.fromfile(copy / "storage" / "observation.memmap", "<f4").reshape(-1, 3)
    path = copy / "storage" / "next" / "observation.memmap"
    rewrite(path, "<f4", lambda rows: rows.reshape(-1, 3).__setitem__(5, now[5]))
    assert [e.final_observation for e in healthy(SOURCE, str(copy))][1] == "copied"


def test_done_alone_counts_as_terminated(copy: Path) -> None:
    meta = copy / "storage" / "next" / "meta.json"
    change(meta, lambda stated: (stated.pop("terminated"), stated.pop("truncated")))
    listing, found = check_source(SOURCE, str(copy))
    assert [f.episode.is_terminated for f in found if f.episode] == [True, True, True]
    assert any("no terminated" in guess for guess in listing.guesses)


def test_pickles_are_left_out_and_never_opened(copy: Path) -> None:
    storage = copy / "storage"
    (storage / "note").mkdir()
    (storage / "note" / "meta.json").write_text('{"_is_non_tensor": true}')
    (storage / "note" / "other.pickle").write_bytes(b"\x80\x04.")
    change(storage / "meta.json", lambda stated: stated.update(note={"type": "NonTensorData"}))
    listing, _ = check_source(SOURCE, str(copy))
    assert any("pickles are left out: note" in guess for guess in listing.guesses)


def test_a_storage_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "data.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(SourceError, match="never opened"):
        SOURCE.discover(str(tmp_path))


def link(copy: Path) -> None:
    path = copy / "storage" / "observation.memmap"
    path.unlink()
    path.symlink_to("/etc/hostname")


def link_folder(copy: Path) -> None:
    shutil.move(copy / "storage" / "next", copy / "elsewhere")
    (copy / "storage" / "next").symlink_to(copy / "elsewhere")


def stated(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda copy: change(
        copy / "storage" / "meta.json", lambda meta: meta.setdefault(name, {}).update(changes)
    )


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (link, "a link"),
        (link_folder, "links are never followed"),
        (stated("observation", shape=[2**40, 3]), "bytes for shape"),
        (stated("observation", shape=[16, -3]), "whole numbers"),
        (stated("observation", shape=[16, 3.0]), "whole numbers"),
        (stated("observation", dtype="torch.complex64"), "a dtype of"),
        (stated("../observation", dtype="torch.bool", shape=[1]), "plain names"),
        (lambda copy: (copy / "storage" / "meta.json").write_text("[1"), "JSON"),
        (lambda copy: (copy / "storage" / "meta.json").write_text("[" * 10**5), "JSON"),
        (
            lambda copy: (copy / "storage" / "storage_metadata.json").write_text('{"len": 17}'),
            "len of 0 to 16",
        ),
        (
            lambda copy: (copy / "storage" / "storage_metadata.json").write_text(
                '{"is_pytree": true}'
            ),
            "another tree",
        ),
        (
            lambda copy: (copy / "storage" / "next" / "reward.memmap").write_bytes(b"\0" * 63),
            "came 63",
        ),
    ],
)
def test_buffers_that_cannot_be_trusted(
    copy: Path, harm: Callable[[Path], Any], match: str
) -> None:
    harm(copy)
    with pytest.raises(SourceError, match=match):
        read_all(SOURCE, str(copy))


def test_nothing_there(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
