"""Clients that don't really wait, and registries that misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faulty_registry import Faults, FaultyRegistry, serving
from patience import PATIENCE

from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import MEDIA_LAYER_GZIP, Descriptor
from ocibuildd.model.reference import Reference
from ocibuildd.registry.client import RegistryClient
from ocibuildd.registry.config import RegistryConfig
from ocibuildd.registry.transport import Transport


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[FaultyRegistry], Awaitable[FaultyRegistry]]]:
    async with serving() as start:
        yield start


@pytest.fixture
async def registry(serve: Any) -> FaultyRegistry:
    return await serve(FaultyRegistry())


@pytest.fixture
async def other(serve: Any) -> FaultyRegistry:
    """A second server: another authority."""
    return await serve(FaultyRegistry())


@dataclass
class Waits:
    """Pauses that a client asked for; none was made."""

    seconds: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def make_client(waits: Waits) -> AsyncIterator[Callable[..., RegistryClient]]:
    made: list[RegistryClient] = []

    def make(config: RegistryConfig | None = None, **options: Any) -> RegistryClient:
        config = config or RegistryConfig(
            attempts=4, read_timeout=PATIENCE, push_timeout=PATIENCE, connect_timeout=PATIENCE
        )
        client = RegistryClient(
            config, transport=Transport(config, sleep=waits, jitter=lambda: 0.0), **options
        )
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()


@pytest.fixture
def client(make_client: Callable[..., RegistryClient]) -> RegistryClient:
    return make_client()


@pytest.fixture
def impatient() -> RegistryConfig:
    """For registries that never answer: where one is honest a timeout is only one more attempt."""
    return RegistryConfig(attempts=4, read_timeout=0.3, push_timeout=0.6)


@pytest.fixture
def ref(registry: FaultyRegistry) -> Reference:
    return Reference.parse(f"{registry.host}/app:v1")


@pytest.fixture
def blob(tmp_path: Path) -> tuple[Path, Descriptor]:
    """A file to push, of 300 kB."""
    data = bytes(range(256)) * 1200
    path = tmp_path / "blob"
    path.write_bytes(data)
    return path, Descriptor(MEDIA_LAYER_GZIP, Digest.of(data), len(data))


@pytest.fixture
def faults() -> type[Faults]:
    return Faults
