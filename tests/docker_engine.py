"""A Docker API client without opinions, and tars as no tool would make them."""

from __future__ import annotations

import http.client
import io
import json
import socket
import tarfile
from dataclasses import dataclass
from typing import Any

BASE = "FROM busybox\n"
Files = dict[str, str | bytes | tuple[bytes, str]]


def tar_of(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                data = b""
            data = data.encode() if isinstance(data, str) else data
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class Page:
    """What an HTTP server answers; with a place it leads there."""

    body: bytes = b""
    kind: str = "application/octet-stream"
    place: str = ""


class Answer:
    """A status and the messages of the body."""

    def __init__(self, status: int, headers: Any, body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    @property
    def text(self) -> str:
        return "".join(message.get("stream", "") for message in self.messages)

    @property
    def error(self) -> str:
        last = self.messages[-1]
        return str(last.get("message") or last.get("error") or "")

    @property
    def images(self) -> list[str]:
        return [message["aux"]["ID"] for message in self.messages if "aux" in message]


class Engine:
    """A Docker API client without opinions."""

    def __init__(self, path: str):
        self.path = path

    def __call__(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        client = http.client.HTTPConnection("docker", timeout=60)
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(self.path)
        try:
            client.request(method, path, body, headers or {})
            response = client.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            client.close()

    def build(self, files: str | Files, query: str = "", version: str = "") -> Answer:
        if isinstance(files, str):
            files = {"Dockerfile": files}
        headers = {"Content-Type": "application/x-tar"}
        return self("POST", f"{version}/build?{query}", tar_of(files), headers)
