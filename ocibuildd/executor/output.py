"""What a step prints, on its way into event logs: decoded, masked, bounded."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os

from ..ports import Emit

READ_SIZE = 1 << 16
STEP_LOG_LIMIT = 16 << 20
"""Bytes of output that are kept of one step; what comes after is counted, not kept."""
MASK = "***"
MIN_SECRET = 4
"""Shorter secrets are not masked: they would tear holes into innocent text."""
TAIL_LINES = 40
TAIL_LINE_LENGTH = 2000


class StepLog:
    """The output of one step on its way into event logs: decoded, masked, bounded; keeps its tail."""

    def __init__(self, secrets: tuple[str, ...] = (), limit: int = STEP_LOG_LIMIT):
        self._decoders = {n: codecs.getincrementaldecoder("utf-8")("replace") for n in (1, 2)}
        self._held = {1: "", 2: ""}
        self._secrets = tuple(sorted((s for s in secrets if len(s) >= MIN_SECRET), key=len, reverse=True))
        self._limit = limit
        self._size = 0
        self._tail: list[str] = [""]

    def feed(self, stream: int, data: bytes, *, final: bool = False) -> str:
        """The text to log now ("" = nothing yet).  ``final``: the stream has ended."""
        text = self._held[stream] + self._decoders[stream].decode(data, final)
        text, self._held[stream] = self._mask(text, final=final)
        return self._bounded(text)

    def _mask(self, text: str, *, final: bool) -> tuple[str, str]:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        if final or not self._secrets:
            return text, ""
        held = 0
        for secret in self._secrets:
            for size in range(min(len(secret) - 1, len(text)), held, -1):
                if text.endswith(secret[:size]):
                    held = size
                    break
        return (text[:-held], text[-held:]) if held else (text, "")

    def _bounded(self, text: str) -> str:
        if not text:
            return ""
        self._remember(text)
        left = self._limit - self._size
        self._size += len(text)
        if left <= 0:
            return ""
        if len(text) <= left:
            return text
        return f"{text[:left]}\n[output clipped: {self._limit >> 20} MiB a step are kept]\n"

    def _remember(self, text: str) -> None:
        lines = text[-TAIL_LINES * TAIL_LINE_LENGTH:].split("\n")
        lines[0] = (self._tail[-1] + lines[0])[-TAIL_LINE_LENGTH:]
        self._tail = [*self._tail[:-1], *lines][-TAIL_LINES - 1:]

    @property
    def tail(self) -> list[str]:
        """The last lines, for error messages."""
        lines = [line[:TAIL_LINE_LENGTH].rstrip("\r") for line in self._tail]
        return [line for line in lines if line][-TAIL_LINES:]


class Pipe:
    """A step's stdout or stderr: read by the loop, decoded and emitted."""

    def __init__(self, number: int, log: StepLog, emit: Emit):
        self._number, self._log, self._emit = number, log, emit
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_fd, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.read_fd, self._ready)

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.read_fd, READ_SIZE)
            self._say(data)
            if not data:
                self._loop.remove_reader(self.read_fd)

    def _say(self, data: bytes, *, final: bool = False) -> None:
        text = self._log.feed(self._number, data, final=final)
        if text:
            self._emit("log", stream=self._number, data=text)

    def close(self) -> None:
        """Read what is left (all writers are gone) and say it."""
        os.close(self.write_fd)
        self._loop.remove_reader(self.read_fd)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.read_fd, READ_SIZE):
                self._say(data)
        self._say(b"", final=True)
        os.close(self.read_fd)
