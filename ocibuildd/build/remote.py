"""Remote contexts: a git repository, an archive or a lone Dockerfile by HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import dockerfile
from ..dockerfile.faults import Fault
from ..errors import InvalidArgument
from ..executor.git import checkout
from ..executor.source import Directory, Downloads, open_file
from ..model.digest import Digest
from ..model.graph import GitSource, HttpSource
from ..ports import Nsd
from .context import MAX_DOCKERFILE, Remote, is_archive, unpack


async def fetch_context(
    url: str, nsd: Nsd, downloads: Downloads, secrets: Mapping[str, bytes], scratch: Path,
    hold: Callable[[Digest], None],
) -> Remote:
    """What a remote context is.  Raises InvalidArgument and what fetching raises."""
    source = git_source(url)
    if source is not None:
        got = await checkout(source, secrets, scratch, lambda *_args, **_fields: None)
        return Remote(got.directory, None, got.time)
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"remote context {url[:200]!r}: neither a git nor an http(s) URL")
    file = await downloads.get(HttpSource(url, "context"), secrets, hold, scratch)
    epoch = None if file.modified is None else int(file.modified)
    try:
        with open_file(file.directory, "context") as stream:
            head = stream.read(512)
            if not is_archive(head):
                return Remote(None, (head + stream.read(MAX_DOCKERFILE))[:MAX_DOCKERFILE], epoch)
        archive = os.open("context", os.O_RDONLY | os.O_CLOEXEC, dir_fd=file.directory.fd)
        try:
            directory: Directory = await unpack(nsd, archive, scratch / "remote")
        finally:
            os.close(archive)
    finally:
        file.directory.close()
    directory.remote = True
    return Remote(directory, None, epoch)


def git_source(url: str) -> GitSource | None:
    """The checkout that a context's URL names, None if it is no git URL.  Raises InvalidArgument."""
    try:
        ref = dockerfile.parse_git_ref(url)
    except Fault as fault:
        raise InvalidArgument(f"context: {fault.message}", hint=fault.hint) from None
    if ref is None:
        return None
    return dockerfile.git_source(ref)
