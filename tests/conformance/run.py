"""Lets the formats' own libraries read what `penstock export` writes, and prints a table.

    python tests/conformance/run.py [NAME...]

Every row of `CHECKS` ingests its sample, exports it and runs a script of another library's
environment on the result. Environments are made on first use in `$PENSTOCK_ENVS` (`.conformance`)
from the exact pins beside this file, with Torch for CPUs. Ends with 1 if a check fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from connectors.d3rlpy import D3rlpySource  # noqa: E402
from connectors.parquet_sink import ParquetSink  # noqa: E402
from tests.conformance import samples  # noqa: E402

Sample = Callable[[], tuple[list[samples.Episode], samples.Truth]]


@dataclass(frozen=True)
class Check:
    """One format in one form, and who reads it."""

    name: str
    format: str
    sample: Sample
    script: str
    reader: str
    """Package whose version the table names."""
    environment: str = ""
    """File of pins, without `.txt`; by default this environment."""
    options: tuple[str, ...] = ()
    out: str = "sample"
    read: str = ""
    """What the script opens, below the export."""


def _lerobot(version: str, form: str, environment: str) -> Check:
    options = (f"codebase_version={version}", f"use_videos={str(form == 'videos').lower()}")
    name = f"lerobot {version}, {form}"
    script = "check_lerobot.py"
    return Check(name, "lerobot", samples.lerobot, script, "lerobot", environment, options)


def _rlds(form: str, sample: Sample, said: str) -> Check:
    options = (f"file_format={form}",)
    reader, script = "tensorflow-datasets", "check_rlds.py"
    return Check(
        f"rlds {form}, {said}", "rlds", sample, script, reader, "rlds", options, read="1.0.0"
    )


def _minari(storage: str) -> Check:
    options = (f"data_format={storage}", "dataset_id=sample-v0")
    name = f"minari {storage}"
    script = "check_minari.py"
    return Check(name, "minari", samples.minari, script, "minari", "", options, "sample-v0")


CHECKS = (
    *(_minari(storage) for storage in ("hdf5", "arrow", "parquet")),
    *(_lerobot("v3.0", form, "lerobot") for form in ("pictures", "videos")),
    *(_lerobot("v2.1", form, "lerobot_v21") for form in ("pictures", "videos")),
    _rlds("array_record", samples.rlds, "T+1 steps"),
    _rlds("tfrecord", samples.rlds, "T+1 steps"),
    _rlds("tfrecord", samples.rlds_real_last, "real last actions"),
    Check(
        *("robomimic", "robomimic", samples.robomimic, "check_robomimic.py"),
        *("robomimic", "robomimic"),
        out="sample.hdf5",
    ),
    Check(
        *("replay_zarr, folder", "replay_zarr", samples.replay_zarr, "check_replay_zarr.py"),
        *("zarr", "arrays"),
    ),
    Check(
        *("replay_zarr, zip", "replay_zarr", samples.replay_zarr, "check_replay_zarr.py"),
        *("zarr", "arrays"),
        out="sample.zip",
    ),
    Check(
        *("ogbench", "ogbench", samples.ogbench, "check_ogbench.py", "ogbench", "arrays"),
        out="sample.npz",
    ),
)


@dataclass
class Environments:
    """Other libraries, each set in a folder of its own."""

    root: Path
    ready: dict[str, Path] = field(default_factory=dict)

    def python(self, name: str) -> Path:
        """Returns the interpreter of an environment, which is made if it is not there."""
        if not name:
            return Path(sys.executable)
        place = self.root / name
        pins = HERE / f"{name}.txt"
        stamp, wanted = place / ".pins", pins.read_text()
        python = place / "bin" / "python"
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making {place}", file=sys.stderr)  # noqa: T201
            install = [str(python), *["-m", "pip", "install", "-q", "--disable-pip-version-check"]]
            torch = [line for line in wanted.splitlines() if line.startswith("torch==")]
            _run([sys.executable, "-m", "venv", "--clear", str(place)])
            if torch:
                _run([*install, *torch])
            _run([*install, "--no-deps", "-r", str(pins)])
            stamp.write_text(wanted)
        return python


def run_check(check: Check, environments: Environments, folder: Path) -> tuple[str, str]:
    """Returns the reader's version and what came of it."""
    episodes, truth = check.sample()
    python = environments.python(check.environment)
    version = _version(python, check.reader)
    penstock = [str(Path(sys.executable).with_name("penstock"))]
    ParquetSink().write(iter(episodes), str(folder / "steps"), {})
    np.savez(folder / "truth.npz", **truth)
    store, out = folder / "store", folder / check.out
    options = [part for option in check.options for part in ("--option", option)]
    _run([*penstock, "ingest", str(folder / "steps"), "--into", str(store)])
    _run([*penstock, "export", str(store), str(out), "--format", check.format, *options])
    script = [
        str(python),
        str(HERE / check.script),
        str(out / check.read) if check.read else str(out),
    ]
    return version, _outcome([*script, str(folder / "truth.npz")])


def check_d3rlpy(environments: Environments, folder: Path) -> tuple[str, str]:
    """Compares our reading of a file that d3rlpy wrote with its own."""
    python = environments.python("d3rlpy")
    file, truth = folder / "buffer.h5", folder / "truth.npz"
    said = _outcome([str(python), str(HERE / "check_d3rlpy.py"), str(file), str(truth)])
    source = D3rlpySource()
    found = [f.episode for u in source.discover(str(file)).units for f in source.read(u)]
    with np.load(truth) as wanted:
        count = len({name.split("/")[0] for name in wanted.files})
        if len(found) != count or None in found:
            return _version(python, "d3rlpy"), f"{len(found)} episodes came of {count}"
        for number, episode in enumerate(e for e in found if e is not None):
            for name in ("observations", "actions", "rewards"):
                rows, theirs = np.asarray(episode.arrays[name]), wanted[f"{number}/{name}"]
                if rows.tobytes() != theirs.tobytes() or rows.dtype != theirs.dtype:
                    said = f"{name} of episode {number} differ"
            if episode.is_terminated != bool(wanted[f"{number}/terminated"]):
                said = f"the end of episode {number} differs"
    return _version(python, "d3rlpy"), said


def main(names: list[str]) -> int:
    """Runs the checks whose names begin with one of some; returns the exit code."""
    environments = Environments(Path(os.environ.get("PENSTOCK_ENVS") or ROOT / ".conformance"))
    rows = []
    for check in CHECKS:
        if not names or check.name.startswith(tuple(names)):
            with tempfile.TemporaryDirectory() as folder:
                version, said = run_check(check, environments, Path(folder))
            rows.append((check.name, f"{check.reader} {version}", said))
    if not names or "d3rlpy" in names:
        with tempfile.TemporaryDirectory() as folder:
            version, said = check_d3rlpy(environments, Path(folder))
        rows.append(("d3rlpy, read", f"d3rlpy {version}", said))
    print("| format | read by | outcome |\n|---|---|---|")  # noqa: T201
    for row in rows:
        print(f"| {' | '.join(row)} |")  # noqa: T201
    return int(any(row[-1] != "equal" for row in rows))


def _outcome(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "equal"
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[-1] if lines else f"ended with {done.returncode}"


def _version(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return _run([str(python), "-c", code]).strip()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
