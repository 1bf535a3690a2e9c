"""Pushes that are interrupted: the daemon is killed, or the connection cut; what had arrived isn't sent again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from faulty_registry import FaultyRegistry, serving
from patience import PATIENCE, eventually
from tcp_proxy import Proxy, proxying

PART = 1_000_000


@pytest.fixture(scope="module")
def own(make_daemon: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A daemon with an image of one incompressible layer, and one of three; the last is the largest."""
    daemon, where = make_daemon(), tmp_path_factory.mktemp("context")
    for name, size in (("a", PART // 2), ("b", PART // 2), ("c", 2 * PART)):
        (where / name).write_bytes(os.urandom(size))
    for name, text in (("one", "COPY a b c /\n"), ("three", "COPY a /\nCOPY b /\nCOPY c /\n")):
        daemon.ok("build", "-f", "-", "-t", name, where, stdin=b"FROM scratch\n" + text.encode())
    return daemon


async def killed_while_pushing(
    daemon: Any, image: str, target: str, proxy: Proxy, created: int
) -> None:
    """Push until the proxy holds the largest layer and ``created`` blobs are there; then the daemon dies, and
    starts again."""
    await asyncio.to_thread(daemon.ok, "tag", image, target)
    client = daemon.background("push", target)
    await asyncio.wait_for(proxy.held.wait(), 2 * PATIENCE)
    await eventually("the blobs before", lambda: proxy.created >= created)
    await asyncio.to_thread(daemon.stop, signal.SIGKILL)
    assert await asyncio.to_thread(client.wait, 20) != 0
    client.stdout.close()
    proxy.hold = proxy.sent = 0
    await asyncio.to_thread(daemon.start)


async def test_a_push_goes_on_within_a_layer_after_the_daemon_was_killed(own: Any) -> None:
    async with serving() as start:
        registry = await start(FaultyRegistry())
        async with proxying(registry.host) as proxy:
            proxy.hold = PART
            target = f"{proxy.host}/app:1"
            await killed_while_pushing(own, "one", target, proxy, 1)
            await eventually(
                "the first part",
                lambda: any(len(have) > PART // 2 for have in registry.uploads.values()),
            )
            await asyncio.to_thread(own.ok, "push", target)
        assert proxy.sent < 2.6 * PART  # of 3 million bytes, the rest alone
        assert ("app", "1") in registry.manifests
        ranges = [h["Content-Range"] for m, _, h in registry.seen if m == "PATCH"]
        assert ranges
        assert not ranges[0].startswith("0-")
        assert all(
            "sha256:" + hashlib.sha256(data).hexdigest() == name
            for name, data in registry.blobs.items()
        )


@pytest.mark.parametrize("how", ["killed", "cut"])
async def test_docker_registry_gets_only_the_layers_that_had_not_arrived(
    own: Any, registry: str, how: str
) -> None:
    """It can't take up an upload in the middle (its state is in the URL), but whole layers stay."""
    async with proxying(registry) as proxy:
        target = f"{proxy.host}/resume/{how}:1"
        await asyncio.to_thread(own.ok, "tag", "three", target)
        if how == "killed":
            proxy.hold = PART
            await killed_while_pushing(own, "three", target, proxy, 3)  # two layers and the config
            await asyncio.to_thread(own.ok, "push", target)
            assert 2 * PART < proxy.sent < 2.2 * PART
        else:
            proxy.cut = 2 * PART + PART // 2
            await asyncio.to_thread(own.ok, "push", target)
            assert 3 * PART < proxy.sent < 5.2 * PART
    await asyncio.to_thread(own.ok, "rmi", target)
    await asyncio.to_thread(own.ok, "pull", target.replace(proxy.host, registry))
