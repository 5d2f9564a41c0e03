"""The page on the service runs, and its tables are the code's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.service.access import RULES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "service.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("sh") >= 4
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, PAGE.name, "exec"), names)
        elif "pip install" not in block:
            environment = {**os.environ, "PATH": path, "CONTROL": str(names["url"])}
            script = ["bash", "-euo", "pipefail", "-c", block]
            done = subprocess.run(script, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def test_the_page_names_every_route():
    text = PAGE.read_text()
    for method, path in RULES:
        place = path.replace("{ref}", "REF").replace("{name}", "NAME")
        place = place.replace("{run}", "RUN").replace("{step}", "STEP")
        said = place if path in ("/healthz", "/readyz", "/metrics") else f"{method} {place}"
        assert f"`{said}" in text or f"`{said}?" in text, said
