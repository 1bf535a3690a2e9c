"""Sources that are no images: contexts, downloads, checkouts.

Each becomes a *directory*: a descriptor that jobs read from.  Contexts are the client's own files, read
in place; a download or a checkout lives in a directory of ours until the build ends (downloads longer:
their bytes are a blob, and the server is asked whether they are still right).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from ocibuildd.errors import Corrupt, Denied, InvalidArgument, NotFound
from ocibuildd.model.digest import Digest
from ocibuildd.model.graph import HttpSource
from ocibuildd.ports import BlobStore
from ocibuildd.runtime import in_thread

DOWNLOAD_LIMIT = 16 << 30
MAX_FILENAME = 255
HTTP_MODE = 0o600
"""What ADD gives a downloaded file (BuildKit's choice)."""


@dataclass(eq=False, slots=True)
class Directory:
    """Files to copy or mount from.

    fd: a descriptor of the directory, this object's own.  ignore: .dockerignore patterns (local contexts).
    remote: HTTP or git.  temporary: to be deleted with it.  newest: of an archive, when its newest entry was
    modified, in seconds.
    """

    fd: int
    ignore: tuple[str, ...] = ()
    remote: bool = False
    temporary: Path | None = None
    path: str = ""
    newest: int = 0

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary = None


def open_directory(path: str, what: str, *, uid: int = -1) -> int:
    """A descriptor of a directory that a client named.  Raises InvalidArgument, NotFound, Denied.

    uid: of a client that isn't root and isn't the daemon's user, who may not read through us."""
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{what} {path!r}: an absolute path is wanted")
    if uid not in (-1, 0, os.geteuid()):
        raise Denied(f"{what} {path}: user {uid} may not read files through this daemon",
                     hint="send the context instead")
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise InvalidArgument(f"{what} {path}: not a directory") from None
    except FileNotFoundError:
        raise NotFound(f"{what} {path}: no such directory") from None
    except PermissionError:
        raise Denied(f"{what} {path}: permission denied") from None


# --- HTTP -----------------------------------------------------------------------------------------


class Fetcher(Protocol):
    """``registry.fetch.Fetcher``."""

    async def fetch(
        self, url: str, write: Callable[[bytes], object], *, headers: Mapping[str, str] | None = None,
        limit: int = ..., progress: Callable[[int, int], object] | None = None,
    ) -> Any: ...


class SourceCache(Protocol):
    """``store.Sources``: what was found where."""

    def get(self, kind: Any, key: str) -> Any: ...
    def put(self, kind: Any, key: str, value: object, fetched: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class HttpFile:
    """A download: ``identity`` is over content, name, mode and owner; ``modified`` seconds or None;
    ``media_type``: the Content-Type, "" = none was told."""

    directory: Directory
    identity: str
    digest: Digest
    modified: float | None = None
    media_type: str = ""


@dataclass(slots=True)
class Downloads:
    """Downloads by HTTP for one daemon: bytes in the blob store, validators in ``sources``."""

    fetcher: Fetcher
    blobs: BlobStore
    sources: SourceCache
    limit: int = field(default=DOWNLOAD_LIMIT)

    async def get(
        self, op: HttpSource, secrets: Mapping[str, bytes], hold: Callable[[Digest], None],
        scratch: Path, progress: Callable[[int, int], object] | None = None,
    ) -> HttpFile:
        """Download, or ask whether what we have is still right.  Raises what the fetcher does, and
        Corrupt where a checksum is given and isn't met."""
        key = f"{op.url}\n{sorted(authorization(op.url, secrets).items())!r}"
        key = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        known = self.sources.get("http", key)
        value = known.value if known is not None else None
        if value is not None and not self.blobs.has(Digest(value["digest"])):
            value = None
        if value is None or op.checksum != value["digest"]:
            value = await self._ask(op, key, value, secrets, progress)
        digest = Digest(value["digest"])
        hold(digest)
        found = await self._digest(digest, op.checksum)
        if op.checksum and op.checksum != found:
            raise Corrupt(f"ADD {op.url}: {found}, expected {op.checksum}",
                          hint="the file at this address is not the one that --checksum names")
        return self._lay_out(op, digest, value, scratch)

    async def _digest(self, digest: Digest, checksum: str) -> str:
        """The digest of a download by the algorithm of its checksum."""
        algorithm = checksum.partition(":")[0]
        if algorithm in ("", "sha256"):
            return digest
        with os.fdopen(self.blobs.open(digest), "rb") as file:
            found = await in_thread(hashlib.file_digest, file, algorithm)
        return f"{algorithm}:{found.hexdigest()}"

    async def _ask(
        self, op: HttpSource, key: str, value: Any, secrets: Mapping[str, bytes],
        progress: Callable[[int, int], object] | None,
    ) -> Any:
        headers = authorization(op.url, secrets)
        if value is not None and value.get("etag"):
            headers["If-None-Match"] = value["etag"]
        elif value is not None and value.get("modified"):
            headers["If-Modified-Since"] = value["modified"]
        writer = self.blobs.writer()
        try:
            hasher, size = hashlib.sha256(), 0

            def write(data: bytes) -> None:
                nonlocal size
                hasher.update(data)
                size += len(data)
                writer.write(data)

            got = await self.fetcher.fetch(
                op.url, write, headers=headers, limit=self.limit, progress=progress
            )
            if not got.fresh and value is not None:
                return value
            digest = Digest.from_hex(hasher.hexdigest())
            writer.commit(digest, size)
        finally:
            writer.abort()
        value = {"digest": str(digest), "size": size, "etag": got.etag, "modified": got.modified,
                 "disposition": got.disposition, "type": got.media_type}
        self.sources.put("http", key, value)
        return value

    def _lay_out(self, op: HttpSource, digest: Digest, value: Any, scratch: Path) -> HttpFile:
        """A directory with the file under its name; the bytes are a hard link to the blob's where they
        can be, and never written to."""
        name = op.filename or file_name(op.url, value.get("disposition", ""))
        mode = HTTP_MODE if op.mode is None else op.mode
        root = Path(tempfile.mkdtemp(prefix="http-", dir=scratch))
        try:
            source = self.blobs.open(digest)
            try:
                _copy_to(source, root / name, mode, last_modified(value.get("modified", "")))
            finally:
                os.close(source)
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        text = f"http\0{digest}\0{name}\0{mode}\0{op.uid}\0{op.gid}"
        identity = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return HttpFile(
            Directory(fd, remote=True, temporary=root), identity, digest,
            last_modified(value.get("modified", "")), value.get("type", ""),
        )


def _copy_to(source: int, path: Path, mode: int, mtime: float | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        while count := os.copy_file_range(source, fd, 1 << 30, offset):
            offset += count
        os.fchmod(fd, stat.S_IMODE(mode))
        os.utime(fd, (mtime or 0, mtime or 0))
    finally:
        os.close(fd)


def last_modified(header: str) -> float | None:
    """Seconds since the epoch of a Last-Modified header; None for none, or a wrong one."""
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp()) if header else None
    except (ValueError, TypeError, OverflowError):
        return None


_DISPOSITION = re.compile(r'filename="?([^";]+)"?', re.IGNORECASE)


def file_name(url: str, disposition: str = "") -> str:
    """What a download is called: the last part of the URL's path, else what the server says, else
    "download"; never a path."""
    match = _DISPOSITION.search(disposition)
    for candidate in (urlsplit(url).path.rpartition("/")[2], match.group(1) if match else ""):
        name = candidate.replace("\\", "/").rpartition("/")[2].strip()
        if name not in ("", ".", "..") and "\0" not in name:
            return name.encode("utf-8", "surrogateescape")[:MAX_FILENAME].decode("utf-8", "ignore")
    return "download"


def authorization(url: str, secrets: Mapping[str, bytes]) -> dict[str, str]:
    """The Authorization header that the build's secrets hold for this host: HTTP_AUTH_HEADER_<host>,
    HTTP_AUTH_TOKEN_<host> (Dockerfile reference, ADD)."""
    host = urlsplit(url).hostname or ""
    for name, prefix in (("HTTP_AUTH_HEADER", ""), ("HTTP_AUTH_TOKEN", "Bearer ")):
        data = secrets.get(f"{name}_{host}")
        if data is not None:
            text = data.decode("latin-1").strip()
            if any(c in text for c in "\r\n\0"):
                raise InvalidArgument(f"secret {name}_{host}: a header can't hold line breaks")
            return {"Authorization": prefix + text}
    return {}


def git_authorization(remote: str, secrets: Mapping[str, bytes]) -> dict[str, str]:
    """The header for a git remote: GIT_AUTH_HEADER[.host], GIT_AUTH_TOKEN[.host]."""
    host = urlsplit(remote).hostname or ""
    for name in ("GIT_AUTH_HEADER", "GIT_AUTH_TOKEN"):
        for key in (f"{name}.{host}", name):
            data = secrets.get(key)
            if data is None:
                continue
            text = data.decode("latin-1").strip()
            if any(c in text for c in "\r\n\0"):
                raise InvalidArgument(f"secret {key}: a header can't hold line breaks")
            if name == "GIT_AUTH_TOKEN":
                text = "basic " + base64.b64encode(b"x-access-token:" + text.encode()).decode()
            return {"Authorization": text}
    return {}


def open_file(directory: Directory, name: str) -> IO[bytes]:
    """A file right in a directory of ours."""
    return os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.fd), "rb")
