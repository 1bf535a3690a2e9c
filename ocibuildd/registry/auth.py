"""Authentication without I/O: challenges, scopes, token requests and answers, and the token cache.

Source: RFC 9110 section 11, RFC 6750, Docker's token authentication specification (token, oauth2).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

from ocibuildd.errors import RegistryError, Unauthorized
from ocibuildd.model.request import RegistryAuth

from .config import is_internal
from .protocol import authority, redact, with_param

MAX_HEADER = 8 << 10
MAX_CHALLENGES = 8
MAX_TOKEN = 64 << 10
MAX_CACHED = 512
DEFAULT_LIFETIME = 60.0
"""Seconds; the specification's value where the answer gives none."""
MAX_LIFETIME = 86_400.0 * 365
EARLY = 10.0
"""Seconds before its end from which a token is no longer used for a new request."""
CLIENT_ID = "ocibuildd"

ANONYMOUS = RegistryAuth()
_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_SCHEME = re.compile(rf"\s*({_NAME})(?:\s+|\s*(?=,)|\s*\Z)")
_PARAM = re.compile(rf"\s*({_NAME})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|({_NAME}))\s*(?:,|\Z)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; scheme and parameter names in lower case."""

    scheme: str
    params: dict[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """All challenges that can be read; what can't ends the reading without an error."""
    found: list[Challenge] = []
    text, at = header[:MAX_HEADER], 0
    while at < len(text) and len(found) < MAX_CHALLENGES:
        scheme = _SCHEME.match(text, at)
        if scheme is None:
            break
        at = scheme.end()
        params: dict[str, str] = {}
        while (pair := _PARAM.match(text, at)) is not None:
            value = pair[3] if pair[2] is None else re.sub(r"\\(.)", r"\1", pair[2])
            params.setdefault(pair[1].lower(), value)
            at = pair.end()
        found.append(Challenge(scheme[1].lower(), params))
        while at < len(text) and text[at] in ", \t":
            at += 1
    return tuple(found)


def repository_scope(repository: str, *actions: str) -> str:
    """``repository:library/busybox:pull,push``."""
    return f"repository:{repository}:{','.join(actions)}"


def merge_scopes(*scopes: str) -> tuple[str, ...]:
    """One scope per resource with all its actions, sorted: the key of a cached token."""
    actions: dict[str, set[str]] = {}
    for scope in scopes:
        resource, colon, wanted = scope.rpartition(":")
        if colon:
            actions.setdefault(resource, set()).update(wanted.split(","))
    return tuple(f"{name}:{','.join(sorted(wanted))}" for name, wanted in sorted(actions.items()))


def basic(username: str, password: str) -> str:
    """The value of a basic Authorization header (RFC 7617, UTF-8)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to a token service.  ``form`` is the body of a POST, "" for a GET."""

    url: str
    headers: dict[str, str]
    form: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the time (seconds since the epoch) until which it is used."""

    value: str
    expires: float
    refresh: str = ""


@dataclass(frozen=True, slots=True)
class BearerPlan:
    """Get a token with ``request``, keep it under ``key``."""

    key: str
    request: TokenRequest


@dataclass(frozen=True, slots=True)
class HeaderPlan:
    """Send this Authorization header."""

    value: str


def check_realm(realm: str, registry_url: str) -> str:
    """A token service's URL, if credentials may be sent there.  Raises RegistryError.

    https only, but for a registry that is itself spoken to in plain HTTP; no loopback or link-local
    address unless the registry is at one (a registry could make the daemon call local services).
    """
    parts = urlsplit(realm)
    scheme, host, _ = authority(registry_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise RegistryError(
            f"{redact(registry_url)}: token realm {realm[:100]!r} is no http(s) url"
        )
    if parts.scheme == "http" and scheme != "http":
        raise RegistryError(
            f"{redact(registry_url)}: token realm {redact(realm)} refused: credentials go over https only"
        )
    if is_internal(parts.hostname) and not is_internal(host):
        raise RegistryError(
            f"{redact(registry_url)}: token realm {redact(realm)} refused: a loopback or link-local address"
        )
    return realm


def answer(
    header: str, registry_url: str, credentials: RegistryAuth, scopes: tuple[str, ...]
) -> HeaderPlan | BearerPlan:
    """What to do about a 401.  Raises Unauthorized, RegistryError.

    Bearer is preferred to Basic; a registry token is used as it is.
    """
    challenges = {
        challenge.scheme: challenge.params for challenge in reversed(parse_challenges(header))
    }
    if credentials.registry_token and "bearer" in challenges:
        return HeaderPlan(f"Bearer {credentials.registry_token}")
    if (params := challenges.get("bearer")) is not None:
        realm = check_realm(params.get("realm", ""), registry_url)
        wanted = merge_scopes(*scopes, *params.get("scope", "").split())
        return BearerPlan(
            token_key(realm, params.get("service", ""), wanted, credentials),
            token_request(realm, params.get("service", ""), wanted, credentials),
        )
    if "basic" in challenges:
        if not credentials.username:
            raise Unauthorized(
                f"{redact(registry_url)}: no credentials for it", hint="run ocibuild login"
            )
        return HeaderPlan(basic(credentials.username, credentials.password))
    offered = ", ".join(sorted(challenges)) or "none"
    raise Unauthorized(
        f"{redact(registry_url)}: wants authentication by {offered}, expected basic or bearer"
    )


def token_request(
    realm: str, service: str, scopes: tuple[str, ...], credentials: RegistryAuth
) -> TokenRequest:
    """A GET with basic credentials, or an OAuth2 POST where an identity token is at hand."""
    if credentials.identity_token:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": CLIENT_ID,
            "refresh_token": credentials.identity_token,
            "scope": " ".join(scopes),
        }
        return TokenRequest(
            realm, {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(form)
        )
    url = with_param(realm, "service", service) if service else realm
    for scope in scopes:
        url = with_param(url, "scope", scope)
    if not credentials.username:
        return TokenRequest(url, {})
    url = with_param(with_param(url, "account", credentials.username), "client_id", CLIENT_ID)
    return TokenRequest(url, {"Authorization": basic(credentials.username, credentials.password)})


def token_key(realm: str, service: str, scopes: tuple[str, ...], credentials: RegistryAuth) -> str:
    """What a token is kept under: a hash, so that no secret stands in a key."""
    parts = (
        realm,
        service,
        *scopes,
        "|",
        credentials.username,
        credentials.password,
        credentials.identity_token,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def parse_token(body: bytes, now: float, realm: str) -> Token:
    """The answer of a token service.  Raises RegistryError."""
    try:
        value: Any = json.loads(body)
        text = value.get("token") or value.get("access_token") or ""
        lifetime = float(value.get("expires_in") or DEFAULT_LIFETIME)
        issued = _issued(value.get("issued_at"), now)
        refresh = str(value.get("refresh_token") or "")
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise RegistryError(
            f"token service {redact(realm)}: not the JSON that was expected"
        ) from None
    if not isinstance(text, str) or not re.fullmatch(r"[\x21-\x7e]{1,65536}", text):
        raise RegistryError(f"token service {redact(realm)}: no usable token in its answer")
    if not 0 < lifetime < MAX_LIFETIME:
        lifetime = DEFAULT_LIFETIME
    return Token(text, issued + lifetime, refresh)


def _issued(text: object, now: float) -> float:
    """When a token's life began: never later than now, and not long ago (clocks differ)."""
    try:
        issued = datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return now
    return issued if now - 30 <= issued <= now else now


@dataclass(slots=True)
class TokenCache:
    """Tokens by key, and the key that last worked for an (authority, scopes, credentials) triple."""

    tokens: dict[str, Token] = field(default_factory=dict)
    headers: dict[str, HeaderPlan | BearerPlan] = field(default_factory=dict)

    @staticmethod
    def slot(url: str, scopes: tuple[str, ...], credentials: RegistryAuth) -> str:
        """Where the plan for such requests is remembered.  Bound to the authority: a header made for one
        host can't be looked up for another."""
        return token_key(":".join(map(str, authority(url))), "", scopes, credentials)

    def get(self, key: str, now: float) -> Token | None:
        token = self.tokens.get(key)
        if token is None or token.expires - EARLY <= now:
            return None
        return token

    def put(self, key: str, token: Token, now: float) -> None:
        if len(self.tokens) >= MAX_CACHED:
            self.tokens = {k: t for k, t in self.tokens.items() if t.expires - EARLY > now}
        if len(self.tokens) >= MAX_CACHED:
            self.tokens.pop(next(iter(self.tokens)))
        self.tokens[key] = token

    def remember(self, slot: str, plan: HeaderPlan | BearerPlan) -> None:
        if len(self.headers) >= MAX_CACHED:
            self.headers.pop(next(iter(self.headers)))
        self.headers[slot] = plan

    def forget(self, slot: str) -> None:
        plan = self.headers.pop(slot, None)
        if isinstance(plan, BearerPlan):
            self.tokens.pop(plan.key, None)
