"""What a request asks of its steps, checked and decoded.  Pure."""

from __future__ import annotations

import base64
import binascii
import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import BuildError, Denied, InvalidArgument, Unavailable, Unsupported
from ..model.graph import Plan, Run, Vertex
from ..model.request import BuildRequest
from ..ports import Output
from ..sandbox.cgroup import mask_of, unenforced
from ..store.blobs import disk_error
from .context import OpenContext
from .info import Settings

if TYPE_CHECKING:
    from .build import Site

SOURCE_LINES = 3
"""Lines of the Dockerfile shown before and after the one that failed."""


def build_name(request: BuildRequest) -> str:
    """What a build is called: its first tag, else where its files come from."""
    if request.tags:
        return request.tags[0]
    context = request.context
    where = getattr(context, "path", "") or getattr(context, "url", "") or "-"
    return os.path.basename(str(where).rstrip("/")) or str(where)


def variant(output: Output, epoch: int | None = None) -> dict[str, Any]:
    """The options that change what a layer is (not how it is compressed).  epoch: the time of what COPY copies."""
    if output["clamp"] is not None:
        return {"clamp": output["clamp"]}
    return {} if epoch is None else {"epoch": epoch}


def decode_secrets(request: BuildRequest) -> dict[str, bytes]:
    """id → bytes.  Raises InvalidArgument."""
    try:
        return {secret.id: base64.b64decode(secret.data, validate=True) for secret in request.secrets}
    except binascii.Error as error:
        raise InvalidArgument(f"secret: not base64: {error}") from None


def parse_hosts(entries: Iterable[str]) -> list[tuple[str, str]]:
    """--add-host: NAME:ADDRESS or NAME=ADDRESS.  Raises InvalidArgument."""
    found = []
    for entry in entries:
        name, sep, address = entry.partition("=" if "=" in entry else ":")
        address = address.strip("[]") if address.startswith("[") else address
        if not sep or not name or not address or any(c.isspace() for c in entry):
            raise InvalidArgument(f"host {entry!r}: NAME:ADDRESS is wanted")
        found.append((name, address))
    return found


UNLIMITED = 1 << 61
"""What Docker's -1 (of --memory-swap) comes to."""


def step_limits(request: BuildRequest, settings: Settings) -> dict[str, int]:
    """The daemon's limits, lowered where the request asks for less.  Raises InvalidArgument."""
    asked = request.limits
    wanted = {
        "memory": asked.memory, "pids": asked.pids, "cpu_quota": asked.cpu_quota,
        "cpu_period": asked.cpu_period, "upper_bytes": asked.upper_bytes, "nofile": asked.nofile,
        "timeout": asked.step_timeout, "cpu_shares": asked.cpu_shares, "shm_size": asked.shm_size,
        "memory_swap": UNLIMITED if asked.memory_swap < 0 else asked.memory_swap,
    }
    limits = dict(settings.limits)
    for name, value in wanted.items():
        if value and name == "cpu_period":
            limits[name] = value
        elif value:
            ceiling = limits.get(name) or value
            limits[name] = min(value, ceiling)
    for name, text in (("cpuset_cpus", asked.cpuset_cpus), ("cpuset_mems", asked.cpuset_mems)):
        if text:
            try:
                limits[name] = mask_of(text)
            except ValueError as error:
                raise InvalidArgument(f"{name.replace('_', '-')}: {error}") from None
    return limits


def limit_warnings(plan: Plan, request: BuildRequest, site: Site) -> list[str]:
    """Limits that this host can't hold the plan's steps to, for the build's log."""
    if not any(isinstance(vertex.op, Run) for vertex in plan.vertices):
        return []
    return unenforced(step_limits(request, site.settings), site.nsd.capabilities.controllers)


def check_entitlements(
    plan: Plan, request: BuildRequest, settings: Settings, context: OpenContext
) -> None:
    """network=host and security=insecure want the client's leave and the daemon's.  Raises Denied, and
    Unsupported for devices, of which we have none to give."""
    granted = set(request.allow) | ({"network.host"} if request.network == "host" else set())
    for vertex in plan.vertices:
        if not isinstance(vertex.op, Run):
            continue
        wanted = []
        if vertex.op.network == "host":
            wanted.append("network.host")
        if vertex.op.security == "insecure":
            wanted.append("security.insecure")
        where = located(vertex, context) if vertex.location is not None else {}
        if vertex.op.devices:
            raise Unsupported(f"{vertex.name}: --device: this builder gives no devices to steps", details=where)
        for name in wanted:
            if name not in granted:
                raise Denied(f"{vertex.name}: {name} is not allowed",
                             hint=f"give the build --allow {name}", details=where)
            if name not in settings.entitlements:
                raise Denied(f"{vertex.name}: {name} is not allowed by the daemon's configuration",
                             hint=f'add "{name}" to allow in [entitlements] of ocibuildd.toml', details=where)


def of_system(error: OSError) -> BuildError:
    """What the host refused us, as a build's failure."""
    known = disk_error(error, "the state directory")
    if isinstance(known, BuildError):
        return known
    what = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Unavailable(f"the daemon has no file descriptors left ({what})",
                           hint="raise LimitNOFILE of its unit (ulimit -n), or run fewer builds at once")
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return BuildError(f"the host refused something: {where}{what}", hint="the daemon's log tells more")


def located(vertex: Vertex, context: OpenContext) -> dict[str, object]:
    """file, line, end_line and the lines around them."""
    assert vertex.location is not None
    lines = context.dockerfile.decode("utf-8", "replace").splitlines()
    start, end = vertex.location.start, vertex.location.end
    first, last = max(1, start - SOURCE_LINES), min(len(lines), end + SOURCE_LINES)
    source = [[number, lines[number - 1]] for number in range(first, last + 1)]
    return {"file": context.filename, "line": start, "end_line": end, "source": source}
