"""Rows that take the whole daemon: what clients may ask for, and what reaches their terminals."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/bin/busybox").exists() and not Path("/usr/bin/busybox").exists(),
                                reason="busybox isn't installed")


class Unix(http.client.HTTPConnection):
    def __init__(self, path: Path):
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self.path))


def post(daemon, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection = Unix(daemon.socket)
    connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    data = answer.read(1 << 20)
    connection.close()
    return answer.status, data


@pytest.fixture(scope="module")
def strict(make_daemon, busybox_tar):
    """A daemon that grants nothing."""
    made = make_daemon("[entitlements]\nallow = []\n")
    made.ok("import", busybox_tar, "busybox")
    return made


@pytest.mark.parametrize(("run", "words"), [
    ("RUN --network=host true", "network.host"), ("RUN --security=insecure true", "security.insecure"),
])
@pytest.mark.parametrize("allow", [[], ["--allow", "network.host", "--allow", "security.insecure"]])
def test_a25_what_the_daemon_does_not_grant_no_client_gets(strict, context, run, words, allow):
    failed = strict("build", "--progress=plain", *allow, context(Dockerfile=f"# syntax=docker/dockerfile:1-labs\nFROM busybox\n{run}\n"))
    assert failed.code != 0
    assert words in failed.text
    assert "not allowed" in failed.text


def test_a25_the_option_is_no_way_around(strict, context):
    failed = strict("build", "--progress=plain", "--network=host", context(Dockerfile="FROM busybox\nRUN true\n"))
    assert failed.code != 0
    assert "network.host" in failed.text


@pytest.mark.parametrize("allow", ["security.insecure ", "SECURITY.INSECURE", "*", "", "network.host,security.insecure"])
def test_a22_a25_an_entitlement_that_is_none_grants_nothing(strict, context, allow):
    failed = strict("build", "--progress=plain", "--allow", allow, context(Dockerfile="FROM busybox\nRUN --security=insecure true\n"))
    assert failed.code != 0


def failure(daemon, build: str) -> dict:
    """How a build failed, from its event log."""
    connection = Unix(daemon.socket)
    connection.request("GET", f"/v1/builds/{build}/events?follow=1")
    lines = connection.getresponse().read(1 << 20).splitlines()
    connection.close()
    events = [json.loads(line) for line in lines if line.startswith(b"{")]
    assert events[-1]["type"] == "build.failed", events[-1]
    return events[-1]["error"]


@pytest.mark.parametrize("propagation", ["rshared", "shared", "nonsense", "rprivate\x1b", ""])
def test_a14_the_propagation_of_a_mount_cannot_be_chosen(strict, context, propagation):
    run = f"RUN --mount=type=bind,target=/m,bind-propagation={propagation} true"
    failed = strict("build", "--progress=plain", context(Dockerfile=f"FROM busybox\n{run}\n"))
    assert failed.code != 0
    assert "bind-propagation" in failed.text


BODIES = [
    b"", b"null", b"[]", b"{}", b"1", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"context":' * 20_000, b'{"context":{"kind":"local","path":-1}}',
    b'{"context":{"kind":"nonsense"}}', b'{"tags":[null]}', b'{"limits":{"memory":-1}}', b'{"limits":{"memory":1e400}}',
    b'{"limits":{"cpuset_cpus":"0-999999999"}}', b'{"context":{"kind":"empty"},"unknown":1}', b'{"context":{"kind":"local","path":"\\u0000"}}',
    b'{"context":{"kind":"upload","id":"../../../etc"}}', b'{"context":{"kind":"upload","id":"/etc/passwd"}}', b'{"platforms":["a/b/c/d/e"]}',
    b'{"allow":"network.host"}', b'{"hosts":["x"]}', b"NaN", b'{"context":{"kind":"empty"},"dockerfile":5}',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a26_a27_a_malformed_request_is_refused_and_the_daemon_lives(strict, body):
    pid = strict.process.pid
    status, data = post(strict, "/v1/builds", body)
    answer = json.loads(data)
    if status == 201:  # well-formed, but what it names is not there
        assert failure(strict, answer["id"])["code"] in {"invalid-argument", "not-found"}
    else:
        assert 400 <= status < 500, (status, data[:300])
    os.kill(pid, 0)
    assert strict("version").code == 0


def test_a41_a_step_that_shouts_does_not_fill_the_daemon(daemon, context):
    script = "RUN head -c 67108864 /dev/zero; printf '\\033]0;title\\007\\033[2J\\377\\376'; echo end"
    before = resident(daemon.process.pid)
    done = daemon("build", "--progress=plain", "--no-cache", context(Dockerfile=f"FROM busybox\n{script}\n"))
    assert done.code == 0, done.text[-2000:]
    assert "\x1b]0;" not in done.text
    assert "\x1b[2J" not in done.text
    assert resident(daemon.process.pid) < before + (96 << 20)


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024
