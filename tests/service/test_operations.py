"""The page on operating a service runs, and what is deployed by it holds what it says."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from pipeline.cli.main import app
from pipeline.service.config import ServiceConfig
from pipeline.service.metrics import ServiceMetrics
from pipeline.service.serve import LAST_SECONDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"
DEPLOY = ROOT / "deploy"
SETTINGS = ServiceConfig(wal=Path("wal"))
STOPS = SETTINGS.drain_seconds + LAST_SECONDS
"""Seconds after which a server that was told to end is gone."""


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "penstock.service")
    return parser["Service"]


def instructions(name: str) -> list[str]:
    """Of the last stage of a Dockerfile, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    found = text.rpartition("\nFROM ")[2].splitlines()
    return [line.partition(" ")[2] for line in found if line.startswith(f"{name} ")]


def serve_options(arguments: list[str]) -> dict[str, Any]:
    """What `penstock serve` makes of its arguments."""
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    with click.Context(command) as context:
        return dict(command.make_context("serve", arguments, parent=context).params)


@pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("openssl") is None, reason="no curl or openssl"
)
@pytest.mark.timeout(1800)  # twenty processes, each of which takes seconds to start
def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    blocks = re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("sh") == 5
    try:
        for kind, block in blocks:
            if kind == "python":
                exec(compile(block, PAGE.name, "exec"), names)
                continue
            script = ["bash", "-euo", "pipefail", "-c", block]
            with Path("out").open("w") as out:
                done = subprocess.run(
                    script, env={**os.environ, "PATH": path}, stdout=out, stderr=out, timeout=600
                )
            assert done.returncode == 0, f"{block}\n{Path('out').read_text()}"
        assert health_check(json.loads(Path("ready.json").read_text())["control"]) == 0
    finally:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(Path("server.pid").read_text()), signal.SIGTERM)
    assert Path("actor-1-b.token").stat().st_size > 40


def health_check(control: str) -> int:
    """Runs the container's check against a server that listens elsewhere."""
    (check,) = instructions("HEALTHCHECK")
    python, flag, code = json.loads(check.partition("CMD ")[2])
    assert (python, flag) == ("python", "-c")
    code = code.replace("https://127.0.0.1:8816", control)
    return subprocess.run([sys.executable, flag, code], timeout=240).returncode


def test_the_health_check_fails_where_nothing_is_ready() -> None:
    assert health_check("https://127.0.0.1:1") != 0


def test_the_page_lists_every_metric() -> None:
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in ServiceMetrics().registry.collect()
    }
    rows = re.findall(
        r"^\| `(penstock_\w+)` \| (\w+) \| ([\w, ]*) \| (.*) \|$", PAGE.read_text(), re.M
    )
    assert [name for name, *_ in rows] == list(families)
    for name, kind, _, told in rows:
        assert (kind, told) == (families[name].type, families[name].documentation)


def test_labels_are_those_of_the_page() -> None:
    metrics = ServiceMetrics()
    metrics.put_steps.labels("s").inc()
    metrics.put_bytes.labels("s").inc()
    metrics.put_rejected.labels("busy").inc()
    metrics.action_divergence.labels("s").set(1)
    metrics.http_requests.labels("GET", "/", "200").inc()
    metrics.http_seconds.labels("/").observe(1)
    told = dict(re.findall(r"^\| `(penstock_\w+)` \| \w+ \| ([\w, ]*) \|", PAGE.read_text(), re.M))
    for family in text_string_to_metric_families(metrics.text().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        if name.endswith("_created"):
            continue
        labels = set(family.samples[0].labels) - {"le"}
        assert labels == set(filter(None, told[name].split(", "))), name


def test_alerts_ask_for_metrics_that_there_are() -> None:
    (group,) = yaml.safe_load((DEPLOY / "penstock.rules.yml").read_text())["groups"]
    text = ServiceMetrics().text().decode()
    known = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        for name in re.findall(r"penstock_\w+", rule["expr"]):
            assert name.removesuffix("_bucket") in known, rule["alert"]
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert config["rule_files"] == ["penstock.rules.yml"]
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"penstock:{SETTINGS.http_port}"]}]


def test_the_unit_starts_what_there_is_and_waits_for_its_end() -> None:
    service = unit()
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("penstock", "serve")
    options = serve_options(arguments)
    assert options["wal"] == Path("/var/lib/penstock/wal")
    assert options["drain"] == f"{SETTINGS.drain_seconds:g}s"
    assert service["KillSignal"] == "SIGTERM"
    assert float(service["TimeoutStopSec"]) > STOPS
    assert int(service["LimitNPROC"]) > 2 * SETTINGS.max_streams
    assert int(service["LimitNOFILE"]) > 2 * (SETTINGS.max_streams + SETTINGS.max_connections)
    assert service["ProtectSystem"] == "strict"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = unit()["ExecStart"].split()[0]
    copy = tmp_path / "penstock.service"
    text = (DEPLOY / "penstock.service").read_text()
    copy.write_text(text.replace(program, shutil.which("true") or "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_image_serves_as_nobody_in_particular() -> None:
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert json.loads(entry) == ["penstock"]
    name, *arguments = json.loads(command)
    options = serve_options(arguments)
    assert (name, options["host"], str(options["wal"])) == ("serve", "0.0.0.0", "/data/wal")
    assert options["tls_cert"] is not None
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("USER") == ["10001:10001"]
    assert instructions("EXPOSE") == [f"{SETTINGS.port} {SETTINGS.http_port}"]
    build = (DEPLOY / "Dockerfile").read_text()
    assert "-c constraints.txt '.[service,s3]'" in build
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", build, re.M):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert f"!{source}\n" in (DEPLOY / "Dockerfile.dockerignore").read_text()


def test_compose_goes_with_the_image() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service = compose["services"]["penstock"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    options = serve_options(service["command"][1:])
    assert options["allowed_hosts"] == ["penstock"]
    assert float(service["stop_grace_period"].removesuffix("s")) > STOPS
    assert service["ports"] == [f"{p}:{p}" for p in (SETTINGS.port, SETTINGS.http_port)]
    assert set(service["secrets"]) <= compose["secrets"].keys()
    scraper = compose["services"]["prometheus"]
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]
    files = (config["authorization"]["credentials_file"], config["tls_config"]["ca_file"])
    assert {f"/run/secrets/{name}" for name in scraper["secrets"]} == set(files)
    assert set(scraper["secrets"]) <= compose["secrets"].keys()
    for volume in scraper["volumes"]:
        assert (DEPLOY / volume.split(":")[0]).is_file()
