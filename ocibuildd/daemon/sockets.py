"""Where state and socket are, and opening the socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from ..errors import BuildError, Conflict, Denied

BACKLOG = 512
MAX_PATH = 107
"""Bytes of a socket's path (unix(7): 108 with the final NUL)."""


def state_directory(configured: str, environ: Mapping[str, str]) -> Path:
    """``$XDG_DATA_HOME/ocibuildd``; the service manager's $STATE_DIRECTORY where it sets one."""
    if configured:
        return Path(configured).expanduser().absolute()
    if managed := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(managed)
    data = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/", ".local/share")
    return Path(data, "ocibuildd").absolute()


def runtime_directory(environ: Mapping[str, str], uid: int) -> Path:
    """``$XDG_RUNTIME_DIR/ocibuildd``; without it /run/user/UID (root: /run), or below the data home."""
    if directory := environ.get("XDG_RUNTIME_DIR"):
        return Path(directory, "ocibuildd")
    if uid == 0:
        return Path("/run/ocibuildd")
    if os.access(f"/run/user/{uid}", os.W_OK):
        return Path(f"/run/user/{uid}/ocibuildd")
    data = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/", ".local/share")
    return Path(data, "ocibuildd/run")


def socket_path(configured: str, environ: Mapping[str, str], uid: int) -> Path:
    if configured:
        return Path(configured.removeprefix("unix://")).expanduser().absolute()
    return runtime_directory(environ, uid) / "ocibuildd.sock"


def _directory(path: Path) -> int:
    """The socket's directory, made 0700 where it is missing; ours alone to write.  Raises Denied."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    found = os.fstat(fd)
    writable = stat.S_IMODE(found.st_mode) & 0o022
    if found.st_uid not in (os.geteuid(), 0) or (writable and not found.st_mode & stat.S_ISVTX):
        os.close(fd)
        raise Denied(
            f"socket directory {path}: owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}; "
            "others could replace the socket",
            hint=f"chmod 700 {path}",
        )
    return fd


def listen(path: Path) -> socket.socket:
    """A listening socket, mode 0600.  A socket that nobody answers on any more is replaced.

    Raises Conflict when somebody does, Denied, BuildError."""
    try:
        directory = _directory(path.parent)
    except OSError as error:
        raise BuildError(f"socket directory {path.parent}: {error.strerror}") from None
    # A path that doesn't fit into sockaddr_un is reached through its directory's descriptor.
    fits = len(os.fsencode(path)) <= MAX_PATH
    address = str(path) if fits else f"/proc/self/fd/{directory}/{path.name}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(address, path)
        mask = os.umask(0o177)
        try:
            sock.bind(address)
        finally:
            os.umask(mask)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise BuildError(f"socket {path}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


def _clear(address: str, path: Path) -> None:
    """Take a dead daemon's socket away.  Raises Conflict."""
    try:
        found = os.lstat(address)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Conflict(f"socket {path}: there is something else of that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise Conflict(f"socket {path}: in use ({error})") from None
        else:
            raise Conflict(f"socket {path}: another daemon answers there")
    os.unlink(address)


def remove(path: Path, sock: socket.socket) -> None:
    """Take our own socket away at the end; another daemon's that replaced it stays."""
    try:
        bound = sock.getsockname()
        if os.path.samestat(os.stat(path), os.stat(bound if isinstance(bound, str) else path)):
            path.unlink()
    except OSError:
        pass
