"""HTTP to registries: the one module of this package that knows aiohttp.

Retries, redirects and authentication are carried out here; what to do is decided by ``protocol`` and
``auth``.  An Authorization header is made for one authority (scheme, host, port) and goes nowhere else.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ocibuildd.errors import RegistryError, TooLarge, Unauthorized
from ocibuildd.model.request import RegistryAuth

from . import auth as authentication
from .config import Endpoint, RegistryConfig, is_internal
from .protocol import (
    MAX_ERROR_BODY,
    MAX_REDIRECTS,
    MAX_WAIT,
    RETRYABLE,
    authority,
    backoff,
    failure,
    redact,
    resolve_hop,
    retry_after,
)

REDIRECTS = frozenset({301, 302, 303, 307, 308})
READ_BUFFER = 1 << 20
KEEP_ALIVE = 15.0
"""Seconds that an idle connection is kept."""

SLOW_WINDOW = 60.0
SLOW_RATE = 1024
"""A connection that brings fewer bytes a second than this, over SLOW_WINDOW seconds, counts as broken."""

Body = Callable[[], AsyncIterator[bytes]]
"""Makes the request's body anew for each attempt."""


class Broken(RegistryError):
    """No answer, or half of one.  ``final``: trying again makes no sense (no such host, bad TLS)."""

    final = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and as whom.  ``scopes``: what a token is asked for."""

    endpoint: Endpoint
    auth: RegistryAuth
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A response whose body has not been read yet.  ``url``: where it finally came from."""

    response: aiohttp.ClientResponse
    url: str

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes.  Raises Broken, also for a trickle (SLOW_RATE)."""
        since, size = time.monotonic(), 0
        try:
            async for data in self.response.content.iter_any():
                yield data
                size += len(data)
                if (waited := time.monotonic() - since) > SLOW_WINDOW:
                    if size < SLOW_RATE * waited:
                        raise TimeoutError
                    since, size = time.monotonic(), 0
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken(self.url, error) from None

    async def read(self, limit: int) -> bytes:
        """The whole body.  Raises Broken, TooLarge."""
        if (self.response.content_length or 0) > limit:
            raise TooLarge(
                f"{redact(self.url)}: {self.response.content_length:,} bytes, the limit is {limit:,}"
            )
        parts: list[bytes] = []
        size = 0
        async for data in self.chunks():
            parts.append(data)
            size += len(data)
            if size > limit:
                raise TooLarge(f"{redact(self.url)}: more than {limit:,} bytes")
        return b"".join(parts)

    async def error_body(self) -> bytes:
        """The first bytes of an error's body; what can't be read is empty."""
        try:
            return await self.read(MAX_ERROR_BODY)
        except RegistryError:
            return b""
        except TooLarge:
            return b""


class _Guarded(AbstractResolver):
    """Names that a server gave us may not lead to loopback or link-local addresses."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)  # type: ignore[arg-type]
        allowed = [entry for entry in found if not is_internal(entry["host"])]
        if not allowed:
            raise OSError(f"{host}: only loopback or link-local addresses")
        return allowed

    async def close(self) -> None:
        await self._inner.close()


class Transport:
    """Sends requests.  ``close`` when done.  Used from one event loop."""

    def __init__(
        self,
        config: RegistryConfig,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._tokens = authentication.TokenCache()
        self._token_locks: dict[str, asyncio.Lock] = {}
        self._bases: dict[Endpoint, str] = {}
        self._contexts: dict[tuple[str, str, str, bool], ssl.SSLContext] = {}
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    def reconfigure(self, config: RegistryConfig) -> None:
        """Take other settings over; what was found out under the old ones is forgotten."""
        self.config = config
        self._bases.clear()
        self._contexts.clear()

    async def close(self) -> None:
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    # --- one request --------------------------------------------------------------------------

    @asynccontextmanager
    async def exchange(
        self,
        target: Target,
        method: str,
        place: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        trusted: bool = True,
        retry: bool = True,
    ) -> AsyncIterator[Answer]:
        """Send a request (``place`` is a path at the endpoint, or a URL) and yield its answer.

        With ``retry``, broken connections and RETRYABLE statuses are tried again with back-off; the last
        one is yielded or raised.  Raises Broken, RegistryError, Unauthorized.
        """
        attempt = 0
        while True:
            attempt += 1
            wait = 0.0
            try:
                answer = await self._authorized(target, method, place, headers or {}, body, trusted)
            except Broken as error:
                # It may come back speaking TLS, or no longer.
                self._bases.pop(target.endpoint, None)
                if error.final or not retry or attempt >= self._attempts(target):
                    raise
                wait = backoff(attempt, self._jitter())
            else:
                again = retry and answer.status in RETRYABLE and attempt < self._attempts(target)
                try:
                    if not again:
                        yield answer
                        return
                    wait = await self.pause_for(answer, attempt)
                finally:
                    answer.response.release()
            await self._sleep(wait)

    def _attempts(self, target: Target) -> int:
        return min(2, self.config.attempts) if target.endpoint.mirror else self.config.attempts

    async def pause_for(self, answer: Answer, attempt: int) -> float:
        """Seconds to wait after a RETRYABLE status.  Raises RegistryError when that is too long."""
        asked = retry_after(answer.headers.get("Retry-After"), self._clock())
        if asked is not None and asked > MAX_WAIT:
            what = f"{redact(answer.url)}: asks for a wait of {asked:.0f} seconds"
            raise failure(what, answer.status, await answer.error_body())
        return backoff(attempt, self._jitter(), asked)

    async def pause(self, seconds: float) -> None:
        await self._sleep(seconds)

    def wait(self, attempt: int) -> float:
        """Seconds to wait before trying again, for the ``attempt``-th time."""
        return backoff(attempt, self._jitter())

    async def _authorized(
        self, target: Target, method: str, place: str, headers: Mapping[str, str],
        body: Body | None, trusted: bool,
    ) -> Answer:  # fmt: skip
        """Send; on a 401 do as the challenge says, twice at most (a token that was cached, a new one)."""
        base = await self.base(target)
        url = place if "://" in place else base + place
        slot = self._tokens.slot(base, target.scopes, target.auth)
        for round_ in range(3):
            header = await self._header(target, base, slot) if trusted else ""
            answer = await self._hops(target, base, method, url, headers, body, header, trusted)
            challenge = answer.headers.get("WWW-Authenticate", "")
            if answer.status != 401 or not challenge or authority(answer.url) != authority(base):
                return answer
            if round_ == 2 or (header and round_ == 1):
                return answer
            answer.response.release()
            self._tokens.forget(slot)
            plan = authentication.answer(challenge, base, target.auth, target.scopes)
            if isinstance(plan, authentication.HeaderPlan) and plan.value == header:
                raise Unauthorized(
                    f"{redact(base)}: user name or password refused", hint="run ocibuild login"
                )
            self._tokens.remember(slot, plan)
        raise AssertionError("unreachable")

    async def _header(self, target: Target, base: str, slot: str) -> str:
        """The Authorization header for the target's own authority, "" = none known to be needed."""
        plan = self._tokens.headers.get(slot)
        if plan is None:
            return ""
        if isinstance(plan, authentication.HeaderPlan):
            return plan.value
        lock = self._token_locks.setdefault(plan.key, asyncio.Lock())
        async with lock:
            token = self._tokens.get(plan.key, self._clock())
            if token is None:
                token = await self._fetch_token(target, base, plan.request)
                self._tokens.put(plan.key, token, self._clock())
        if not lock.locked():
            self._token_locks.pop(plan.key, None)
        return f"Bearer {token.value}"

    async def _fetch_token(
        self, target: Target, base: str, request: authentication.TokenRequest
    ) -> authentication.Token:
        method = "POST" if request.form else "GET"
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._send(
                    target,
                    base,
                    method,
                    request.url,
                    request.headers,
                    request.form.encode() or None,
                )
                answer = Answer(response, request.url)
                try:
                    if answer.status == 200:
                        data = await answer.read(authentication.MAX_TOKEN)
                        return authentication.parse_token(data, self._clock(), request.url)
                    if answer.status not in RETRYABLE or attempt >= self._attempts(target):
                        raise _token_refused(request.url, answer.status, await answer.error_body())
                    wait = await self.pause_for(answer, attempt)
                finally:
                    response.release()
            except Broken as error:
                if error.final or attempt >= self._attempts(target):
                    raise
                wait = backoff(attempt, self._jitter())
            await self._sleep(wait)

    async def _hops(
        self, target: Target, base: str, method: str, url: str, headers: Mapping[str, str],
        body: Body | None, header: str, trusted: bool,
    ) -> Answer:  # fmt: skip
        trusted = trusted and authority(url) == authority(base)
        for _ in range(MAX_REDIRECTS + 1):
            sent = dict(headers)
            if trusted and header:
                sent["Authorization"] = header
            response = await self._send(target, base, method, url, sent, body() if body else None)
            location = response.headers.get("Location", "")
            if response.status not in REDIRECTS or not location:
                return Answer(response, url)
            response.release()
            if method not in ("GET", "HEAD") and response.status not in (307, 308):
                raise RegistryError(f"{method} {redact(url)}: redirected (HTTP {response.status})")
            hop = resolve_hop(base, url, location)
            # Once away from the registry, nothing that comes back is trusted with credentials again.
            url, trusted = hop.url, hop.trusted and trusted
        raise RegistryError(f"{method} {redact(url)}: more than {MAX_REDIRECTS} redirects")

    async def _send(
        self, target: Target, base: str, method: str, url: str, headers: Mapping[str, str],
        body: AsyncIterator[bytes] | bytes | None,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        own = authority(url) == authority(base)
        guarded = not own and not is_internal(authority(base)[1])
        patience = self.config.read_timeout if body is None else self.config.push_timeout
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.config.connect_timeout, sock_read=patience
        )
        # sock_read begins when all was sent; until then it is the body that must get on.
        try:
            async with asyncio.timeout(None) as clock:
                return await self._session(guarded).request(
                    method, URL(url, encoded=True), headers=headers, allow_redirects=False,
                    data=_watched(body, clock, patience) if isinstance(body, AsyncIterator) else body,
                    ssl=self._context(target.endpoint, url, own=own), proxy=_proxy(url),
                    timeout=timeout,
                )  # fmt: skip
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _broken(url, error) from None

    # --- connections --------------------------------------------------------------------------

    def _session(self, guarded: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(guarded)
        if session is None:
            connector = aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=KEEP_ALIVE,
                resolver=_Guarded() if guarded else aiohttp.ThreadedResolver(),
            )
            session = self._sessions[guarded] = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=READ_BUFFER,
                headers={"User-Agent": self.config.user_agent, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=self.config.connect_timeout,
                    sock_read=self.config.read_timeout,
                ),
            )
        return session

    def _context(self, endpoint: Endpoint, url: str, *, own: bool) -> ssl.SSLContext | bool:
        parts = urlsplit(url)
        if parts.scheme != "https":
            return True
        if own:
            key = (endpoint.ca, endpoint.cert, endpoint.key, endpoint.insecure)
        else:
            # The registry's CA may have signed its token service too; its client certificate and its
            # leave to skip checks are for itself alone.
            other = self.config.settings(parts.netloc)
            key = (other.ca or endpoint.ca, other.cert, other.key, other.insecure)
        if key not in self._contexts:
            self._contexts[key] = _make_context(*key)
        return self._contexts[key]

    async def base(self, target: Target) -> str:
        """``https://host``, or ``http://host`` where that is allowed and TLS isn't spoken there."""
        endpoint = target.endpoint
        if endpoint in self._bases:
            return self._bases[endpoint]
        base = f"https://{endpoint.host}"
        if endpoint.plain_allowed and not await self._speaks_tls(target, base):
            base = f"http://{endpoint.host}"
        self._bases[endpoint] = base
        return base

    async def _speaks_tls(self, target: Target, base: str) -> bool:
        try:
            response = await self._session(False).get(
                f"{base}/v2/", allow_redirects=False, ssl=self._context(target.endpoint, base, own=True)
            )  # fmt: skip
        except aiohttp.ClientConnectorCertificateError as error:
            raise _broken(base, error) from None
        except (aiohttp.ClientConnectorSSLError, aiohttp.ServerDisconnectedError, ConnectionError):
            return False
        except aiohttp.ClientConnectorError as error:
            raise _broken(base, error) from None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        response.release()
        return True


async def _watched(
    body: AsyncIterator[bytes], clock: asyncio.Timeout, patience: float
) -> AsyncIterator[bytes]:
    """The body; the clock runs out where a piece of it takes longer than ``patience`` seconds to go."""
    loop = asyncio.get_running_loop()
    clock.reschedule(loop.time() + patience)
    async for data in body:
        yield data
        with suppress(RuntimeError):  # an answer came before the end of the body
            clock.reschedule(loop.time() + patience)


def _make_context(ca: str, cert: str, key: str, insecure: bool) -> ssl.SSLContext:
    """Raises RegistryError where a file can't be used."""
    try:
        context = ssl.create_default_context()
        if ca:
            context.load_verify_locations(ca)
        if cert:
            context.load_cert_chain(cert, key or None)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(name for name in (ca, cert, key) if name)
        raise RegistryError(f"TLS files {names}: {error.strerror or error}") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_internal(host):
        return None
    proxies = getproxies_environment()
    if proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxies.get(parts.scheme)


def _token_refused(url: str, status: int, body: bytes) -> Exception:
    error = failure(f"token service {redact(url)}", status, body)
    if status in (400, 401, 403):
        return Unauthorized(error.message, hint="run ocibuild login", details=error.details)
    return error


def _broken(url: str, error: BaseException) -> Broken:
    where = urlsplit(redact(url)).netloc
    hint, final = "", False
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason, final = f"certificate not accepted: {error.certificate_error}", True
        hint = f'set ca in [registry."{where}"] of the configuration'
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        reason, final = "no such host, or no name service", True
    elif isinstance(error, aiohttp.ClientConnectorSSLError):
        reason, final = "it doesn't speak TLS, or refuses ours", True
        hint = f'set http = true in [registry."{where}"] if it is meant to be plain HTTP'
    elif isinstance(error, TimeoutError):
        reason = "no answer in time"
    elif isinstance(error, aiohttp.ClientConnectorError):
        reason = f"can't connect: {error.os_error.strerror or error.os_error}"
    else:
        reason = f"connection broken: {str(error) or type(error).__name__}"
    broken = Broken(f"registry {where}: {reason}", hint=hint, details={"unreachable": True})
    broken.final = final
    return broken
