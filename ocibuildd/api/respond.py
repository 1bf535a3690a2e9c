"""Bodies in, bodies out: JSON with limits, one JSON object a line, tars."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from ..errors import BuildError, InvalidArgument, TooLarge
from ..model.digest import Digest

MAX_JSON = 32 << 20
"""Bytes of a JSON body: a Dockerfile of 16 MiB and secrets in base64 fit."""
READ_SIZE = 256 << 10
NDJSON = "application/x-ndjson"
TAR = "application/x-tar"
TAR_TYPES = frozenset({TAR, "application/octet-stream", "application/tar", "application/gzip"})

T = TypeVar("T")


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, Digest | Path):
        return str(value)
    raise TypeError(f"can't encode {type(value)}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def _digest(kind: type, value: object) -> object:
    if kind is Digest and isinstance(value, str):
        return Digest(value)
    raise TypeError(f"can't decode {kind}")


def reply(body: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=_encode(body), status=status, content_type="application/json")


def problem(error: BuildError, status: int = 0, code: str = "") -> web.Response:
    """An error's answer: ``{code, message, hint, details}``."""
    body = error.to_dict()
    if code:
        body["code"] = code
    return reply(body, status or error.status)


async def json_body(request: web.Request, kind: type[T]) -> T:
    """The request's body as ``kind``.  Raises InvalidArgument, TooLarge and 415.

    Only ``application/json`` is taken: a form of a web page can't send that (no CORS here)."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(
            text=f"content type {request.content_type}: expected application/json"
        )
    data = bytearray()
    async for chunk in request.content.iter_chunked(READ_SIZE):
        data += chunk
        if len(data) > MAX_JSON:
            raise TooLarge(f"the request's body is larger than {MAX_JSON} bytes")
    try:
        return msgspec.json.decode(data or b"{}", type=kind, dec_hook=_digest)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"the request's body: {error}") from None


def tar_body(request: web.Request) -> AsyncIterator[bytes]:
    """The body of a request that carries a tar, in pieces; its size is the taker's to bound."""
    if request.content_type not in TAR_TYPES:
        raise web.HTTPUnsupportedMediaType(
            text=f"content type {request.content_type}: expected {TAR}"
        )
    return request.content.iter_chunked(READ_SIZE)


class Lines:
    """A 200 answer of one JSON object a line, begun with the first line.

    What fails before is an error's answer; what fails later is a line ``{"type": "error"}``."""

    def __init__(self, request: web.Request, headers: Mapping[str, str] | None = None):
        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": NDJSON, **(headers or {})})
        self.begun = False

    async def begin(self) -> None:
        if not self.begun:
            self.begun = True
            await self._response.prepare(self._request)

    async def send(self, body: Mapping[str, Any]) -> None:
        await self.write(_encode(body) + b"\n")

    async def write(self, data: bytes) -> None:
        """Whole lines as they are."""
        await self.begin()
        await self._response.write(data)

    async def fail(self, error: BuildError) -> None:
        await self.send({"type": "error", "error": error.to_dict()})

    async def end(self) -> web.StreamResponse:
        await self.begin()
        await self._response.write_eof()
        return self._response


async def stream(
    request: web.Request, chunks: AsyncIterator[bytes], content_type: str = TAR
) -> web.StreamResponse:
    """Bytes as they come.  The first piece is made before the answer begins, so that an error at the
    start is an error's answer; a later one cuts the connection, which is all that HTTP has for it."""
    iterator = aiter(chunks)
    try:
        first = await anext(iterator)
    except StopAsyncIteration:
        first = b""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    try:
        if first:
            await response.write(first)
        async for chunk in iterator:
            await response.write(chunk)
    except BuildError:
        if request.transport is not None:
            request.transport.abort()
        raise
    await response.write_eof()
    return response


def flag(request: web.Request, name: str) -> bool:
    """A query parameter as a boolean.  Raises InvalidArgument."""
    text = request.query.get(name, "")
    if text in ("1", "true", "True"):
        return True
    if text in ("", "0", "false", "False"):
        return False
    raise InvalidArgument(f"parameter {name}={text[:50]!r}: expected 1 or 0")


def number(request: web.Request, name: str, most: int = 1 << 53) -> int:
    """A query parameter as a whole number, 0 when absent.  Raises InvalidArgument."""
    text = request.query.get(name, "")
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) > most:
        raise InvalidArgument(f"parameter {name}={text[:50]!r}: expected a whole number")
    return int(text)


def required(request: web.Request, name: str) -> str:
    """A query parameter that must be there.  Raises InvalidArgument."""
    text = request.query.get(name, "")
    if not text:
        raise InvalidArgument(f"parameter {name} is missing")
    return text
