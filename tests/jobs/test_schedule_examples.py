"""The examples of schedules: they parse, they call `penstock ingest`, and the job really runs."""

from __future__ import annotations

import ast
import configparser
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from pipeline.cli.main import main
from tests.episodes import write_d4rl

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "schedule"
COMMAND = ["penstock", "ingest", "/data/job.yaml"]


def test_the_job_runs_as_it_stands(tmp_path, capfd):
    for name in ("job.yaml", "gate.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "incoming").mkdir()
    source = write_d4rl(tmp_path / "incoming" / "a.hdf5", [3, 9, 8])
    assert main(["ingest", str(tmp_path / "job.yaml"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sources_waiting"] == 1
    os.utime(source, (time.time() - 3600,) * 2)
    assert main(["ingest", str(tmp_path / "job.yaml"), "--json"]) == 3
    out, err = capfd.readouterr()
    assert json.loads(out)["reasons"] == {"gate:short": 1}
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert [e for e in events if e != "guessed"] == [
        *("started", "source listed", "unit done", "committed")
    ]
    metrics = (tmp_path / "penstock-nightly.prom").read_text()
    assert 'penstock_ingest_episodes_added{job="nightly-rollouts"} 2\n' in metrics
    assert 'penstock_ingest_exit_code{job="nightly-rollouts"} 3\n' in metrics
    succeeded = next(
        line for line in metrics.splitlines() if line.startswith("penstock_ingest_last_s")
    )
    (tmp_path / "incoming" / "a.hdf5").unlink()
    assert main(["ingest", str(tmp_path / "job.yaml")]) == 2
    metrics = (tmp_path / "penstock-nightly.prom").read_text()
    assert succeeded in metrics
    assert 'exit_code{job="nightly-rollouts"} 2\n' in metrics


def test_cron():
    lines = (EXAMPLES / "crontab").read_text().splitlines()
    (line,) = [line for line in lines if line and not line.startswith("#")]
    assert shlex.split(line.split(None, 5)[5])[:3] == COMMAND


def test_systemd():
    service, timer = (configparser.ConfigParser(strict=False) for _ in range(2))
    service.read(EXAMPLES / "penstock-ingest.service")
    timer.read(EXAMPLES / "penstock-ingest.timer")
    assert shlex.split(service["Service"]["ExecStart"])[1:] == COMMAND
    assert service["Service"]["SuccessExitStatus"] == "3 4"
    assert timer["Timer"]["OnCalendar"]


def test_kubernetes():
    job = yaml.safe_load((EXAMPLES / "cronjob.yaml").read_text())
    assert job["kind"] == "CronJob"
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == COMMAND


def test_airflow():
    tree = ast.parse((EXAMPLES / "airflow_dag.py").read_text())
    commands = [
        ast.literal_eval(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "bash_command"
    ]
    assert [shlex.split(command)[:3] for command in commands] == [COMMAND]


def test_a_loop_ends_with_0_when_told_to(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [4])
    given = ["ingest", source, "--into", tmp_path / "s", "--every", "1h", "--log-format", "json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *map(str, given)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b'"ended"' in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
