"""Commands reach a service whose certificate an authority of one's own has signed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from learners.scripted import ENVIRONMENT
from pipeline.cli.main import main
from pipeline.service.client.client import RolloutClient
from pipeline.service.client.control import ControlClient
from pipeline.service.client.settings import TLS_CA_VARIABLE, TOKEN_VARIABLE, ClientSettings
from schemas.errors import ConfigError
from tests.service.certificates import HAS_OPENSSL, Certificates, certificates
from tests.service.ports import episode
from tests.service.servers import Server, serving

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, made: Certificates) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serving(
        folder / "store", *made.options, "--seal-every", "200ms", "--new-spec", "play"
    ) as found:
        address = named(found.data)
        with RolloutClient(
            address, found.token, ack="store", tls_root_certs=made.authority
        ) as client:
            for k in range(3):
                client.push(episode(f"e{k}"))
        yield found


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(TOKEN_VARIABLE, server.token or "")
    monkeypatch.setenv(TLS_CA_VARIABLE, "")  # and what a command sets is taken back
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def named(address: str) -> str:
    """An address by the name that the certificate is for."""
    return address.replace("127.0.0.1", "localhost")


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_looking_learning_and_acting(
    server: Server, made: Certificates, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = ("--tls-ca", str(made.authority))
    data, control = named(server.data), named(server.control)
    code, told = asked(capsys, "log", f"{data}@main", *trust)
    assert (code, told["versions"][0]["episodes"]) == (0, 3)
    run = str(tmp_path / "run")
    code, told = asked(
        capsys, *("train", "bc", "--data", f"{data}@main", "--steps", "2", "--out", run),
        *("--batch-size", "4", *trust),
    )  # fmt: skip
    assert (code, told.get("steps")) == (0, 2), told
    # The service is reached; then what it serves is not found where this says.
    code, told = asked(
        capsys, *("finetune", run, "--env", ENVIRONMENT, "--service", control, *trust),
        *("--into", str(tmp_path / "none"), "--actors", "0", "--out", str(tmp_path / "more")),
    )  # fmt: skip
    assert (code, told["error"]["kind"]) == (2, "not_found")
    for address in (data, control):
        code, told = asked(
            capsys, *("actor", "--env", ENVIRONMENT, "--policy", "scripted", "--episodes", "1"),
            *("--slots", "1", "--service", address, "--wait", "30", *trust),
        )  # fmt: skip
        assert (code, told.get("episodes")) == (0, 1), told


def test_the_environment_names_the_authority(
    server: Server, made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TLS_CA_VARIABLE, str(made.authority))
    assert ControlClient(named(server.control)).head()["episodes"] >= 3
    with RolloutClient(named(server.data)) as client:
        assert client.pull_episode("e0").length == 12


def test_an_authority_that_nobody_knows_is_said(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = asked(
        capsys, *("actor", "--env", ENVIRONMENT, "--policy", "none", "--episodes", "1"),
        *("--service", named(server.control), "--wait", "0.1"),
    )  # fmt: skip
    assert (code, told["error"]["kind"]) == (5, "timeout")
    assert "--tls-ca" in told["error"]["message"]
    assert told["error"]["message"].count("Expected") == 1


@pytest.mark.parametrize("command", ["log", "actor"])
@pytest.mark.parametrize("content", [None, "no certificate", b"\xff\xfe"], ids=str)
def test_a_file_that_is_no_certificate(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: str | bytes | None,
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    acting = ("--env", ENVIRONMENT, "--policy", "x", "--service", named(server.control))
    given = acting if command == "actor" else (named(server.data),)
    code, told = asked(capsys, command, *given, "--tls-ca", str(file))
    assert (code, told["error"]["kind"]) == (2, "bad_config")
    assert told["error"]["where"] == str(file)
    settings = ClientSettings(tls_root_certs=file)
    for make in (ControlClient, RolloutClient):
        address = named(server.control if make is ControlClient else server.data)
        with pytest.raises(ConfigError, match="certificates in PEM"):
            make(address, None, settings)


@pytest.mark.parametrize("content", [None, b"\xff"], ids=str)
@pytest.mark.parametrize("command", ["actor", "finetune"])
def test_a_token_file_that_cannot_be_read(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: bytes | None,
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    given = ("--env", ENVIRONMENT, "--service", server.control, "--token-file", str(file))
    where = (str(tmp_path),) if command == "finetune" else ("--policy", "x")
    code, told = asked(capsys, command, *where, *given)
    assert (code, told["error"]["kind"]) == (2, "usage")
    assert told["error"]["where"] == str(file)
