"""Documents keep their word: code blocks run, links lead somewhere, commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_readme_s_notebook_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    code = blocks(ROOT / "README.md", "python")
    assert code
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert "transition" in capsys.readouterr().out
    assert len(names["good"]) == 10


def test_commands_in_documents_exist():
    from typer.main import get_command

    known = set(get_command(app).commands)
    for page in PAGES:
        for block in blocks(page, "sh"):
            for name in re.findall(r"^penstock ([a-z]+)", block, re.MULTILINE):
                assert name in known, f"{page.name}: penstock {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
