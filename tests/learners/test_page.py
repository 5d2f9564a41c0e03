"""The page on learners runs, and names every algorithm with settings that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from learners.base import ALGORITHMS, learner_class

PAGE = Path(__file__).resolve().parents[2] / "docs" / "learners.md"


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)


def test_the_page_names_every_algorithm_and_settings_of_it() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(ALGORITHMS)
    for name, said in rows:
        settings = re.findall(r"`(\w+)`", said)
        assert settings, name
        assert set(settings) <= learner_class(name).settings_kind.model_fields.keys(), name
