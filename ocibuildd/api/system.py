"""/v1/version, health, info, doctor, login and the OpenAPI document."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from typing import Any

import msgspec
from aiohttp import web

from .. import __version__
from ..errors import BuildError
from ..model.request import RegistryAuth
from .respond import json_body, reply
from .services import Services, services

API_VERSION = "1"


async def version(_request: web.Request) -> web.Response:
    """GET /v1/version"""
    host = os.uname()
    return reply({
        "version": __version__, "api_version": API_VERSION, "docker_api_version": "1.44",
        "python": platform.python_version(), "platform": f"linux/{host.machine}",
        "kernel": host.release, "pid": os.getpid(),
    })


async def health(request: web.Request) -> web.Response:
    """GET /v1/health: 200 while builds are taken, 503 while the daemon is ending."""
    draining = services(request).draining
    return reply({"status": "draining" if draining else "ok"}, 503 if draining else 200)


async def info(request: web.Request) -> web.Response:
    """GET /v1/info"""
    return reply(described(services(request)))


def described(served: Services) -> dict[str, Any]:
    """The daemon's state and settings."""
    found = served.capabilities
    disk = served.store.space.disk()
    return {
        "version": __version__, "pid": os.getpid(), "uid": os.geteuid(),
        "state_dir": str(served.state_dir), "uptime": round(time.time() - served.started, 1),
        "rootless": os.geteuid() != 0, "cpus": os.cpu_count() or 1,
        "builds": {"active": served.builds.active},
        "sandbox": {
            "ids": found.ids, "id_count": found.id_count, "overlay": found.overlay,
            "network": found.network, "cgroup": found.cgroup, "proc": found.proc,
        },
        "disk": {"total": disk.total, "free": disk.free, "used": served.store.used},
        "entitlements": sorted(served.entitlements), "settings": dict(served.settings),
    }


async def doctor(request: web.Request) -> web.Response:
    """GET /v1/doctor: what the host offers, looked at anew."""
    served = services(request)
    requirements = served.capabilities.requirements
    if served.doctor is not None:
        requirements = await served.doctor()
    return reply({"requirements": [dataclasses.asdict(one) for one in requirements]})


class LoginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/login.  registry: host[:port]."""

    registry: str
    auth: RegistryAuth


async def login(request: web.Request) -> web.Response:
    """POST /v1/login: ask the registry whether credentials are good; nothing is stored."""
    body = await json_body(request, LoginBody)
    try:
        token = await services(request).registry.login(body.registry, body.auth)
    except ValueError as error:
        raise BuildError(str(error)) from None
    return reply({"status": "ok", "identity_token": token or ""})


async def openapi(_request: web.Request) -> web.Response:
    """GET /v1/openapi.json: this API, described."""
    from .openapi import document

    return reply(document())
