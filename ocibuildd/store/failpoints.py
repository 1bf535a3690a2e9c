"""Named points where a crash test ends the process.

``OCIBUILD_FAILPOINT=name[:n][=action]`` in the environment, read once at import: at the nth time (from 1)
that the point is passed, the process is killed (SIGKILL: no handlers, as in a power cut), or with
``=enospc`` / ``=eio`` that error is raised.  ``@FILE`` in its place: FILE says so, once it is there (a
daemon is armed while it runs).  Without it :func:`hit` does nothing.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

_ERRNOS = {"enospc": errno.ENOSPC, "eio": errno.EIO}
_armed: Callable[[str], None] | None = None


def hit(name: str) -> None:
    """This point was reached: a name says where and when, as in "layer.before-row"."""
    if _armed is not None:
        _armed(name)


def arm(setting: str) -> None:
    """Arm one point, as the environment does; "" = none."""
    global _armed
    if setting.startswith("@"):
        _armed = _told(setting[1:])
    else:
        _armed = _trap(setting) if setting else None


def _told(path: str) -> Callable[[str], None]:
    setting, trap = "", _trap("")

    def told(name: str) -> None:
        nonlocal setting, trap
        try:
            with open(path) as file:
                said = file.read().strip()
        except FileNotFoundError:
            said = ""
        if said != setting:
            setting, trap = said, _trap(said)
        trap(name)

    return told


def _trap(setting: str) -> Callable[[str], None]:
    spec, _, action = setting.partition("=")
    wanted, _, count = spec.partition(":")
    left = int(count or "1")

    def trap(name: str) -> None:
        nonlocal left
        if name != wanted:
            return
        left -= 1
        if left:
            return
        if action in _ERRNOS:
            raise OSError(_ERRNOS[action], os.strerror(_ERRNOS[action]))
        os.kill(os.getpid(), signal.SIGKILL)

    return trap


arm(os.environ.get("OCIBUILD_FAILPOINT", ""))
