"""Named points where a crash test ends the process.

``OCIBUILD_FAILPOINT=name[:n][=action]`` in the environment, read once at import: at the nth time (from 1)
that the point is passed, the process is killed (SIGKILL, as a power cut has no handlers), or with
``=enospc`` / ``=eio`` the errno is raised.  Unset, :func:`hit` is an empty function.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

_ERRNOS = {"enospc": errno.ENOSPC, "eio": errno.EIO}


def _nothing(name: str) -> None:
    """Nobody asked for a failure."""


def _armed(setting: str) -> Callable[[str], None]:
    spec, _, action = setting.partition("=")
    wanted, _, count = spec.partition(":")
    left = int(count or "1")

    def hit(name: str) -> None:
        nonlocal left
        if name != wanted:
            return
        left -= 1
        if left:
            return
        if action in _ERRNOS:
            raise OSError(_ERRNOS[action], os.strerror(_ERRNOS[action]))
        os.kill(os.getpid(), signal.SIGKILL)

    return hit


hit: Callable[[str], None] = (
    _armed(os.environ["OCIBUILD_FAILPOINT"]) if os.environ.get("OCIBUILD_FAILPOINT") else _nothing
)
"""``hit("commit.before-row")``: this point was reached."""
