"""/v1/run and /v1/debug: a throw-away sandbox of an image, or of a step that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from aiohttp import web

from ..errors import Denied, InvalidArgument, Unavailable
from ..model.oci import ContainerConfig
from ..ports import RunSpec
from .frames import Session, first_frame
from .services import Services, services

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME = "ocibuild"


class RunBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/run, first frame.  entrypoint: None = the image's.  memory: bytes; timeout: seconds."""

    image: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    entrypoint: str | None = None
    cwd: str = ""
    user: str = ""
    network: Literal["", "default", "none", "host"] = ""
    add_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    hostname: str = ""
    memory: int = 0
    cpuset_cpus: str = ""
    timeout: int = 0
    tty: bool = False
    stdin: bool = False
    rows: int = 0
    columns: int = 0
    term: str = ""


class DebugBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/debug, first frame.  build: an id or a prefix of one, "" = the newest."""

    build: str = ""
    args: tuple[str, ...] = ()
    tty: bool = False
    stdin: bool = False
    rows: int = 0
    columns: int = 0
    term: str = ""


def command(body: RunBody, config: ContainerConfig) -> list[str]:
    """The argument vector, as docker run makes it: an entry point of the caller's takes the image's
    command away too.  Raises InvalidArgument."""
    if body.entrypoint is not None:
        found = ([body.entrypoint] if body.entrypoint else []) + list(body.args)
    else:
        found = list(config.entrypoint or ()) + list(body.args or config.cmd or ())
    if not found:
        raise InvalidArgument(
            f"image {body.image} names no command", hint="give one after the image's name"
        )
    return found


def environment(body: RunBody, config: ContainerConfig) -> list[list[str]]:
    """The image's variables, then the caller's; PATH always, TERM with a terminal."""
    found = {"PATH": PATH}
    for item in config.env or ():
        name, _, value = item.partition("=")
        found[name] = value
    if body.tty:
        found["TERM"] = body.term[:100] or "xterm"
    found.update(body.env)
    return [[name, value] for name, value in found.items()]


def hosts(given: tuple[str, ...]) -> list[list[str]]:
    """``name:address`` (or ``name=address``) texts.  Raises InvalidArgument."""
    found = []
    for text in given:
        name, separator, address = text.partition("=" if "=" in text else ":")
        if not name or not separator or not address:
            raise InvalidArgument(f"host {text[:100]!r}: expected NAME:ADDRESS")
        found.append([name, address.strip("[]")])
    return found


def run_spec(
    body: RunBody, config: ContainerConfig, lowers: list[str], *, no_new_privileges: bool = False
) -> RunSpec:
    """The whole sandbox: nothing of it is kept (``tree`` is "")."""
    limits = {"memory": body.memory, "timeout": body.timeout}
    spec: RunSpec = {
        "lowers": lowers, "tree": "", "args": command(body, config),
        "env": environment(body, config), "cwd": body.cwd or config.working_dir or "/",
        "user": body.user or config.user, "hostname": body.hostname or HOSTNAME,
        "network": body.network or "default", "security": "sandbox", "mounts": [],
        "hosts": hosts(body.add_hosts),
        "dns": {"servers": list(body.dns), "search": [], "options": []} if body.dns else {},
        "limits": {name: value for name, value in limits.items() if value > 0},
        "tty": body.tty, "no_new_privileges": no_new_privileges, "step": "run",
    }
    return spec


def _decode(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"the request: {error}") from None


def _admit(served: Services, network: str) -> None:
    if served.draining:
        raise Unavailable("the daemon is ending")
    if network == "host" and "network.host" not in served.entitlements:
        raise Denied(
            "network host: not allowed by the daemon's configuration",
            hint='add "network.host" to entitlements.allow',
        )


async def run(request: web.Request) -> web.StreamResponse:
    """POST /v1/run: frames up, frames down (see ``frames``)."""
    served = services(request)
    body: RunBody = _decode(await first_frame(request), RunBody)
    _admit(served, body.network)
    image = served.images.find(body.image)
    config = served.images.inspect(body.image).config.config
    lease = served.store.leases.new("run", passing=False)
    try:
        lease.add(layers=list(image.chain), blobs=[image.id])
        lowers = await served.unpacker.ensure_trees(image.chain)
        spec = run_spec(body, config, list(lowers))
        session = Session(request, tty=body.tty, rows=body.rows, columns=body.columns)
        return await session.run(_job(served, spec))
    finally:
        lease.release()


def _job(served: Services, spec: Mapping[str, Any]) -> Any:
    def start(fds: list[int], on_event: Callable[[dict[str, Any], list[int]], None]) -> Any:
        return served.nsd.call("run", spec, fds, on_event)

    return start


async def debug(request: web.Request) -> web.StreamResponse:
    """POST /v1/debug: the same, in the sandbox of a build's failed step."""
    served = services(request)
    body: DebugBody = _decode(await first_frame(request), DebugBody)
    failed = served.builds.failed(body.build)
    _admit(served, "")
    session = Session(request, tty=body.tty, rows=body.rows, columns=body.columns)
    spec = dict(failed.spec)
    # What the step left is the lowest of what is written now: entering it twice shows the same.
    lowers = [*spec["lowers"], spec["tree"]] if spec["tree"] else spec["lowers"]
    spec.update(
        args=list(body.args) or ["/bin/sh"], tty=body.tty, step="debug", lowers=lowers, tree="",
        limits={name: n for name, n in spec["limits"].items() if name != "timeout"},
    )
    if body.tty:
        spec["env"] = [*spec["env"], ["TERM", body.term[:100] or "xterm"]]
    return await session.run(_job(served, spec))
