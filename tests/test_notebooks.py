"""Notebooks run from top to bottom, each cell without an error, and are kept without outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MAX_LINES = 20
"""Lines of a cell that a newcomer takes in at once."""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel of this environment's Python, found nowhere but in the test's own folder."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    told = {"argv": command, "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(told))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "PENSTOCK_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:zmq")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, kernel):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("mujoco")
    notebook = nbformat.read(path, as_version=4)
    ran = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(kernel)}}
    ).execute()
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert all(cell.execution_count for cell in code)
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    said = "".join(o.get("text", "") for o in outputs)
    assert "in the order of the noise: True" in said
    assert "still 48 episodes, still version main:1" in said
    assert "0 added, 24 removed" in said
    assert "the tag still names 24 episodes" in said
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert list(kernel.iterdir()) == []  # it leaves nothing behind


def test_notebooks_are_kept_without_outputs_and_in_short_cells():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None
            assert len("".join(cell["source"]).splitlines()) <= MAX_LINES
