"""The registry client: resolve, download, upload, list, delete, refer.  ``ports.Registry`` and more.

    registry = RegistryClient(RegistryConfig(…), Credentials(), journal)
    fetched = await registry.resolve(reference)              verified, bounded, the bytes as received
    async for data in registry.blob(reference, descriptor): …  resumes, falls back, verifies
    await registry.push_blob(reference, descriptor, path)    → "exists" | "mounted" | "pushed"
    await registry.push_manifest(reference, data, media_type)  → Digest

``auth`` is ``{registry: RegistryAuth}`` as Docker's config.json keys it (a request's own credentials);
where it has nothing for a registry, the daemon's user's files are asked.  Pulls try the mirrors in order and
then the registry; a mirror never sees the registry's credentials.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ocibuildd.errors import (
    BuildError,
    Corrupt,
    RegistryError,
    TooLarge,
    Unsupported,
)
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import Descriptor, Index
from ocibuildd.model.reference import Reference
from ocibuildd.model.request import RegistryAuth
from ocibuildd.ports import Fetched

from . import protocol
from .auth import repository_scope
from .config import Endpoint, RegistryConfig, origin, pull_endpoints
from .credentials import Credentials, select
from .push import BlobSource, Progress, UploadJournal, push_blob
from .referrers import Referrer, ReferrerLists, referrer_of
from .transport import Answer, Broken, Target, Transport

T = TypeVar("T")
Auths = Mapping[str, RegistryAuth]
MAX_BROKEN = 6
"""Times that a download may break off in a row without a byte gained."""
MAX_MOUNTS = 3
"""Repositories that are asked to lend a blob before it is sent."""
MAX_TAGS = 100_000
MAX_TAGS_BODY = 8 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """What a HEAD says of a manifest.  ``digest`` is the registry's word, not verified."""

    digest: Digest
    media_type: str
    size: int


class RegistryClient:
    """All registries, as the daemon's user.  ``close`` when done.  Used from one event loop."""

    def __init__(
        self,
        config: RegistryConfig | None = None,
        credentials: Credentials | None = None,
        journal: UploadJournal | None = None,
        *,
        transport: Transport | None = None,
    ) -> None:
        self.config = config or RegistryConfig()
        self.credentials = credentials
        self._journal = journal
        self._transport = transport or Transport(self.config)
        self._downloads = asyncio.Semaphore(self.config.downloads)
        self._uploads = asyncio.Semaphore(self.config.uploads)
        self._lists = ReferrerLists(
            self._transport, self._to_origin, self._resolve_origin, self.push_manifest
        )

    def reconfigure(self, config: RegistryConfig) -> None:
        """Take other settings over; requests that are under way end by the old ones."""
        self.config = config
        self._transport.reconfigure(config)

    async def close(self) -> None:
        await self._transport.close()

    def lenient(self, domain: str) -> RegistryClient:
        """This client, but for which one registry may speak plain HTTP or show any certificate.

        It shares connections, bounds and journal with this one, and ends with it."""
        settings = replace(self.config.settings(domain), http=True, insecure=True)
        registries = {**self.config.registries, domain: settings}
        other = RegistryClient(
            replace(self.config, registries=registries), self.credentials, self._journal,
            transport=self._transport,
        )  # fmt: skip
        other._downloads, other._uploads = self._downloads, self._uploads
        return other

    async def _target(
        self, endpoint: Endpoint, path: str, auth: Auths | None, *actions: str
    ) -> Target:
        """Requests to a repository at an endpoint, with the credentials of that endpoint's identity."""
        found = select(auth or {}, endpoint.identity, path)
        if found is None and self.credentials is not None:
            found = await self.credentials.get(endpoint.identity, path)
        scopes = (repository_scope(endpoint.repository(path), *actions),) if path else ()
        return Target(endpoint, found or RegistryAuth(), scopes)

    async def _to_origin(
        self, reference: Reference, auth: Auths | None, *actions: str
    ) -> tuple[Target, str]:
        """Requests to a repository at the registry itself, and the repository's path there."""
        endpoint = origin(self.config, reference.domain)
        target = await self._target(endpoint, reference.path, auth, *actions)
        return target, endpoint.repository(reference.path)

    # --- pull ---------------------------------------------------------------------------------

    async def resolve(self, reference: Reference, *, auth: Auths | None = None) -> Fetched:
        """The manifest or index that a reference names; a digest in it wins over its tag.

        Raises NotFound, Unauthorized, Denied, RegistryError (``details["unreachable"]`` or ``["status"]``),
        Corrupt, TooLarge, Unsupported.
        """
        return await self._first(reference, self._resolve_at, auth)

    async def head(self, reference: Reference, *, auth: Auths | None = None) -> Head | None:
        """The digest that a reference has now; None where the registry doesn't say it."""
        return await self._first(reference, self._head_at, auth)

    async def _first(
        self,
        reference: Reference,
        ask: Callable[[Endpoint, Reference, Auths | None], Awaitable[T]],
        auth: Auths | None,
    ) -> T:
        """The first endpoint's answer that is one; the registry's own failure if none is."""
        endpoints = pull_endpoints(self.config, reference)
        for endpoint in endpoints[:-1]:
            try:
                return await ask(endpoint, reference, auth)
            except BuildError:
                # A mirror may lack it, be down, or lie: what it can't give, the registry gives.
                continue
        return await ask(endpoints[-1], reference, auth)

    async def _resolve_at(
        self, endpoint: Endpoint, reference: Reference, auth: Auths | None
    ) -> Fetched:
        target = await self._target(endpoint, reference.path, auth, "pull")
        named = reference.digest or reference.tag or "latest"
        path = protocol.manifest_path(endpoint.repository(reference.path), named)
        what = f"manifest {reference.familiar} at {endpoint.host}"
        answer, data = await self._document(target, path, what)
        told = answer.headers.get("Docker-Content-Digest", "")
        content_type = answer.headers.get("Content-Type", "")
        wanted = reference.digest or self._told_digest(told, what)
        digest = protocol.check_digest(data, wanted, what)
        document = protocol.parse_document(data, content_type, what)
        return Fetched(digest, protocol.media_type_of(document, content_type), data)

    async def _document(self, target: Target, path: str, what: str) -> tuple[Answer, bytes]:
        """A manifest's answer and its bytes; asked for again where they break off."""
        for attempt in range(1, self.config.attempts + 1):
            async with self._transport.exchange(
                target, "GET", path, headers={"Accept": protocol.ACCEPT}
            ) as answer:
                if answer.status != 200:
                    raise protocol.failure(what, answer.status, await answer.error_body())
                try:
                    return answer, await answer.read(protocol.MAX_MANIFEST)
                except Broken as error:
                    broken = error
            await self._transport.pause(self._transport.wait(attempt))
        raise broken

    @staticmethod
    def _told_digest(told: str, what: str) -> Digest | None:
        if not told:
            return None
        try:
            return Digest(told)
        except ValueError as error:
            raise RegistryError(f"{what}: header Docker-Content-Digest: {error}") from None

    async def _head_at(
        self, endpoint: Endpoint, reference: Reference, auth: Auths | None
    ) -> Head | None:
        target = await self._target(endpoint, reference.path, auth, "pull")
        named = reference.digest or reference.tag or "latest"
        path = protocol.manifest_path(endpoint.repository(reference.path), named)
        what = f"manifest {reference.familiar} at {endpoint.host}"
        async with self._transport.exchange(
            target, "HEAD", path, headers={"Accept": protocol.ACCEPT}
        ) as answer:
            if answer.status in (404, 405, 400, 501):
                return None  # some registries know no HEAD; GET will tell
            if answer.status != 200:
                raise protocol.failure(what, answer.status)
            digest = self._told_digest(answer.headers.get("Docker-Content-Digest", ""), what)
            length = answer.headers.get("Content-Length", "0")
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            return Head(digest, kind, int(length)) if digest and length.isdigit() else None

    async def blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        *,
        offset: int = 0,
        auth: Auths | None = None,
        verify: bool = True,
        mirrors: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset``, resumed where connections break, never more than its size.

        The size always holds; with ``verify`` (and offset 0) so does the digest, else it is the caller's
        to check.  Raises NotFound, Corrupt, RegistryError, Unauthorized, Denied.
        """
        hasher = hashlib.new(descriptor.digest.algorithm) if verify and not offset else None
        async with self._downloads:
            async for data in self._download(reference, descriptor, offset, auth, mirrors):
                if hasher is not None:
                    hasher.update(data)
                yield data
        if hasher is not None and hasher.hexdigest() != descriptor.digest.hex:
            raise Corrupt(
                f"blob {descriptor.digest} of {reference.repository}: digest "
                f"{descriptor.digest.algorithm}:{hasher.hexdigest()}"
            )

    async def _download(
        self,
        reference: Reference,
        descriptor: Descriptor,
        offset: int,
        auth: Auths | None,
        mirrors: bool,
    ) -> AsyncGenerator[bytes, None]:
        endpoints = list(pull_endpoints(self.config, reference))[0 if mirrors else -1 :]
        at, broken = offset, 0
        while at < descriptor.size or (descriptor.size == 0 and not broken):
            target = await self._target(endpoints[0], reference.path, auth, "pull")
            before = at
            try:
                async for data in self._stretch(target, reference, descriptor, at):
                    at += len(data)
                    yield data
                if at < descriptor.size:
                    raise Broken(
                        f"blob {descriptor.digest} from {target.endpoint.host}: ended at {at:,} bytes,"
                        f" expected {descriptor.size:,}"
                    )
                return
            except Broken as error:
                broken = 1 if at > before else broken + 1
                last = len(endpoints) == 1
                if last and (error.final or broken >= MAX_BROKEN):
                    raise
                if not last and (error.final or broken >= 2):
                    del endpoints[0]
                    broken = 0
            except BuildError:
                if len(endpoints) == 1:
                    raise
                del endpoints[0]
            if broken:
                await self._transport.pause(self._transport.wait(broken))

    async def _stretch(
        self, target: Target, reference: Reference, descriptor: Descriptor, at: int
    ) -> AsyncGenerator[bytes, None]:
        """One request's bytes from ``at`` on."""
        path = protocol.blob_path(target.endpoint.repository(reference.path), descriptor.digest)
        what = f"blob {descriptor.digest} from {target.endpoint.host}/{reference.path}"
        headers = {"Range": f"bytes={at}-"} if at else {}
        async with self._transport.exchange(target, "GET", path, headers=headers) as answer:
            if answer.status not in (200, 206):
                raise await _blob_failure(what, answer, descriptor)
            skip = at
            if answer.status == 206:
                start = protocol.content_range_start(answer.headers.get("Content-Range"))
                if start is None or start > at:
                    raise RegistryError(f"{what}: asked from byte {at:,}, got from {start}")
                skip = at - start
            length = answer.response.content_length
            rest = descriptor.size - at
            # A 206 may bring less than was asked for; a 200 brings all that there is.
            if length is not None and (
                length - skip > rest or (answer.status == 200 and length - skip < rest)
            ):
                raise Corrupt(f"{what}: {length - skip + at:,} bytes, expected {descriptor.size:,}")
            left = rest
            async for data in answer.chunks():
                if skip:  # the server refuses ranges: read over what is here already
                    skip, data = max(0, skip - len(data)), data[skip:]
                if not data:
                    continue
                left -= len(data)
                if left < 0:
                    raise Corrupt(f"{what}: more than the {descriptor.size:,} bytes expected")
                yield data

    # --- push ---------------------------------------------------------------------------------

    async def push_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        source: BlobSource,
        *,
        mount_from: Sequence[str] = (),
        auth: Auths | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Bring a blob to the reference's repository: "exists", "mounted" or "pushed".

        source: a path, or a function that gives a new read-only descriptor.  mount_from: repository
        paths on the same registry.  ``progress(bytes so far)``.  Raises RegistryError, Unauthorized,
        Denied, TooLarge, Corrupt (the bytes at ``source`` are not the descriptor's).
        """
        endpoint = origin(self.config, reference.domain)
        target = await self._target(endpoint, reference.path, auth, "pull", "push")
        repository = endpoint.repository(reference.path)
        known = self._journal.seen_in(endpoint.host, descriptor.digest) if self._journal else []
        wanted = dict.fromkeys([*(endpoint.repository(name) for name in mount_from), *known])
        mounts = tuple(name for name in wanted if name != repository)[:MAX_MOUNTS]
        scopes = (*target.scopes, *(repository_scope(name, "pull") for name in mounts))
        async with self._uploads:
            done = await push_blob(
                self._transport, replace(target, scopes=scopes), repository,
                descriptor, source, mounts, self._journal, progress,
            )  # fmt: skip
        return done.outcome

    async def has_blob(
        self, reference: Reference, digest: Digest, *, auth: Auths | None = None
    ) -> bool:
        """Does the repository have a blob?  False also where the registry won't say."""
        target, repository = await self._to_origin(reference, auth, "pull")
        path = protocol.blob_path(repository, digest)
        async with self._transport.exchange(target, "HEAD", path) as answer:
            return answer.status == 200

    async def push_manifest(
        self, reference: Reference, data: bytes, media_type: str, *, auth: Auths | None = None
    ) -> Digest:
        """Put a manifest or index under the reference's tag, or under its digest where it has no tag."""
        digest = Digest.of(data)
        target, repository = await self._to_origin(reference, auth, "pull", "push")
        path = protocol.manifest_path(repository, reference.tag or reference.digest or digest)
        what = f"push of manifest {reference.familiar}"

        async def body() -> AsyncIterator[bytes]:
            yield data

        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        async with self._transport.exchange(
            target, "PUT", path, headers=headers, body=body
        ) as answer:
            if answer.status not in (200, 201, 202):
                raise protocol.failure(what, answer.status, await answer.error_body())
            told = answer.headers.get("Docker-Content-Digest", "")
            known = answer.headers.get("OCI-Subject", "")
        if told.startswith("sha256:") and told != digest:
            raise Corrupt(f"{what}: the registry stored {told[:100]}, expected {digest}")
        referrer = referrer_of(data, media_type, what)
        # distribution-spec: without OCI-Subject in the answer, "the client MUST … update the referrers list".
        if referrer is not None and not known:
            await self._lists.add(reference, referrer, auth)
        return digest

    # --- the rest -----------------------------------------------------------------------------

    async def tags(self, reference: Reference, *, auth: Auths | None = None) -> list[str]:
        """All tags of a repository, in the registry's order (a mirror's, where one answers)."""
        return await self._first(reference, self._tags_at, auth)

    async def _tags_at(
        self, endpoint: Endpoint, reference: Reference, auth: Auths | None
    ) -> list[str]:
        target = await self._target(endpoint, reference.path, auth, "pull")
        place = protocol.tags_path(endpoint.repository(reference.path))
        found: dict[str, None] = {}
        for _ in range(protocol.MAX_PAGES):
            async with self._transport.exchange(target, "GET", place) as answer:
                what = f"tags of {reference.familiar_name}"
                if answer.status != 200:
                    raise protocol.failure(what, answer.status, await answer.error_body())
                body = protocol.check_json(await answer.read(MAX_TAGS_BODY), what, MAX_TAGS_BODY)
                place = protocol.next_link(answer.headers.get("Link"), answer.url)
            known = len(found)
            found.update((str(tag), None) for tag in body.get("tags") or () if isinstance(tag, str))
            if len(found) > MAX_TAGS:
                raise TooLarge(f"{what}: more than {MAX_TAGS:,}")
            if not place or len(found) == known:
                break
        return list(found)

    async def digest_at_origin(self, reference: Reference, *, auth: Auths | None = None) -> Digest:
        """What a tag names at the registry itself, whatever mirrors say.  Raises as ``resolve``."""
        return (await self._resolve_origin(reference, auth)).digest

    async def delete(self, reference: Reference, *, auth: Auths | None = None) -> None:
        """Delete a manifest by digest (or a tag, where the registry allows that).

        What refers to another manifest leaves that one's list, where the registry keeps none itself.
        Raises NotFound, Unsupported (deletion is off, or of tags), RegistryError."""
        target, repository = await self._to_origin(reference, auth, "delete", "pull")
        named = reference.digest or reference.tag or "latest"
        path = protocol.manifest_path(repository, named)
        what = f"delete of {reference.familiar}"
        referrer = await self._referrer_at(reference, auth) if reference.digest else None
        async with self._transport.exchange(target, "DELETE", path) as answer:
            if answer.status not in (200, 202, 204):
                raise _not_deleted(what, answer.status, await answer.error_body(), reference)
        if referrer is not None:
            await self._lists.drop(reference, referrer, auth)

    async def _referrer_at(self, reference: Reference, auth: Auths | None) -> Referrer | None:
        """What a manifest refers to; None also for what is no image manifest or index."""
        try:
            fetched = await self._resolve_at(origin(self.config, reference.domain), reference, auth)
            return referrer_of(fetched.data, fetched.media_type, reference.familiar)
        except (RegistryError, Unsupported, TooLarge):
            return None

    async def referrers(
        self,
        reference: Reference,
        digest: Digest,
        artifact_type: str = "",
        *,
        auth: Auths | None = None,
    ) -> Index:
        """What refers to a manifest: by the referrers API, or by the tag schema where that is missing."""
        return await self._lists.get(reference, digest, artifact_type, auth)

    async def _resolve_origin(self, reference: Reference, auth: Auths | None) -> Fetched:
        return await self._resolve_at(origin(self.config, reference.domain), reference, auth)

    async def login(self, domain: str, auth: RegistryAuth) -> None:
        """Are these credentials good?  Nothing is stored.  Raises Unauthorized, RegistryError."""
        endpoint = origin(self.config, domain)
        target = Target(endpoint, auth)
        async with self._transport.exchange(target, "GET", "/v2/") as answer:
            if answer.status == 401:
                body = await answer.error_body()
                raise protocol.failure(f"login to {domain}", 401, body)
            if answer.status != 200:
                raise protocol.failure(
                    f"login to {domain}", answer.status, await answer.error_body()
                )


async def _blob_failure(what: str, answer: Answer, descriptor: Descriptor) -> BuildError:
    error = protocol.failure(what, answer.status, await answer.error_body())
    if answer.status == 404 and descriptor.urls:
        # CVE-2020-15157: the URLs of foreign layers are an attacker's to choose; they aren't followed.
        error.hint = "a foreign layer; the urls in its descriptor are not followed"
    return error


def _not_deleted(what: str, status: int, body: bytes, reference: Reference) -> BuildError:
    error = protocol.failure(what, status, body)
    codes = str(error.details.get("codes", "")).upper()
    # docker-registry takes a tag for a digest that is wrong.
    tag = reference.digest is None and "DIGEST_INVALID" in codes
    if tag or status == 405 or "UNSUPPORTED" in codes:
        hint = "the registry's configuration must allow deletion"
        if reference.digest is None:
            hint = f"name it by its digest ({reference.familiar_name}@sha256:…), or allow deletion in the registry"
        return Unsupported(error.message, hint=hint, details=error.details)
    return error
