"""Every bad input of the catalogue ends as it should, through the real command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.store.store import open_store
from tests.connectors.fuzz import ABOVE_BASELINE, versions
from tests.connectors.hostile import BAD, Bad, d4rl
from tests.connectors.small import SMALL

EXIT = {"refused": 6, "quarantined": 3, "accepted": 0}
MEASURED = """
import sys
from pathlib import Path
from pipeline.cli.main import main

def peak():
    status = Path("/proc/self/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])

main(["ingest", *sys.argv[3:4], "--into", sys.argv[2], "--log-format", "text"])
before = peak()
given = ["ingest", sys.argv[1], "--into", sys.argv[2], "--log-format", "text"]
code = main([*given, "--new-spec", "other"])
print(f"PEAK {peak() - before}")
sys.exit(code)
"""


def named(bad: Bad, where: str) -> str:
    return f"{bad.format}:{where}" if bad.format else where


def check_said(bad: Bad, code: int, said: str, error: str) -> None:
    assert code == EXIT[bad.outcome], error or said
    assert "Traceback" not in error
    assert re.search(bad.says, said + error), said + error
    if bad.outcome == "refused":
        assert len(error.strip().splitlines()) == 1, error


@pytest.mark.parametrize("bad", [b for b in BAD if not b.is_bomb], ids=lambda b: b.name)
def test_bad_inputs_end_as_they_should(
    bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a" / "b" / "bad"
    place.mkdir(parents=True)
    where, store = bad.make(place), str(tmp_path / "store")
    healthy = d4rl()(tmp_path)
    assert main(["ingest", healthy, "--into", store]) == 0
    before = versions(store)
    capsys.readouterr()
    given = ["ingest", named(bad, where), "--into", store, "--log-format", "text"]
    code = main([*given, "--new-spec", "other"])
    said = capsys.readouterr()
    check_said(bad, code, said.out, said.err)
    assert versions(store) - before == (bad.outcome != "refused")
    if bad.outcome == "quarantined" and bad.code:
        assert f"{bad.code}: " in said.out
    if bad.outcome == "refused":
        assert len(open_store(store).version()) == 3
        assert main([*given, "--json"]) == 6
        assert f'"kind": "{bad.code}"' in capsys.readouterr().out
    assert not Path("/tmp/penstock-was-here").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [b for b in BAD if b.is_bomb], ids=lambda b: b.name)
def test_bombs_take_little_memory(bad: Bad, tmp_path: Path) -> None:
    place = tmp_path / "bad"
    place.mkdir()
    where, store = bad.make(place), str(tmp_path / "store")
    healthy = d4rl()(tmp_path)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, named(bad, where), store, healthy],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    peak = int(done.stdout.rpartition("PEAK ")[2]) // 1024
    assert peak <= ABOVE_BASELINE, f"{peak} MB"
    check_said(bad, done.returncode, done.stdout, done.stderr)


def test_the_catalogue_is_whole() -> None:
    assert len(BAD) >= 60
    assert len({bad.name for bad in BAD}) == len(BAD)
    assert {bad.format for bad in BAD} >= {small.format for small in SMALL}


def test_actions_are_never_clipped(tmp_path: Path) -> None:
    actions = np.linspace(-1e30, 1e30, 28).astype(np.float32).reshape(14, 2)
    where, store = d4rl(actions=actions)(tmp_path), str(tmp_path / "store")
    assert main(["ingest", where, "--into", store]) == 0
    found = np.concatenate([e.actions for e in open_store(store).version().iter_episodes()])
    np.testing.assert_array_equal(found, actions)
