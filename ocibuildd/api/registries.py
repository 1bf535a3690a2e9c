"""/v1/registry: what a registry has, and its removal there."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from aiohttp import web

from ..errors import InvalidArgument
from ..model.reference import Reference
from ..model.request import RegistryAuth
from .respond import json_body, reply
from .services import services


class RepositoryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/registry/tags.  auth: for this registry; without it the daemon's user's own credentials are used."""

    reference: str
    auth: RegistryAuth | None = None


class DeleteBody(RepositoryBody, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/registry/delete.  manifest: what a tag names, and with it every tag that names it."""

    manifest: bool = False


def _asked(body: RepositoryBody) -> tuple[Reference, dict[str, RegistryAuth] | None]:
    try:
        reference = Reference.parse(body.reference)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    return reference, {reference.domain: body.auth} if body.auth else None


async def tags(request: web.Request) -> web.Response:
    """POST /v1/registry/tags: {name, tags}, in the registry's order."""
    reference, auth = _asked(await json_body(request, RepositoryBody))
    if reference.tag or reference.digest:
        raise InvalidArgument(f"{reference.familiar}: a repository is wanted, without a tag or digest")
    found = await services(request).registry.tags(reference, auth=auth)
    return reply({"name": reference.familiar_name, "tags": found})


async def delete(request: web.Request) -> web.Response:
    """POST /v1/registry/delete: {deleted}, what is there no more.

    A reference without a tag or digest is refused: ``latest`` is nothing to be deleted unsaid."""
    body = await json_body(request, DeleteBody)
    reference, auth = _asked(body)
    registry = services(request).registry
    if not reference.tag and not reference.digest:
        raise InvalidArgument(
            f"{reference.familiar_name}: a tag or digest is wanted", hint="name what is to be deleted"
        )
    if body.manifest and reference.digest is None:
        digest = await registry.digest_at_origin(reference, auth=auth)
        reference = replace(reference, tag=None, digest=digest)
    await registry.delete(reference, auth=auth)
    return reply({"deleted": reference.familiar})
