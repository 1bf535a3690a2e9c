"""Disk space: prune, df, gc, check, cache mounts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from aiohttp import web

from ..errors import Conflict, InvalidArgument, NotFound
from ..executor.tree_check import check_trees
from ..image.lookup import familiar
from ..model.units import parse_duration
from ..runtime import in_thread
from ..store.cache_mounts import VARIANT, CacheMount, CacheMounts
from ..store.check import CheckReport, add_damaged, checking, verify_blobs
from ..store.gc import Removal
from ..store.maintenance import drive
from ..store.policy import prune_policies
from ..store.sweep import Outcome
from ..store.usage import Usage
from .respond import flag, json_body, reply, required, stream, tar_body
from .services import Services, services

CHECK_BATCH = 64
"""Blobs that are verified in one go of a thread."""
PRUNE_PATIENCE = 0.75
"""Seconds that a prune waits for the files of what it removed (``Maintenance.collect``): a few hundred images."""
_CACHE_FILTERS = frozenset({
    "id", "type", "description", "inuse", "shared", "private", "parents", "mutable", "immutable",
})


def filters_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """``key=value`` and ``key!=value`` texts by key.  Raises InvalidArgument."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"filter {text[:100]!r}: expected KEY=VALUE")
        found.setdefault(key.strip(), []).append(value)
    return found


def moment(text: str, now: float | None = None) -> float:
    """``until``'s value as seconds since the epoch: an age (``24h``), a Unix time, or RFC 3339.

    Raises InvalidArgument."""
    import datetime as dt

    now = time.time() if now is None else now
    plain = text.replace(".", "", 1)
    if plain.isascii() and plain.isdecimal() and len(plain) < 20:
        return float(text)
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(
            f"until {text[:50]!r}: expected an age such as 24h, a Unix time or an RFC 3339 time"
        ) from None
    return found.timestamp()


class PruneBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/prune.  what: images, builds (cache records, and with ``all`` cache mounts) or system
    (both).  filters: until=…, label=…, label!=…, dangling=…; for builds also BuildKit's
    (type=…, id=…, description=…).  keep_storage: bytes of cache that may stay."""

    what: str = "system"
    all: bool = False
    filters: tuple[str, ...] = ()
    keep_storage: int = 0
    dry_run: bool = False


def policies_for(body: PruneBody) -> Any:
    """The request as collection policies.  Raises InvalidArgument."""
    if body.what not in ("images", "builds", "system"):
        raise InvalidArgument(f"prune {body.what[:50]!r}: expected images, builds or system")
    wanted = filters_of(body.filters)
    until, labels, cache = 0.0, [], []
    everything = body.all
    for key, values in wanted.items():
        if key == "until":
            until = max(moment(value) for value in values)
        elif key in ("label", "label!"):
            labels += [("!" if key.endswith("!") else "") + value for value in values]
        elif key == "dangling":
            everything = everything or values[-1] in ("0", "false")
        elif key.rstrip("!~") in _CACHE_FILTERS and body.what != "images":
            cache += [_cache_filter(key, value) for value in values]
        else:
            raise InvalidArgument(f"filter {key[:50]!r}: unknown", hint="until, label, dangling")
    return prune_policies(
        images=body.what != "builds", cache=body.what != "images",
        mounts=body.what != "images" and body.all, all=everything, until=until, labels=labels,
        filters=cache, keep_storage=body.keep_storage,
    )


def _cache_filter(key: str, value: str) -> str:
    """A filter of ours as BuildKit writes it: ``type==exec.cachemount``."""
    if key.endswith(("!", "~")):
        return f"{key}={value}"
    return f"{key}={value}" if value.startswith("=") else f"{key}=={value}"


def removal(item: Removal) -> dict[str, Any]:
    return {
        "kind": item.what, "id": item.id, "bytes": item.bytes, "rule": item.rule, "why": item.why,
        "description": item.description, "names": list(item.names),
    }


def outcome(done: Outcome) -> dict[str, Any]:
    return {
        "deleted": [removal(item) for item in done.removals], "space": done.freed, "garbage": done.garbage,
        "pending": 0 if done.dry_run else done.pending,
        "used": done.used, "seconds": round(done.seconds, 3), "dry_run": done.dry_run,
    }


async def prune(request: web.Request) -> web.Response:
    """POST /v1/prune"""
    body = await json_body(request, PruneBody)
    served, policies = services(request), policies_for(body)
    if body.all and body.what != "images" and not body.dry_run:
        served.builds.drop_failed()
    done = await served.maintenance.collect(
        policies, dry_run=body.dry_run, wait=True, patience=PRUNE_PATIENCE
    )
    return reply(outcome(done))


class GcBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/gc.  dry_run: say what would go, and why."""

    dry_run: bool = False


async def collect(request: web.Request) -> web.Response:
    """POST /v1/gc: the configured policies, now."""
    body = await json_body(request, GcBody)
    return reply(outcome(await services(request).maintenance.collect(dry_run=body.dry_run)))


def usage_summary(found: Usage) -> list[dict[str, Any]]:
    """The four lines of ``system df``."""
    named = sum(1 for item in found.images if item.image.names)
    # Internal ones say where a layer was first made: they take no room of their own.
    records = [item for item in found.records if item.record.kind != "internal"]
    in_use = sum(1 for item in records if item.in_use)
    return [
        {"type": "Images", "count": len(found.images), "active": named,
         "size": found.images_size, "reclaimable": found.images_reclaimable},
        {"type": "Build cache", "count": len(records), "active": in_use,
         "size": found.cache_size, "reclaimable": found.cache_reclaimable},
        {"type": "Cache mounts", "count": len(found.mounts),
         "active": sum(1 for mount in found.mounts if mount.in_use),
         "size": found.mounts_size, "reclaimable": found.mounts_size},
    ]


def usage_details(found: Usage) -> dict[str, Any]:
    """Each image, record and cache mount."""
    return {
        "images": [
            {"id": item.image.id, "names": [familiar(name) for name in item.image.names],
             "size": item.size,
             "shared": item.shared, "unique": item.unique, "created": item.image.created}
            for item in found.images
        ],
        "records": [
            {"id": item.record.key, "kind": item.record.kind, "size": item.size,
             "shared": item.shared, "in_use": item.in_use, "parent": item.parent,
             "created": item.record.created, "last_used": item.record.last_used,
             "uses": item.record.uses, "cost": item.record.cost,
             "description": item.record.description}
            for item in found.records
        ],
        "mounts": [
            {"id": mount.id.partition(VARIANT)[0], "hash": mount.hash, "sharing": mount.sharing,
             "size": mount.size, "in_use": bool(mount.in_use),
             "created": mount.created, "last_used": mount.last_used, "uses": mount.uses}
            for mount in found.mounts
        ],
    }


async def df(request: web.Request) -> web.Response:
    """GET /v1/df?verbose="""
    served = services(request)
    verbose = flag(request, "verbose")
    await served.maintenance.measure(everything=True)
    found: Usage = await served.maintenance.usage()
    disk = served.store.space.disk()
    body: dict[str, Any] = {
        "summary": usage_summary(found), "total": found.total, "layers": found.layers_size,
        "disk": {"total": disk.total, "free": disk.free},
    }
    if verbose:
        body.update(usage_details(found))
    return reply(body)


class CheckBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/system/check.  quick: sizes and rows only, no digests.  repair: mend what is found.
    trees: compare unpacked layers with their blobs, which takes about as long as unpacking them."""

    quick: bool = False
    trees: bool = False
    repair: bool = False


async def check(request: web.Request) -> web.Response:
    """POST /v1/system/check"""
    body = await json_body(request, CheckBody)
    served = services(request)
    report = await checked(served, quick=body.quick)
    if body.trees:
        await check_trees(served.store, served.nsd, served.unpacker, report)
    if body.repair:
        from ..store.check import repair

        repair(served.store, report)
        served.maintenance.poke()
    return reply({
        "problems": [f"{one.kind} {one.id}: {one.problem}; {one.repair}" for one in report.findings],
        "findings": report.findings, "blobs": report.blobs, "bytes": report.bytes,
        "layers": report.layers, "records": report.records, "images": report.images,
        "trees": report.trees, "repaired": report.repaired,
    })


async def checked(served: Services, *, quick: bool) -> CheckReport:
    """The report; digests are checked in a thread, a batch at a time."""
    report = await drive(checking(served.store, hashes=False))
    if quick:
        return report
    digests = [row[0] for row in served.store.db.all("SELECT digest FROM blobs")]
    from ..model.digest import Digest

    for start in range(0, len(digests), CHECK_BATCH):
        batch = [Digest(text) for text in digests[start : start + CHECK_BATCH]]
        for damaged in await in_thread(verify_blobs, served.store, batch):
            add_damaged(served.store, report, damaged)
    return report


# --- cache mounts ---------------------------------------------------------------------------------


def mounts_asked(request: web.Request) -> list[CacheMount]:
    """The mounts that a request names: an id as the list shows it or as steps write it (without a namespace
    it is stored with a "/" before it), or a hash.  [] = there is none."""
    mounts: CacheMounts = services(request).store.cache_mounts
    name = required(request, "id")
    return mounts.named(name) or mounts.named(f"/{name}")


def one_mount(request: web.Request) -> CacheMount | None:
    """The one mount that a request names.  Raises Conflict where there are several of the id."""
    found = mounts_asked(request)
    if len(found) > 1:
        raise Conflict(
            f"cache mount {found[0].name!r}: there are {len(found)} of this id (other modes, owners or beginnings)",
            hint="name one by its hash: " + ", ".join(one.hash for one in found),
        )
    return found[0] if found else None


def no_mount(request: web.Request) -> NotFound:
    """There is none of that id."""
    return NotFound(
        f"cache mount {request.query.get('id', '')!r}: there is none", hint="ocibuild cache mounts lists them"
    )


async def list_mounts(request: web.Request) -> web.Response:
    """GET /v1/cache/mounts?id="""
    served = services(request)
    mounts = served.store.cache_mounts
    await served.maintenance.measure(everything=True)
    named = bool(request.query.get("id"))
    found = mounts_asked(request) if named else mounts.all()
    if named and not found:
        raise no_mount(request)
    return reply({
        "mounts": [
            {"id": one.name, "variant": one.variant, "hash": one.hash, "sharing": one.sharing,
             "size": one.size, "created": one.created, "last_used": one.last_used, "uses": one.uses,
             "in_use": bool(one.in_use)}
            for one in found
        ]
    })


async def clear_mount(request: web.Request) -> web.Response:
    """DELETE /v1/cache/mounts?id="""
    served = services(request)
    found = mounts_asked(request)
    if not found:
        raise no_mount(request)
    space = 0
    for one in found:
        space += served.store.cache_mounts.forget(one.hash)
        served.store.cache_mounts.trash(one.hash)
    served.maintenance.poke()
    return reply({"space": space})


async def export_mount(request: web.Request) -> web.StreamResponse:
    """GET /v1/cache/mounts/tar?id=: what it holds, as a tar."""
    served = services(request)
    found = one_mount(request)
    if found is None:
        raise no_mount(request)
    with await served.store.cache_mounts.acquire(found.id, "shared") as grip:
        return await stream(request, archived(served, {"directory": os.fspath(grip.path)}))


async def archived(served: Services, what: dict[str, Any]) -> AsyncIterator[bytes]:
    """The output of an ``archive`` job, as it is made."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    job = asyncio.ensure_future(served.nsd.call("archive", what, [writer]))
    job.add_done_callback(lambda _: os.close(writer))
    try:
        while data := await in_thread(os.read, reader, 1 << 20):
            yield data
        await job
    finally:
        os.close(reader)
        if not job.done():
            job.cancel()
            await asyncio.wait({job})


async def import_mount(request: web.Request) -> web.Response:
    """PUT /v1/cache/mounts/tar?id=: fill it from a tar; what it held is gone.  Raises Conflict (in use)."""
    served = services(request)
    body = tar_body(request)
    found, name = one_mount(request), required(request, "id")
    mounts = served.store.cache_mounts
    if found is not None:
        name = found.id
        mounts.forget(found.hash)
        mounts.trash(found.hash)
    elif "/" not in name:
        name = f"/{name}"
    with await mounts.acquire(name, "locked") as grip:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        what = {"path": os.fspath(grip.path), "limits": {}, "root": True}
        job = asyncio.ensure_future(served.nsd.call("unpack", what, [reader]))
        job.add_done_callback(lambda _: os.close(reader))
        try:
            async for data in body:
                await in_thread(_write_all, writer, data)
        except BrokenPipeError:
            pass  # the job has ended early: it says why
        finally:
            os.close(writer)
            await asyncio.wait({job})
        done = job.result()
        mounts.set_size(grip.hash, done.get("bytes", 0))
    served.maintenance.poke()
    return reply({"files": done.get("files", 0), "bytes": done.get("bytes", 0)})


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
