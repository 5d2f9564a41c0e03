from __future__ import annotations

from pathlib import Path

import pytest

from connectors import formats_page, registry
from connectors.detection import RULES
from schemas.errors import SourceError

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def test_the_page_about_formats_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert formats_page.write(page) == page, (
        "run: python -m connectors.formats_page docs/formats.md"
    )


def test_the_page_says_all_that_is_declared() -> None:
    said = formats_page.sections().replace("`", "")
    assert set(formats_page.EPISODES) == set(registry.FORMATS)
    for name, row in registry.FORMATS.items():
        start = said.index(f"\n### {name}\n")
        section = said[start : said.find("\n### ", start + 1)]
        declared = [*registry.source(name).guesses()]
        if row.is_written:
            sink = registry.sink(name)
            declared += [loss.says for loss in sink.losses()]
            declared += [text for pair in sink.options().items() for text in pair]
        assert [text for text in declared if text.replace("`", "") not in section] == []
        assert all(need in section for r in RULES if r.format == name for need in r.needs)


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="marks"):
        formats_page.write("# Formats\n")
