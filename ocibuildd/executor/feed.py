"""A file that grows, fed to a job through a pipe while it grows: from the page cache, without a copy."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from ..runtime import in_thread, until_done
from ..store.blobs import disk_error

T = TypeVar("T")
PIPE_SIZE = 1 << 20
PIECE = 256 << 10


class Feed(Generic[T]):
    """``start`` the job with the pipe's read end, say ``available`` as the file grows, then ``finish``.

    file: a descriptor open for reading; it stays the caller's.  Whatever happens, ``abort`` (harmless after
    ``finish``) leaves neither task nor descriptor behind.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # the user's pipe budget is spent: the default size then
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(self._write, False)
        self._have = self._sent = 0
        self._ended = False
        self._news = asyncio.Event()
        self._job: asyncio.Task[T] | None = None
        self._pump: asyncio.Task[None] | None = None

    def start(self, job: Callable[[int], Coroutine[Any, Any, T]]) -> None:
        """Begin the job, which reads from the descriptor that it is given."""
        self._job = asyncio.create_task(job(self._read))
        self._pump = asyncio.create_task(self._run())
        # The read end is ours too, so a job that ends early breaks no pipe: stop by hand.
        self._job.add_done_callback(lambda _: self._pump and self._pump.cancel())

    @property
    def stopped(self) -> bool:
        """The job has ended by itself: it will take no more."""
        return self._job is not None and self._job.done()

    def available(self, size: int) -> None:
        """The file has this many bytes now."""
        self._have = size
        self._news.set()

    async def finish(self) -> T:
        """The file is whole: what the job gives.  Raises what the job raised.

        Meanwhile the file goes to the disk, so that whoever commits it finds nothing to wait for.  Raises NoSpace,
        Corrupt (EIO): a failed fsync is told once only (fsync(2)), so it must not be passed over here."""
        assert self._job is not None
        self._ended = True
        self._news.set()
        flush = asyncio.ensure_future(in_thread(os.fsync, self._file))
        try:
            try:
                await until_done(flush)
            except OSError as error:
                raise disk_error(error, "ingest of a layer") from error
            return await self._job
        finally:
            await self.abort()

    async def abort(self) -> None:
        """End the job, wait for its end, close the pipe."""
        tasks = [task for task in (self._pump, self._job) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # it was seen
        self._close_write()
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def _close_write(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    async def _run(self) -> None:
        while True:
            while self._sent < self._have:
                count = self._move(min(self._have - self._sent, PIPE_SIZE))
                self._sent += count
                if not count:
                    await self._writable()
            if self._ended:
                break
            self._news.clear()
            await self._news.wait()
        self._close_write()

    def _move(self, count: int) -> int:
        """Bytes moved from the file to the pipe; 0 = it is full."""
        try:
            return os.splice(
                self._file, self._write, count, offset_src=self._sent, flags=os.SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # A file system without splice.
        try:
            return os.write(self._write, os.pread(self._file, min(count, PIECE), self._sent))
        except BlockingIOError:
            return 0

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        fd = self._write

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_writer(fd, wake)
        try:
            await ready
        finally:
            loop.remove_writer(fd)
