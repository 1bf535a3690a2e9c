"""Downloads for ADD: how much is taken, from whom, and who is shown credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ocibuildd.errors import NotFound, TooLarge, Unauthorized
from ocibuildd.registry.fetch import Fetcher

Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []

    async def start(**handlers: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        for name, handler in handlers.items():
            app.router.add_get(f"/{name}", handler)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return f"http://127.0.0.1:{servers[-1].port}"

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    made = Fetcher()
    yield made
    await made.close()


async def test_a_body_that_says_it_is_too_large_is_not_read(serve: Serve, fetcher: Fetcher) -> None:
    async def big(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 101)

    got: list[bytes] = []
    with pytest.raises(TooLarge, match="101 bytes, the limit is 100"):
        await fetcher.fetch(await serve(big=big) + "/big", got.append, limit=100)
    assert not got


async def test_a_body_of_unknown_length_is_cut_off_at_the_limit(
    serve: Serve, fetcher: Fetcher
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x" * 100)
        return response

    got: list[bytes] = []
    with pytest.raises(TooLarge, match="more than 250 bytes"):
        await fetcher.fetch(await serve(f=endless) + "/f", got.append, limit=250)
    assert sum(map(len, got)) <= 250


async def test_a_redirect_takes_no_credentials_to_another_authority(
    serve: Serve, fetcher: Fetcher
) -> None:
    seen: list[dict[str, str]] = []

    async def end(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.Response(body=b"data")

    other = await serve(end=end)

    async def away(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        raise web.HTTPFound(f"{other}/end")

    got: list[bytes] = []
    headers = {"Authorization": "Bearer secret", "If-None-Match": "tag"}
    await fetcher.fetch(await serve(away=away) + "/away", got.append, headers=headers)
    assert b"".join(got) == b"data"
    assert seen[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in seen[1] and seen[1]["If-None-Match"] == "tag"


@pytest.mark.parametrize(("status", "error"), [(401, Unauthorized), (404, NotFound)])
async def test_a_refusal_is_told_apart(
    serve: Serve, fetcher: Fetcher, status: int, error: type[Exception]
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status)

    with pytest.raises(error, match=str(status)):
        await fetcher.fetch(await serve(f=refuse) + "/f", lambda data: None)
