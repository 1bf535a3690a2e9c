"""A TCP proxy that counts what clients send, and holds or cuts a connection where a test wants it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

PIECE = 16 << 10
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")


@dataclass
class Proxy:
    """Forwards ``host`` to ``server``.

    sent: bytes from clients since it was last set to 0.  created: answers with status 201.  hold: a connection
    whose request announces a larger body than this is forwarded so much of it and then stands still
    (``held``).  cut: the connection that brings ``sent`` over this is closed, once.  0 = neither.
    """

    server: str
    port: int = 0
    sent: int = 0
    created: int = 0
    hold: int = 0
    cut: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, _, port = self.server.partition(":")
        theirs, ours = await asyncio.open_connection(name, int(port))
        back = asyncio.create_task(self._back(theirs, writer))
        try:
            await self._forth(reader, ours)
        except OSError:
            pass
        finally:
            back.cancel()
            for end in (ours, writer):
                end.close()
            await asyncio.gather(back, return_exceptions=True)

    async def _forth(self, reader: asyncio.StreamReader, ours: asyncio.StreamWriter) -> None:
        left = 0
        while data := await reader.read(PIECE):
            self.sent += len(data)
            if left and (left := max(1, left - len(data))) == 1:
                self.held.set()
                await reader.read()  # until the client is gone
                return
            if self.hold and (found := _LENGTH.search(data)) and int(found[1]) > self.hold:
                left = self.hold
            if self.cut and self.sent > self.cut:
                self.cut = 0
                return
            ours.write(data)
            await ours.drain()

    async def _back(self, theirs: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await theirs.read(PIECE):
                self.created += data.count(b"HTTP/1.1 201 ")
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def proxying(server: str) -> AsyncIterator[Proxy]:
    """A proxy before ``server`` (``127.0.0.1:PORT``)."""
    proxy = Proxy(server)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=PIECE)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
