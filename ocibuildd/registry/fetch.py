"""Files by HTTP(S) for ``ADD URL`` and remote contexts.

The URL is somebody's in a Dockerfile: where it leads is followed with distrust.  Ten hops at most, http
and https only, never from https to http, no loopback or link-local address that a server names (one that
the Dockerfile itself names may be), and credentials for the first authority alone.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from ocibuildd.errors import (
    BuildError,
    Denied,
    InvalidArgument,
    NotFound,
    RegistryError,
    TooLarge,
    Unauthorized,
)

from .config import is_internal
from .protocol import MAX_REDIRECTS, authority, redact, resolve_hop
from .transport import READ_BUFFER, REDIRECTS, _broken, _Guarded, _proxy

MAX_BYTES = 16 << 30
CONNECT_TIMEOUT = 30.0
READ_TIMEOUT = 60.0
METADATA = frozenset({"169.254.169.254", "fd00:ec2::254", "metadata.google.internal"})
"""Cloud metadata services: no Dockerfile has a reason to read them."""


@dataclass(frozen=True, slots=True)
class Download:
    """What came.  ``fresh`` False: 304, what is there is still right.  modified: the Last-Modified
    header as it stands; disposition: the Content-Disposition header, unparsed."""

    fresh: bool
    size: int = 0
    etag: str = ""
    modified: str = ""
    disposition: str = ""
    media_type: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A body that is still to be read, once.  total: its bytes as the server says, 0 = unknown; url: where it
    finally comes from."""

    response: aiohttp.ClientResponse
    url: str
    limit: int

    @property
    def total(self) -> int:
        return self.response.content_length or 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, never more than ``limit`` bytes.  Raises TooLarge, RegistryError."""
        if self.total > self.limit:
            raise TooLarge(f"GET {redact(self.url)}: {self.total:,} bytes, the limit is {self.limit:,}")
        size = 0
        try:
            async for data in self.response.content.iter_any():
                size += len(data)
                if size > self.limit:
                    raise TooLarge(f"GET {redact(self.url)}: more than {self.limit:,} bytes")
                yield data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(self.url, error) from None
        if self.total and size != self.total:
            raise RegistryError(f"GET {redact(self.url)}: {size:,} bytes, expected {self.total:,}")


class Fetcher:
    """Downloads.  ``close`` when done.  Used from one event loop."""

    def __init__(self, user_agent: str = "ocibuildd"):
        self._agent = user_agent
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    async def fetch(
        self,
        url: str,
        write: Callable[[bytes], object],
        *,
        headers: Mapping[str, str] | None = None,
        limit: int = MAX_BYTES,
        progress: Callable[[int, int], object] | None = None,
    ) -> Download:
        """GET ``url``, giving the body to ``write`` piece by piece.

        headers: validators and authorization.  progress(done, total), total 0 = unknown.  Raises
        NotFound, Unauthorized, Denied, TooLarge, RegistryError."""
        async with self._answer(url, headers, limit) as got:
            if got.response.status == 304:
                return Download(fresh=False)
            if got.response.status != 200:
                raise _refused(got.url, got.response.status)
            size = 0
            async for data in got.chunks():
                size += len(data)
                write(data)
                if progress is not None:
                    progress(size, got.total)
            told = got.response.headers
        return Download(
            True,
            size,
            told.get("ETag", ""),
            told.get("Last-Modified", ""),
            told.get("Content-Disposition", ""),
            told.get("Content-Type", ""),
            got.url,
        )

    @asynccontextmanager
    async def open(self, url: str, *, limit: int = MAX_BYTES) -> AsyncIterator[Incoming]:
        """GET ``url`` for whoever reads it piece by piece; the connection ends with the block.

        Raises as ``fetch``."""
        async with self._answer(url, None, limit) as got:
            if got.response.status != 200:
                raise _refused(got.url, got.response.status)
            yield got

    @asynccontextmanager
    async def _answer(
        self, url: str, headers: Mapping[str, str] | None, limit: int
    ) -> AsyncIterator[Incoming]:
        response, final = await self._follow(url, dict(headers or {}))
        try:
            yield Incoming(response, final, limit)
        finally:
            response.close()

    async def _follow(
        self, url: str, headers: dict[str, str]
    ) -> tuple[aiohttp.ClientResponse, str]:
        _check(url)
        first = url
        for _ in range(MAX_REDIRECTS + 1):
            guarded = url != first and not is_internal(authority(first)[1])
            sent = (
                headers
                if authority(url) == authority(first)
                else {
                    name: value
                    for name, value in headers.items()
                    if name.lower() != "authorization"
                }
            )
            try:
                response = await self._session(guarded).get(
                    URL(url, encoded=True), headers=sent, allow_redirects=False, proxy=_proxy(url)
                )
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise _unreachable(url, error) from None
            location = response.headers.get("Location", "")
            if response.status not in REDIRECTS or not location:
                return response, url
            response.release()
            url = resolve_hop(first, url, location).url
            _check(url)
        raise RegistryError(f"GET {redact(first)}: more than {MAX_REDIRECTS} redirects")

    def _session(self, guarded: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(guarded)
        if session is None:
            session = self._sessions[guarded] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    resolver=_Guarded() if guarded else aiohttp.ThreadedResolver(),
                    # Not aiohttp's own: the daemon lets that have no certificates (it starts faster).
                    ssl=ssl.create_default_context(),
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=READ_BUFFER,
                headers={"User-Agent": self._agent, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT
                ),
            )
        return session


def _check(url: str) -> None:
    """Raises InvalidArgument for what is no URL, Denied for what is not to be fetched."""
    try:
        scheme, host = authority(url)[:2]
        strange = re.search(r"[\s\x00-\x1f\x7f]", urlsplit(url).netloc)
    except ValueError as error:
        raise InvalidArgument(f"GET {url[:300]!r}: not a URL: {error}") from None
    if scheme in ("http", "https") and (not host or strange):
        raise InvalidArgument(f"GET {redact(url)!r}: no host, or none that can be, in the URL")
    if scheme not in ("http", "https"):
        raise Denied(f"GET {redact(url)}: only http and https are fetched")
    if host.lower().strip("[]") in METADATA:
        raise Denied(f"GET {redact(url)}: cloud metadata services are not read")


def _refused(url: str, status: int) -> BuildError:
    message = f"GET {redact(url)}: the server answered HTTP {status}"
    if status in (404, 410):
        return NotFound(message)
    if status in (401, 407):
        return Unauthorized(message, hint="give the build a secret HTTP_AUTH_TOKEN_<host>")
    if status == 403:
        return Denied(message)
    return RegistryError(message, details={"status": status})


def _unreachable(url: str, error: BaseException) -> BuildError:
    """As for registries, in the words of a download."""
    made = _broken(url, error)
    made.message = f"GET {redact(url)}: {made.message.partition(': ')[2]}"
    if "registry" in made.hint:
        made.hint = ""
    return made
