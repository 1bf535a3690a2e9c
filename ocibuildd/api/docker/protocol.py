"""What all handlers of the Docker Engine API share: versions, errors, filters, credentials, streams."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from ... import __version__
from ...errors import BuildError, InvalidArgument
from ...model.reference import Reference
from ...model.request import RegistryAuth
from . import gojson

API_VERSION = "1.44"
MIN_API_VERSION = "1.24"
HEADERS = {
    "Api-Version": API_VERSION,
    "Docker-Experimental": "true",
    "Ostype": "linux",
    "Server": f"Docker/{__version__} (linux)",
}
AUTH_LIMIT = 256 << 10
"""Characters of a credentials header."""
FILTER_LIMIT = 64 << 10
RECENT = 16
"""Builds that may still be at their last."""
HUB_KEYS = frozenset({"https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"})
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,4})\Z")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_REFERENCE_DETAIL = re.compile(r"(invalid reference format): (?!repository name).*", re.DOTALL)
"""What we know beyond Docker's words."""
_encode = msgspec.json.Encoder().encode


class ApiError(Exception):
    """An answer ``{"message": …}`` with a status; what Docker clients show as it stands."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


def check_version(text: str) -> None:
    """Raises ApiError for a version that this API doesn't speak."""
    match = _VERSION.match(text)
    if not match:
        raise ApiError(400, f"invalid API version: {text}")
    wanted = (int(match[1]), int(match[2]))
    newest, oldest = (tuple(map(int, v.split("."))) for v in (API_VERSION, MIN_API_VERSION))
    if wanted > newest:
        raise ApiError(
            400, f"client version {text} is too new. Maximum supported API version is {API_VERSION}"
        )
    if wanted < oldest:
        raise ApiError(
            400,
            f"client version {text} is too old. Minimum supported API version is {MIN_API_VERSION}, "
            "please upgrade your client to a newer version",
        )


def reply(body: Any, status: int = 200) -> web.Response:
    """A JSON answer as Docker sends it (with a newline at its end)."""
    return web.Response(
        body=_encode(body) + b"\n", status=status, content_type="application/json", headers=HEADERS
    )


def failure(error: BuildError | ApiError) -> web.Response:
    """An error as Docker clients read it."""
    return reply({"message": message_of(error)}, error.status if error.status != 499 else 500)


def message_of(error: BuildError | ApiError) -> str:
    """The text that a person sees: the error, and the hint where there is one."""
    hint = getattr(error, "hint", "")
    return f"{error.message} ({hint})" if hint else error.message


def flag(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """A boolean parameter as Docker reads it: all but "", 0, no, false, none is true."""
    if name not in query:
        return default
    return query[name].strip().lower() not in {"", "0", "no", "false", "none"}


def number(query: Mapping[str, str], name: str, *, strict: bool = True) -> int:
    """An integer parameter, 0 where it is absent or empty; unless ``strict`` also where it is none, as Docker
    reads the limits of a build.  Raises ApiError."""
    text = query.get(name, "")[:1000]
    wrong = ""
    if not re.fullmatch(r"[-+]?\d+", text, re.ASCII):
        wrong = "invalid syntax"
    elif not -(1 << 63) <= int(text) < 1 << 63:
        wrong = "value out of range"
    if wrong and text and strict:
        raise ApiError(400, f'strconv.ParseInt: parsing "{text[:100]}": {wrong}')
    return 0 if wrong else int(text)


def json_parameter(query: Mapping[str, str], name: str, kind: type, what: str, wanted: str) -> Any:
    """A parameter that carries JSON; None where it is absent, empty or null.

    what: begins the error's message; wanted: the Go type that clients are told of.  Raises ApiError."""
    text = query.get(name, "")
    if not text:
        return None
    if len(text) > FILTER_LIMIT * 16:
        raise ApiError(400, f"{what}{name}: too long")
    try:
        value = gojson.decode(text)
    except ValueError as error:
        raise ApiError(400, f"{what}{error}") from None
    if value is not None and not isinstance(value, kind):
        raise ApiError(400, what + gojson.mismatch(value, wanted))
    return value


def filters(query: Mapping[str, str], known: frozenset[str] | None = None) -> dict[str, list[str]]:
    """``filters`` in both forms: {"k": ["v"]} and {"k": {"v": true}}.  Raises ApiError."""
    text = query.get("filters", "")
    if len(text) > FILTER_LIMIT:
        raise ApiError(400, "invalid filter: too long")
    value = json_parameter(query, "filters", dict, "invalid filter: ", "map[string]map[string]bool")
    out: dict[str, list[str]] = {}
    for key, wanted in (value or {}).items():
        if isinstance(wanted, str):
            wanted = [wanted]
        if not isinstance(wanted, list | dict) or (known is not None and key not in known):
            raise ApiError(400, f"invalid filter '{key}'")
        out[str(key)] = [str(item) for item in wanted]
    return out


async def small_json(request: web.Request, limit: int, wanted: str) -> dict[str, Any]:
    """A body that is a JSON object, {} where it is empty.  limit: of its bytes; wanted: its Go type.
    Raises ApiError."""
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > limit:
            raise ApiError(400, f"request body: more than {limit:,} bytes")
    try:
        value = gojson.decode(data.decode(errors="replace")) if data.strip() else {}
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    if not isinstance(value, dict):
        raise ApiError(400, gojson.mismatch(value, wanted))
    return value


def parse_reference(text: str) -> Reference:
    """Raises ApiError in Docker's words."""
    try:
        return Reference.parse(text)
    except ValueError as error:
        raise ApiError(400, _REFERENCE_DETAIL.sub(r"\1", str(error))) from None


def check_tag(reference: Reference) -> None:
    """Raises ApiError for a name that Docker gives to no image."""
    if reference.digest:
        raise ApiError(400, "refusing to create a tag with a digest reference")
    if reference.familiar_name in {"sha256", "sha384", "sha512"}:
        raise ApiError(400, "refusing to create an ambiguous tag using digest algorithm as name")


def check_tag_format(tag: str) -> None:
    """Raises ApiError for a ``tag`` that is none."""
    if not _TAG.fullmatch(tag):
        raise ApiError(400, "invalid tag format")


def _decode_header(text: str) -> Any:
    """JSON in base64, url-safe or not, padded or not; None when it is neither.

    An undecodable header has always been taken for none by Docker.
    """
    if not text or len(text) > AUTH_LIMIT:
        return None
    text = text.strip().translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return json.loads(base64.b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None


def _auth(value: Any) -> RegistryAuth | None:
    if not isinstance(value, dict):
        return None

    def get(*names: str) -> str:
        found = next((value[name] for name in names if isinstance(value.get(name), str)), "")
        return str(found)

    auth = RegistryAuth(
        username=get("username"), password=get("password"),
        identity_token=get("identitytoken", "identityToken"), registry_token=get("registrytoken", "registryToken"),
    )
    if not auth.username and get("auth"):
        try:
            user, _, password = base64.b64decode(get("auth")).decode().partition(":")
        except (ValueError, binascii.Error):
            return None
        auth = RegistryAuth(username=user, password=password)
    return None if auth == RegistryAuth() else auth


def registry_auth(request: web.Request, domain: str) -> dict[str, RegistryAuth]:
    """``X-Registry-Auth`` of pull and push, as credentials for the one host that they are for."""
    auth = _auth(_decode_header(request.headers.get("X-Registry-Auth", "")))
    return {domain: auth} if auth else {}


def registry_config(request: web.Request) -> dict[str, RegistryAuth]:
    """``X-Registry-Config`` of build: host → credentials."""
    value = _decode_header(request.headers.get("X-Registry-Config", ""))
    if not isinstance(value, dict):
        return {}
    found: dict[str, RegistryAuth] = {}
    for key, item in value.items():
        auth = _auth(item)
        if auth is not None:
            host = "docker.io" if key in HUB_KEYS else re.sub(r"^https?://", "", str(key)).split("/")[0]
            found[host] = auth
    return found


class JsonStream:
    """A 200 answer that is written message by message, each in a chunk of its own."""

    def __init__(self, request: web.Request):
        self._request = request
        self._response = web.StreamResponse(headers={**HEADERS, "Content-Type": "application/json"})
        self._prelude: list[Mapping[str, Any]] = []
        self.started = False

    def prelude(self, *messages: Mapping[str, Any]) -> None:
        """Messages to send before the first one, if there ever is one."""
        self._prelude += messages

    async def begin(self) -> None:
        """Send the status line and headers now."""
        if not self.started:
            self.started = True
            await self._response.prepare(self._request)

    async def send(self, *messages: Mapping[str, Any]) -> None:
        """Write messages and wait until the client took them (progress must not pile up)."""
        if not messages:
            return
        await self.begin()
        due, self._prelude = [*self._prelude, *messages], []
        for message in due:
            await self._response.write(_encode(message) + b"\r\n")

    async def fail(self, error: BuildError | ApiError) -> None:
        """The error as the stream's last message: errors come inside a stream that has begun."""
        text = message_of(error)
        await self.send({"errorDetail": {"message": text}, "error": text})

    async def end(self) -> web.StreamResponse:
        """Finish; an empty stream is an empty 200."""
        await self.begin()
        await self._response.write_eof()
        return self._response


async def settled(builds: Any) -> None:
    """Wait for the last of builds that have ended: until then they hold on to what they made.

    A client that was told of a build's end may ask for the removal of its image in the same moment."""
    for build in builds.list(RECENT):
        if build.state not in {"queued", "running"}:
            await builds.wait(build.id)


def require(condition: object, message: str) -> None:
    """Raises InvalidArgument with the message unless the condition holds."""
    if not condition:
        raise InvalidArgument(message)
