"""Reverb beside the service: what is skipped or fails says so; a kill -9 loses nothing of ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.service import bench_peers
from pipeline.service.bench_peers import EPISODES, killed, reverb

PEERS = Path(__file__).resolve().parents[2] / ".peers"


def test_who_is_not_there_is_skipped(tmp_path: Path) -> None:
    assert "make peers" in reverb(0.1, tmp_path)["skipped"]


def test_an_installed_package_has_no_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_peers, "SCRIPT", tmp_path / "service_with_reverb.py")
    assert "checkout" in reverb(0.1, PEERS)["skipped"]


def test_what_fails_says_why(tmp_path: Path) -> None:
    python = tmp_path / "reverb" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho no tensorflow here >&2\nexit 3\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    assert reverb(0.1, tmp_path)["rates"] == {"failed": "no tensorflow here"}


def test_a_kill_loses_nothing() -> None:
    found = killed()
    assert (found["acknowledged"], found["lost"]) == (EPISODES, 0)


@pytest.mark.skipif(
    os.environ.get("PENSTOCK_LONG") != "1" or not (PEERS / "reverb").exists(),
    reason="needs PENSTOCK_LONG=1 and `make peers`",
)
def test_reverb_takes_part() -> None:
    found = reverb(0.5, PEERS)
    assert set(found["ratios"]) == set(found["penstock"]) < set(found["rates"])
    assert min(one["steps_per_second"] for one in found["penstock"].values()) > 0
    assert found["rates"]["items_of_64_steps"]["puts_per_second"] > 0
    assert found["kill"]["lost"] == found["kill"]["acknowledged"] - found["kill"]["after_restart"]
