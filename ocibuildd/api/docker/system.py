"""The engine as Docker clients ask after it: ping, version, info, and what an engine without
containers, networks, volumes and plugins answers."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from ... import __version__
from .protocol import (
    API_VERSION,
    HEADERS,
    MIN_API_VERSION,
    ApiError,
    filters,
    flag,
    number,
    reply,
    small_json,
)

GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
LIST_FILTERS = {
    "containers": frozenset({
        "ancestor", "before", "exited", "expose", "health", "id", "isolation", "is-task", "label", "name", "network",
        "publish", "since", "status", "volume",
    }),
    "networks": frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"}),
    "volumes": frozenset({"dangling", "driver", "label", "name"}),
    "plugins": frozenset({"capability", "enabled"}),
}  # fmt: skip
PRUNE_FILTERS = {
    "containers": frozenset({"label", "label!", "until"}),
    "networks": frozenset({"label", "label!", "until"}),
    "volumes": frozenset({"all", "label", "label!"}),
}
UNPRUNED = {
    "containers": {"ContainersDeleted": None, "SpaceReclaimed": 0},
    "networks": {"NetworksDeleted": None},
    "volumes": {"VolumesDeleted": None, "SpaceReclaimed": 0},
}
NO_CONTAINERS = "this engine builds images and keeps no containers"
NO_BUILDKIT = (
    "BuildKit's API isn't spoken here: build with DOCKER_BUILDKIT=0 (RUN --mount and the rest of the language "
    "work through it too), or with ocibuild"
)
BODY_LIMIT = 1 << 20
MAX_SEARCH = 100
NO_COMMIT = {"ID": "", "Expected": ""}
HUB = {"Name": "docker.io", "Mirrors": [], "Secure": True, "Official": True}


def architecture() -> str:
    """This machine's, in Go's words."""
    machine = platform.machine()
    return GO_ARCHITECTURES.get(machine, machine)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


class System:
    """Handlers that tell of the engine.  ``count``: () → number of images; ``root``: state directory."""

    def __init__(self, root: Path, count: Callable[[], int]):
        self._root = root
        self._count = count
        self._started = time.time()

    async def ping(self, request: web.Request) -> web.Response:
        """HEAD and GET /_ping."""
        headers = {
            **HEADERS, "Builder-Version": "1", "Swarm": "inactive", "Pragma": "no-cache",
            "Cache-Control": "no-cache, no-store, must-revalidate",
        }
        text = "" if request.method == "HEAD" else "OK"
        return web.Response(text=text, headers=headers, content_type="text/plain", charset="utf-8")

    async def version(self, _request: web.Request) -> web.Response:
        """GET /version"""
        kernel = os.uname().release
        details = {
            "ApiVersion": API_VERSION, "MinAPIVersion": MIN_API_VERSION, "Os": "linux",
            "Arch": architecture(), "GitCommit": "", "GoVersion": "", "KernelVersion": kernel,
            "Experimental": "false", "BuildTime": "",
        }
        return reply(
            {
                "Platform": {"Name": "ocibuildd"},
                "Components": [{"Name": "Engine", "Version": __version__, "Details": details}],
                "Version": __version__,
                **details,
                "Experimental": False,
            }
        )

    async def info(self, _request: web.Request) -> web.Response:
        """GET /info"""
        return reply(
            {
                "ID": hashlib.sha256(str(self._root).encode()).hexdigest()[:32],
                "Containers": 0, "ContainersRunning": 0, "ContainersPaused": 0, "ContainersStopped": 0,
                "Images": self._count(),
                "Driver": "overlay2",
                "DriverStatus": [["userxattr", "true"]],
                "Plugins": {"Volume": [], "Network": [], "Authorization": None, "Log": []},
                "MemoryLimit": True, "SwapLimit": True, "CpuCfsPeriod": True, "CpuCfsQuota": True,
                "CPUShares": True, "CPUSet": True, "PidsLimit": True, "IPv4Forwarding": True,
                "OomKillDisable": False, "Debug": False, "NFd": 0, "NGoroutines": 0,
                "NEventsListener": 0, "LoggingDriver": "none", "CgroupDriver": "none",
                "CgroupVersion": "2", "SystemTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "KernelVersion": os.uname().release,
                "OperatingSystem": _operating_system(),
                "OSType": "linux", "OSVersion": "", "Architecture": platform.machine(),
                "NCPU": os.cpu_count() or 1, "MemTotal": _memory(),
                "IndexServerAddress": "https://index.docker.io/v1/",
                "RegistryConfig": {
                    "AllowNondistributableArtifactsCIDRs": [], "AllowNondistributableArtifactsHostnames": [],
                    "IndexConfigs": {"docker.io": HUB}, "InsecureRegistryCIDRs": ["127.0.0.0/8"], "Mirrors": [],
                },
                "GenericResources": None, "DockerRootDir": str(self._root),
                "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
                "Name": socket.gethostname(), "Labels": [], "ExperimentalBuild": True,
                "ServerVersion": __version__,
                "Runtimes": {"ocibuildd": {"path": "ocibuildd"}}, "DefaultRuntime": "ocibuildd",
                "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive",
                          "ControlAvailable": False, "Error": "", "RemoteManagers": None},
                "BridgeNfIptables": True, "BridgeNfIp6tables": True,
                "ContainerdCommit": NO_COMMIT, "RuncCommit": NO_COMMIT, "InitCommit": NO_COMMIT,
                "LiveRestoreEnabled": False, "Isolation": "", "InitBinary": "",
                "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
                "Warnings": [],
            }
        )

    async def empty_list(self, request: web.Request) -> web.Response:
        """GET /containers/json, /networks, /plugins: there are none."""
        path = request.path.removesuffix("/json")
        filters(request.query, LIST_FILTERS[path.rpartition("/")[2]])
        return reply([])

    async def volumes(self, request: web.Request) -> web.Response:
        """GET /volumes"""
        filters(request.query, LIST_FILTERS["volumes"])
        return reply({"Volumes": [], "Warnings": None})

    async def prune(self, request: web.Request) -> web.Response:
        """POST /{containers,networks,volumes}/prune: nothing to do."""
        kind = request.match_info["kind"]
        filters(request.query, PRUNE_FILTERS[kind])
        return reply(UNPRUNED[kind])

    async def missing(self, request: web.Request) -> web.Response:
        """GET of one container, network, volume, plugin: there is none of that name."""
        kind = request.match_info["kind"].rstrip("s")
        name = request.match_info["name"]
        if kind == "network":
            raise ApiError(404, f"network {name} not found")
        if kind == "plugin":
            raise ApiError(404, f'plugin "{name}" not found')
        if kind == "exec":
            raise ApiError(404, f"No such exec instance: {name}")
        if request.match_info.get("verb") == "kill":
            raise ApiError(404, f"Cannot kill container: {name}: No such container: {name}")
        if kind == "volume":
            if request.method == "DELETE" and flag(request.query, "force"):
                return web.Response(status=204, headers=HEADERS)
            raise ApiError(404, f"get {name}: no such volume")
        raise ApiError(404, f"No such {kind}: {name}")

    async def connect(self, request: web.Request) -> web.Response:
        """POST /networks/{network}/connect and /disconnect: the container is missing first."""
        body = await small_json(request, BODY_LIMIT, "types.NetworkConnect")
        raise ApiError(404, f"No such container: {body.get('Container', '')}")

    async def unsupported(self, _request: web.Request) -> web.Response:
        """What needs containers, networks or a swarm."""
        raise ApiError(501, NO_CONTAINERS)

    async def no_commit(self, request: web.Request) -> web.Response:
        """POST /commit?container=: there is no container of that name."""
        raise ApiError(404, f"No such container: {request.query.get('container', '')}")

    async def no_swarm(self, _request: web.Request) -> web.Response:
        """GET /swarm, /nodes, /services, …"""
        raise ApiError(
            503, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" "
            "to connect this node to swarm and try again.",
        )

    async def no_swarm_left(self, _request: web.Request) -> web.Response:
        """POST /swarm/leave"""
        raise ApiError(503, "This node is not part of a swarm")

    async def no_buildkit(self, request: web.Request) -> web.Response:
        """POST /session and /grpc, which BuildKit's clients upgrade."""
        if "upgrade" not in request.headers.get("Connection", "").lower():
            raise ApiError(400, "no upgrade proto in request")
        raise ApiError(501, NO_BUILDKIT)

    async def search(self, request: web.Request) -> web.Response:
        """GET /images/search: no index is searched."""
        if not request.query.get("term"):
            raise ApiError(400, "search term is required")
        limit = number(request.query, "limit")
        if request.query.get("limit") and not 1 <= limit <= MAX_SEARCH:
            raise ApiError(400, f"Limit {limit} is outside the range of [1, {MAX_SEARCH}]")
        filters(request.query)
        return reply([])


