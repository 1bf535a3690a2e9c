"""POST /build and its neighbours, as the classic builder had them."""

from __future__ import annotations

import contextlib
import ipaddress
import posixpath
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from aiohttp import web

from ...build.options import parse_hosts
from ...errors import BuildError
from ...model import request as model
from . import gojson
from .classic import ClassicStream, step_head
from .events import Events
from .protocol import (
    API_VERSION,
    ApiError,
    JsonStream,
    check_tag,
    failure,
    flag,
    json_parameter,
    number,
    parse_reference,
    registry_config,
)
from .words import NO_DOCKERFILE, describe, of_image, refused_request, remote_failed

READ_SIZE = 1 << 18
NO_SESSION = "experimental session with v1 builder is no longer supported, and BuildKit's API isn't spoken here"
UNSTREAMED = frozenset({"dockerfile", "invalid-argument", "denied", "too-large"})
"""Codes of errors that are the client's own."""
MAX_TAGS = 128
MIN_MEMORY = 6 << 20
"""Bytes that dockerd lets a step have at least."""
REMOTE = re.compile(r"(https?://|git://|git@|ssh://|github\.com/)")
UNSTARTED = frozenset({"build.started", "message", "warning"})
"""Events that may come before it is clear that the Dockerfile can be built at all."""


def _strings(query: Mapping[str, str], name: str, what: str, wanted: str) -> dict[str, str | None]:
    """A parameter that is a JSON object of strings (or null)."""
    found = json_parameter(query, name, dict, f"error reading {what}: ", wanted) or {}
    for item in found.values():
        if not isinstance(item, str | None):
            raise ApiError(400, f"error reading {what}: {gojson.mismatch(item, 'string')}")
    return dict(found)


def _names(query: Any) -> tuple[str, ...]:
    """The ``t`` parameters; each must be a good name before anything is built."""
    names = [name for name in query.getall("t", []) if name]
    if len(names) > MAX_TAGS:
        raise ApiError(400, f"too many tags: {len(names)}, at most {MAX_TAGS}")
    for name in names:
        reference = parse_reference(name)
        if reference.digest:
            raise ApiError(400, "build tag cannot contain a digest")
        check_tag(reference)
    return tuple(names)


def _nofile(query: Mapping[str, str]) -> int:
    """The limit of open files among ``ulimits``, 0 = none.  Raises ApiError."""
    found, what = 0, "error reading ulimit settings: "
    for limit in json_parameter(query, "ulimits", list, what, "[]*units.Ulimit") or []:
        if limit is None:
            continue
        if not isinstance(limit, dict):
            raise ApiError(400, what + gojson.mismatch(limit, "units.Ulimit"))
        for name in ("Soft", "Hard"):
            if not isinstance(limit.get(name), int | None):
                words = gojson.mismatch(limit[name], "int64").replace("value", f"struct field Ulimit.{name}")
                raise ApiError(400, what + words)
        if limit.get("Name") == "nofile":
            found = whole(limit.get("Soft")) or whole(limit.get("Hard"))
    return max(found, 0)


def _limits(query: Mapping[str, str]) -> model.ResourceLimits:
    nofile = _nofile(query)
    if number(query, "shmsize") < 0:
        raise ApiError(400, "SHM size can not be less than 0")
    memory, swap, quota, period, shares = (
        number(query, name, strict=False)
        for name in ("memory", "memswap", "cpuquota", "cpuperiod", "cpushares")
    )
    for wrong, words in (
        (memory and memory < MIN_MEMORY, "Minimum memory limit allowed is 6MB"),
        (swap > 0 and memory <= 0, "You should always set the Memory limit when using Memoryswap limit, see usage"),
        (0 < swap < memory, "Minimum memoryswap limit should be larger than memory limit, see usage"),
        (period and not 1_000 <= period <= 1_000_000,
         "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
        (0 < quota < 1_000, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
    ):  # fmt: skip
        if wrong:
            raise ApiError(400, words)
    return model.ResourceLimits(
        memory=memory,
        memory_swap=max(swap, -1),
        cpu_quota=max(quota, 0),
        cpu_period=period,
        cpu_shares=max(shares, 0),
        cpuset_cpus=query.get("cpusetcpus", ""),
        cpuset_mems=query.get("cpusetmems", ""),
        shm_size=number(query, "shmsize"),
        nofile=nofile,
    )


def whole(value: Any) -> int:
    """A number of a JSON parameter, 0 where it is none."""
    return value if isinstance(value, int) and abs(value) < 1 << 63 else 0


def _network(query: Mapping[str, str]) -> Any:
    mode = query.get("networkmode", "")
    if mode in {"", "default", "bridge"}:
        return ""
    if mode in {"none", "host"}:
        return mode
    kind, _, name = mode.partition(":")
    words = f"No such container: {name}" if kind == "container" else f"network {mode} not found"
    raise ApiError(400, f"{words} (not supported: there are default, none and host)")


def _dockerfile(query: Mapping[str, str]) -> str:
    """The Dockerfile's path in the context: never one on this host."""
    name = query.get("dockerfile", "")
    path = posixpath.normpath(name.lstrip("/") or ".") if name else ""
    if path.split("/")[0] == ".." or "\0" in path:
        raise ApiError(400, f"forbidden path outside the build context: {name} ()")
    return path


def _hosts(query: Any) -> tuple[str, ...]:
    hosts = tuple(host for host in query.getall("extrahosts", []) if host)
    for host in hosts:
        try:
            address = parse_hosts([host])[0][1]
        except BuildError:
            name, colon, address = host.partition(":")
            if not colon or not name or address:
                raise ApiError(400, f"bad format for add-host: {quoted(host)}") from None
        if address != "host-gateway" and not is_address(address):
            raise ApiError(400, f"invalid IP address in add-host: {quoted(address)}")
    return hosts


def is_address(text: str) -> bool:
    """Is it an IP address?"""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def quoted(text: str) -> str:
    """As Go quotes a string."""
    return msgspec.json.encode(text).decode()


def _refuse_unsupported(query: Any) -> None:
    """Parameters that no engine like this one can follow.  Raises ApiError, in Docker's words."""
    if any(query.getall("securityopt", [])):
        raise ApiError(400, "The daemon on this platform does not support setting security options on build")
    isolation = query.get("isolation", "")
    if isolation.lower() not in {"", "default"}:
        raise ApiError(400, f'Unsupported isolation: "{isolation}"')
    if query.get("version", "") not in {"", "1", "2"}:
        raise ApiError(400, f'invalid version "{query["version"]}"')
    json_parameter(query, "outputs", list, "", "[]types.ImageBuildOutput")


def build_request(
    query: Any, context: model.Context, auth: dict[str, model.RegistryAuth]
) -> model.BuildRequest:
    """The query of POST /build as a request of ours.  Raises ApiError."""
    _refuse_unsupported(query)
    labels = _strings(query, "labels", "labels", "map[string]string")
    platform = query.get("platform", "").lower()
    target = query.get("target", "")
    return model.BuildRequest(
        context=context,
        dockerfile=_dockerfile(query),
        tags=_names(query),
        target=target,
        build_args=_strings(query, "buildargs", "build args", "map[string]*string"),
        labels={key: value or "" for key, value in labels.items()},
        platforms=(platform,) if platform else (),
        no_cache=flag(query, "nocache"),
        pull=flag(query, "pull"),
        network=_network(query),
        add_hosts=_hosts(query),
        auth=auth,
        limits=_limits(query),
        squash=flag(query, "squash"),
        compat="docker",
    )


class Build:
    """Handlers of /build.  ``builds``: build.service.Builds; ``peer``: request → its Peer; ``images``:
    image.service.Images."""

    def __init__(self, builds: Any, peer: Any, images: Any, events: Events):
        self._builds = builds
        self._peer = peer
        self._images = images
        self._engine_events = events

    def _uncached(self, query: Mapping[str, str]) -> bool:
        """``cachefrom`` names the only images whose steps may be used: where none of them is here, the
        classic builder uses none at all."""
        what = "error reading cachefrom: "
        names = json_parameter(query, "cachefrom", list, what, "[]string") or []
        for name in names:
            if not isinstance(name, str):
                raise ApiError(400, what + gojson.mismatch(name, "string"))
            try:
                self._images.find(name)
            except BuildError:
                continue
            return False
        return bool(names)

    async def build(self, request: web.Request) -> web.StreamResponse:
        """POST /build: a context in, a stream of messages out.

        What is wrong before anything ran is a plain error status, what goes wrong later the last
        message of a 200 (Docker's clients tell the two apart).
        """
        query = request.query
        remote = query.get("remote", "")
        if remote and remote != "client-session" and not REMOTE.match(remote):
            raise ApiError(400, f"remoteURL ({remote}) could not be recognized as URL")
        if remote == "client-session":
            raise ApiError(400, NO_SESSION)
        auth = registry_config(request)
        build_request(query, model.EmptyContext(), auth)  # before a large body is taken in
        if remote:
            context: model.Context = model.RemoteContext(remote)
            await request.release()
        else:
            context = model.UploadContext(await self._upload(request))
        wanted = build_request(query, context, auth)
        if self._uncached(query):
            wanted = msgspec.structs.replace(wanted, no_cache=True)
        started = await self._builds.start(wanted, peer=self._peer(request))
        try:
            return await self._stream(request, started.id, no_cache=wanted.no_cache)
        except BaseException:
            # The client is gone: for Docker's clients that is how a build is cancelled.
            with contextlib.suppress(BuildError):
                await self._builds.cancel(started.id)
            raise

    async def _upload(self, request: web.Request) -> str:
        upload, empty = self._builds.upload(), True
        try:
            async for data in request.content.iter_chunked(READ_SIZE):
                upload.write(data)
                empty = empty and not data
            if empty:
                name = request.query.get("dockerfile", "") or "Dockerfile"
                raise ApiError(400, f"{NO_DOCKERFILE}: {name}")
            upload.close()
        except BaseException:
            upload.abort()
            raise
        return str(upload.id)

    async def _events(self, build: str) -> AsyncIterator[dict[str, Any]]:
        rest = b""
        async for data in self._builds.events(build, 0):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield msgspec.json.decode(line)

    async def _stream(
        self, request: web.Request, build: str, *, no_cache: bool
    ) -> web.StreamResponse:
        query = request.query
        classic = ClassicStream(
            build, quiet=flag(query, "q"), no_cache=no_cache,
            remove=flag(query, "forcerm") or flag(query, "rm", default=True),
        )
        stream = JsonStream(request)
        begun = False
        async for event in self._events(build):
            if event["type"] == "build.failed" and not begun:
                return await self._unbegun(request, stream, event["error"])
            begun = begun or event["type"] not in UNSTARTED
            if event["type"] == "build.done":
                for name in event.get("names", ()):
                    self._engine_events.image("tag", event["image"], name)
            await stream.send(*classic.feed(event))
        return await stream.end()

    async def _unbegun(
        self, request: web.Request, stream: JsonStream, error: dict[str, Any]
    ) -> web.StreamResponse:
        """The answer to a build that never began: a status of its own where the request or the Dockerfile is
        wrong, else (a base image can't be had) the only message of the stream."""
        from ...errors import CLASSES

        version = request.match_info.get("version", API_VERSION)
        message = refused_request(error, version)
        remote, name = request.query.get("remote", ""), request.query.get("dockerfile", "")
        if remote:
            message = remote_failed(message, remote)
        if name and message.startswith(NO_DOCKERFILE):
            message = f"{NO_DOCKERFILE}: {name}"
        if error.get("code") in UNSTREAMED or not of_image(error):
            status = CLASSES.get(str(error.get("code")), BuildError).status
            if status == 404 and (not remote or message.startswith(NO_DOCKERFILE)):
                status = 400  # of a build's answers a 404 is none: clients take it for an image's
            return failure(ApiError(min(status, 500), message))
        place = (error.get("details") or {}).get("instruction") or {}
        message = describe(error, str(place.get("text", "")))
        await stream.send(*steps_until(place), {"errorDetail": {"message": message}, "error": message})
        return await stream.end()

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /build/cancel?id=…"""
        build = request.query.get("id", "")
        if not build:
            raise ApiError(400, "build ID not specified")
        await self._builds.cancel(build)
        return web.Response(status=204)


def steps_until(place: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How far the classic builder had come when it failed to get an image: to the instruction that names it."""
    arguments, text = list(place.get("arguments") or ()), str(place.get("text", ""))
    total = int(place.get("steps") or 0)
    before = [message for number, line in enumerate(arguments, 1) for message in step_head(number, total, line)]
    return [*before, *step_head(int(place.get("number") or 1), total, text)] if text else []
