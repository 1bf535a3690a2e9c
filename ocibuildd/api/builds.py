"""/v1/builds and /v1/uploads."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from ..build.info import Peer
from ..errors import BuildError, InvalidArgument, Unavailable
from ..model.request import BuildRequest
from ..runtime import in_thread, spawn
from .guard import is_local, peer_credentials
from .respond import Lines, flag, json_body, number, reply, stream, tar_body
from .services import Services, services

_background: set[asyncio.Task[Any]] = set()


def peer(request: web.Request) -> Peer:
    """Who asks, as the build service wants to know it."""
    pid, uid = peer_credentials(request)
    return Peer(local=is_local(request), uid=uid, pid=pid)


def _id(request: web.Request) -> str:
    """The build that a path names; ``latest`` is the newest."""
    name = request.match_info["build"]
    return "" if name == "latest" else name


async def create(request: web.Request) -> web.StreamResponse:
    """POST /v1/builds: start a build; with follow=1 its events are the answer, and a client that goes
    away takes the build with it (unless detach=1)."""
    served = services(request)
    if served.draining:
        raise Unavailable("the daemon is ending: no new builds", hint="try again in a moment")
    wanted = await json_body(request, BuildRequest)
    started = await served.builds.start(wanted, peer=peer(request))
    if not flag(request, "follow"):
        return reply({"id": started.id}, 201)
    try:
        return await _follow(request, served, started.id)
    except (asyncio.CancelledError, ConnectionError):
        if not flag(request, "detach"):
            spawn(_background, asyncio.create_task(_cancel(served, started.id)))
        raise


async def _cancel(served: Services, build: str) -> None:
    with contextlib.suppress(BuildError):
        await served.builds.cancel(build)


async def _follow(request: web.Request, served: Services, build: str) -> web.StreamResponse:
    lines = Lines(request, {"Ocibuild-Build": build})
    async for data in served.builds.events(build, 0):
        await lines.write(data)
    return await lines.end()


async def list_builds(request: web.Request) -> web.Response:
    """GET /v1/builds"""
    return reply({"builds": services(request).builds.list()})


async def get(request: web.Request) -> web.Response:
    """GET /v1/builds/{build}"""
    return reply(services(request).builds.get(_id(request)))


async def events(request: web.Request) -> web.StreamResponse:
    """GET /v1/builds/{build}/events: replay from event number ``from``, with follow=1 to the end."""
    served = services(request)
    info = served.builds.get(_id(request))
    since, follow = number(request, "from"), flag(request, "follow")
    lines = Lines(request)
    await lines.begin()
    async for data in served.builds.events(info.id, since, follow=follow):
        await lines.write(data)
    return await lines.end()


async def cancel(request: web.Request) -> web.Response:
    """POST /v1/builds/{build}/cancel: answers once the build has ended."""
    served = services(request)
    info = served.builds.get(_id(request))
    await served.builds.cancel(info.id)
    return reply(served.builds.get(info.id))


async def explain(request: web.Request) -> web.Response:
    """GET /v1/builds/{build}/explain?step=: ``build`` may also be an image's name."""
    served = services(request)
    steps = await served.builds.explain(_id(request), request.query.get("step", ""))
    return reply({"steps": steps})


async def output(request: web.Request) -> web.StreamResponse:
    """GET /v1/builds/{build}/outputs/{index}: what an output with dest "-" was written to."""
    served = services(request)
    info = served.builds.get(_id(request))
    index = request.match_info["index"]
    if not (index.isascii() and index.isdecimal()) or len(index) > 4:
        raise InvalidArgument(f"output {index[:50]!r}: expected a number")
    path = served.builds.output(info.id, int(index))
    return await stream(request, file_chunks(path))


async def file_chunks(path: os.PathLike[str] | str) -> AsyncIterator[bytes]:
    """A file's bytes, read in a thread."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        while data := await in_thread(os.read, fd, 1 << 20):
            yield data
    finally:
        os.close(fd)


async def upload(request: web.Request) -> web.Response:
    """POST /v1/uploads: a context as a tar (or a Dockerfile); its id is for one build."""
    served = services(request)
    if served.draining:
        raise Unavailable("the daemon is ending: no new uploads")
    body = tar_body(request)
    taken = served.builds.upload()
    size = 0
    try:
        async for data in body:
            size += len(data)
            taken.write(data)
        taken.close()
    except BaseException:
        taken.abort()
        raise
    return reply({"id": str(taken.id), "size": size}, 201)


class VerifyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/verify.  target: an image's name or id, or a build's id."""

    target: str


async def verify(request: web.Request) -> web.StreamResponse:
    """POST /v1/verify: build again without cache; the build's events, then ``verified``."""
    served = services(request)
    body = await json_body(request, VerifyBody)
    lines = Lines(request)
    try:
        async for event in served.builds.verify(body.target, peer=peer(request)):
            await (lines.write(event) if isinstance(event, bytes) else lines.send(event))
    except BuildError as error:
        if not lines.begun:
            raise
        await lines.fail(error)
    return await lines.end()
