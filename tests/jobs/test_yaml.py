"""Job files: every wrong key with its line, paths relative to the file, flags before all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.jobs.jobfile import MAX_BYTES, job_of
from schemas.errors import ConfigError, NotFoundError, UsageError


def written(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [str(path)]


GOOD = """\
name: nightly
sources:
  - runs/*.hdf5
  - minari:hopper/medium-v0
  - s3://bucket/x.hdf5
into: store
lag: 10m
timeout: 2h
gate:
  episodes:
    - {name: short, quarantine: length < 5}
"""


def test_paths_are_relative_to_the_file_and_names_stay(tmp_path):
    job = job_of(written(tmp_path / "job.yaml", GOOD), {})
    assert job.sources == (
        str(tmp_path / "runs/*.hdf5"),
        "minari:hopper/medium-v0",
        "s3://bucket/x.hdf5",
    )
    assert (job.into, job.lag, job.timeout) == (str(tmp_path / "store"), 600.0, 7200.0)
    assert job.gate is not None
    assert job.job("r").name == "nightly"


def test_flags_hold_against_the_file(tmp_path):
    (tmp_path / "gate.yml").write_text("min_episodes: 3\n")
    flags = {"into": "elsewhere", "lag": "1s", "gate": str(tmp_path / "gate.yml")}
    job = job_of(written(tmp_path / "job.yaml", GOOD), flags)
    assert (job.into, job.lag) == ("elsewhere", 1.0)
    assert job.gate is not None
    assert job.gate.min_episodes == 3


def test_the_environment_is_not_put_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME_STORE", "x")
    job = job_of(written(tmp_path / "j.yaml", "sources: a.hdf5\ninto: $HOME_STORE\n"), {})
    assert job.into == str(tmp_path / "$HOME_STORE")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("sources: [a]\ninto: s\nbrunch: x\n", 3, "'brunch'; did you mean 'branch'"),
        ("sources: [a]\ninto: s\ncommit_every: 0\n", 3, "commit_every"),
        ("sources: [a]\ninto: s\nlag: soon\n", 3, "10m|30m"),
        ("sources: [a]\ninto: s\ninto: t\n", 3, "twice"),
        ("sources: [a]\n", 1, "'into'"),
        ("sources: [a]\ninto: [\n", 3, "no YAML"),
        ("sources: [a]\ninto: s\ngate:\n  episodes:\n    - nam: x\n", 5, "'name'|'gate.episodes"),
        ("sources: [a]\ninto: !!python/object/apply:os.system [ls]\n", 2, "no YAML"),
        ("sources: [a]\ninto: s\nrunner: x\n", 1, "beam"),
        ("- a\n", 1, "keys with values"),
    ],
)
def test_what_is_wrong_comes_with_its_line(tmp_path, text, line, says):
    with pytest.raises(ConfigError, match=says) as raised:
        job_of(written(tmp_path / "job.yaml", text), {})
    assert f"line {line}:" in raised.value.message


def test_aliases_are_read_but_bombs_are_not(tmp_path):
    text = "sources: &a [x.hdf5]\ninto: s\nmessage: &m hello\ntag: *m\n"
    assert job_of(written(tmp_path / "job.yaml", text), {}).tag == "hello"
    lines = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    lines += [
        f"{n}: &{n} [{','.join([f'*{p}'] * 10)}]" for p, n in zip("abcdef", "bcdefg", strict=True)
    ]
    with pytest.raises(ConfigError, match="aliases written out"):
        job_of(written(tmp_path / "bomb.yaml", "\n".join(lines)), {})
    with pytest.raises(ConfigError, match="bytes of YAML"):
        job_of(written(tmp_path / "large.yaml", "#" * (MAX_BYTES + 1)), {})


def test_what_the_command_line_says_wrong_is_no_fault_of_the_file(tmp_path):
    given = written(tmp_path / "job.yaml", GOOD)
    with pytest.raises(UsageError, match="--lag"):
        job_of(given, {"lag": "soon"})
    with pytest.raises(UsageError, match="--into"):
        job_of(["a.hdf5"], {})
    with pytest.raises(NotFoundError, match=r"none\.yaml"):
        job_of([str(tmp_path / "none.yaml")], {})
