"""What a client brings: the context, the Dockerfile in it or beside it, the .dockerignore that applies."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import Denied, InvalidArgument, NotFound, TooLarge
from ..executor.source import Directory, open_directory
from ..model import patterns, request
from ..ports import Nsd
from ..syscalls import open_in_root
from .info import Peer

DEFAULT_NAMES = ("Dockerfile", "dockerfile")
MAX_DOCKERFILE = 16 << 20
MAX_IGNORE = 1 << 20
ARCHIVE_MAGIC = (
    b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18",
)
TAR_MAGIC_OFFSET, TAR_BLOCK = 257, 512
TAR_CHECKSUM = slice(148, 156)

FetchRemote = Callable[[str], Awaitable["Remote"]]


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote context as it came: a directory, or the text of a lone Dockerfile.

    epoch: its own time (of the commit, Last-Modified, else of an archive's newest entry), in seconds."""

    directory: Directory | None
    dockerfile: bytes | None = None
    epoch: int | None = None


@dataclass(eq=False, slots=True)
class OpenContext:
    """The context of a build, opened.  ``directory`` None: there are no files.

    dockerfile: its text; filename: as messages show it.  epoch: what SOURCE_DATE_EPOCH=context means."""

    directory: Directory | None
    dockerfile: bytes
    filename: str
    ignore: tuple[str, ...] = ()
    epoch: int | None = None


def read_file(root: int, path: str, limit: int, what: str) -> bytes | None:
    """A regular file below a directory, no link leading out of it; None if it isn't there.

    Raises InvalidArgument (no regular file, leads out), TooLarge, Denied."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise Denied(f"{what} {path}: permission denied") from None
    except OSError as error:
        raise InvalidArgument(f"{what} {path}: {os.strerror(error.errno or 0)}") from None
    try:
        return _read(fd, path, limit, what)
    finally:
        os.close(fd)


def _read(fd: int, path: str, limit: int, what: str) -> bytes:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgument(f"{what} {path}: not a regular file")
    if found.st_size > limit:
        raise TooLarge(f"{what} {path}: {found.st_size:,} bytes, the limit is {limit:,}")
    with os.fdopen(os.dup(fd), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"{what} {path}: more than {limit:,} bytes")
    return data


def is_archive(head: bytes) -> bool:
    """Do these first bytes (512 will do) begin a tar, compressed or not?  A tar of nothing is one too."""
    magic = head[TAR_MAGIC_OFFSET : TAR_MAGIC_OFFSET + 5]
    if head.startswith(ARCHIVE_MAGIC) or magic == b"ustar":
        return True
    return len(head) == TAR_BLOCK and (not any(head) or _is_old_header(head))


def _is_old_header(head: bytes) -> bool:
    """A header of V7, which has no magic: its checksum holds, the field itself counted as blanks (pax(1))."""
    try:
        stated = int(head[TAR_CHECKSUM].strip(b" \0") or b"-1", 8)
    except ValueError:
        return False
    field = TAR_CHECKSUM
    return stated == sum(head[: field.start]) + sum(head[field.stop :]) + 8 * ord(" ")


async def unpack(nsd: Nsd, archive: int, directory: Path) -> Directory:
    """An archive as a directory of ours, which goes when it is closed."""
    await asyncio.get_running_loop().run_in_executor(
        None, lambda: directory.mkdir(mode=0o700, parents=True)
    )
    done = await nsd.call("unpack", {"path": str(directory), "limits": {}}, [archive])
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return Directory(fd, temporary=directory, newest=done["newest"])


class ContextOpener:
    """Opens what a request names.  scratch: a directory for unpacked uploads; uploads: id → file."""

    def __init__(
        self, nsd: Nsd, scratch: Path, uploads: Callable[[str], Path], fetch: FetchRemote, peer: Peer
    ):
        self._nsd = nsd
        self._scratch = scratch
        self._uploads = uploads
        self._fetch = fetch
        self._peer = peer
        self._epoch: int | None = None

    async def open(self, asked: request.BuildRequest) -> OpenContext:
        """The context and its Dockerfile.  Raises NotFound, InvalidArgument, Denied, TooLarge."""
        directory, lone, applies = await self._files(asked.context)
        try:
            if asked.dockerfile_text is not None:
                text, name = asked.dockerfile_text.encode("utf-8", "surrogateescape"), "Dockerfile"
            elif asked.dockerfile.startswith(("http://", "https://")):
                text, name = await self._by_url(asked.dockerfile), "Dockerfile"
            elif lone is not None:
                text, name = lone, "Dockerfile"
            else:
                text, name = self._dockerfile(asked, directory)
            ignore = self._ignore(asked, directory, name) if applies and directory else ()
        except BaseException:
            if directory is not None:
                directory.close()
            raise
        if directory is not None:
            directory.ignore = ignore
        return OpenContext(directory, text, name, ignore, self._epoch)

    async def _files(
        self, context: request.Context
    ) -> tuple[Directory | None, bytes | None, bool]:
        """(directory, text of a lone Dockerfile, whether .dockerignore applies)."""
        match context:
            case request.LocalContext(path=path):
                return self.local(path, "build context"), None, True
            case request.UploadContext(id=name):
                return await self._upload(name)
            case request.RemoteContext(url=url):
                remote = await self._fetch(url)
                self._epoch = remote.epoch
                return remote.directory, remote.dockerfile, False
            case _:
                return None, None, False

    def local(self, path: str, what: str) -> Directory:
        """A directory on this host, read in place."""
        if not self._peer.local:
            raise Denied(f"{what} {path}: only clients of the Unix socket may name directories",
                         hint="send the context instead")
        return Directory(open_directory(path, what, uid=self._peer.uid), path=path)

    async def _upload(self, name: str) -> tuple[Directory | None, bytes | None, bool]:
        path = self._uploads(name)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not is_archive(os.pread(fd, 512, 0)):
                return None, _read(fd, "-", MAX_DOCKERFILE, "dockerfile"), False
            return await unpack(self._nsd, fd, self._scratch / "context"), None, True
        finally:
            os.close(fd)

    async def _by_url(self, url: str) -> bytes:
        """A Dockerfile from elsewhere.  Raises InvalidArgument where the URL gives something else."""
        remote = await self._fetch(url)
        if remote.directory is not None:
            remote.directory.close()
        if remote.dockerfile is None:
            raise InvalidArgument(f"dockerfile {url[:200]}: an archive or a repository, not a Dockerfile",
                                  hint="to build what is in it, give it as the context")
        return remote.dockerfile

    def _dockerfile(
        self, asked: request.BuildRequest, directory: Directory | None
    ) -> tuple[bytes, str]:
        name = asked.dockerfile
        if name.startswith("/"):
            return self._outside(name, directory)
        if directory is None:
            raise NotFound("dockerfile: the build has no context, so there is none to be found in",
                           hint="give the Dockerfile on standard input, or a directory")
        for candidate in (name,) if name else DEFAULT_NAMES:
            data = read_file(directory.fd, candidate, MAX_DOCKERFILE, "dockerfile")
            if data is not None:
                return data, candidate
        where = directory.path or "the build context"
        raise NotFound(
            f"failed to read dockerfile: {name or DEFAULT_NAMES[0]}: no such file in {where}",
            hint="name it with -f, or build where it is",
        )

    def _outside(self, name: str, directory: Directory | None) -> tuple[bytes, str]:
        """An absolute path: below the context it is looked up there, else on the host."""
        if directory is not None and directory.path:
            inside = os.path.relpath(name, directory.path)
            if not inside.startswith("../"):
                data = read_file(directory.fd, inside, MAX_DOCKERFILE, "dockerfile")
                if data is not None:
                    return data, inside
        if not self._peer.local or self._peer.uid not in (-1, 0, os.geteuid()):
            raise Denied(f"dockerfile {name}: only the daemon's own user may name files on this host")
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"failed to read dockerfile {name}: {error.strerror}") from None
        try:
            return _read(fd, name, MAX_DOCKERFILE, "dockerfile"), name
        finally:
            os.close(fd)

    def _ignore(
        self, asked: request.BuildRequest, directory: Directory, name: str
    ) -> tuple[str, ...]:
        """Patterns: ``<Dockerfile>.dockerignore`` beside the Dockerfile, else ``.dockerignore``."""
        data: bytes | None = None
        if asked.dockerfile_text is None and "://" not in asked.dockerfile:
            if name.startswith("/"):
                try:
                    data = Path(name + ".dockerignore").read_bytes()[:MAX_IGNORE]
                except OSError:
                    data = None
            else:
                data = read_file(directory.fd, name + ".dockerignore", MAX_IGNORE, "ignore file")
        return parse_ignore(directory, data)


def parse_ignore(directory: Directory, data: bytes | None = None) -> tuple[str, ...]:
    """Patterns from these bytes, or from the .dockerignore of a directory.  InvalidArgument if bad."""
    if data is None:
        data = read_file(directory.fd, ".dockerignore", MAX_IGNORE, "ignore file")
    if not data:
        return ()
    try:
        return patterns.parse_ignore(data.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise InvalidArgument(f".dockerignore: {error}") from None
