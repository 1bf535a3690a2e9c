"""Sockets through which steps reach SSH keys: one for each --ssh, beside the build's other scratch.

The socket is ours, so that a step's shifted user may connect to it; behind it is our own agent with the
keys that the request brought, or the client's agent, of which only listing and signing are passed on
(``raw``: everything)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import Denied, InvalidArgument
from ..executor import ssh
from ..model.request import SshSpec
from ..runtime import spawn
from .info import Peer

MAX_CONNECTIONS = 64
COPY_SIZE = 1 << 16


class AgentSockets(Mapping[str, str]):
    """id → path.  ``start`` before a step runs, ``close`` at the build's end."""

    def __init__(self, directory: Path, specs: Sequence[SshSpec], peer: Peer):
        if any(spec.agent for spec in specs) and not peer.local:
            raise Denied("ssh: only clients of the Unix socket may name an agent's socket")
        self._directory = directory
        self._specs = {spec.id: spec for spec in specs}
        self._keys = {
            spec.id: [ssh.load_key(text, spec.id) for text in spec.keys] for spec in specs
        }
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._paths: dict[str, str] = {
            name: str(directory / f"ssh-{number}.sock") for number, name in enumerate(self._specs)
        }

    def __getitem__(self, name: str) -> str:
        return self._paths[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    async def start(self) -> None:
        """Listen.  Raises InvalidArgument where an id has neither keys nor an agent."""
        for name, spec in self._specs.items():
            if not spec.agent and not spec.keys:
                raise InvalidArgument(f"ssh {name}: neither keys nor an agent were given",
                                      hint="start ssh-agent, or name a key file")
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

            def connected(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name
            ) -> None:
                if len(self._tasks) >= MAX_CONNECTIONS:
                    writer.close()
                    return
                spawn(self._tasks, asyncio.ensure_future(self._serve(name, reader, writer)))

            server = await asyncio.start_unix_server(connected, self._paths[name])
            # The directory is 0700: only what is bound into a sandbox reaches it.
            os.chmod(self._paths[name], 0o666)  # noqa: S103
            self._servers.append(server)

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        for path in self._paths.values():
            with contextlib.suppress(OSError):
                os.unlink(path)

    async def _serve(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        spec = self._specs[name]
        try:
            if spec.agent:
                await self._forward(spec, reader, writer)
                return
            while True:
                message = await _message(reader)
                writer.write(ssh.frame(ssh.answer(message, self._keys[name])))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, OSError, ValueError):
            return
        finally:
            writer.close()

    async def _forward(
        self, spec: SshSpec, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        agent_reader, agent_writer = await asyncio.open_unix_connection(spec.agent)
        try:
            if spec.raw:
                there = asyncio.ensure_future(_copy(reader, agent_writer))
                try:
                    await _copy(agent_reader, writer)
                finally:
                    there.cancel()
                return
            while True:
                message = await _message(reader)
                if message[:1] and message[0] in ssh.ALLOWED:
                    agent_writer.write(ssh.frame(message))
                    reply = await _message(agent_reader)
                else:
                    reply = bytes([ssh.FAILURE])
                writer.write(ssh.frame(reply))
                await writer.drain()
        finally:
            agent_writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One message.  Raises ValueError for one that is too large."""
    size = struct.unpack(">I", await reader.readexactly(4))[0]
    if size > ssh.MAX_MESSAGE:
        raise ValueError("message too large")
    return await reader.readexactly(size)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end, which is passed on: whoever waits for it has yet to answer."""
    with contextlib.suppress(OSError):  # either side may go at any time
        while data := await reader.read(COPY_SIZE):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
