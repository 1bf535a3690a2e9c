"""Space over the Docker Engine API: GET /system/df, POST /build/prune; and POST /auth."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

from aiohttp import web

from ...errors import BuildError
from ...model.request import RegistryAuth
from ...store.maintenance import Maintenance
from ...store.policy import prune_policies
from .events import Events, timestamp
from .images import shown
from .protocol import HUB_KEYS, ApiError, filters, flag, number, reply, settled, small_json
from .words import LOOPBACK, unreachable

BUILD_PRUNE_FILTERS = frozenset(
    {"label", "label!", "until", "id", "parent", "type", "description", "inuse", "shared", "private", "unused-for"}
)
AUTH_LIMIT = 64 << 10
RECORD_TYPES = {"image": "regular", "run": "regular", "copy": "regular", "context": "source.local"}


def _time(seconds: float) -> str | None:
    if not seconds:
        return None
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.isoformat().replace("+00:00", "Z")


class Space:
    """Handlers that count and free.  ``images``: image.service.Images; ``registry``: for /auth."""

    def __init__(self, images: Any, builds: Any, maintenance: Maintenance, registry: Any, events: Events):
        self._images = images
        self._builds = builds
        self._maintenance = maintenance
        self._registry = registry
        self._events = events

    async def df(self, request: web.Request) -> web.Response:
        """GET /system/df: layers counted once; ``type`` narrows it."""
        wanted = set(request.query.getall("type", [])) or {"image", "build-cache", "container", "volume"}
        usage = await self._maintenance.usage()
        body: dict[str, Any] = {
            "LayersSize": usage.layers_size, "Images": [], "Containers": [], "Volumes": [], "BuildCache": [],
            "BuilderSize": sum(item.size for item in usage.records),
        }
        if "image" in wanted:
            by_id = {str(item.image.id): item for item in usage.images}
            for summary in self._images.list(all=False, filters={}):
                item = by_id.get(str(summary.id))
                entry = shown(summary, details=True)
                sizes = {"Size": item.size, "SharedSize": item.shared} if item else {"SharedSize": 0}
                body["Images"].append({**entry, **sizes})
        if "build-cache" in wanted:
            body["BuildCache"] = [
                {
                    "ID": item.record.key[:25], "Parent": item.parent[:25], "Type": "regular",
                    "Description": item.record.description, "InUse": item.in_use, "Shared": item.shared,
                    "Size": item.size, "CreatedAt": _time(item.record.created),
                    "LastUsedAt": _time(item.record.last_used), "UsageCount": item.record.uses,
                }
                for item in usage.records
            ]  # fmt: skip
        return reply(body)

    async def prune(self, request: web.Request) -> web.Response:
        """POST /build/prune?all=&keep-storage=&filters="""
        query = request.query
        wanted = filters(query, BUILD_PRUNE_FILTERS)
        until = [timestamp(text, time.time()) for text in wanted.pop("until", wanted.pop("unused-for", []))]
        for name in ("unused-for", "label!"):
            wanted.pop(name, None)
        if wanted.pop("label", None):  # nothing of a cache has labels
            return reply({"CachesDeleted": None, "SpaceReclaimed": 0})
        keep = number(query, "keep-storage") or number(query, "reserved-space")
        if keep < 0:
            raise ApiError(400, f"keep-storage is {keep}, expected bytes")
        policies = prune_policies(
            images=False, all=flag(query, "all"), until=max(until, default=0.0), keep_storage=keep,
            filters=[f"{key}=={value}" for key, values in wanted.items() for value in values],
            max_used_space=number(query, "max-used-space"), min_free_space=number(query, "min-free-space"),
        )
        await settled(self._builds)
        outcome = await self._maintenance.collect(policies, wait=True)
        deleted = [item.id[:25] for item in outcome.removals if item.what in {"record", "mount"}]
        self._events.prune("builder", outcome.freed)
        return reply({"CachesDeleted": deleted or None, "SpaceReclaimed": outcome.freed})

    async def auth(self, request: web.Request) -> web.Response:
        """POST /auth: are these credentials good?"""
        given = await small_json(request, AUTH_LIMIT, "types.AuthConfig")
        server = str(given.get("serveraddress") or "docker.io")
        domain = "docker.io" if server in HUB_KEYS else server.rpartition("://")[2].partition("/")[0]
        auth = RegistryAuth(
            username=str(given.get("username") or ""), password=str(given.get("password") or ""),
            identity_token=str(given.get("identitytoken") or ""),
        )  # fmt: skip
        try:
            await self._registry.login(domain, auth)
        except BuildError as error:
            if error.code != "unauthorized":
                raise ApiError(500, unreachable(error.message)) from None
            url = f"{'http' if domain.startswith(LOOPBACK) else 'https'}://{domain}/v2/"
            raise ApiError(401, f"login attempt to {url} failed with status: 401 Unauthorized") from None
        return reply({"IdentityToken": "", "Status": "Login Succeeded"})
