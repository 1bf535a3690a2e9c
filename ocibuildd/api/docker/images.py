"""Images over the Docker Engine API: list, inspect, history, tag, delete, prune, distribution."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from aiohttp import web

from ...errors import BuildError, InvalidArgument, NotFound
from ...image.values import Details, Summary
from ...model.digest import Digest
from ...model.reference import Reference
from .events import Events
from .protocol import (
    MIN_API_VERSION,
    ApiError,
    check_tag,
    check_tag_format,
    filters,
    flag,
    parse_reference,
    registry_auth,
    reply,
    settled,
)
from .words import registry_says

LIST_FILTERS = frozenset({"dangling", "label", "before", "since", "reference", "until"})
PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})
EMPTY_CONFIG: dict[str, Any] = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False,
    "AttachStderr": False, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None,
    "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
}  # fmt: skip
"""The fields that clients of the Engine API expect to be there, in Docker's order."""

FILTER_GONE = 41
"""API 1.N that first had no ``filter`` parameter (which named a repository) any more."""
SHELL = ("/bin/sh", "-c")
SHELL_TEXT = "/bin/sh -c "
NOP = "/bin/sh -c #(nop)"


def shown(summary: Summary, *, details: bool = False) -> dict[str, Any]:
    """An image as ``GET /images/json`` has it.  ``details``: shared sizes are known (df)."""
    nameless = not summary.names and not summary.digests
    return {
        "Containers": 0 if details else -1,
        "Created": int(summary.created),
        "Id": str(summary.id),
        "Labels": dict(summary.labels) or None,
        "ParentId": summary.parent,
        "RepoDigests": list(summary.digests) or (["<none>@<none>"] if nameless else None),
        "RepoTags": list(summary.names) or (["<none>:<none>"] if nameless else None),
        "SharedSize": summary.shared,
        "Size": summary.size,
        "VirtualSize": summary.size,
    }


def _time(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.isoformat().replace("+00:00", "Z")


def inspected(details: Details) -> dict[str, Any]:
    """An image as ``GET /images/{name}/json`` has it."""
    summary, raw = details.summary, details.raw
    config = {**EMPTY_CONFIG, **(raw.get("config") or {})}
    history = raw.get("history") or [{}]
    for field, line in (("Cmd", "CMD"), ("Entrypoint", "ENTRYPOINT")):
        if config[field] is None and cleared(history, line):
            config[field] = []
    return {
        "Id": str(summary.id),
        "RepoTags": list(summary.names),
        "RepoDigests": list(summary.digests),
        "Parent": summary.parent,
        "Comment": history[-1].get("comment", ""),
        "Created": raw.get("created") or _time(summary.created),
        "Container": "",
        "ContainerConfig": {**config, "Cmd": container_command(history[-1].get("created_by", ""))},
        "DockerVersion": raw.get("docker_version", ""),
        "Author": raw.get("author", ""),
        "Config": config,
        "Architecture": raw.get("architecture", ""),
        **({"Variant": raw["variant"]} if raw.get("variant") else {}),
        "Os": raw.get("os", ""),
        "Size": summary.size,
        "VirtualSize": summary.size,
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": [str(layer.diff_id) for layer in details.layers]},
        "Metadata": {"LastTagTime": _time(details.tagged) if details.tagged else "0001-01-01T00:00:00Z"},
    }


def cleared(history: list[dict[str, Any]], instruction: str) -> bool:
    """Was it set to an empty list at last?  Configs don't tell that from never having been set."""
    lines = [line.get("created_by", "") for line in history]
    own = [line for line in lines if line.startswith(f"{NOP}  {instruction} ")]
    return bool(own) and own[-1] == f"{NOP}  {instruction} []"


def container_command(created_by: str) -> list[str] | None:
    """What the container ran that an image was committed from: the last line of its history."""
    if created_by.startswith(NOP):
        return [*SHELL, "#(nop) ", created_by.removeprefix(NOP).strip()]
    command = created_by.partition(SHELL_TEXT)[2]
    return [*SHELL, command] if command else None


class Images:
    """Handlers of /images.  ``images``: image.service.Images; ``builds``: build.service.Builds."""

    def __init__(self, images: Any, builds: Any, registry: Any, events: Events):
        self._images = images
        self._builds = builds
        self._registry = registry
        self._events = events

    async def index(self, request: web.Request) -> web.Response:
        """GET /images/json?all=&filters=&filter=&shared-size="""
        wanted = filters(request.query, LIST_FILTERS)
        version = request.match_info.get("version", MIN_API_VERSION)
        if request.query.get("filter") and int(version.partition(".")[2]) < FILTER_GONE:
            wanted.setdefault("reference", []).append(request.query["filter"])
        found = self._images.list(all=flag(request.query, "all"), filters=wanted)
        return reply([shown(summary) for summary in found])

    def _find(self, name: str) -> Any:
        return find(self._images, name)

    async def inspect(self, request: web.Request) -> web.Response:
        """GET /images/{name}/json"""
        name = request.match_info["name"]
        self._find(name)
        return reply(inspected(self._images.inspect(name)))

    async def history(self, request: web.Request) -> web.Response:
        """GET /images/{name}/history"""
        name = request.match_info["name"]
        self._find(name)
        return reply(
            [
                {
                    "Comment": line.comment, "Created": int(line.created), "CreatedBy": line.created_by,
                    "Id": line.id or "<missing>", "Size": line.size, "Tags": list(line.names) or None,
                }
                for line in self._images.history(name)
            ]
        )

    async def tag(self, request: web.Request) -> web.Response:
        """POST /images/{name}/tag?repo=&tag="""
        source = request.match_info["name"]
        found = self._find(source)
        repository, tag = request.query.get("repo", ""), request.query.get("tag", "")
        reference = parse_reference(repository)
        check_tag(reference)
        if tag:  # it wins over one in the repository's name
            check_tag_format(tag)
            reference = parse_reference(f"{reference.repository}:{tag}")
        self._images.tag(source, str(reference.with_default_tag()))
        self._events.image("tag", str(found.id), reference.with_default_tag().familiar, found.labels)
        return web.Response(status=201)

    async def remove(self, request: web.Request) -> web.Response:
        """DELETE /images/{name}?force=&noprune="""
        name = request.match_info["name"]
        found = self._find(name)
        await settled(self._builds)
        removed = self._images.remove(
            name, force=flag(request.query, "force"), prune=not flag(request.query, "noprune")
        )
        for item in removed:
            action = "untag" if item.action == "untagged" else "delete"
            self._events.image(action, str(found.id) if action == "untag" else item.what, item.what)
        return reply([{item.action.capitalize(): item.what} for item in removed])

    async def prune(self, request: web.Request) -> web.Response:
        """POST /images/prune?filters="""
        wanted = filters(request.query, PRUNE_FILTERS)
        await settled(self._builds)
        done = await self._images.prune(wanted)
        removed = [{item.action.capitalize(): item.what} for item in done.removed]
        self._events.prune("image", done.reclaimed)
        return reply({"ImagesDeleted": removed or None, "SpaceReclaimed": done.reclaimed})

    async def distribution(self, request: web.Request) -> web.Response:
        """GET /distribution/{name}/json: what the registry has, without pulling it."""
        name = request.match_info["name"]
        reference = parse_reference(name).with_default_tag()
        auth = registry_auth(request, reference.domain)
        try:
            fetched = await self._registry.resolve(reference, auth=auth)
        except BuildError as error:
            raise ApiError(min(error.status, 500), registry_says(error.message)) from None
        return reply(
            {
                "Descriptor": {
                    "mediaType": fetched.media_type, "digest": str(fetched.digest), "size": len(fetched.data),
                },
                "Platforms": await self._platforms(reference, fetched, auth),
            }
        )

    async def _platforms(self, reference: Reference, fetched: Any, auth: Any) -> list[dict[str, Any]]:
        from ...model import oci

        if fetched.media_type in oci.INDEX_TYPES:
            found = [d.platform for d in oci.decode_index(fetched.data).manifests if d.platform]
        else:
            descriptor = oci.decode_manifest(fetched.data).config
            data = b""
            if descriptor is not None:
                stream = self._registry.blob(reference, descriptor, auth=auth)
                data = b"".join([chunk async for chunk in stream])
            found = [oci.decode_config(data).platform] if data else []
        return [
            {"architecture": p.architecture, "os": p.os, **({"variant": p.variant} if p.variant else {})}
            for p in found
        ]


def find(images: Any, name: str) -> Any:
    """An image by name or id.  ``images``: image.service.Images.  Raises ApiError with Docker's words."""
    try:
        return images.find(name)
    except NotFound:
        raise ApiError(404, f"No such image: {named(name)}") from None
    except InvalidArgument as error:
        parse_reference(name)
        raise ApiError(400, error.message) from None


def named(name: str) -> str:
    """A name as Docker repeats it in errors: with its tag, unless it is an id."""
    if re.fullmatch("[0-9a-f]{64}", name):
        return f"sha256:{name}"
    try:
        return Reference.parse(name).with_default_tag().familiar
    except ValueError:
        return name


def digest_or_tag(text: str) -> tuple[str | None, Digest | None]:
    """Docker's ``tag`` parameter: a tag, or a digest."""
    if text.startswith("sha256:"):
        try:
            return None, Digest(text)
        except ValueError:
            raise ApiError(400, "invalid tag format") from None
    if text:
        check_tag_format(text)
    return text or None, None
