"""Commands on a store of pictures, videos, texts and ragged rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.store.store import open_store
from tests.encoded import camera_episode
from tests.store.makers import ids_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "s", create=True)
    for first in (0, 4):
        store.append([camera_episode(f"e{k}", 20 + k, seed=k) for k in range(first, first + 4)])
    return tmp_path / "s"


def test_a_store_of_cameras_from_end_to_end(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: object, code: int = 0) -> dict[str, Any]:
        came = main([*map(str, arguments), "--json"])
        out, err = capfd.readouterr()
        assert came == code, err
        return json.loads(out) if out else {}

    shown = told("show", place)
    assert shown["specs"]["default"]["fields"]["observations/wrist"]["encoding"] == "video"
    assert shown["bytes"] > sum(path.stat().st_size for path in place.glob("media/*"))
    fields = told("stats", place)["fields"]
    assert fields["observations/front"]["bytes"] > 50_000
    assert fields["observations/wrist"]["media_files"] == 8
    assert fields["observations/scan"]["row_bytes"]["max"] == 36
    assert len(fields["observations/state"]["mean"]) == 3
    assert main(["stats", str(place)]) == 0
    assert "frames" in capfd.readouterr().out
    assert len(told("episodes", place)["episodes"]) == 8
    assert told("query", place, "SELECT count(*) AS n FROM episodes")["rows"] == [{"n": 8}]
    told("measure", place)
    assert told("episodes", place)["episodes"][0]["integrity"] == 1
    told("curate", place, "--where", "length > 23", "--branch", "long")
    assert ids_of(open_store(place).version("long")) == [f"e{k}" for k in range(4, 8)]
    told("compact", place, "--all")
    assert [p for p in told("doctor", place)["problems"] if p["is_damage"]] == []
    (tmp_path / "ids.txt").write_text("e0\n")
    assert told("erase", place, "--ids", tmp_path / "ids.txt")["episodes"] == 1
    gone = told("gc", place, "--erase", "--grace", "0s")
    assert gone["shared_media"] == []
    assert [key for key in gone["files"] if key.startswith("media/")]
    assert [p for p in told("doctor", place)["problems"] if p["is_damage"]] == []
    assert len(told("episodes", place)["episodes"]) == 7


def test_an_export_says_what_does_not_fit(place: Path, tmp_path: Path) -> None:
    command = ["export", str(place), str(tmp_path / "out-v0"), "--format", "minari"]
    assert main(command) == 2  # ragged observations
    assert not (tmp_path / "out-v0").exists()
