"""POST /build and its neighbours, as the classic builder had them."""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from aiohttp import web

from ...build.options import parse_hosts
from ...errors import BuildError
from ...model import request as model
from ...model.reference import Reference
from .classic import ClassicStream, describe, of_image
from .events import Events
from .protocol import (
    API_VERSION,
    ApiError,
    JsonStream,
    failure,
    flag,
    json_parameter,
    number,
    registry_config,
)

READ_SIZE = 1 << 18
NO_DOCKERFILE = "Cannot locate specified Dockerfile"
UNSTREAMED = frozenset({"dockerfile", "invalid-argument", "denied", "too-large"})
"""Codes of errors that are the client's own."""
MAX_TAGS = 128
REMOTE = re.compile(r"(https?://|git://|git@|ssh://|github\.com/)")
UNSTARTED = frozenset({"build.started", "message", "warning"})
"""Events that may come before it is clear that the Dockerfile can be built at all."""


def _strings(value: Any, what: str) -> dict[str, str | None]:
    """A JSON object of strings (or null)."""
    for key, item in (value or {}).items():
        if not isinstance(item, str | None):
            raise ApiError(400, f"error reading {what}: {key}: expected a string")
    return dict(value or {})


def _names(query: Any) -> tuple[str, ...]:
    """The ``t`` parameters; each must be a good name before anything is built."""
    names = [name for name in query.getall("t", []) if name]
    if len(names) > MAX_TAGS:
        raise ApiError(400, f"too many tags: {len(names)}, at most {MAX_TAGS}")
    for name in names:
        try:
            reference = Reference.parse(name)
        except ValueError as error:
            raise ApiError(400, f"Error parsing reference: {name!r}: {error}") from None
        if reference.digest:
            raise ApiError(400, "build tag cannot contain a digest")
    return tuple(names)


def _limits(query: Mapping[str, str]) -> model.ResourceLimits:
    nofile = 0
    for limit in json_parameter(query, "ulimits", list) or []:
        if isinstance(limit, dict) and limit.get("Name") == "nofile":
            nofile = int(limit.get("Soft") or limit.get("Hard") or 0)
    if number(query, "shmsize") < 0:
        raise ApiError(400, "SHM size can not be less than 0")
    memory = number(query, "memory")
    if memory < 0:
        raise ApiError(400, f"invalid memory limit: {memory}")
    return model.ResourceLimits(
        memory=memory,
        memory_swap=max(number(query, "memswap"), 0),
        cpu_quota=max(number(query, "cpuquota"), 0),
        cpu_period=max(number(query, "cpuperiod"), 0),
        cpu_shares=max(number(query, "cpushares"), 0),
        cpuset_cpus=query.get("cpusetcpus", ""),
        cpuset_mems=query.get("cpusetmems", ""),
        shm_size=max(number(query, "shmsize"), 0),
        nofile=max(nofile, 0),
    )


def _network(query: Mapping[str, str]) -> Any:
    mode = query.get("networkmode", "")
    if mode in {"", "default", "bridge"}:
        return ""
    if mode in {"none", "host"}:
        return mode
    raise ApiError(400, f'network mode "{mode}" not supported: there are default, none and host')


def _dockerfile(query: Mapping[str, str]) -> str:
    """The Dockerfile's path in the context: never one on this host."""
    name = query.get("dockerfile", "")
    path = posixpath.normpath(name.lstrip("/")) if name.strip("/") else ""
    if path.split("/")[0] == "..":
        raise ApiError(400, f"Forbidden path outside the build context: {name} ()")
    return path


def _hosts(query: Any) -> tuple[str, ...]:
    hosts = tuple(host for host in query.getall("extrahosts", []) if host)
    try:
        parse_hosts(hosts)
    except BuildError as error:
        raise ApiError(400, f"invalid extra host: {error.message}") from None
    return hosts


def _refuse_unsupported(query: Any) -> None:
    """Parameters that no engine like this one can follow.  Raises ApiError, in Docker's words."""
    if any(query.getall("securityopt", [])):
        raise ApiError(400, "The daemon on this platform does not support setting security options on build")
    isolation = query.get("isolation", "")
    if isolation not in {"", "default"}:
        raise ApiError(400, f"Unsupported isolation: {isolation!r}")


def build_request(
    query: Any, context: model.Context, auth: dict[str, model.RegistryAuth]
) -> model.BuildRequest:
    """The query of POST /build as a request of ours.  Raises ApiError."""
    _refuse_unsupported(query)
    labels = _strings(json_parameter(query, "labels", dict), "labels")
    platform = query.get("platform", "").lower()
    target = query.get("target", "")
    return model.BuildRequest(
        context=context,
        dockerfile=_dockerfile(query),
        tags=_names(query),
        target=target,
        build_args=_strings(json_parameter(query, "buildargs", dict), "build args"),
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
        names = json_parameter(query, "cachefrom", list) or []
        for name in names:
            try:
                self._images.find(str(name))
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
            raise ApiError(400, "no session: this API speaks the classic builder's protocol")
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
        except (ConnectionError, OSError):
            # The client is gone: for Docker's clients that is how a build is cancelled.
            with contextlib.suppress(BuildError):
                await self._builds.cancel(started.id)
            raise
        except BaseException:
            with contextlib.suppress(BuildError):
                await self._builds.cancel(started.id)
            raise

    async def _upload(self, request: web.Request) -> str:
        upload = self._builds.upload()
        try:
            async for data in request.content.iter_chunked(READ_SIZE):
                upload.write(data)
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
            build, quiet=flag(query, "q"), remove=flag(query, "rm", default=True), no_cache=no_cache
        )
        stream = JsonStream(request)
        begun = False
        async for event in self._events(build):
            if event["type"] == "build.failed" and not begun:
                version = request.match_info.get("version", API_VERSION)
                return await self._unbegun(stream, event["error"], version)
            begun = begun or event["type"] not in UNSTARTED
            if event["type"] == "build.done":
                for name in event.get("names", ()):
                    self._engine_events.image("tag", event["image"], name)
            await stream.send(*classic.feed(event))
        return await stream.end()

    async def _unbegun(self, stream: JsonStream, error: dict[str, Any], version: str) -> web.StreamResponse:
        """The answer to a build that never began: a status of its own where the request or the Dockerfile is
        wrong, else (a base image can't be had) the only message of the stream."""
        from ...errors import CLASSES

        message = dockerfile_message(error, version)
        if error.get("code") in UNSTREAMED or not of_image(error):
            status = CLASSES.get(str(error.get("code")), BuildError).status
            return failure(ApiError(status, message))
        message = describe(error)
        await stream.send({"errorDetail": {"message": message}, "error": message})
        return await stream.end()

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /build/cancel?id=…"""
        build = request.query.get("id", "")
        if not build:
            raise ApiError(400, "build ID not specified")
        await self._builds.cancel(build)
        return web.Response(status=204)


def dockerfile_message(error: Mapping[str, Any], version: str = API_VERSION) -> str:
    """An error in a Dockerfile in the classic builder's words; before API 1.42 it said "line", not "on line"."""
    message = str(error.get("message", ""))
    details = error.get("details") or {}
    if match := re.match(r"failed to read dockerfile:? ([^:]+): (no such file|No such file)", message):
        return f"{NO_DOCKERFILE}: {match[1]}"
    if message == "the Dockerfile cannot be empty":
        return "the Dockerfile (Dockerfile) cannot be empty"
    if error.get("code") != "dockerfile":
        return message
    if match := re.search(r'target stage "(.*)" could not be found', message):
        return f"failed to reach build target {match[1]} in Dockerfile"
    if "line" in details and not message.startswith("dockerfile parse error"):
        # The place is said once: our own messages carry it in front.
        text = re.sub(r"^[^:\s]+:\d+:\s*", "", message)
        message = f"dockerfile parse error on line {details['line']}: {text}"
    if tuple(map(int, version.split("."))) < (1, 42):
        message = message.replace("parse error on line", "parse error line", 1)
    return message
