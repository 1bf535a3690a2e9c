from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ocibuild.errors import ConnectionFailed
from ocibuild.http import Connection, quote

Serve = Callable[..., Connection]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A connection whose other end answers with these bytes, piece by piece."""
    path = tmp_path / "s"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    threads: list[threading.Thread] = []
    connections: list[Connection] = []

    def start(*pieces: bytes) -> Connection:
        def run() -> None:
            with listening.accept()[0] as peer:
                peer.recv(65536)
                for piece in pieces:
                    peer.sendall(piece)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        connections.append(Connection(str(path)))
        return connections[-1]

    yield start
    for thread in threads:
        thread.join(5)
    for connection in connections:
        connection.close()
    listening.close()


ANSWER = CHUNKED + b"4\r\n{\"a\"\r\n6;x=y\r\n:1}\n{}\r\n1\r\n\n\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize("size", [len(ANSWER), 1, 7])
def test_chunks_and_lines_are_found_however_the_bytes_come(serve: Serve, size: int) -> None:
    pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    assert list(serve(*pieces).request("GET", "/").lines()) == [b'{"a":1}', b"{}"]


def test_a_body_of_known_length_leaves_what_follows(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    connection = serve(head + b"{}" + b"HTTP/1.1 204 No\r\n\r\n")
    assert connection.request("GET", "/").json() == {}
    assert connection.buffer == b"HTTP/1.1 204 No\r\n\r\n"


def test_an_interim_answer_is_skipped(serve: Serve) -> None:
    answer = serve(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 None\r\n\r\n").request("POST", "/")
    assert (answer.status, answer.read()) == (204, b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", CHUNKED + b"zz\r\n",
        CHUNKED + b"5\r\nab", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b"x" * 70_000,
    ],
)
def test_what_is_no_whole_answer_is_an_error(serve: Serve, raw: bytes) -> None:
    with pytest.raises(ConnectionFailed):
        serve(raw).request("GET", "/").read()


def test_a_query_value_is_quoted_whole() -> None:
    assert quote("a b&c=d/e:f@é\udcff") == "a%20b%26c%3Dd/e:f@%C3%A9%FF"
