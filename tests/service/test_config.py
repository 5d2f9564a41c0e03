"""What a service is started with, and what would lay it open."""

from __future__ import annotations

import pytest

from pipeline.service.config import is_loopback, service_config
from schemas.errors import ConfigError


@pytest.fixture
def tls(tmp_path):
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    for file in files.values():
        file.write_text("x")
    return files


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_nothing(tmp_path, host):
    assert is_loopback(host)
    assert service_config({"wal": tmp_path, "host": host}).scheme == "http"
    assert service_config({"wal": tmp_path, "host": host, "no_token": True}).token_path is None


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "10.0.0.1", "192.168.1.2", "penstock.example", "", "localhost.example", "0"],
)
def test_a_public_port_needs_tls_and_tokens(tmp_path, tls, host):
    assert not is_loopback(host)
    for settings in ({}, {"no_token": True}, {**tls, "no_token": True}):
        with pytest.raises(ConfigError, match="others on the network"):
            service_config({"wal": tmp_path, "host": host, **settings})
    config = service_config({"wal": tmp_path, "host": host, **tls})
    assert (config.scheme, config.token_path) == ("https", tmp_path / "token")


@pytest.mark.parametrize(
    "settings",
    [
        {"tls_cert": "CERT"},
        {"tls_key": "CERT"},
        {"tls_cert": "CERT", "tls_key": "/nowhere"},
        {"no_token": True, "token_file": "/x"},
        {"port": 1, "http_port": 1},
        {"port": 65536},
        {"seal_every": 0},
        {"unknown": 1},
        {"max_body_bytes": -1},
    ],
)
def test_settings_that_are_refused(tmp_path, tls, settings):
    given = {k: tls["tls_cert"] if v == "CERT" else v for k, v in settings.items()}
    with pytest.raises(ConfigError):
        service_config({"wal": tmp_path, **given})


def test_what_is_not_said_takes_its_default(tmp_path):
    config = service_config({"wal": tmp_path, "port": None, "token_file": tmp_path / "t"})
    assert (config.host, config.port, config.token_path) == ("127.0.0.1", 8815, tmp_path / "t")


def test_a_missing_package_comes_with_a_hint(monkeypatch):
    import importlib.util

    from pipeline.service.extra import check_installed
    from schemas.errors import MissingExtraError

    check_installed()
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else there(name)
    )
    with pytest.raises(MissingExtraError, match=r"'uvicorn'.*penstock\[service\]"):
        check_installed()
