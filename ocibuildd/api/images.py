"""/v1/images."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from aiohttp import web

from ..errors import BuildError, InvalidArgument, NotFound
from ..image.values import Details, HistoryLine, Pulled, Pushed, Summary
from ..model.request import RegistryAuth
from .respond import Lines, flag, json_body, reply, required, stream, tar_body
from .services import services
from .spaces import filters_of

PROGRESS_QUEUE = 1_000
"""Progress events that wait for a slow client; older ones of the same blob are replaced."""


def summary(item: Summary) -> dict[str, Any]:
    """An image of a list as JSON."""
    return {
        "id": str(item.id), "parent": item.parent, "names": list(item.names),
        "digests": list(item.digests), "created": item.created, "size": item.size,
        "shared": max(item.shared, 0), "created_by": item.created_by, "labels": dict(item.labels),
        "intermediate": item.intermediate, "platform": item.platform, "build": item.build,
    }


async def list_images(request: web.Request) -> web.Response:
    """GET /v1/images?all=&filter=…"""
    wanted = filters_of(request.query.getall("filter", []))
    found = services(request).images.list(all=flag(request, "all"), filters=wanted)
    return reply({"images": [summary(item) for item in found]})


def inspection(found: Details) -> dict[str, Any]:
    """``ocibuild inspect``: as docker's, with what only we know (Steps, Manifest) at its end."""
    item, raw = found.summary, found.raw
    return {
        "Id": str(item.id), "RepoTags": list(item.names), "RepoDigests": list(item.digests),
        "Parent": item.parent, "Comment": _comment(raw), "Created": raw.get("created") or "",
        "Author": raw.get("author", ""), "Config": raw.get("config") or {},
        "Architecture": raw.get("architecture", ""), "Variant": raw.get("variant", ""),
        "Os": raw.get("os", ""), "Size": item.size, "VirtualSize": item.size,
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in found.layers]},
        "Metadata": {"LastTagTime": found.tagged}, "Intermediate": item.intermediate,
        "CreatedBy": item.created_by, "Build": item.build, "Labels": dict(item.labels),
        "ManifestDigest": found.manifest_digest, "Manifest": found.manifest,
        "Layers": [
            {"DiffId": layer.diff_id, "Digest": layer.digest, "Size": layer.size,
             "Unpacked": layer.unpacked}
            for layer in found.layers
        ],
        "History": raw.get("history") or [],
    }


def _comment(raw: Any) -> str:
    history = raw.get("history") or []
    return str(history[-1].get("comment", "")) if history else ""


async def inspect(request: web.Request) -> web.Response:
    """GET /v1/images/inspect?name="""
    return reply(inspection(services(request).images.inspect(required(request, "name"))))


def history_line(line: HistoryLine) -> dict[str, Any]:
    return {
        "id": line.id, "created": line.created, "created_by": line.created_by, "size": line.size,
        "comment": line.comment, "names": list(line.names), "empty": line.empty,
    }


async def history(request: web.Request) -> web.Response:
    """GET /v1/images/history?name=: newest first."""
    found = services(request).images.history(required(request, "name"))
    return reply({"history": [history_line(line) for line in found]})


class TagBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/images/tag"""

    source: str
    target: str


async def tag(request: web.Request) -> web.Response:
    """POST /v1/images/tag"""
    body = await json_body(request, TagBody)
    return reply({"name": str(services(request).images.tag(body.source, body.target))}, 201)


async def remove(request: web.Request) -> web.Response:
    """DELETE /v1/images?name=&force=&noprune="""
    served = services(request)
    done = served.images.remove(
        required(request, "name"), force=flag(request, "force"), prune=not flag(request, "noprune")
    )
    served.maintenance.poke()
    return reply({"removed": [{item.action: item.what} for item in done]})


class TransferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/images/pull and …/push.  auth: for this registry; without it the daemon's user's
    own credentials are used."""

    reference: str
    platform: str = ""
    all_tags: bool = False
    auth: RegistryAuth | None = None


def auths(body: TransferBody) -> dict[str, RegistryAuth] | None:
    """``auth`` as the registry client wants it: by the registry's host."""
    from ..model.reference import Reference

    if body.auth is None:
        return None
    try:
        return {Reference.parse(body.reference).domain: body.auth}
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


Work = Callable[[Callable[..., None]], Coroutine[Any, Any, dict[str, Any]]]


async def transfer(request: web.Request, work: Work) -> web.StreamResponse:
    """Do ``work``, telling of its progress while the client takes it; the last line is ``done``.

    A slow client never holds the work up: of each blob only its newest state waits."""
    lines = Lines(request)
    waiting: dict[str, dict[str, Any]] = {}
    wake = asyncio.Event()

    def emit(kind: str, **fields: Any) -> None:
        if len(waiting) < PROGRESS_QUEUE or fields.get("id") in waiting:
            key = str(fields.get("id")) if kind == "status" and fields.get("id") else f"#{len(waiting)}"
            waiting.pop(key, None)
            waiting[key] = {"type": kind, **fields}
        wake.set()

    task = asyncio.create_task(work(emit))
    task.add_done_callback(lambda _: wake.set())
    try:
        while not task.done() or waiting:
            await wake.wait()
            wake.clear()
            batch = list(waiting.values())
            waiting.clear()
            for event in batch:
                await lines.send(event)
        await lines.send({"type": "done", **task.result()})
    except BuildError as error:
        if not lines.begun:
            raise
        await lines.fail(error)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
    return await lines.end()


def pulled(item: Pulled) -> dict[str, Any]:
    return {
        "name": item.reference, "image": str(item.id), "digest": str(item.digest), "new": item.fresh,
        "warnings": list(item.warnings),
    }


async def pull(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/pull"""
    body = await json_body(request, TransferBody)
    images, auth = services(request).images, auths(body)

    async def work(emit: Callable[..., None]) -> dict[str, Any]:
        options = {"platform": body.platform, "auth": auth, "emit": emit}
        if not body.all_tags:
            return pulled(await images.pull(body.reference, **options))
        found = await images.pull_all(body.reference, **options)
        if not found:
            raise NotFound(f"{body.reference}: the repository has no tags")
        return {**pulled(found[-1]), "pulled": [pulled(item) for item in found]}

    return await transfer(request, work)


def pushed(item: Pushed) -> dict[str, Any]:
    return {
        "name": item.reference, "digest": str(item.digest), "size": item.size, "tag": item.tag,
    }


async def push(request: web.Request) -> web.StreamResponse:
    """POST /v1/images/push"""
    body = await json_body(request, TransferBody)
    images, auth = services(request).images, auths(body)

    async def work(emit: Callable[..., None]) -> dict[str, Any]:
        options = {"platform": body.platform, "auth": auth, "emit": emit}
        if not body.all_tags:
            return pushed(await images.push(body.reference, **options))
        found = await images.push_all(body.reference, **options)
        if not found:
            raise NotFound(f"{body.reference}: no image of that repository is here")
        return {**pushed(found[-1]), "pushed": [pushed(item) for item in found]}

    return await transfer(request, work)


async def save(request: web.Request) -> web.StreamResponse:
    """GET /v1/images/save?name=…&format=docker|oci&platform="""
    names = request.query.getall("name", [])
    form = request.query.get("format") or "docker"
    if not names:
        raise InvalidArgument("parameter name is missing")
    if form not in ("docker", "oci"):
        raise InvalidArgument(f"format {form[:50]!r}: expected docker or oci")
    platform = request.query.get("platform", "")
    return await stream(request, services(request).images.save(names, form=form, platform=platform))


async def load(request: web.Request) -> web.Response:
    """POST /v1/images/load: a docker archive or an OCI layout, plain or compressed."""
    found = await services(request).images.load(tar_body(request))
    loaded = [
        {"name": name, "image": str(item.id)} for item in found for name in (item.names or ("",))
    ]
    return reply({"loaded": loaded})


async def import_image(request: web.Request) -> web.Response:
    """POST /v1/images/import?name=&change=…&message=&platform=: a root file system's tar."""
    query = request.query
    image = await services(request).images.import_rootfs(
        tar_body(request), query.get("name", ""), changes=tuple(query.getall("change", [])),
        message=query.get("message", ""), platform=query.get("platform", ""),
    )
    return reply({"image": str(image)}, 201)


async def diff(request: web.Request) -> web.Response:
    """GET /v1/images/diff?a=&b=: files that differ; without ``a``, what b's last layer did."""
    served = services(request)
    changes = await compare(served, request.query.get("a", ""), required(request, "b"))
    return reply({"changes": changes})


async def compare(served: Any, first: str, second: str) -> list[dict[str, Any]]:
    """[{kind, path, size}] between two images, by path."""
    upper = served.images.find(second)
    lower_chain: tuple[int, ...] = upper.chain[:-1]
    if first:
        lower_chain = served.images.find(first).chain
    lease = served.store.leases.new("diff")
    try:
        lease.add(layers=[*upper.chain, *lower_chain])
        after = await served.unpacker.ensure_trees(upper.chain)
        before = await served.unpacker.ensure_trees(lower_chain)
        found = await served.nsd.call("compare", {"lowers_a": before, "lowers_b": after})
    finally:
        lease.release()
    return [{"kind": kind, "path": path, "size": size} for kind, path, size in found["changes"]]
