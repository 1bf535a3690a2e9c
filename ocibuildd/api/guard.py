"""Who may call, and how what goes wrong is answered: the middlewares of the whole socket.

The socket is 0600 in a 0700 directory; beside that, each request's peer must be the daemon's own user or
root (SO_PEERCRED, unix(7)), and nothing that a browser sends is taken: a page that reached a Unix
socket through some forwarder would send ``Origin`` or ``Sec-Fetch-Site``, and a rebound name as ``Host``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..errors import BuildError, Denied
from .respond import problem
from .services import SERVICES, services

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BROWSER_HEADERS = ("Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode")
_LOCAL_HOST = re.compile(
    r"(?:[^.]*|localhost|[a-z0-9.-]+\.localhost|[^/]*\.sock|127(?:\.\d{1,3}){3}|\[::1\]|(?:/|%2f).*)"
    r"(?::\d{1,5})?\Z",
    re.IGNORECASE,
)
"""Names that no public DNS gives: what local clients put into ``Host`` (docker sends
``api.moby.localhost`` or ``docker``, others ``localhost`` or the socket's path)."""


def peer_credentials(request: web.Request) -> tuple[int, int]:
    """``pid, uid`` of the other end, (-1, -1) when it is no Unix socket."""
    transport = request.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return -1, -1
    # uvloop's stand-in for a socket has no getsockopt: a real one borrows its descriptor.
    real = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=sock.fileno())
    try:
        data = real.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    finally:
        real.detach()
    pid, uid, _gid = struct.unpack("3i", data)
    return pid, uid


def admit(request: web.Request, owner: int) -> None:
    """Raises Denied for a peer or a request that must not come in."""
    for name in BROWSER_HEADERS:
        if name in request.headers:
            raise Denied(f"a request with {name}: browsers are not served")
    host = request.headers.get("Host", "")
    if not _LOCAL_HOST.match(host):
        raise Denied(f"host {host[:100]!r}: not a name for a local daemon")
    _, uid = peer_credentials(request)
    if uid not in (owner, 0):
        raise Denied(f"peer uid {uid}: the socket belongs to uid {owner}")


CLIENT_LEFT = 499
"""What stands in for an answer that nobody waits for."""


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Admission, counting for the idle end, and every error as JSON."""
    served = request.app[SERVICES]
    served.active += 1
    try:
        admit(request, served.owner)
        return await handler(request)
    except BuildError as error:
        return problem(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        text, hint = error.text or error.reason, ""
        if error.status in (404, 405):
            text = f"{request.method} {request.path[:200]}: {error.reason.lower()}"
            hint = "GET /v1/openapi.json lists what there is"
        return problem(BuildError(text, hint=hint), error.status, _code(error.status))
    except ConnectionError:
        if request.transport is not None and not request.transport.is_closing():
            raise
        return web.Response(status=CLIENT_LEFT)
    except asyncio.CancelledError:
        raise
    except OSError as error:
        log.exception("%s %s", request.method, request.path)
        return problem(BuildError(f"{request.method} {request.path}: {error}"))
    except Exception:
        log.exception("%s %s", request.method, request.path)
        return problem(
            BuildError("internal error: the daemon's log has more", hint="ocibuildd --foreground"),
        )
    finally:
        served.active -= 1
        served.last = time.monotonic()


def _code(status: int) -> str:
    return {404: "not-found", 405: "invalid-argument", 413: "too-large", 415: "invalid-argument"}.get(
        status, "http"
    )


def is_local(request: web.Request) -> bool:
    """A peer on the Unix socket whose uid was checked: it may name directories of this host."""
    return peer_credentials(request)[1] in (services(request).owner, os.geteuid(), 0)
