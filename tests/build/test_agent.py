"""Sockets of ``--ssh`` that are no SSH agents."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ocibuildd.build.agent import AgentSockets
from ocibuildd.build.info import Peer
from ocibuildd.model.request import SshSpec


async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"said " + await reader.read())
    writer.close()


async def test_a_raw_socket_is_forwarded_as_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "service")
    server = await asyncio.start_unix_server(answer_at_the_end, path)
    sockets = AgentSockets(tmp_path, [SshSpec("any", agent=path, raw=True)], Peer(local=True))
    await sockets.start()
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_unix_connection(sockets["any"])
            writer.write(b"what no agent understands")
            writer.write_eof()
            assert await reader.read() == b"said what no agent understands"
            writer.close()
    finally:
        sockets.close()
        server.close()
