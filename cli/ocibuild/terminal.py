"""A process's standard streams over one HTTP exchange: frames up and frames down at the same time.

A frame is a type (1 byte), a length (4 bytes, big endian) and so many bytes.  Up: 0 the request
(JSON), 1 input, 2 end of input, 3 size of the terminal (JSON: rows, columns), 4 a signal's name.
Down: 1 output, 2 error output, 3 how it ended (JSON: exit_code, signal), 4 an error (JSON).
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

from .errors import ApiError, ConnectionFailed
from .http import Connection, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC, STDIN, END, RESIZE, SIGNAL = range(5)
STDOUT, STDERR, EXIT, ERROR = range(1, 5)
CONTENT_TYPE = "application/vnd.ocibuild.frames"
READ = 32 << 10
MAX_FRAME = 16 << 20


def frame(kind: int, data: bytes = b"") -> bytes:
    return bytes((kind,)) + len(data).to_bytes(4, "big") + data


class Session:
    """One process, from the request to its end."""

    def __init__(self, connection: Connection, target: str, spec: dict[str, Any]):
        self.connection = connection
        self.spec = spec
        self.stdin_open = bool(spec.get("stdin"))
        connection.start("POST", target, {"Content-Type": CONTENT_TYPE}, None)
        connection.send_chunk(frame(SPEC, json.dumps(spec).encode()))
        if not self.stdin_open:
            connection.send_chunk(frame(END))
        self._pending = b""
        self._status: int | None = None
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals: list[int] = []

    def run(self) -> int:
        """Copy both ways until the process has ended; its exit status.  Raises ApiError."""
        response = Response(self.connection, "POST")
        if response.status >= 400:
            raise ApiError(response.json() or {}, response.status)
        saved = self._raw_mode() if self.spec.get("tty") else None
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGWINCH, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            return self._copy(response)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if saved is not None:
                import termios

                termios.tcsetattr(0, termios.TCSADRAIN, saved)

    def _raw_mode(self) -> Any:
        import termios
        import tty

        saved = termios.tcgetattr(0)
        tty.setraw(0)
        return saved

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        os.write(self._wake[1], b"x")

    def _copy(self, response: Response) -> int:
        sock = self.connection.socket
        sock.settimeout(None)
        if response.has_more:
            self._take(response)
        while self._status is None:
            watched = [sock.fileno(), self._wake[0], *([0] if self.stdin_open else [])]
            ready, _, _ = select.select(watched, [], [])
            if self._wake[0] in ready:
                os.read(self._wake[0], 100)
                self._send_signals()
            if 0 in ready:
                self._send_input()
            if sock.fileno() in ready:
                self._take(response)
        self.connection.close()
        return self._status

    def _send_signals(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGWINCH:
                if self.spec.get("tty"):
                    size = os.get_terminal_size(0)
                    body = json.dumps({"rows": size.lines, "columns": size.columns})
                    self.connection.send_chunk(frame(RESIZE, body.encode()))
            else:
                self.connection.send_chunk(frame(SIGNAL, signal.Signals(number).name.encode()))

    def _send_input(self) -> None:
        try:
            data = os.read(0, READ)
        except OSError:
            data = b""
        if data:
            self.connection.send_chunk(frame(STDIN, data))
        else:
            self.stdin_open = False
            self.connection.send_chunk(frame(END))

    def _take(self, response: Response) -> None:
        """Read what has come, and all frames that are whole.  A chunk's head may come without its
        data: then this waits for it, which is short."""
        data = response.chunk()
        if not data:
            raise ConnectionFailed("the daemon went away in the middle")
        self._pending += data
        while response.has_more:
            more = response.chunk()
            if not more:
                break
            self._pending += more
        while self._status is None and len(self._pending) >= 5:
            size = int.from_bytes(self._pending[1:5], "big")
            if size > MAX_FRAME:
                raise ConnectionFailed(f"a frame of {size} bytes from the daemon")
            if len(self._pending) < 5 + size:
                break
            kind, body = self._pending[0], self._pending[5 : 5 + size]
            self._pending = self._pending[5 + size :]
            self._handle(kind, body)

    def _handle(self, kind: int, body: bytes) -> None:
        if kind in (STDOUT, STDERR):
            out = sys.stdout.buffer if kind == STDOUT else sys.stderr.buffer
            out.write(body)
            out.flush()
        elif kind == EXIT:
            ended = json.loads(body)
            code, number = int(ended.get("exit_code") or 0), int(ended.get("signal") or 0)
            self._status = 128 + number if number else code
            if ended.get("message"):
                from .text import escape

                print(f"ERROR: {escape(str(ended['message']))}", file=sys.stderr)
        elif kind == ERROR:
            raise ApiError(json.loads(body))
