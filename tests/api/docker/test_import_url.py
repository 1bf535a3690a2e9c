"""POST /images/create?fromSrc=URL: the daemon fetches a root file system itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docker_engine import Engine, Page

from .conftest import Serve

GONE = 'Get "http://127.0.0.1:1/x": dial tcp 127.0.0.1:1: connect: connection refused'


@pytest.fixture(scope="module")
def server(serve: Serve, busybox_tar: Path) -> str:
    """``127.0.0.1:PORT`` with /root.tar, /cut.tar (half of it), /moved (to the first) and /inside."""
    tar = busybox_tar.read_bytes()
    return serve({
        "/root.tar": Page(tar), "/cut.tar": Page(tar[: len(tar) // 2]),
        "/text": Page(b"no tar at all\n"), "/moved": Page(place="/root.tar"),
        "/inside": Page(place="http://169.254.169.254/latest"),
    })  # fmt: skip


def test_a_root_file_system_comes_by_url_and_its_progress_is_told(engine: Engine, server: str) -> None:
    query = f"fromSrc=http://{server}/root.tar&repo=api/url&tag=x&changes=ENV%20A=b"
    answer = engine("POST", f"/images/create?{query}")
    first, *between, last = answer.messages
    assert first == {"status": f"Downloading from http://{server}/root.tar"}
    assert {message["status"] for message in between} == {"Importing"}
    assert between[-1]["progressDetail"]["current"] == between[-1]["progressDetail"]["total"]
    details = json.loads(engine("GET", "/images/api/url:x/json").body)
    assert (details["Id"], details["Config"]["Env"]) == (last["status"], ["A=b"])
    assert details["Comment"] == f"Imported from http://{server}/root.tar"


@pytest.mark.parametrize("path", ["/root.tar", "/moved"])
def test_a_url_without_a_scheme_is_http_and_redirects_are_followed(
    engine: Engine, server: str, path: str
) -> None:
    answer = engine("POST", f"/images/create?fromSrc={server}{path}")
    assert answer.messages[0]["status"] == f"Downloading from http://{server}{path}"
    assert answer.messages[-1]["status"].startswith("sha256:")


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("http://{}/nosuch", 404, "failed to GET http://{}/nosuch with status 404 Not Found"),
        ("http://127.0.0.1:1/x", 500, GONE),
        ("ftp://a.example/b", 403, 'Get "ftp://a.example/b": unsupported protocol scheme "ftp"'),
        ("file:///etc/passwd", 403, 'Get "file:///etc/passwd": unsupported protocol scheme "file"'),
        ("http://", 400, "no host"),
        ("http://%5B::1/x", 400, "not a URL"),
        ("http://{}/inside", 403, "cloud metadata services are not read"),
        ("http://{}/root.tar&changes=FOO%20x", 400, "FOO is not a valid change command"),
    ],
)
def test_a_url_that_is_not_fetched_is_a_plain_error(
    engine: Engine, server: str, source: str, status: int, message: str
) -> None:
    answer = engine("POST", f"/images/create?fromSrc={source.format(server)}&repo=api/no")
    assert (answer.status, message.format(server) in answer.error) == (status, True), answer.body
    assert engine("GET", "/images/api/no/json").status == 404


@pytest.mark.parametrize("path", ["/cut.tar", "/text"])
def test_what_is_no_root_file_system_is_told_inside_the_stream(engine: Engine, server: str, path: str) -> None:
    answer = engine("POST", f"/images/create?fromSrc=http://{server}{path}&repo=api/no")
    assert answer.status == 200
    assert "errorDetail" in answer.messages[-1]
    assert engine("GET", "/images/api/no/json").status == 404
