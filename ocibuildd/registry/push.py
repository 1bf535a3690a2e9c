"""Drives the upload of one blob: the state machine of ``upload`` over the transport, with a journal."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from ocibuildd.errors import BuildError, Corrupt
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import Descriptor

from .transport import Answer, Broken, Target, Transport
from .upload import RETRYABLE, Ask, Done, Upload

READ = 1 << 20
"""Bytes read from the disk and handed to the connection at a time."""

BlobSource = Path | Callable[[], int]
"""A blob's bytes: a file, or a function that gives a new read-only descriptor of one."""
Progress = Callable[[int], None]


class LeftUpload(Protocol):
    """An upload as it was left."""

    @property
    def location(self) -> str: ...


class UploadJournal(Protocol):
    """What earlier pushes taught, across restarts (``store.uploads``): where uploads were left, and which
    repositories of a registry have a blob (hints for mounts).

    A location may hold a state that only its owner should have: keep it as private as credentials.
    """

    def get(self, registry: str, repository: str, digest: Digest) -> LeftUpload | None: ...
    def put(
        self, registry: str, repository: str, digest: Digest, location: str, offset: int
    ) -> None: ...
    def remove(self, registry: str, repository: str, digest: Digest) -> None: ...
    def saw(self, registry: str, repository: str, digests: list[Digest]) -> None: ...
    def seen_in(self, registry: str, digest: Digest) -> list[str]: ...


async def push_blob(
    transport: Transport, target: Target, repository: str, descriptor: Descriptor,
    source: BlobSource, mounts: tuple[str, ...], journal: UploadJournal | None,
    progress: Progress | None,
) -> Done:  # fmt: skip
    """Carry out an upload.  Raises what ``Upload`` raises, and Corrupt where ``source`` has another size."""
    key = (target.endpoint.host, repository, descriptor.digest)
    left = journal.get(*key) if journal else None
    location = left.location if left else ""
    base = await transport.base(target)
    upload = Upload(
        base, repository, descriptor.digest, descriptor.size, mount_from=mounts, location=location
    )
    kept, waits = location, 0
    faults: list[BuildError] = []
    while not isinstance(action := upload.action(), Done):
        wait = 0.0
        try:
            async with _ask(
                transport, target, action, descriptor, source, progress, faults
            ) as answer:
                if answer.status in RETRYABLE:
                    waits += 1
                    wait = await transport.pause_for(answer, waits)
                    upload.interrupted()
                else:
                    waits = 0
                    upload.answered(answer.status, answer.headers, await answer.error_body())
        except Broken as error:
            if faults:
                raise faults[0] from None
            if error.final:
                raise
            waits += 1
            upload.interrupted()
            wait = transport.wait(waits)
        if journal is not None and upload.location != kept and not upload.done:
            kept = upload.location
            journal.put(*key, kept, upload.offset)
        if wait:
            await transport.pause(wait)
    if journal is not None:
        if kept:
            journal.remove(*key)
        journal.saw(key[0], repository, [descriptor.digest])
    return action


def _ask(
    transport: Transport, target: Target, action: Ask, descriptor: Descriptor,
    source: BlobSource, progress: Progress | None, faults: list[BuildError],
) -> AbstractAsyncContextManager[Answer]:  # fmt: skip
    headers: dict[str, str] = {}
    if action.method in ("POST", "PUT", "PATCH"):
        headers["Content-Length"] = str(action.length)
    if action.length:
        headers["Content-Type"] = "application/octet-stream"

    async def body() -> AsyncIterator[bytes]:
        try:
            async for data in read_stretch(
                source, descriptor, action.offset, action.length, progress
            ):
                yield data
        except BuildError as error:
            faults.append(error)  # to HTTP it is just a connection that breaks
            raise

    if action.ranged and action.length:
        # distribution-spec: "Content-Range: <start>-<end>", both inclusive and without "bytes".
        headers["Content-Range"] = f"{action.offset}-{action.offset + action.length - 1}"
    return transport.exchange(
        target, action.method, action.url, headers=headers, body=body if action.length else None,
        trusted=action.trusted, retry=False,
    )  # fmt: skip


async def read_stretch(
    source: BlobSource, descriptor: Descriptor, offset: int, length: int, progress: Progress | None
) -> AsyncIterator[bytes]:
    """``length`` bytes from ``offset``.  Raises Corrupt where the file's size isn't the descriptor's."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, Path) else source()
    try:
        size = os.fstat(fd).st_size
        if size != descriptor.size:
            raise Corrupt(f"blob {descriptor.digest}: {size:,} bytes, expected {descriptor.size:,}")
        end = offset + length
        while offset < end:
            data = os.pread(fd, min(READ, end - offset), offset)
            if not data:
                raise Corrupt(f"blob {descriptor.digest}: ended at {offset:,} bytes")
            offset += len(data)
            yield data
            if progress is not None:
                progress(offset)
    finally:
        os.close(fd)
