"""What the handlers stand on: made by the daemon, read by the API."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from ..ports import Capabilities


@dataclass(slots=True)
class Services:
    """The daemon's parts.  builds: build.service.Builds; images: image.service.Images; store:
    store.Store; maintenance: store.maintenance.Maintenance; registry: registry.client.RegistryClient;
    nsd: ports.Nsd and its ``capabilities``.

    settings: what ``info`` shows of the configuration.  owner: the only uid that may call, with 0.
    draining: the daemon is ending.  active, last: requests under way, and when the last one ended
    (monotonic), for the idle end.
    """

    builds: Any
    images: Any
    store: Any
    maintenance: Any
    registry: Any
    nsd: Any
    owner: int
    state_dir: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    doctor: Callable[[], Any] | None = None
    unpacker: Any = None
    entitlements: frozenset[str] = frozenset({"network.host"})
    started: float = field(default_factory=time.time)
    draining: bool = False
    active: int = 0
    last: float = field(default_factory=time.monotonic)

    @property
    def capabilities(self) -> Capabilities:
        found: Capabilities = self.nsd.capabilities
        return found


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)


def services(request: web.Request) -> Services:
    """The services of the application that got the request."""
    return request.config_dict[SERVICES]
