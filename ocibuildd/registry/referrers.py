"""What refers to a manifest: descriptors of manifests with a ``subject``, and the tag that stands in for the
referrers API where a registry has none.

Source: distribution-spec v1.1, "Pushing Manifests with Subject", "Deleting Manifests", "Referrers Tag Schema".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from ocibuildd.errors import NotFound, RegistryError, TooLarge
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_INDEX, Descriptor, Index, Manifest, encode
from ocibuildd.model.reference import Reference
from ocibuildd.model.request import RegistryAuth
from ocibuildd.ports import Fetched

from . import protocol
from .protocol import MAX_MANIFESTS, parse_document
from .transport import Target, Transport

Auths = Mapping[str, RegistryAuth]

EMPTY = Index(schema_version=2, media_type=MEDIA_INDEX)


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest with a subject, and the descriptor under which it is listed."""

    subject: Digest
    descriptor: Descriptor


def referrers_tag(digest: Digest) -> str:
    """``sha256-<hex>``: at most 32 characters of the algorithm, 64 of the digits."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def referrer_of(data: bytes, media_type: str, what: str) -> Referrer | None:
    """What a manifest or index refers to; None where it has no subject.  Raises RegistryError, TooLarge."""
    if b'"subject"' not in data:
        return None
    document = parse_document(data, media_type, what)
    if document.subject is None:
        return None
    kind = document.artifact_type
    if not kind and isinstance(document, Manifest) and document.config is not None:
        # distribution-spec: without artifactType it "MUST be set to the config descriptor's mediaType".
        kind = document.config.media_type
    descriptor = Descriptor(
        document.media_type or media_type, Digest.of(data), len(data),
        annotations=document.annotations, artifact_type=kind,
    )  # fmt: skip
    return Referrer(document.subject.digest, descriptor)


def as_index(document: Manifest | Index, what: str) -> Index:
    """A referrers list.  Raises RegistryError for anything else."""
    if isinstance(document, Manifest):
        raise RegistryError(f"{what}: a manifest where an index was expected")
    return document


def with_referrer(index: Index, descriptor: Descriptor) -> bytes | None:
    """The list with one more entry; None where it has it already.  Raises TooLarge."""
    if any(entry.digest == descriptor.digest for entry in index.manifests):
        return None
    if len(index.manifests) >= MAX_MANIFESTS:
        raise TooLarge(
            f"referrers: {len(index.manifests):,} entries, the limit is {MAX_MANIFESTS:,}"
        )
    return _written(index, (*index.manifests, descriptor))


def without_referrer(index: Index, digest: Digest) -> bytes | None:
    """The list without an entry; None where it hasn't got it."""
    kept = tuple(entry for entry in index.manifests if entry.digest != digest)
    return _written(index, kept) if len(kept) < len(index.manifests) else None


def _written(index: Index, manifests: tuple[Descriptor, ...]) -> bytes:
    return encode(
        msgspec.structs.replace(
            index, schema_version=2, media_type=MEDIA_INDEX, manifests=manifests
        )
    )


class _ToOrigin(Protocol):
    def __call__(
        self, reference: Reference, auth: Auths | None, *actions: str
    ) -> Awaitable[tuple[Target, str]]: ...


class _Put(Protocol):
    def __call__(
        self, reference: Reference, data: bytes, media_type: str, *, auth: Auths | None = None
    ) -> Awaitable[Digest]: ...


class ReferrerLists:
    """The lists of one client: the registries' own, or those under tags, which the client then maintains."""

    def __init__(
        self,
        transport: Transport,
        to_origin: _ToOrigin,
        resolve: Callable[[Reference, Auths | None], Awaitable[Fetched]],
        put: _Put,
    ) -> None:
        self._transport, self._to_origin = transport, to_origin
        self._resolve, self._put = resolve, put
        self._writing = asyncio.Lock()

    async def get(
        self, reference: Reference, digest: Digest, artifact_type: str, auth: Auths | None
    ) -> Index:
        """What refers to a digest, of one artifact type ("" = any).  Raises as ``RegistryClient.resolve``."""
        index = await self._of_registry(reference, digest, artifact_type, auth)
        if index is None:
            index = await self._of_tag(reference, digest, auth)
        # distribution-spec: the filter may be ignored by the registry; then the client applies it.
        kept = [d for d in index.manifests if artifact_type in ("", d.artifact_type)]
        return msgspec.structs.replace(index, manifests=tuple(kept))

    async def add(self, reference: Reference, referrer: Referrer, auth: Auths | None) -> None:
        """List what was pushed to a registry that didn't say that it lists it itself."""
        async with self._writing:
            index = await self._of_tag(reference, referrer.subject, auth)
            await self._write(
                reference, referrer.subject, with_referrer(index, referrer.descriptor), auth
            )

    async def drop(self, reference: Reference, referrer: Referrer, auth: Auths | None) -> None:
        """Take what was deleted off the list, where the registry keeps none itself."""
        if await self._of_registry(reference, referrer.subject, "", auth) is not None:
            return
        async with self._writing:
            index = await self._of_tag(reference, referrer.subject, auth)
            data = without_referrer(index, referrer.descriptor.digest)
            await self._write(reference, referrer.subject, data, auth)

    async def _write(
        self, reference: Reference, subject: Digest, data: bytes | None, auth: Auths | None
    ) -> None:
        if data is not None:
            place = replace(reference, tag=referrers_tag(subject), digest=None)
            await self._put(place, data, MEDIA_INDEX, auth=auth)

    async def _of_tag(self, reference: Reference, digest: Digest, auth: Auths | None) -> Index:
        """The list under the referrers tag; an empty one where there is none."""
        tag = referrers_tag(digest)
        try:
            fetched = await self._resolve(replace(reference, tag=tag, digest=None), auth)
        except NotFound:
            return EMPTY
        what = f"referrers tag {tag}"
        return as_index(parse_document(fetched.data, fetched.media_type, what), what)

    async def _of_registry(
        self, reference: Reference, digest: Digest, artifact_type: str, auth: Auths | None
    ) -> Index | None:
        """All pages of the registry's own list; None where it has no such API."""
        target, repository = await self._to_origin(reference, auth, "pull")
        place = protocol.referrers_path(repository, digest, artifact_type)
        what = f"referrers of {reference.repository}@{digest}"
        found: dict[Digest, Descriptor] = {}
        for _ in range(protocol.MAX_PAGES):
            async with self._transport.exchange(
                target, "GET", place, headers={"Accept": MEDIA_INDEX}
            ) as answer:
                if answer.status in (400, 404, 405, 501):
                    return None
                if answer.status != 200:
                    raise protocol.failure(what, answer.status, await answer.error_body())
                data = await answer.read(protocol.MAX_MANIFEST)
                place = protocol.next_link(answer.headers.get("Link"), answer.url)
            page, known = as_index(parse_document(data, MEDIA_INDEX, what), what), len(found)
            found.update((entry.digest, entry) for entry in page.manifests)
            if len(found) > MAX_MANIFESTS:
                raise TooLarge(f"{what}: more than {MAX_MANIFESTS:,}")
            if not place or len(found) == known:
                break
        return msgspec.structs.replace(EMPTY, manifests=tuple(found.values()))
