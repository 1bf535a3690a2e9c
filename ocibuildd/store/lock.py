"""One daemon a state directory."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from ..errors import Conflict
from .blobs import disk_error


class Lock:
    """``<state>/lock``, held until :meth:`release` or the end of the process.

    flock, so that a crash leaves nothing to clean up.  Raises Conflict naming the holder's pid.
    """

    def __init__(self, state: Path):
        path = state / "lock"
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise disk_error(error, f"state directory {state}") from error
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self.fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self.fd)
            self.fd = -1
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise Conflict(
                f"state directory {state}: in use by another daemon (pid {holder})",
                hint="stop it, or give this one a state directory of its own (--state-dir)",
                details={"pid": holder, "path": str(state)},
            ) from None
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one in; harmless when done twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
