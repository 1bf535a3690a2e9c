"""Remote contexts: a git repository, an archive or a lone Dockerfile by HTTP."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import dockerfile
from ..dockerfile.faults import Fault
from ..errors import InvalidArgument
from ..executor.git import checkout
from ..executor.source import Directory, Downloads, HttpFile, open_file
from ..model.digest import Digest
from ..model.graph import GitSource, HttpSource
from ..ports import Nsd
from ..registry.protocol import redact
from .context import MAX_DOCKERFILE, Remote, is_archive, unpack

CONTEXT = "context"
"""What a download is called while it is looked at."""
SNIFFED = 100
"""First bytes of a download that dockerd looks at where its type says nothing."""
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
"""What no text has (WHATWG MIME Sniffing, "binary data byte"), as Go's http.DetectContentType finds it."""


async def fetch_context(
    url: str, nsd: Nsd, downloads: Downloads, secrets: Mapping[str, bytes], scratch: Path,
    hold: Callable[[Digest], None], *, classic: bool = False,
) -> Remote:
    """What a remote context is.  classic: what is no archive must be text by its type, as dockerd's builder has it;
    BuildKit's takes anything for a Dockerfile.  Raises InvalidArgument and what fetching raises."""
    source = git_source(url)
    if source is not None:
        got = await checkout(source, secrets, scratch, lambda *_args, **_fields: None)
        return Remote(got.directory, None, got.time)
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"remote context {url[:200]!r}: neither a git nor an http(s) URL")
    file = await downloads.get(HttpSource(url, CONTEXT), secrets, hold, scratch)
    try:
        with open_file(file.directory, CONTEXT) as stream:
            head = stream.read(512)
            if not is_archive(head):
                if classic:
                    check_text(url, file.media_type, head)
                text = (head + stream.read(MAX_DOCKERFILE))[:MAX_DOCKERFILE]
                return Remote(None, text, time_of(file, None))
            os.lseek(stream.fileno(), 0, os.SEEK_SET)
            directory = await unpack(nsd, stream.fileno(), scratch / "remote")
    finally:
        file.directory.close()
    directory.remote = True
    return Remote(directory, None, time_of(file, directory))


def check_text(url: str, media_type: str, head: bytes) -> None:
    """Is what is no archive a Dockerfile, by its type and its first bytes?  (moby, builder/remotecontext/remote.go.)
    Raises InvalidArgument in dockerd's words."""
    where = f"error detecting content type for remote {redact(url)}"
    if not head:
        raise InvalidArgument(f"{where}: empty response")
    if media_type in ("", "application/octet-stream"):
        start = head[:SNIFFED]
        if not _BINARY.search(start) and not start.lstrip().startswith(b"<"):
            return
    elif "text/plain" in media_type:
        return
    raise InvalidArgument(
        f'{where}: unsupported Content-Type "{media_type[:200]}"',
        hint="a Dockerfile is served as text/plain; anything else must be a tar, compressed or not",
    )


def time_of(file: HttpFile, archive: Directory | None) -> int | None:
    """What SOURCE_DATE_EPOCH takes from a download: Last-Modified, else the time of its newest entry."""
    if file.modified is not None:
        return int(file.modified)
    return archive.newest or None if archive is not None else None


async def ask_time(file: HttpFile, name: str, nsd: Nsd, scratch: Path) -> int | None:
    """The same of a download that is no context: an archive is unpacked to see its times."""
    if file.modified is not None:
        return int(file.modified)
    with open_file(file.directory, name) as stream:
        if not is_archive(stream.read(512)):
            return None
        os.lseek(stream.fileno(), 0, os.SEEK_SET)
        archive = await unpack(nsd, stream.fileno(), Path(tempfile.mkdtemp(prefix="time-", dir=scratch), "x"))
    archive.close()
    return time_of(file, archive)


def git_source(url: str) -> GitSource | None:
    """The checkout that a context's URL names, None if it is no git URL.  Raises InvalidArgument."""
    try:
        ref = dockerfile.parse_git_ref(url)
    except Fault as fault:
        raise InvalidArgument(f"context: {fault.message}", hint=fault.hint) from None
    if ref is None:
        return None
    return dockerfile.git_source(ref)
