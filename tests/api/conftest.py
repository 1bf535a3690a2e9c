"""The API on a Unix socket, over services that a test makes up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from ocibuildd.api.app import make_app, make_runner
from ocibuildd.api.services import Services
from ocibuildd.build.info import BuildInfo
from ocibuildd.errors import NotFound
from ocibuildd.ports import Capabilities

Call = Callable[..., Awaitable[aiohttp.ClientResponse]]


class FakeBuilds:
    """One build, ``b1``, whose events come when a test says so."""

    def __init__(self) -> None:
        self.active = 0
        self.requests: list[Any] = []
        self.cancelled: list[str] = []
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.uploads: list[bytes] = []
        self.begun = 0
        self.aborted = 0

    async def start(self, request: Any, *, peer: Any) -> BuildInfo:
        self.requests.append((request, peer))
        return BuildInfo("b1", "x", "queued", 1.0)

    def get(self, build: str) -> BuildInfo:
        if build not in ("b1", ""):
            raise NotFound(f"build {build}: no such build", hint="ocibuild ps")
        return BuildInfo("b1", "x", "running", 1.0, 1.0)

    def list(self) -> list[BuildInfo]:
        return [self.get("b1")]

    async def events(self, build: str, since: int = 0, *, follow: bool = True) -> AsyncIterator[bytes]:
        while follow or not self.lines.empty():
            line = await self.lines.get()
            if line is None:
                return
            yield line

    async def cancel(self, build: str) -> None:
        self.cancelled.append(build)

    async def explain(self, build: str, step: str) -> list[dict[str, str]]:
        return [{"vertex": "1", "step": step}]

    def output(self, build: str, number: int) -> Path:
        return Path(__file__)

    def upload(self) -> Any:
        taken = bytearray()
        self.begun += 1

        def close() -> None:
            self.uploads.append(bytes(taken))

        def abort() -> None:
            self.aborted += 1

        return SimpleNamespace(id="u1", write=taken.extend, close=close, abort=abort)


@pytest.fixture
def served() -> Services:
    """Services whose parts a test fills in."""
    nsd = SimpleNamespace(capabilities=Capabilities("shifted", "kernel", "pasta", 1, 65536))
    return Services(
        builds=FakeBuilds(), images=SimpleNamespace(list=None, history=None), store=SimpleNamespace(),
        maintenance=SimpleNamespace(poke=lambda: None), registry=SimpleNamespace(), nsd=nsd,
        owner=os.geteuid(), state_dir=Path("/s"),
    )


@pytest.fixture
async def socket_path(served: Services, tmp_path: Path) -> AsyncIterator[Path]:
    """The API, listening."""
    path = tmp_path / "api.sock"
    runner = make_runner(make_app(served))
    await runner.setup()
    await aiohttp.web.UnixSite(runner, str(path)).start()
    yield path
    await runner.cleanup()


@pytest.fixture
async def call(socket_path: Path) -> AsyncIterator[Call]:
    """``await call("GET", "/v1/version")``"""
    connector = aiohttp.UnixConnector(str(socket_path))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def request(method: str, path: str, **more: Any) -> aiohttp.ClientResponse:
            return await session.request(method, f"http://ocibuildd{path}", **more)

        yield request
