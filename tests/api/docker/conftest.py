"""The daemon as a Docker engine, and what it may fetch."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from docker_engine import Engine, Page
from fixtures import Daemon

Serve = Callable[[Mapping[str, Page]], str]


@pytest.fixture
def engine(daemon: Daemon) -> Engine:
    return Engine(str(daemon.socket))


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Start an HTTP server of some pages, by path; what is no page isn't found.  ``127.0.0.1:PORT``."""
    with ExitStack() as ends:

        def start(pages: Mapping[str, Page]) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    page = pages.get(self.path, Page())
                    self.send_response(302 if page.place else 200 if page.body else 404)
                    if page.place:
                        self.send_header("Location", page.place)
                    self.send_header("Content-Type", page.kind)
                    self.send_header("Content-Length", str(len(page.body)))
                    self.end_headers()
                    self.wfile.write(page.body)

                def log_message(self, *_: Any) -> None:
                    """Say nothing."""

            served = ends.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            ends.callback(thread.join)
            ends.callback(served.shutdown)
            return f"127.0.0.1:{served.server_port}"

        yield start
