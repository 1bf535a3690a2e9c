"""Where the daemon's socket is, and starting the daemon when nothing answers there."""

from __future__ import annotations

import os

from .errors import ClientError, ConnectionFailed
from .http import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

START_TIMEOUT = 20.0
"""Seconds that a daemon has to open its socket."""
IN_USE = 3
"""The daemon's exit status when another one has its state directory or its socket."""


def runtime_dir(environ: Mapping[str, str], uid: int) -> str:
    """$XDG_RUNTIME_DIR/ocibuildd; without it /run/user/UID (root: /run), or under $XDG_DATA_HOME."""
    if directory := environ.get("XDG_RUNTIME_DIR"):
        return directory + "/ocibuildd"
    if uid == 0:
        return "/run/ocibuildd"
    if os.access(f"/run/user/{uid}", os.W_OK):
        return f"/run/user/{uid}/ocibuildd"
    data = environ.get("XDG_DATA_HOME") or (environ.get("HOME") or "/") + "/.local/share"
    return data + "/ocibuildd/run"


def socket_path(host: str | None = None) -> tuple[str, bool]:
    """The socket's path, and whether somebody configured it (then no daemon is started).

    ``host`` or $OCIBUILD_HOST: ``unix:///path`` or a path.  Raises ClientError."""
    host = host or os.environ.get("OCIBUILD_HOST")
    if not host:
        return runtime_dir(os.environ, os.geteuid()) + "/ocibuildd.sock", False
    if "://" in host:
        scheme, _, path = host.partition("://")
        if scheme != "unix" or not path.startswith("/"):
            raise ClientError(
                f"host {host!r}: expected unix:///path/to/ocibuildd.sock",
                "the daemon listens on a Unix socket only; forward it with ssh -L to reach it from afar",
            )
        return path, True
    return os.path.abspath(host), True


def connect(host: str | None = None, *, start: bool = True) -> Connection:
    """A connection to the daemon, which is started where none answers and none is configured."""
    path, configured = socket_path(host)
    try:
        return Connection(path)
    except ConnectionFailed as error:
        if configured or not start:
            hint = f"is the daemon running? start it with: ocibuildd{f' --socket {path}' if configured else ''}"
            if isinstance(error.__cause__, PermissionError):
                hint = "the socket belongs to another user"
            raise ConnectionFailed(error.message, hint) from error
        if isinstance(error.__cause__, PermissionError):
            raise
    return _start(path)


def command() -> list[str]:
    """How to run the daemon: the script beside ours, or the module."""
    import sys

    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "ocibuildd")
    if os.path.basename(sys.argv[0]).startswith("ocibuild") and os.access(beside, os.X_OK):
        return [beside]
    beside = os.path.join(os.path.dirname(sys.executable), "ocibuildd")
    if os.access(beside, os.X_OK):
        return [beside]
    return [sys.executable, "-m", "ocibuildd.daemon"]


LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


def _log_file() -> str:
    """The log of a daemon that we start, which can be written.  Raises ClientError."""
    state = os.environ.get("XDG_STATE_HOME") or (os.environ.get("HOME") or "/tmp") + "/.local/state"
    directory = state + "/ocibuildd"
    path = directory + "/ocibuildd.log"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.close(os.open(path, LOG_FLAGS, 0o600))
    except OSError as error:
        raise ClientError(
            f"the daemon can't be started: its log {path}: {error.strerror}",
            "set HOME or XDG_STATE_HOME to a directory that is yours, or start ocibuildd by hand",
        ) from None
    return path


def _start(path: str) -> Connection:
    """Start a daemon of our own, detached, and wait for its socket."""
    import time

    log = _log_file()
    begun = os.path.getsize(log) if os.path.exists(log) else 0
    pid = _spawn([*command(), "--auto"], log)
    deadline = time.monotonic() + START_TIMEOUT
    delay = 0.002
    while True:
        try:
            return Connection(path)
        except ConnectionFailed as error:
            last = error
        if time.monotonic() > deadline:
            break
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended and os.waitstatus_to_exitcode(status) != IN_USE:
            break
        if ended:
            # Another one is just starting (then it will answer), or just ending (then ours may start).
            time.sleep(0.2)
            pid = _spawn([*command(), "--auto"], log)
        time.sleep(delay)
        delay = min(delay * 1.5, 0.05)
    raise ConnectionFailed(
        f"the daemon did not start: {last.message}\n{_tail(log, begun)}".rstrip(),
        f"its log is in {log}; `ocibuildd --check-config` and `ocibuildd --foreground` tell more",
    )


def _spawn(command: list[str], log: str) -> int:
    """A child in its own session with its output in ``log`` (kept to the last starts)."""
    if os.path.exists(log) and os.path.getsize(log) > 4 << 20:
        os.replace(log, log + ".old")
    output = os.open(log, LOG_FLAGS, 0o600)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    environ = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    try:
        return os.posix_spawn(
            command[0], command, environ, setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsigdef=range(1, 32), setsigmask=[],
        )
    except OSError as error:
        raise ConnectionFailed(f"can't start {command[0]}: {error.strerror}") from error
    finally:
        os.close(output)
        os.close(null)


def _tail(log: str, begun: int, lines: int = 5) -> str:
    """The last lines of what it wrote since we started it."""
    try:
        with open(log, errors="replace") as file:
            if os.path.getsize(log) >= begun:
                file.seek(begun)
            return "".join(file.readlines()[-lines:])
    except OSError:
        return ""
