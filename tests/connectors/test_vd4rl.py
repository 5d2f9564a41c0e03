from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.vd4rl import Vd4rlSource
from schemas.errors import SourceError
from tests.connectors.contracts import check_missing, check_source, healthy

SOURCE = Vd4rlSource()


def arrays(steps: int = 4, *, is_terminal: bool = False, **changes: Any) -> dict[str, np.ndarray]:
    """An episode as DreamerV2's replay saves it."""
    random = np.random.default_rng(steps)
    rows = steps + 1
    row = np.arange(rows)
    action = random.uniform(-1, 1, (rows, 2)).astype(np.float32)
    action[0] = 0
    parts = {
        "image": random.integers(0, 255, (rows, 64, 64, 3), np.uint8),
        "action": action,
        "reward": random.normal(size=rows).astype(np.float32),
        "discount": np.where(is_terminal & (row == steps), 0, 1).astype(np.float32),
        "is_first": row == 0,
        "is_last": row == steps,
        "is_terminal": is_terminal & (row == steps),
    }
    return {name: a for name, a in {**parts, **changes}.items() if a is not None}


def save(folder: Path, number: int, parts: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"2022010{number}T000000-abc-{len(parts.get('action', '')) - 1}.npz"
    np.savez_compressed(path, **parts)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "walker_walk"


def test_actions_and_rewards_are_those_that_led_to_an_observation(folder: Path) -> None:
    made = [arrays(4), arrays(6, is_terminal=True, log_noise=np.zeros(7), proprio=np.eye(7))]
    for number, parts in enumerate(made):
        save(folder, number, parts)
    listing, found = check_source(SOURCE, str(folder))
    assert (listing.episodes, listing.steps) == (2, 10)
    for f, parts in zip(found, made, strict=True):
        episode = f.episode
        assert episode is not None
        images = episode.observations["observations/image"]
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, parts["image"])
        np.testing.assert_array_equal(episode.actions, parts["action"][1:])
        np.testing.assert_array_equal(episode.rewards, parts["reward"][1:])
        np.testing.assert_array_equal(episode.extras["discount"], parts["discount"][1:])
        assert episode.final_observation == "present"
        assert episode.is_terminated == bool(parts["is_terminal"][-1])
        assert episode.is_truncated != episode.is_terminated
    assert [list(f.episode.observations) for f in found if f.episode][1] == [
        "observations/image",
        "observations/proprio",
    ]


def test_older_files_say_by_their_discount_that_they_terminated(folder: Path) -> None:
    save(folder, 0, arrays(3, is_terminal=True) | {"is_terminal": np.zeros(4, bool)})
    save(folder, 1, {k: v for k, v in arrays(3, is_terminal=True).items() if k != "is_terminal"})
    assert [e.is_terminated for e in healthy(SOURCE, str(folder))] == [False, True]


def test_one_file_is_a_dataset(folder: Path) -> None:
    (episode,) = healthy(SOURCE, str(save(folder, 0, arrays())))
    assert episode.length == 4


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (arrays(reward=np.zeros(4)), "length_mismatch"),
        (arrays(reward=None), "unreadable"),
        (arrays(image=None), "unreadable"),
        (arrays(action=np.ones((5, 2))), "flags_inconsistent"),
        (arrays(is_first=np.ones(5, bool)), "flags_inconsistent"),
        (arrays(is_last=np.ones(5, bool)), "flags_inconsistent"),
        (arrays() | {"is_terminal": np.array([0, 1, 0, 0, 0], bool)}, "flags_inconsistent"),
        (arrays(reward=np.array([None] * 5)), "unreadable"),
        (arrays(reward=np.zeros(())), "length_mismatch"),
    ],
)
def test_one_bad_episode_beside_a_healthy_one(
    folder: Path, parts: dict[str, Any], code: str
) -> None:
    save(folder, 0, parts)
    save(folder, 1, arrays())
    _, found = check_source(SOURCE, str(folder))
    assert [f.fault.code if f.fault else None for f in found] == [code, None]


def test_damaged_files_are_faults(folder: Path) -> None:
    whole = save(folder, 0, arrays())
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    save(folder, 1, arrays())
    _, found = check_source(SOURCE, str(folder))
    assert [f.fault.code if f.fault else None for f in found] == ["unreadable", None]


def test_a_claim_beyond_what_is_stored_is_refused(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
        header += b" " * (118 - len(header) - 1 + 0) + b"\n"
        size = len(header).to_bytes(2, "little")
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + size + header)
    save(folder, 1, arrays())
    _, found = check_source(SOURCE, str(folder))
    assert [f.fault.code for f in found if f.fault] == ["unreadable"]


def test_links_and_other_files_are_not_episodes(folder: Path, tmp_path: Path) -> None:
    elsewhere = save(tmp_path / "elsewhere", 0, arrays())
    save(folder, 1, arrays())
    (folder / "0.npz").symlink_to(elsewhere)
    (folder / "notes.txt").write_text("x")
    assert SOURCE.discover(str(folder)).episodes == 1


def test_nothing_there(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="there are none"):
        SOURCE.discover(str(tmp_path / "empty"))
