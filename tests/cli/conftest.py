"""A daemon that says what a test wants it to say."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Request:
    """What the client sent."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What it gets: one JSON value, lines of JSON, or bytes."""

    body: Any = None
    status: int = 200
    lines: list[dict[str, Any]] | None = None
    raw: bytes | None = None
    cut: bool = False
    """Close the connection in the middle."""


@dataclass
class FakeDaemon:
    """``answers``: by ``"METHOD /path"``; an Answer, or a function of the request."""

    socket: Path
    answers: dict[str, Answer | Callable[[Request], Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        found = self.answers.get(f"{request.method} {request.path}")
        if found is None:
            return Answer({"code": "not-found", "message": f"no {request.path}"}, 404)
        return found(request) if callable(found) else found

    def last(self, path: str) -> Request:
        return next(request for request in reversed(self.requests) if request.path == path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: object) -> None:
        return

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, path, query, headers, self._body())
        with contextlib.suppress(BrokenPipeError):
            self._send(self.server.daemon.answer(request))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        if answer.lines is not None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in answer.lines:
                data = json.dumps(line).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            if answer.cut:
                self.close_connection = True
                return
            self.wfile.write(b"0\r\n\r\n")
            return
        data = answer.raw if answer.raw is not None else json.dumps(answer.body).encode()
        self.send_header("Content-Length", str(len(data) + 10 * answer.cut))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = answer.cut

    do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = _handle


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that left early is none."""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A fake daemon, and the client's environment pointing at it."""
    daemon = FakeDaemon(tmp_path / "d.sock")
    server = Server(str(daemon.socket), Handler)
    server.daemon = daemon  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OCIBUILD_HOST", f"unix://{daemon.socket}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield daemon
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process."""
    from ocibuild.main import main

    def run(*argv: str | Path) -> Outcome:
        code = main([str(word) for word in argv])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run
