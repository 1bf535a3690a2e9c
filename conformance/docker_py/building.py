"""Builds through docker-py's low-level client, and what they say."""

from __future__ import annotations

import io
import tarfile
from typing import Any


def build(api: Any, text: str, *, files: dict[str, bytes] | None = None, **options: Any) -> list[Any]:
    """The messages of a build of a Dockerfile's text, with or without other files."""
    if not files:
        return list(api.build(fileobj=io.BytesIO(text.encode()), decode=True, **options))
    body = tar_of({"Dockerfile": text.encode(), **files})
    return list(api.build(fileobj=io.BytesIO(body), custom_context=True, decode=True, **options))


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of some files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def texts(messages: list[Any]) -> str:
    """All that a build said."""
    return "".join(message.get("stream", "") for message in messages)
