"""Object stores for tests: moto and rclone as real servers, and a proxy that makes trouble.

The proxy sits between the client and moto, so that a lost reply, a refusal or a slow answer is met
on the wire, exactly as it would be. It also lets one `PUT` through at a time: moto looks whether an
object exists and writes it in two steps, where S3 does so in one.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def is_commit(self) -> bool:
        """True for the creation of a commit."""
        return self.method == "PUT" and "/refs/branches/" in self.path and ".json" in self.path


@dataclass(frozen=True)
class Trouble:
    """What the proxy does to one request."""

    answer: tuple[int, str] | None = None
    """Answer with this status and code, and forward nothing."""
    lose: bool = False
    """Forward, then hang up instead of answering."""
    cut: bool = False
    """Hang up half-way through the body of the answer."""
    delay: float = 0.0
    """Forward, then wait so long before answering."""
    hide: bool = False
    """Say 403 where the answer is 404, as S3 does to those who may not list."""


@dataclass
class Proxy:
    """A running proxy."""

    url: str
    requests: list[Request] = field(default_factory=list)
    trouble: Callable[[Request], Trouble | None] = lambda _request: None

    def count(self, *methods: str) -> int:
        """Requests so far by these methods."""
        return sum(request.method in methods for request in self.requests)


def once(matches: Callable[[Request], bool], trouble: Trouble, times: int = 1) -> object:
    """A rule that meets the first few matching requests."""
    left = [times]
    lock = threading.Lock()

    def rule(request: Request) -> Trouble | None:
        with lock:
            if left[0] and matches(request):
                left[0] -= 1
                return trouble
        return None

    return rule


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """A moto server; yields its URL."""
    port = _free_port()
    command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _server(command, port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[str | None]:
    """An rclone server over a folder of buckets, or None where there is no rclone."""
    binary = shutil.which("rclone", path=str(BIN)) or shutil.which("rclone")
    if binary is None:
        yield None
        return
    port = _free_port()
    (folder / "rclone.conf").write_text("")
    command = [binary, "serve", "s3", str(folder / "buckets"), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", "key,secret", "--config", str(folder / "rclone.conf")]
    (folder / "buckets").mkdir()
    with _server(command, port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def proxy(to: str) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    host, port = to.removeprefix("http://").split(":")
    made = Proxy("")
    one_put = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, TimeoutError):  # clients may hang up
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path, dict(self.headers))
            made.requests.append(request)
            trouble = made.trouble(request) or Trouble()
            if trouble.answer is not None:
                status, code = trouble.answer
                said = f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
                return self.reply(status, {"Content-Type": "application/xml"}, said)
            status, headers, said = self.forward(request, body)
            time.sleep(trouble.delay)
            if trouble.hide and status == 404:
                status, said = 403, b"<Error><Code>AccessDenied</Code></Error>"
            if trouble.lose:
                self.close_connection = True
                return None
            return self.reply(status, headers, said, cut=trouble.cut)

        def forward(self, request: Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
            lock = one_put if request.method == "PUT" else contextlib.nullcontext()
            with lock, contextlib.closing(http.client.HTTPConnection(host, int(port))) as there:
                there.request(request.method, request.path, body, dict(request.headers))
                answer = there.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()

        def reply(
            self, status: int, headers: Mapping[str, str], body: bytes, *, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _server(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
