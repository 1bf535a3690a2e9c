"""/etc/resolv.conf and /etc/hosts of a sandbox, made from the host's (pure but for ``read``).

resolv.conf(5), hosts(5), systemd-resolved(8).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgument
from .network_rtnl import Address, IpNetwork

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
"""systemd-resolved's list of the real servers, for those who can't reach its stub."""
STUBS = frozenset(ipaddress.ip_address(text) for text in ("127.0.0.53", "127.0.0.54"))
MAX_FILE = 64 * 1024
MAX_NAMESERVERS = 3  # MAXNS: libc looks at no more
MAX_SEARCH = 32
MAX_HOSTS = 1024
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?\Z")
_OPTION = re.compile(r"[a-z][a-z0-9:_-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class Resolvers:
    """What a resolv.conf says."""

    servers: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse(text: str) -> Resolvers:
    """Read a resolv.conf; what isn't understood is skipped, as libc does."""
    servers: list[Address] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            try:
                servers.append(ipaddress.ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
        elif words[0] in {"search", "domain"}:
            search = tuple(name for name in words[1:] if _NAME.match(name))[:MAX_SEARCH]
        elif words[0] == "options":
            options += [option for option in words[1:] if _OPTION.match(option)]
    return Resolvers(tuple(servers), search, tuple(options))


def read(path: Path = RESOLV_CONF, upstream: Path = RESOLVED_UPSTREAM) -> Resolvers:
    """The host's resolvers; behind systemd-resolved's stub those that it asks itself.

    A file that is missing or unreadable counts as empty."""
    found = parse(_text(path))
    if found.servers and STUBS.issuperset(found.servers):
        real = parse(_text(upstream))
        if real.servers:
            return Resolvers(real.servers, real.search or found.search, found.options)
    return found


def host_text() -> str:
    """The host's resolv.conf as it is: right for who shares its network."""
    return _text(RESOLV_CONF)


def _text(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        return os.read(fd, MAX_FILE).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def stamp(paths: Sequence[Path] = (RESOLV_CONF, RESOLVED_UPSTREAM)) -> tuple[object, ...]:
    """Changes whenever one of the files does."""
    result: list[object] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            result.append(None)
        else:
            result.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(result)


def reachable(found: Resolvers, own: Sequence[IpNetwork], forwarder: Address | None, ipv6: bool) -> Resolvers:
    """Without the servers that a sandbox can't reach: loopback, link-local, the host's own addresses
    and, where there is no IPv6, those; ``forwarder`` stands in when none is left.

    A host that names no server has none to stand in for: names then fail at once, in place of timing out."""
    servers = tuple(
        server
        for server in found.servers
        if not (server.is_loopback or server.is_link_local or server.is_unspecified)
        and not any(server in network for network in own)
        and (ipv6 or server.version == 4)
    )[:MAX_NAMESERVERS]
    if not servers and found.servers and forwarder is not None:
        servers = (forwarder,)
    return Resolvers(servers, found.search, found.options)


def override(found: Resolvers, dns: Mapping[str, Sequence[str]]) -> Resolvers:
    """With RunSpec's ``dns``: a list that isn't empty replaces ours.  Raises InvalidArgument."""
    servers: list[Address] = []
    for text in dns.get("servers", ()):
        try:
            servers.append(ipaddress.ip_address(text))
        except ValueError:
            raise InvalidArgument(f"dns server {text[:100]!r}: expected an IP address") from None
    for key, pattern in (("search", _NAME), ("options", _OPTION)):
        for text in dns.get(key, ()):
            if text != "." and not pattern.match(text):
                raise InvalidArgument(f"dns {key} {text[:100]!r}: not a word that resolv.conf takes")
    search = tuple(dns.get("search", ()))[:MAX_SEARCH]
    if search == (".",):  # Docker's way to say "none"
        search = ()
    elif not search:
        search = found.search
    return Resolvers(
        tuple(servers) or found.servers, search, tuple(dns.get("options", ())) or found.options
    )


def render(resolvers: Resolvers) -> bytes:
    """The file."""
    lines = [f"nameserver {server}" for server in resolvers.servers]
    if resolvers.search:
        lines.append("search " + " ".join(resolvers.search))
    if resolvers.options:
        lines.append("options " + " ".join(resolvers.options))
    return "".join(line + "\n" for line in lines).encode()


def hosts(hostname: str, addresses: Sequence[str], extra: Sequence[Sequence[str]]) -> bytes:
    """/etc/hosts.  ``addresses``: the sandbox's own, that ``hostname`` is to be found under.

    ``extra`` is [[name, address], …].  Raises InvalidArgument."""
    if len(extra) > MAX_HOSTS:
        raise InvalidArgument(f"{len(extra)} extra hosts, at most {MAX_HOSTS} are taken")
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += ["fe00::0\tip6-localnet", "ff00::0\tip6-mcastprefix"]
    lines += ["ff02::1\tip6-allnodes", "ff02::2\tip6-allrouters"]
    for name, address in extra:
        lines.append(f"{_host_address(name, address)}\t{name}")
    lines += [f"{address}\t{hostname}" for address in addresses or ("127.0.1.1",) if hostname]
    return "".join(line + "\n" for line in lines).encode()


def _host_address(name: str, address: str) -> Address:
    if not _NAME.match(name):
        raise InvalidArgument(f"extra host {name[:100]!r}: not a host name")
    if address == "host-gateway":
        raise InvalidArgument(
            f"extra host {name}: host-gateway isn't there: the host's own addresses can't be reached",
            hint="use --network=host with the entitlement network.host",
        )
    try:
        return ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise InvalidArgument(
            f"extra host {name}: {address[:100]!r} is no IP address", hint="write NAME:ADDRESS"
        ) from None
