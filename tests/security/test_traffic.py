"""Real programs through the build network: apt and pip, from the mirrors that this host uses."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def test_apt_and_pip_work_inside_a_step(box, debian_tar):
    try:
        socket.getaddrinfo("deb.debian.org", 80)
    except OSError:
        pytest.skip("no mirror in reach")
    tree = box.image(debian_tar.read_bytes())
    script = """
        apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-pip iputils-ping
        ping -c 1 127.0.0.1 && su nobody -s /bin/sh -c 'ping -c 1 127.0.0.1'
        PIP_CERT=/ca/ca.crt pip -q download --no-deps -d /tmp/x six && ls /tmp/x
    """
    mounts = []
    if AUTHORITIES.exists():
        data = base64.b64encode(AUTHORITIES.read_bytes()).decode()
        mounts = [{"kind": "files", "target": "/ca", "readonly": True, "files": [["ca.crt", data, 0o444]]}]
    env = [["PATH", "/usr/sbin:/usr/bin:/sbin:/bin"], ["DEBIAN_FRONTEND", "noninteractive"]]
    step = box.spec(["/bin/sh", "-ec", script], lowers=[tree], network="default", mounts=mounts, env=env)
    result = box.wait(box.start(step), timeout=300)
    assert result.code == 0, result.out[-3000:]
    assert "six-" in result.out
