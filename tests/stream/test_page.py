"""The page on streams runs, and names every sampler."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.stream.samplers import SAMPLERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "streams.md"


def test_the_examples_of_the_page_run(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > len(SAMPLERS)
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)


def test_the_page_names_every_sampler() -> None:
    table, *_ = PAGE.read_text().partition("\n## ")
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(SAMPLERS)
