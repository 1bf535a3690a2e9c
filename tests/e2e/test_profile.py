"""What each step used: printed after a build, and shown of any build later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import Daemon

HOG = "dd if=/dev/zero of=/file bs=30M count=1"


@pytest.fixture
def built(daemon: Daemon, context: Callable[..., Path]) -> tuple[str, dict[str, Any]]:
    """What ``--profile`` printed, and the step as ``inspect BUILD`` has it."""
    printed = daemon.ok("build", "--no-cache", "--profile", context(Dockerfile=f"FROM busybox\nRUN {HOG}\n")).text
    build = daemon.ok("ps", "-aq").out.split()[0]
    (shown,) = json.loads(daemon.ok("inspect", build).out)
    assert json.loads(daemon.ok("builds", "inspect", build).out) == shown
    return printed, next(step for step in shown["profile"] if "RUN" in step["name"])


def test_a_steps_use_is_kept(built: tuple[str, dict[str, Any]]) -> None:
    usage = built[1]["usage"]
    assert set(usage) == {"wall", "user", "system", "max_rss", "read", "written"}
    assert usage["user"] + usage["system"] > 0
    assert 0 < usage["wall"] <= built[1]["seconds"] + 1
    assert 30 << 20 <= usage["max_rss"] < 200 << 20
    assert built[1]["layer"]["size"] > 0


def test_the_profile_has_a_column_for_each(built: tuple[str, dict[str, Any]]) -> None:
    lines = built[0].splitlines()
    head = next(line for line in lines if line.startswith("TIME"))
    row = next(line for line in lines if HOG in line and "MB" in line)
    assert head.split() == ["TIME", "CPU", "MEMORY", "READ", "WRITTEN", "LAYER", "STEP"]
    assert row.index("MB") > head.index("MEMORY")


def test_what_is_neither_image_nor_build_is_said_so(daemon: Daemon) -> None:
    assert "No such image" in daemon("inspect", "0123456789abcdef").text
