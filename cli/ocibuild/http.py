"""HTTP/1.1 over a Unix socket: just what the daemon speaks, over the bare socket module.

``http.client`` and ``socket`` would cost more to import than all the rest of a command.
"""

from __future__ import annotations

import _socket

from .errors import ConnectionFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

MAX_HEADER = 64 << 10
MAX_LINE = 16 << 20
READ_SIZE = 256 << 10


class Connection:
    """One connection.  Requests go one after the other; a Response must be read to its end before
    the next one.  Raises ConnectionFailed for all that goes wrong below HTTP."""

    def __init__(self, path: str, timeout: float | None = None):
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.buffer = bytearray()
        self.path = path
        try:
            self.socket.settimeout(timeout)
            self.socket.connect(_address(path))
        except OSError as error:
            self.socket.close()
            raise ConnectionFailed(f"can't connect to {path}: {error.strerror or error}") from error

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes | memoryview) -> None:
        """Bytes of a request body (see ``send_chunk``), or a frame of a hijacked connection."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise ConnectionFailed(f"{self.path}: {error.strerror or error}") from error

    def send_chunk(self, data: bytes) -> None:
        """One chunk of a chunked request body; b"" ends it."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def start(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None
    ) -> None:
        """Send a request's head, and its body where it is whole (None: chunks follow)."""
        lines = [f"{method} {target} HTTP/1.1", "Host: ocibuildd"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is None:
            lines.append("Transfer-Encoding: chunked")
        elif body or method not in ("GET", "HEAD", "DELETE"):
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))

    def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes | Iterable[bytes] = b"",
    ) -> Response:
        """Send a request and read the head of its answer.

        An iterable body is sent in chunks; where the daemon answers before it has read all of it
        (an error), the answer counts."""
        if isinstance(body, bytes):
            self.start(method, target, headers or {}, body)
            return Response(self, method)
        self.start(method, target, headers or {}, None)
        try:
            for chunk in body:
                if chunk:
                    self.send_chunk(chunk)
            self.send_chunk(b"")
        except ConnectionFailed:
            try:
                return Response(self, method)
            except ConnectionFailed:
                pass
            raise
        return Response(self, method)

    def fill(self) -> bool:
        """Read more into the buffer; False at the end of the stream.  Raises TimeoutError."""
        try:
            data = self.socket.recv(READ_SIZE)
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionFailed(f"{self.path}: {error.strerror or error}") from error
        self.buffer += data
        return bool(data)

    def read_until(self, mark: bytes, limit: int) -> bytes:
        """The bytes up to and including ``mark``."""
        searched = 0
        while True:
            found = self.buffer.find(mark, searched)
            if found >= 0:
                break
            if len(self.buffer) > limit:
                raise ConnectionFailed(f"{self.path}: the answer is not HTTP (no end of its head)")
            searched = max(0, len(self.buffer) - len(mark) + 1)
            if not self.fill():
                raise ConnectionFailed(f"{self.path}: the daemon closed the connection")
        end = found + len(mark)
        data = bytes(self.buffer[:end])
        del self.buffer[:end]
        return data


class Response:
    """An answer: ``status``, ``headers`` (names in lower case) and a body that is read once."""

    def __init__(self, connection: Connection, method: str):
        self.connection = connection
        head = connection.read_until(b"\r\n\r\n", MAX_HEADER)
        while head.startswith(b"HTTP/1.1 100"):
            head = connection.read_until(b"\r\n\r\n", MAX_HEADER)
        lines = head.decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ConnectionFailed(f"{connection.path}: the answer is not HTTP: {lines[0][:80]!r}")
        self.status = int(rest[:3])
        self.reason = rest[4:]
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                self.headers[name.lower()] = value.strip()
        self.chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        self.left: int | None = int(length) if length.isdecimal() else None
        if method == "HEAD" or self.status in (204, 304):
            self.left, self.chunked = 0, False
        self._in_chunk = 0
        self._ended = self.left == 0

    def chunk(self) -> bytes:
        """The next bytes of the body as they come; b"" at its end.

        Raises TimeoutError when the connection's timeout passes first (call again)."""
        if self._ended:
            return b""
        connection = self.connection
        if self.chunked and not self._in_chunk:
            self._in_chunk = self._chunk_head()
            if not self._in_chunk:
                self._ended = True
                return b""
        buffer = connection.buffer
        if not buffer and not connection.fill():
            if self.chunked or self.left is not None:
                raise ConnectionFailed(f"{connection.path}: the daemon closed the connection")
            self._ended = True
            return b""
        size = len(buffer)
        if self.chunked:
            size = min(size, self._in_chunk)
            self._in_chunk -= size
        elif self.left is not None:
            size = min(size, self.left)
            self.left -= size
            self._ended = not self.left
        data = bytes(buffer[:size])
        del buffer[:size]
        return data

    @property
    def has_more(self) -> bool:
        """Has more of the body come already?  What only ends a chunk is none."""
        between = self.chunked and not self._in_chunk
        return len(self.connection.buffer) > (len(b"\r\n") if between else 0)

    def _chunk_head(self) -> int:
        """The size of the next chunk; what ends the one before is skipped (RFC 9112, 7.1)."""
        line = self.connection.read_until(b"\r\n", MAX_HEADER)
        if line == b"\r\n":
            line = self.connection.read_until(b"\r\n", MAX_HEADER)
        text = line.partition(b";")[0].strip()
        try:
            size = int(text, 16)
        except ValueError:
            raise ConnectionFailed(
                f"{self.connection.path}: bad chunk size {text[:40]!r}"
            ) from None
        if not size:
            while self.connection.read_until(b"\r\n", MAX_HEADER) != b"\r\n":
                pass
        return size

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.chunk():
            yield chunk

    def read(self) -> bytes:
        return b"".join(self)

    def json(self) -> Any:
        """The body as JSON; None for an empty one."""
        from .jsonlite import loads

        data = self.read()
        try:
            return loads(data) if data else None
        except ValueError:
            raise ConnectionFailed(
                f"{self.connection.path}: the answer is not JSON: {data[:80]!r}"
            ) from None

    def lines(self, tick: float | None = None) -> Iterator[bytes]:
        """Each line of the body without its end; with ``tick``, b"" each time so many seconds pass
        without any."""
        self.connection.socket.settimeout(tick)
        pending = b""
        while True:
            try:
                data = self.chunk()
            except TimeoutError:
                yield b""
                continue
            if not data:
                break
            *whole, pending = (pending + data).split(b"\n")
            for line in whole:
                if line := line.strip():
                    yield line
            if len(pending) > MAX_LINE:
                raise ConnectionFailed(f"{self.connection.path}: a line of over {MAX_LINE} bytes")
        if pending.strip():
            yield pending.strip()


def _address(path: str) -> str:
    """A path that fits into sockaddr_un (107 bytes): a longer one is reached by a descriptor of its
    directory."""
    import os

    if len(os.fsencode(path)) <= 107:
        return path
    directory, name = os.path.split(path)
    fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{fd}/{name}"


def quote(text: str) -> str:
    """Percent-encode for a query value (RFC 3986: only unreserved characters stay)."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(c) if c in _UNRESERVED else f"%{c:02X}" for c in data)


def query(parameters: Iterable[tuple[str, object]]) -> str:
    """``?a=1&b=x``; values that are None, False or "" are left out, True is 1."""
    parts = []
    for name, value in parameters:
        if value is None or value is False or value == "":
            continue
        parts.append(f"{name}={quote('1' if value is True else str(value))}")
    return "?" + "&".join(parts) if parts else ""


_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/:@,")
