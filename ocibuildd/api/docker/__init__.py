"""The Docker Engine API, as far as an engine without containers has one: Docker's own clients work unchanged.

Each path stands with and without ``/v1.N`` in front.  ``DockerApi(…).register(app)`` adds the routes;
``errors`` is the middleware that answers in Docker's words, and only for these routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from ...errors import BuildError
from .build import Build
from .events import Events
from .images import Images
from .protocol import ApiError, check_version, failure
from .space import Space
from .system import System
from .transfer import Transfer

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guarded(handler: Handler) -> Handler:
    """The handler with its version checked and its errors answered as Docker does."""

    async def guard(request: web.Request) -> web.StreamResponse:
        try:
            if "version" in request.match_info:
                check_version(request.match_info["version"])
            return await handler(request)
        except (ApiError, BuildError) as error:
            return failure(error)
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("docker API: %s %s", request.method, request.path)
            return failure(ApiError(500, "internal error; the daemon's log has it"))

    return guard


VERBS = "start|stop|kill|wait|attach|restart|pause|unpause|rename|update|resize|exec"
"""What is done to a container."""
ASKED = "logs|top|stats|changes|archive|export|attach/ws|checkpoints"
"""What is asked of a container."""


class DockerApi:
    """All handlers, made from the services.

    builds: build.service.Builds; images: image.service.Images; registry: registry.client; maintenance:
    store.maintenance; fetcher: registry.fetch.Fetcher; root: the state directory; peer: request → build.info.Peer.
    """

    def __init__(
        self, *, builds: Any, images: Any, registry: Any, maintenance: Any, fetcher: Any, root: Path,
        peer: Callable[[web.Request], Any],
    ):  # fmt: skip
        self.events = Events()
        self._system = System(root, lambda: len(images.list(all=True, filters={})))
        self._build = Build(builds, peer, images, self.events)
        self._images = Images(images, builds, registry, self.events)
        self._transfer = Transfer(images, registry, fetcher, self.events)
        self._space = Space(images, builds, maintenance, registry, self.events)

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, path, handler); an image's name may hold slashes."""
        system, build, images = self._system, self._build, self._images
        transfer, space = self._transfer, self._space
        name = "{name:.+}"
        return [
            ("HEAD", "/_ping", system.ping), ("GET", "/_ping", system.ping),
            ("GET", "/version", system.version), ("GET", "/info", system.info),
            ("GET", "/events", self.events.get), ("GET", "/system/df", space.df),
            ("POST", "/auth", space.auth),
            ("POST", "/build", build.build), ("POST", "/build/cancel", build.cancel),
            ("POST", "/build/prune", space.prune),
            ("GET", "/images/json", images.index), ("GET", "/images/search", system.search),
            ("GET", "/images/get", transfer.get), ("POST", "/images/create", transfer.create),
            ("POST", "/images/load", transfer.load), ("POST", "/images/prune", images.prune),
            ("GET", f"/images/{name}/json", images.inspect),
            ("GET", f"/images/{name}/history", images.history),
            ("GET", f"/images/{name}/get", transfer.get),
            ("POST", f"/images/{name}/push", transfer.push),
            ("POST", f"/images/{name}/tag", images.tag),
            ("DELETE", f"/images/{name}", images.remove),
            ("GET", f"/distribution/{name}/json", images.distribution),
            ("GET", "/containers/json", system.empty_list), ("GET", "/networks", system.empty_list),
            ("GET", "/plugins", system.empty_list), ("GET", "/volumes", system.volumes),
            ("POST", "/{kind:containers|networks|volumes}/prune", system.prune),
            ("GET", "/{kind:containers}/{name}/json", system.missing),
            ("GET", "/{kind:networks|volumes}/{name}", system.missing),
            ("GET", "/{kind:plugins}/{name:.+}/json", system.missing),
            ("DELETE", "/{kind:containers|networks|volumes|plugins}/{name}", system.missing),
            ("POST", f"/{{kind:containers}}/{{name}}/{{verb:{VERBS}}}", system.missing),
            ("GET", f"/{{kind:containers}}/{{name}}/{{verb:{ASKED}}}", system.missing),
            ("HEAD", "/{kind:containers}/{name}/archive", system.missing),
            ("PUT", "/{kind:containers}/{name}/archive", system.missing),
            ("GET", "/{kind:exec}/{name}/json", system.missing),
            ("POST", "/{kind:exec}/{name}/{verb:start|resize}", system.missing),
            ("POST", "/networks/{network}/{verb:connect|disconnect}", system.connect),
            ("POST", "/{kind:plugins}/{name:.+}/{verb:enable|disable|set|upgrade|push}", system.missing),
            ("POST", "/plugins/{verb:pull|create}", system.unsupported),
            ("POST", "/containers/create", system.unsupported), ("POST", "/networks/create", system.unsupported),
            ("POST", "/volumes/create", system.unsupported), ("POST", "/commit", system.no_commit),
            ("GET", "/{what:swarm|nodes|services|tasks|secrets|configs}", system.no_swarm),
            ("*", "/{what:nodes|services|tasks|secrets|configs}/{name}", system.no_swarm),
            ("*", "/{what:nodes|services|secrets|configs}/{name}/{verb:update|logs}", system.no_swarm),
            ("POST", "/swarm/leave", system.no_swarm_left), ("POST", "/swarm/update", system.no_swarm),
            ("POST", "/swarm/{verb:init|join|unlock}", system.unsupported),
            ("POST", "/session", system.no_buildkit), ("POST", "/grpc", system.no_buildkit),
        ]  # fmt: skip

    def register(self, app: web.Application) -> None:
        """Add all routes to the application, and an answer for what there is not."""
        for method, path, handler in self.routes():
            wrapped = guarded(handler)
            for prefix in ("", r"/v{version:\d+\.\d+}"):
                app.router.add_route(method, prefix + path, wrapped)
        app.router.add_route("*", r"/v{version:\d+\.\d+}/{rest:.*}", guarded(_nothing_here))
        # Beside the native API, which stands under /v1, all other paths are Docker's to know.
        app.router.add_route("*", "/{rest:(?!v1/).*}", guarded(_nothing_here))


async def _nothing_here(_request: web.Request) -> web.StreamResponse:
    raise ApiError(404, "page not found")
