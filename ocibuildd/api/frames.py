"""A process's standard streams over one HTTP exchange: frames up and frames down at the same time.

A frame is a type (1 byte), a length (4 bytes, big endian) and so many bytes.  Up: 0 the request
(JSON), 1 input, 2 end of input, 3 size of the terminal (JSON: rows, columns), 4 a signal's name.
Down: 1 output, 2 error output, 3 how it ended (JSON: exit_code, signal, message), 4 an error (JSON).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from ..errors import BuildError, InvalidArgument

CONTENT_TYPE = "application/vnd.ocibuild.frames"
MAX_FRAME = 1 << 20
READ = 64 << 10
LINGER = 5.0
"""Seconds of silence after a process's end in which its pipes are still listened to."""
SPEC, STDIN, END, RESIZE, SIGNAL = range(5)
STDOUT, STDERR, EXIT, ERROR = range(1, 5)
SIGNALS = {"SIGINT": 2, "SIGTERM": 15, "SIGHUP": 1, "SIGQUIT": 3}

_encode = msgspec.json.Encoder().encode
Job = Callable[[list[int], Callable[[dict[str, Any], list[int]], None]], Awaitable[Mapping[str, Any]]]


async def read_frame(content: Any) -> tuple[int, bytes]:
    """The next frame.  Raises InvalidArgument; EOFError at the end of the body."""
    try:
        head = await content.readexactly(5)
        size = int.from_bytes(head[1:], "big")
        if size > MAX_FRAME:
            raise InvalidArgument(f"a frame of {size} bytes, expected at most {MAX_FRAME}")
        return head[0], await content.readexactly(size)
    except asyncio.IncompleteReadError:
        raise EOFError from None


async def first_frame(request: web.Request) -> bytes:
    """The request itself.  Raises InvalidArgument and 415."""
    if request.content_type != CONTENT_TYPE:
        raise web.HTTPUnsupportedMediaType(
            text=f"content type {request.content_type}: expected {CONTENT_TYPE}"
        )
    try:
        kind, data = await read_frame(request.content)
    except EOFError:
        raise InvalidArgument("the request's body ends before its first frame") from None
    if kind != SPEC:
        raise InvalidArgument(f"the first frame is of type {kind}, expected {SPEC}")
    return data


async def ready(fd: int, *, write: bool = False) -> None:
    """Wait until a descriptor can be read (or written)."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add(fd, wake)
    try:
        await future
    finally:
        remove(fd)


async def chunks_of(fd: int) -> AsyncIterator[bytes]:
    """What comes out of a pipe or a terminal, until its other end is closed."""
    os.set_blocking(fd, False)
    while True:
        try:
            data = os.read(fd, READ)
        except BlockingIOError:
            await ready(fd)
            continue
        except OSError:
            return  # EIO: nobody has the terminal's other side any more
        if not data:
            return
        yield data


async def write_all(fd: int, data: bytes) -> None:
    """Raises OSError (EPIPE, EIO) when nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await ready(fd, write=True)


class Session:
    """One process and its client.  ``run`` gives the answer."""

    def __init__(self, request: web.Request, *, tty: bool, rows: int = 0, columns: int = 0):
        self._request = request
        self._tty = tty
        self._size = (rows, columns)
        self._response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        self._sending = asyncio.Lock()
        self._sent = 0
        self._master: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._signal = 0
        self._job: asyncio.Future[Mapping[str, Any]] | None = None

    async def run(self, job: Job) -> web.StreamResponse:
        """Start the job and copy both ways until it has ended.

        ``job`` is called with the descriptors to pass (stdout, stderr, stdin; none for a terminal,
        whose master comes by event) and the event callback."""
        await self._response.prepare(self._request)
        try:
            outcome = await (self._with_tty(job) if self._tty else self._with_pipes(job))
            await self._send(EXIT, _encode(self._ended(outcome)))
        except BuildError as error:
            await self._send(ERROR, _encode(error.to_dict()))
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            await self._send(ERROR, _encode(BuildError(f"sandbox: {error}").to_dict()))
        await self._response.write_eof()
        return self._response

    def _ended(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        if self._signal:
            return {"signal": self._signal}
        reason = outcome.get("reason", "exit")
        message = outcome.get("message", "")
        body: dict[str, Any] = {
            "exit_code": outcome.get("exit_code", 0), "signal": outcome.get("signal", 0),
        }
        if message or reason not in ("exit", "signal"):
            body["message"] = message or f"ended: {reason}"
        return body

    async def _send(self, kind: int, data: bytes) -> None:
        async with self._sending:
            await self._response.write(bytes((kind,)) + len(data).to_bytes(4, "big") + data)
            self._sent += 1

    async def _copy_out(self, fd: int, kind: int) -> None:
        async for data in chunks_of(fd):
            await self._send(kind, data)

    async def _with_pipes(self, job: Job) -> Mapping[str, Any]:
        out, err, inp = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        theirs = [out[1], err[1], inp[0]]
        ours = {out[0], err[0], inp[1]}
        try:
            started = asyncio.ensure_future(job(theirs, _drop_descriptors))
            self._job = started
            # The job sends the descriptors at once; once it runs, ours are the only copies here.
            started.add_done_callback(lambda _: _close(theirs))
            outputs = [
                asyncio.ensure_future(self._copy_out(out[0], STDOUT)),
                asyncio.ensure_future(self._copy_out(err[0], STDERR)),
            ]
            os.set_blocking(inp[1], False)
            feeding = asyncio.ensure_future(self._feed(inp[1], ours))
            return await self._until_ended(started, outputs, feeding)
        finally:
            _close(theirs)
            _close(list(ours))

    async def _with_tty(self, job: Job) -> Mapping[str, Any]:
        def on_event(event: dict[str, Any], fds: list[int]) -> None:
            if event.get("event") == "tty" and fds and not self._master.done():
                self._master.set_result(fds[0])
                fds = fds[1:]
            _close(fds)

        started = asyncio.ensure_future(job([], on_event))
        self._job = started
        master_or_end: set[asyncio.Future[Any]] = {self._master, started}
        try:
            await asyncio.wait(master_or_end, return_when=asyncio.FIRST_COMPLETED)
            if not self._master.done():
                return await started
            master = self._master.result()
            os.set_blocking(master, False)
            self._resize(*self._size)
            output = asyncio.ensure_future(self._copy_out(master, STDOUT))
            feeding = asyncio.ensure_future(self._feed(master, set()))
            return await self._until_ended(started, [output], feeding)
        finally:
            if not started.done():
                started.cancel()
                await asyncio.wait({started})
            if self._master.done() and not self._master.cancelled():
                os.close(self._master.result())

    async def _until_ended(
        self, job: asyncio.Future[Mapping[str, Any]], outputs: Sequence[asyncio.Future[None]],
        feeding: asyncio.Future[None],
    ) -> Mapping[str, Any]:
        """The job's outcome, once all that it wrote has been sent."""
        try:
            try:
                outcome = await asyncio.shield(job)
            except asyncio.CancelledError:
                if not self._signal:
                    raise
                outcome = {}
            except BuildError:
                if not self._signal:
                    raise
                outcome = {}
            await self._drain(outputs)
            return outcome
        finally:
            tasks: list[asyncio.Future[Any]] = [job, feeding, *outputs]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()

    async def _drain(self, outputs: Sequence[asyncio.Future[None]]) -> None:
        """What was written before the end goes to the client, however slowly it reads.  Who still holds the other end
        of a pipe, and says nothing, isn't waited for."""
        sent = -1
        while sent != self._sent or self._sending.locked():
            sent = self._sent
            if not (await asyncio.wait(outputs, timeout=LINGER))[1]:
                return

    async def _feed(self, fd: int, ours: set[int]) -> None:
        """Frames from the client: input, its end, the terminal's size, signals."""
        with contextlib.suppress(EOFError):
            while True:
                kind, data = await read_frame(self._request.content)
                if kind == STDIN and data:
                    with contextlib.suppress(BrokenPipeError):
                        await write_all(fd, data)
                elif kind == END and fd in ours:
                    ours.discard(fd)
                    os.close(fd)
                elif kind == END and self._tty:
                    await write_all(fd, b"\x04")
                elif kind == RESIZE:
                    size = msgspec.json.decode(data)
                    self._resize(int(size.get("rows", 0)), int(size.get("columns", 0)))
                elif kind == SIGNAL and self._job is not None:
                    self._signal = SIGNALS.get(data[:20].decode("ascii", "replace"), 15)
                    self._job.cancel()

    def _resize(self, rows: int, columns: int) -> None:
        if not (0 < rows < 1 << 15 and 0 < columns < 1 << 15) or not self._master.done():
            return
        with contextlib.suppress(OSError):
            packed = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(self._master.result(), termios.TIOCSWINSZ, packed)


def _drop_descriptors(_event: dict[str, Any], fds: list[int]) -> None:
    _close(fds)


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
