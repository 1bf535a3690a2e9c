"""The service manager's protocols: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

FIRST_FD = 3
MAX_FDS = 64
OURS = (
    "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID",
    "CREDENTIALS_DIRECTORY", "LISTEN_PIDFDID",
)
"""What must not reach our children."""


class Notifier:
    """Datagrams to $NOTIFY_SOCKET; silent without one.  ``watchdog``: seconds between two signs of life
    that the manager wants at most, 0 = none wanted."""

    def __init__(self, environ: MutableMapping[str, str]):
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog = 0.0
        usec = environ.get("WATCHDOG_USEC", "")
        if usec.isdecimal() and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self.watchdog = int(usec) / 1e6

    def send(self, *lines: str) -> None:
        """One datagram of ``KEY=value`` lines; losing it is no error."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall("\n".join(lines).encode("utf-8", "replace"))

    def ready(self, status: str) -> None:
        self.send("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """systemd.service(5), Type=notify-reload: the time is CLOCK_MONOTONIC's."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, grace: float) -> None:
        usec = int((grace + 10) * 1e6)
        self.send("STOPPING=1", "STATUS=running builds may finish", f"EXTEND_TIMEOUT_USEC={usec}")

    def alive(self) -> None:
        self.send("WATCHDOG=1")


def _line(text: str) -> str:
    return text.replace("\n", " ")


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Listening sockets that the manager passed, CLOEXEC set; [] when it passed none to this process.

    Descriptors that are no listening Unix stream sockets are closed."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    found = []
    for fd in range(FIRST_FD, FIRST_FD + min(int(count) if count.isdecimal() else 0, MAX_FDS)):
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            continue
        sock.set_inheritable(False)
        if sock.family == socket.AF_UNIX and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.append(sock)
        else:
            sock.close()
    return found


def forget(environ: MutableMapping[str, str]) -> None:
    """Take the manager's variables away, so that children don't take themselves for us."""
    for name in OURS:
        environ.pop(name, None)
