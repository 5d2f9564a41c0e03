"""What is refused before any route is looked for: names, origins, sizes, slow and odd requests."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import ipaddress
import json
import socket
import ssl
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.service.access import is_ours
from pipeline.service.config import service_config
from pipeline.service.logs import log_to
from schemas.errors import ConfigError
from tests.service.ports import ARROW, Port, body_of, episode, service_in


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with service_in(
        tmp_path_factory.mktemp("guard"),
        max_json_bytes=2000,
        max_buffered_bytes=100_000,
        max_body_bytes=100_000,
        allowed_hosts=("data.example",),
    ) as found:
        yield found


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A port that waits for nobody."""
    folder = tmp_path_factory.mktemp("hasty")
    with service_in(folder, request_seconds=1.0, header_seconds=0.5) as found:
        yield found


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[("localhost", 200), ("localhost:9", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200)],
        *[("data.example", 200), ("DATA.example:8816", 200), ("10.0.0.1", 200)],
        *[("evil.example", 403), ("localhost.evil.example", 403), ("data.example.evil", 403)],
        *[("user@localhost", 403), ("127.0.0.1.evil.example", 403), ("local host", 403)],
        *[("[::1", 403), ("localhost/x", 403), ("0x7f000001", 403), ("", 403)],
    ],
)
def test_names_that_the_service_answers_to(port: Port, host: str, status: int):
    answer = port.ask("GET", "/healthz", None, headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["kind"] == "forbidden"


def test_names_of_a_public_port(tmp_path):
    files = [tmp_path / name for name in ("cert", "key")]
    for file in files:
        file.write_text("x")
    config = service_config(
        {"wal": tmp_path, "host": "0.0.0.0", "tls_cert": files[0], "tls_key": files[1]}
    )
    assert is_ours(config, socket.gethostname())
    assert is_ours(config, "192.168.7.7:8816")
    assert not is_ours(config, "evil.example")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "OWN"}, 200),
        ({"origin": "OWN", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "OWN.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing(port: Port, headers: dict[str, str], status: int):
    sent = {name: value.replace("OWN", port.url) for name, value in headers.items()}
    answer = port.ask("PUT", "/v1/tags/same", json={"ref": "main:1"}, headers=sent)
    assert answer.status_code == status
    for text in ("push", "pull"):
        body = json.dumps({"token": port.texts[text]}).encode()
        said = {**sent, "content-type": "application/json"}
        answer = port.ask("POST", "/v1/session", None, content=body, headers=said)
        assert answer.status_code == status


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_could_send_is_no_json(port: Port, kind: str):
    for method, path in (("PUT", "/v1/tags/x"), ("POST", "/v1/curate"), ("POST", "/v1/rollouts")):
        answer = port.ask(method, path, content=b"{}", headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "usage")


def test_long_bodies_are_not_read(port: Port):
    json_type = {"content-type": "application/json"}
    for path, kind, size in (
        ("/v1/curate", json_type, 2001),
        ("/v1/session", json_type, 4097),
        ("/v1/rollouts", ARROW, 100_001),
    ):
        stated = {**kind, "content-length": str(2**50)}
        assert _status(port, "POST", path, stated, b"") == 413
        answer = port.ask("POST", path, content=b" " * size, headers=kind)
        assert answer.status_code == 413
        pieces = (b" " * 1000 for _ in range(size // 1000 + 1))
        answer = port.ask("POST", path, content=pieces, headers=kind)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (413, "too_large")


def test_compressed_bodies_are_refused(port: Port):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = port.ask("POST", "/v1/curate", content=b"x", headers=headers)
    assert answer.status_code == 400
    body = body_of(episode("zipped"), compression="zstd")
    answer = port.ask("POST", "/v1/rollouts", content=body, headers=ARROW)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "bad_put")


def test_a_body_that_never_comes(hasty: Port):
    head = {"content-type": "application/json", "content-length": "10"}
    assert _status(hasty, "POST", "/v1/curate", head, b"{") == 504


@pytest.mark.parametrize("begun", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: local"])
def test_headers_that_never_come(hasty: Port, begun: bytes):
    place = urlsplit(hasty.url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        try:
            for _ in range(2 if begun else 1):
                connection.sendall(begun)
                time.sleep(0.1)
            assert connection.recv(1) == b""
        except (ConnectionResetError, BrokenPipeError):
            pass  # it was closed before the second half came


def test_one_request_after_another_is_fine(hasty: Port):
    """Over one connection; the time between two requests is not that of the second's headers."""
    place = urlsplit(hasty.url)
    for _ in range(20):  # on a busy machine this thread may itself be late with the first headers
        connection = HTTPConnection(str(place.hostname), place.port, timeout=60)
        with contextlib.closing(connection):
            connection.connect()
            connection.auto_open = 0  # what was closed stays so
            try:
                connection.request("GET", "/healthz")
                assert connection.getresponse().read()
            except ConnectionError:
                continue
            time.sleep(0.7)  # longer than headers may take
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
            return
    pytest.fail("no first request was in time")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"POST /v1/curate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/curate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 100,
    ],
)
def test_bytes_that_are_no_request(port: Port, raw: bytes):
    assert _raw(port, raw)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 401", b"HTTP/1.1 413")
    assert port.ask("GET", "/healthz", None).status_code == 200


def test_every_answer_has_the_headers(port: Port):
    for method, path in (("GET", "/healthz"), ("GET", "/nowhere"), ("POST", "/healthz")):
        answer = port.ask(method, path, None)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert len(answer.headers["x-request-id"]) == 32
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
    refused = port.ask("GET", "/healthz", None, headers={"host": "evil.example"})
    assert refused.headers["x-content-type-options"] == "nosniff"


def test_unknown_routes_and_methods(port: Port):
    for method, path, status in (
        *[("GET", "/docs", 404), ("GET", "/redoc", 404), ("GET", "/openapi.json", 404)],
        *[("TRACE", "/healthz", 405), ("DELETE", "/v1/versions", 405), ("GET", "/v1", 404)],
    ):
        answer = port.ask(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["kind"] == "not_found"


def test_a_certificate_that_is_none(tmp_path):
    cert, key = certificate(tmp_path)
    cert.write_text("x")
    with pytest.raises(ConfigError, match="PEM"), service_in(tmp_path, tls_cert=cert, tls_key=key):
        pass


def test_labels_do_not_grow_with_what_is_asked(port: Port):
    for number in range(4):
        port.ask(f"M{number}", "/healthz", None)
        port.ask("GET", f"/v1/nowhere-{number}", None)
        port.ask("GET", f"/v1/versions/x{number}")
    text = port.ask("GET", "/metrics").text
    assert 'route="/v1/versions/{ref}"' in text
    assert "nowhere" not in text
    assert 'method="M' not in text


def test_tls(tmp_path):
    cert, key = certificate(tmp_path)
    with service_in(tmp_path, tls_cert=cert, tls_key=key) as plain:
        assert plain.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=plain.url, verify=trust) as client:
            said = client.post("/v1/session", json={"token": plain.texts["pull"]})
            assert said.status_code == 200
            assert "; secure" in said.headers["set-cookie"].lower()
        with pytest.raises(httpx.HTTPError):
            httpx.get(plain.url.replace("https", "http") + "/healthz", timeout=5)
        with pytest.raises(httpx.ConnectError):
            plain.ask("GET", "/healthz", None)  # nobody vouches for the certificate


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    pem = serialization.Encoding.PEM
    files[0].write_bytes(made.public_bytes(pem))
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(pem, kind, none))
    return files


def test_no_secret_reaches_the_log(port: Port, restored_logs):
    stream = io.StringIO()
    log_to(stream)
    text = port.texts["admin"]
    secret = text.split("_", 2)[2]
    port.ask("PUT", f"/v1/tags/{text}", json={"ref": text})
    port.ask("GET", f"/v1/versions/{text}", params={"token": text})
    port.ask("POST", "/v1/session", None, json={"token": text})
    port.ask("POST", "/v1/curate", json={"where": f"task == '{text}'", "preview": True})
    port.ask("GET", "/v1/versions", None, headers={"authorization": f"Bearer {text}x"})
    found = stream.getvalue()
    assert "request" in found
    audit = (port.state.config.wal / "audit.jsonl").read_text()
    book = (port.state.config.wal / "token.book").read_text()
    for place in (found, audit, book):
        assert text not in place
        assert secret not in place


def _status(port: Port, method: str, path: str, headers: dict[str, str], body: bytes) -> int:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    headers = {**headers, "authorization": f"Bearer {port.texts['admin']}"}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return int(_raw(port, "\r\n".join([*lines, "", ""]).encode() + body).split()[1])


def _raw(port: Port, data: bytes) -> bytes:
    place = urlsplit(port.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(data)
        if not data.startswith((b"GET", b"POST")):
            connection.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while piece := connection.recv(65536):
                found += piece
                if b"\r\n\r\n" in found:
                    break
        except ConnectionResetError:
            pass
    return found
