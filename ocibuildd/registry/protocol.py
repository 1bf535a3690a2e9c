"""The distribution protocol without I/O: URLs, documents, redirects, errors, pagination, back-off.

Source: OCI distribution-spec v1.1, Docker Registry HTTP API V2.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import msgspec

from ocibuildd.errors import (
    BuildError,
    Corrupt,
    Denied,
    NotFound,
    RegistryError,
    TooLarge,
    Unauthorized,
    Unsupported,
)
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MEDIA_INDEX,
    MEDIA_MANIFEST,
    Index,
    Manifest,
    decode_index,
    decode_manifest,
)

from .config import is_internal

MAX_MANIFEST = 4 << 20
"""Bytes of a manifest or index (distribution-spec: "at least 4 megabytes" must be accepted)."""
MAX_CONFIG = 8 << 20
MAX_BLOB = 1 << 50
MAX_LAYERS = 2_000
MAX_MANIFESTS = 2_000
MAX_DEPTH = 100
MAX_REDIRECTS = 10
MAX_PAGES = 1_000
MAX_ERROR_BODY = 64 << 10
MAX_WAIT = 60.0
"""Seconds that a Retry-After is obeyed; a longer one is an error that names it."""
BACKOFF_FIRST = 0.2
BACKOFF_LAST = 15.0

ACCEPT = f"{MEDIA_INDEX}, {DOCKER_LIST}, {MEDIA_MANIFEST}, {DOCKER_MANIFEST}, */*;q=0.1"
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


# --- URLs ------------------------------------------------------------------------------------


def manifest_path(repository: str, reference: str) -> str:
    return f"/v2/{repository}/manifests/{reference}"


def blob_path(repository: str, digest: Digest) -> str:
    return f"/v2/{repository}/blobs/{digest}"


def uploads_path(repository: str, **params: str) -> str:
    query = f"?{urlencode(params, safe=':/')}" if params else ""
    return f"/v2/{repository}/blobs/uploads/{query}"


def tags_path(repository: str, page: int = 1_000) -> str:
    return f"/v2/{repository}/tags/list?n={page}"


def referrers_path(repository: str, digest: Digest, artifact_type: str = "") -> str:
    query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    return f"/v2/{repository}/referrers/{digest}{query}"


def with_param(url: str, name: str, value: str) -> str:
    """The URL with one more query parameter; what stands there is kept as it is (upload states)."""
    parts = urlsplit(url)
    pair = f"{name}={quote(value, safe=':')}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{pair}" if parts.query else pair))


def authority(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): what credentials are bound to.  Raises RegistryError."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise RegistryError(f"url {redact(url)!r}: bad port") from None
    return parts.scheme, (parts.hostname or "").lower(), port


def redact(url: str) -> str:
    """The URL as a message or a log may show it: no userinfo, no query (signed URLs hold secrets)."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))[:300]


# --- redirects and locations -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hop:
    """Where to go next.  ``trusted``: the same authority, so the Authorization header may go along."""

    url: str
    trusted: bool


def resolve_hop(base: str, current: str, location: str) -> Hop:
    """Check a Location that ``current`` answered with; ``base`` is the registry's own URL.

    Refuses other schemes, userinfo, https → http, and loopback or link-local targets named by a
    registry that isn't there itself.  Raises RegistryError.
    """
    if not location:
        raise RegistryError(
            f"{redact(current)}: an answer without the Location header that it needs"
        )
    url = urljoin(current, location)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RegistryError(f"{redact(current)}: location {location[:100]!r} is no http(s) url")
    if parts.username is not None or parts.password is not None:
        raise RegistryError(f"{redact(current)}: location with credentials in it refused")
    here, there = authority(current), authority(url)
    if here[0] == "https" and there[0] == "http":
        if here[1] != there[1]:
            raise RegistryError(f"{redact(current)}: redirect from https to {redact(url)} refused")
        # A registry behind a TLS proxy that doesn't know it: the same host, so stay on TLS.
        url = urlunsplit(
            urlsplit(urljoin(current, "/"))._replace(path=parts.path, query=parts.query)
        )
        there = authority(url)
    if (
        is_internal(there[1])
        and there[1] != authority(base)[1]
        and not is_internal(authority(base)[1])
    ):
        raise RegistryError(
            f"{redact(current)}: redirect to {redact(url)} refused: a loopback or link-local address"
        )
    return Hop(url, trusted=there == authority(base))


def next_link(header: str | None, current: str) -> str:
    """The ``rel="next"`` of a Link header (RFC 8288), as an absolute URL on the same authority, or ""."""
    for match in re.finditer(r"<([^<>]{0,2000})>((?:\s*;\s*[^,;]{1,200}){0,8})", header or ""):
        if re.search(r";\s*rel=\"?next\"?\s*(?:;|$)", match[2]):
            url = urljoin(current, match[1])
            if authority(url) != authority(current):
                raise RegistryError(f"{redact(current)}: next page on another host refused")
            return str(url)
    return ""


# --- waiting ---------------------------------------------------------------------------------


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 10.2.3), None where it says nothing."""
    if not value:
        return None
    text = value.strip()
    if text.isdigit():
        return float(min(int(text[:9]), 10**8))
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.fromtimestamp(now, UTC)).total_seconds())


def backoff(attempt: int, jitter: float, asked: float | None = None) -> float:
    """Seconds to wait before attempt ``attempt`` (1 = the first retry); ``jitter`` is in [0, 1).

    Exponential with full jitter over its upper half; what the server asks for is the floor.
    """
    step = min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(attempt - 1, 20))
    wait = step * (0.5 + jitter / 2)
    return wait if asked is None else max(asked + jitter * min(1.0, step), wait if asked else 0.0)


# --- errors ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorItem:
    """One entry of an error body (distribution-spec, "Error Codes")."""

    code: str
    message: str


def parse_errors(body: bytes) -> tuple[ErrorItem, ...]:
    """The errors in a body; anything that isn't such a body gives its first line, or nothing."""
    try:
        value = json.loads(body[:MAX_ERROR_BODY])
        entries = value.get("errors", [value])
        items = tuple(
            ErrorItem(
                _clean(entry.get("code", "")),
                _clean(entry.get("message", entry.get("details", ""))),
            )
            for entry in entries[:10]
        )
        return tuple(item for item in items if item.code or item.message)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        text = body[:MAX_ERROR_BODY].decode("utf-8", "replace").strip()
        if not text or text.startswith("<"):
            return ()
        return (ErrorItem("", _clean(text.splitlines()[0])),)


def _clean(text: object) -> str:
    return re.sub(r"[^\x20-\x7e\u00a0-\ud7ff]", " ", str(text or ""))[:300].strip()


def failure(what: str, status: int, body: bytes = b"") -> BuildError:
    """The error for an unexpected answer.  ``details`` has ``status`` and ``codes``."""
    items = parse_errors(body)
    said = "; ".join(": ".join(part for part in (i.code.lower(), i.message) if part) for i in items)
    message = f"{what}: {said or 'no reason given'} (HTTP {status})"
    details: dict[str, object] = {"status": status, "codes": [item.code for item in items]}
    if status == 401:
        return Unauthorized(message, hint="run ocibuild login", details=details)
    if status == 403:
        return Denied(
            message, hint="check the account's rights, or run ocibuild login", details=details
        )
    if status == 404:
        return NotFound(message, details=details)
    if status == 413:
        return TooLarge(
            message, hint="the registry, or a proxy before it, limits sizes", details=details
        )
    if status == 429:
        return RegistryError(
            message, hint="the registry limits requests: log in, or use a mirror", details=details
        )
    return RegistryError(message, details=details)


# --- documents -------------------------------------------------------------------------------


def check_json(data: bytes, what: str, limit: int = MAX_MANIFEST) -> dict[str, Any]:
    """A JSON object that two parsers can't read differently: strict UTF-8, no key twice, no NaN, bounded
    size and depth.  Raises RegistryError, TooLarge."""
    if len(data) > limit:
        raise TooLarge(f"{what}: {len(data):,} bytes, the limit is {limit:,}")
    if _depth(data) > MAX_DEPTH:
        raise RegistryError(f"{what}: nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{what}: not the JSON that was expected: {_clean(error)}") from None
    if not isinstance(value, dict):
        raise RegistryError(f"{what}: expected a JSON object")
    return value


def _depth(data: bytes) -> int:
    deepest = depth = 0
    for token in _JSON_TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def parse_document(data: bytes, content_type: str, what: str) -> Manifest | Index:
    """Read a manifest or index.  Raises RegistryError, TooLarge, Unsupported.

    CVE-2021-41190: a document that has both ``manifests`` and ``layers`` (or ``config``), or whose
    ``mediaType`` is not what the Content-Type says, could be taken for two things: refused.
    """
    value = check_json(data, what)
    kind = document_type(value, content_type, what)
    try:
        document = decode_index(data) if kind in INDEX_TYPES else decode_manifest(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RegistryError(f"{what}: {_clean(error)}") from None
    descriptors = document.manifests if isinstance(document, Index) else document.layers
    limit = MAX_MANIFESTS if isinstance(document, Index) else MAX_LAYERS
    if len(descriptors) > limit:
        raise TooLarge(f"{what}: {len(descriptors):,} entries, the limit is {limit:,}")
    if isinstance(document, Manifest) and document.config is None:
        raise RegistryError(f"{what}: a manifest without config")
    everything = (*descriptors, document.config) if isinstance(document, Manifest) else descriptors
    for descriptor in everything:
        if descriptor is not None and not 0 <= descriptor.size <= MAX_BLOB:
            raise RegistryError(f"{what}: {descriptor.digest} with a size of {descriptor.size}")
    return document


def media_type_of(document: Manifest | Index, content_type: str) -> str:
    """The media type of a document that ``parse_document`` let through."""
    served = content_type.partition(";")[0].strip().lower()
    kinds = INDEX_TYPES if isinstance(document, Index) else MANIFEST_TYPES
    if document.media_type or served in kinds:
        return document.media_type or served
    return MEDIA_INDEX if isinstance(document, Index) else MEDIA_MANIFEST


def document_type(value: Mapping[str, Any], content_type: str, what: str) -> str:
    """Which media type a document has, from its fields and the Content-Type.  Raises as above."""
    is_index = "manifests" in value
    if is_index and ("layers" in value or "config" in value or "fsLayers" in value):
        raise RegistryError(f"{what}: both an index and a manifest")
    if value.get("schemaVersion") == 1 or "fsLayers" in value:
        raise Unsupported(
            f"{what}: docker image manifest v2 schema 1 is not supported",
            hint="push the image again with a current client",
        )
    if value.get("schemaVersion") != 2:
        raise RegistryError(f"{what}: schemaVersion {value.get('schemaVersion')!r}, expected 2")
    declared = value.get("mediaType", "")
    served = content_type.partition(";")[0].strip().lower()
    known = INDEX_TYPES | MANIFEST_TYPES
    if declared and declared not in known:
        raise Unsupported(
            f"{what}: media type {_clean(declared)!r} is neither an image nor an index"
        )
    if declared and served in known and served != declared:
        raise RegistryError(f"{what}: says it is {declared}, was served as {served}")
    kind = str(declared or (served if served in known else ""))
    kind = kind or (MEDIA_INDEX if is_index else MEDIA_MANIFEST)
    if (kind in INDEX_TYPES) != is_index:
        raise RegistryError(
            f"{what}: media type {kind}, but its fields are "
            f"{'an index' if is_index else 'a manifest'}'s"
        )
    return kind


def check_digest(data: bytes, wanted: Digest | None, what: str) -> Digest:
    """The digest of ``data``, which must be the one wanted.  Raises Corrupt."""
    if wanted is None:
        return Digest.of(data)
    found = f"{wanted.algorithm}:{hashlib.new(wanted.algorithm, data).hexdigest()}"
    if found != wanted:
        raise Corrupt(f"{what}: digest {found}, expected {wanted}")
    return wanted


def parse_range_end(value: str | None) -> int | None:
    """Bytes that an upload has so far, from its Range header: ``0-N`` means N + 1 (``0-0`` may be none)."""
    match = re.fullmatch(r"(?:bytes=)?0-(-?\d{1,18})", (value or "").strip())
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last > 0 else 0


def content_range_start(value: str | None) -> int | None:
    """First byte of a ``Content-Range: bytes A-B/T`` answer."""
    match = re.match(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)\Z", (value or "").strip())
    return int(match[1]) if match else None
