"""EXPOSE: ``[[ip:]host:]port[-end][/proto]`` → the ports of the container."""

from __future__ import annotations

import ipaddress
import re

from ..model.graph import Location
from .faults import Fault
from .gotext import parse_int, quote
from .lint import EXPOSE_FORMAT, EXPOSE_PROTO, Linter
from .state import Budget

PROTOCOLS = ("", "tcp", "udp", "sctp")
MAX_PORT = 65_535
WORD_WEIGHT = 40
"""What a word of EXPOSE weighs, whatever it stands for."""
_PLAIN = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?\Z")


def parse_ports(specs: list[str], location: Location, lint: Linter, budget: Budget) -> list[str]:
    """``["80", "81-82/udp"]`` → ``["80/tcp", "81/udp", "82/udp"]``.  Raises Fault."""
    return [port for spec in specs for port in parse_port(spec, location, lint, budget)]


def parse_port(spec: str, location: Location, lint: Linter, budget: Budget) -> list[str]:
    """One word of EXPOSE.  Raises Fault."""
    budget.spend(WORD_WEIGHT)
    plain = _PLAIN.match(spec)
    if plain is not None and int(plain[1]) <= MAX_PORT:
        return [f"{int(plain[1])}/{plain[2] or 'tcp'}"]
    parts = spec.split(":")
    container, host = parts[-1], parts[-2] if len(parts) > 1 else ""
    address = ":".join(parts[:-2])
    port, _, protocol = container.partition("/")
    if not port:
        raise Fault(f"invalid port: {quote(spec)}: no port specified", mark=spec)
    if protocol.lower() not in PROTOCOLS:
        raise Fault(f"invalid port: {quote(spec)}: invalid proto: {protocol}", mark=spec)
    if protocol != protocol.lower():
        message = f"Defined protocol '{spec}' in EXPOSE instruction should be lowercase"
        lint.warn(EXPOSE_PROTO, message, location)
    if address or host:
        message = (
            "EXPOSE instruction should not define an IP address or host-port mapping, found "
            f"'{spec}'"
        )
        lint.warn(EXPOSE_FORMAT, message, location)
    _check_address(address)
    start, end = _range(port, "containerPort")
    if host:
        host_start, host_end = _range(host, "hostPort")
        if end - start != host_end - host_start and end != start:
            raise Fault(f"invalid ranges specified for container and host Ports: {port} and {host}", mark=spec)
    budget.spend(10 * (end - start))
    return [f"{number}/{protocol.lower() or 'tcp'}" for number in range(start, end + 1)]


def _check_address(address: str) -> None:
    if address.startswith("["):
        if not address.endswith("]"):
            raise Fault(f"invalid IP address {address}", mark=address)
        address = address[1:-1]
    try:
        if address:
            ipaddress.ip_address(address)
    except ValueError:
        raise Fault(f"invalid IP address: {address}", mark=address) from None


def _range(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        start = parse_int(first, 10, 64)
        end = parse_int(last, 10, 64) if dash else start
    except ValueError:
        raise Fault(f"invalid {what}: {text}", mark=text) from None
    if not 0 <= start <= end <= MAX_PORT:
        raise Fault(f"invalid {what}: {text}", mark=text)
    return start, end
