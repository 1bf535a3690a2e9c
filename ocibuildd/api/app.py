"""The whole API of one socket as an aiohttp application."""

from __future__ import annotations

from aiohttp import web

from .guard import guard
from .routes import ROUTES
from .services import SERVICES, Services

KEEPALIVE = 75.0
"""Seconds that an idle connection stays open."""
MAX_LINE = 1 << 20
"""Bytes of a request's first line: Docker's clients put build arguments and labels into it (Go takes as much)."""
MAX_FIELD = 256 << 10
"""Bytes of one header: X-Registry-Config has the credentials of all registries."""


def make_app(served: Services) -> web.Application:
    """Native routes under /v1, the Docker Engine API beside them."""
    app = web.Application(middlewares=[guard], client_max_size=1 << 20)
    app[SERVICES] = served
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """A runner whose handlers are cancelled when their client goes away, and that never unpacks what
    a client has compressed (a bomb would be unpacked before any limit is looked at)."""
    return web.AppRunner(
        app, handle_signals=False, access_log=None, keepalive_timeout=KEEPALIVE,
        handler_cancellation=True, auto_decompress=False, shutdown_timeout=5.0, max_line_size=MAX_LINE,
        max_field_size=MAX_FIELD,
    )
