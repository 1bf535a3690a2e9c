"""Per-registry settings as frozen values.  The daemon's config file is parsed into them elsewhere."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from ocibuildd.errors import Denied
from ocibuildd.model.reference import DEFAULT_DOMAIN, Reference

HUB_HOST = "registry-1.docker.io"
"""Where docker.io's registry really answers."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place where a registry's content can be had.

    host: ``name[:port]``.  prefix: put before the repository's path, no slash at its ends
    (``dockerhub`` makes ``library/busybox`` into ``dockerhub/library/busybox``).
    http: plain HTTP is allowed.  insecure: TLS certificates are not checked.
    ca, cert, key: PEM files, "" = none.  identity: the registry whose credentials are used here; a
    mirror uses its own, never those of the registry that it mirrors.
    """

    host: str
    prefix: str = ""
    http: bool = False
    insecure: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    identity: str = ""
    mirror: bool = False

    @property
    def plain_allowed(self) -> bool:
        """Plain HTTP: where it is configured, or on loopback unless TLS material is configured."""
        return self.http or (is_loopback(self.host) and not (self.ca or self.cert))

    def repository(self, path: str) -> str:
        """The repository's path at this endpoint."""
        return f"{self.prefix}/{path}" if self.prefix else path


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """``[registry."host[:port]"]`` of the daemon's configuration, with the same names.

    mirrors: ``host[:port][/prefix]``, tried in order for pulls, then the registry itself; how a mirror
    is spoken to stands in its own host's settings.  location: ``host[:port][/prefix]`` where the
    registry is if not at its own name.  blocked: neither pull nor push.
    """

    mirrors: tuple[str, ...] = ()
    location: str = ""
    http: bool = False
    insecure: bool = False
    blocked: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """All registries.  ``downloads`` and ``uploads`` bound how many blobs are under way at once, in
    total; timeouts are in seconds; ``attempts`` is per request.  push_timeout: without a megabyte of an upload
    that goes, or for the answer once all of it went (registries may then hash and move many gigabytes)."""

    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    downloads: int = 6
    uploads: int = 5
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    push_timeout: float = 600.0
    attempts: int = 5
    user_agent: str = "ocibuildd"

    def settings(self, domain: str) -> RegistrySettings:
        return self.registries.get(domain) or RegistrySettings()


def _endpoint(config: RegistryConfig, place: str, identity: str, *, mirror: bool) -> Endpoint:
    host, _, prefix = place.strip("/").partition("/")
    own = config.settings(identity)
    return Endpoint(
        HUB_HOST if host == DEFAULT_DOMAIN else host,
        prefix,
        own.http,
        own.insecure,
        own.ca,
        own.cert,
        own.key,
        identity,
        mirror,
    )


def origin(config: RegistryConfig, domain: str) -> Endpoint:
    """The registry itself.  Raises Denied where the configuration blocks it."""
    settings = config.settings(domain)
    if settings.blocked:
        raise Denied(f"registry {domain}: blocked by the daemon's configuration")
    return _endpoint(config, settings.location or domain, domain, mirror=False)


def pull_endpoints(config: RegistryConfig, reference: Reference) -> tuple[Endpoint, ...]:
    """Where to pull from, in order: the mirrors, then the registry itself.  Raises as ``origin``."""
    last = origin(config, reference.domain)
    mirrors = config.settings(reference.domain).mirrors
    found = [_endpoint(config, m, m.partition("/")[0], mirror=True) for m in mirrors]
    return (*found, last)


def split_host(host: str) -> str:
    """The host without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(split_host(host).partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def is_loopback(host: str) -> bool:
    """``localhost``, ``*.localhost``, 127.0.0.0/8, ::1; ``host`` may have a port."""
    name = split_host(host).rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_internal(host: str) -> bool:
    """Loopback, link-local or unspecified: addresses that a foreign server has no reason to name."""
    address = _address(host)
    if address is None:
        return is_loopback(host)
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
    )
