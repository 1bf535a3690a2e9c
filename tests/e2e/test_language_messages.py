"""What a Dockerfile's author is told: checks, outlines, and errors that teach."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Context = Callable[..., Path]
SLOPPY = """\
from busybox as Base
# check=skip=JSONArgsRecommended
CMD echo skipped
MAINTAINER me
RUN echo $undefined
ENV key value
WORKDIR relative
FROM base
CMD echo hi
"""


def test_warnings_are_printed_after_a_build_with_rule_and_line(
    daemon: Any, context: Context
) -> None:
    built = daemon.ok("build", "--progress=plain", context(Dockerfile=SLOPPY))
    assert "warnings found" in built.err
    assert "MaintainerDeprecated" in built.err
    assert "LegacyKeyValueFormat" in built.err
    assert "(line 6)" in built.err
    assert built.err.index("warnings found") > built.err.index("RUN echo")
    again = daemon.ok("build", context(Dockerfile=SLOPPY))
    assert "MaintainerDeprecated" in again.err


def test_check_reports_and_fails_without_building(daemon: Any, context: Context) -> None:
    done = daemon("build", "--check", context(Dockerfile=SLOPPY + "RUN exit 3\n"))
    assert done.code == 1
    for rule in ("StageNameCasing", "MaintainerDeprecated", "LegacyKeyValueFormat", "Dockerfile:9"):
        assert rule in done.text, done.text
    assert "Dockerfile:3" not in done.text
    clean = daemon("build", "--check", context(Dockerfile="FROM busybox\nRUN exit 3\n"))
    assert (clean.code, "no warnings" in clean.text.lower()) == (0, True)


def test_a_check_tells_what_it_found_before_the_error(daemon: Any, context: Context) -> None:
    for line in ("RUM x", "RUN --mount=type=no,target=/x true"):  # found by the parser, and later
        path = context(Dockerfile=f"FROM scratch AS Base\nMAINTAINER me\n{line}\n")
        done = daemon("build", "--check", path)
        assert done.code == 1
        assert done.text.index("StageNameCasing") < done.text.index("Dockerfile:3") < done.text.index("ERROR:")
        found = json.loads(daemon("build", "--call=check,format=json", path).out)
        assert len(found["warnings"]) == 2
        assert found["buildError"]["location"]["ranges"][0]["start"] == {"line": 3}


def test_check_answers_json(daemon: Any, context: Context) -> None:
    done = daemon("build", "--call=check,format=json", context(Dockerfile=SLOPPY))
    found = json.loads(done.out)
    rules = [warning["ruleName"] for warning in found["warnings"]]
    assert "LegacyKeyValueFormat" in rules
    assert rules.count("JSONArgsRecommended") == 1


def test_a_directive_turns_checks_off_or_into_errors(daemon: Any, context: Context) -> None:
    text = "# check=skip=all\n" + SLOPPY
    assert "warning" not in daemon.ok("build", context(Dockerfile=text)).text
    text = "# check=error=true\nFROM busybox\nENV key value\n"
    failed = daemon("build", context(Dockerfile=text))
    assert failed.code == 1
    assert "LegacyKeyValueFormat" in failed.text
    option = "--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=all"
    daemon.ok("build", option, context(Dockerfile=text))


OUTLINE = """\
# VERSION is what is built
ARG VERSION=1
# base has the tools
FROM busybox AS base
FROM base AS final
ARG VERSION
# FEATURE switches something on
ARG FEATURE
RUN --mount=type=secret,id=token,required --mount=type=cache,target=/c --mount=type=ssh true
FROM scratch AS other
"""


def test_the_outline_is_a_table_or_json(daemon: Any, context: Context) -> None:
    path = context(Dockerfile=OUTLINE)
    table = daemon.ok("build", "--call=outline", "--target=final", path).out
    for word in ("BUILD ARG", "VERSION", "1", "FEATURE", "switches something on", "token"):
        assert word in table, table
    found = json.loads(daemon.ok("build", "--call=outline,format=json", "--target=final", path).out)
    args = {arg["name"]: arg for arg in found["args"]}
    assert args["VERSION"]["value"] == "1"
    assert args["FEATURE"]["description"] == "switches something on"
    assert found["secrets"][0]["required"] is True
    assert [agent["name"] for agent in found["ssh"]] == ["default"]


def test_targets_are_a_table_or_json(daemon: Any, context: Context) -> None:
    path = context(Dockerfile=OUTLINE)
    table = daemon.ok("build", "--call=targets", path).out
    assert "has the tools" in table
    assert "other (default)" in table
    found = json.loads(daemon.ok("build", "--call=targets,format=json", path).out)
    targets = [(each["name"], each.get("default", False)) for each in found["targets"]]
    assert targets == [("base", False), ("final", False), ("other", True)]


FAILURES = {
    "an unknown instruction": (
        "FROM busybox\nRNU true\n",
        ["did you mean RUN", "Dockerfile:2", "^"],
    ),
    "an unknown flag": (
        "FROM busybox\nCOPY --form=x a b\n",
        ["did you mean from?", "Dockerfile:2"],
    ),
    "an unknown stage": (
        "FROM busybox AS builder\nFROM busybox\nCOPY --from=buidler /a /a\n",
        ["buidler", "builder", "Dockerfile:3"],
    ),
    "a stage used before it is there": (
        "FROM busybox AS a\nCOPY --from=later /a /a\nFROM busybox AS later\nFROM a\n",
        ["later", "defined before", "Dockerfile:2"],
    ),
    "stages in a circle": (
        "FROM busybox AS a\nCOPY --from=b / /\nFROM busybox AS b\nCOPY --from=a / /\n",
        ["circular", "Dockerfile:"],
    ),
    "a file with a similar name": (
        "FROM busybox\nCOPY mian.py /\n",
        ["mian.py", "did you mean", "main.py", "Dockerfile:2"],
    ),
    "a file in another directory": ("FROM busybox\nCOPY src/mian.py /\n", ["src/main.py"]),
    "a file that is ignored": (
        "FROM busybox\nCOPY app.key /\n",
        ["*.key", ".dockerignore", "Dockerfile:2"],
    ),
    "a file of another stage": (
        "FROM busybox\nRUN true\nFROM busybox\nCOPY --from=0 /etc/pasword /\n",
        ["/etc/pasword", "passwd"],
    ),
    "a mount's file": (
        "FROM busybox\nRUN --mount=source=mian.py,target=/x true\n",
        ["mian.py", "main.py"],
    ),
    "a user to run as": ("FROM busybox\nUSER nosuch\nRUN true\n", ["nosuch", "Dockerfile:3"]),
    "a required variable": (
        "FROM busybox\nENV A=${B:?B is needed}\n",
        ["B is needed", "Dockerfile:2"],
    ),
    "an empty base": ("ARG BASE\nFROM $BASE\n", ["BASE", "Dockerfile:2"]),
    "a file over a directory": (
        "FROM busybox\nRUN touch /f\nCOPY src /f\n",
        ["/f", "Dockerfile:3"],
    ),
    "a secret that is required": (
        "FROM busybox\nRUN --mount=type=secret,id=k,required true\n",
        ["--secret id=k"],
    ),
    "a here-document without an end": ("FROM busybox\nRUN <<EOF\ntrue\n", ["EOF", "Dockerfile:2"]),
}


@pytest.mark.parametrize(("dockerfile", "words"), FAILURES.values(), ids=FAILURES)
def test_an_error_names(daemon: Any, context: Context, dockerfile: str, words: list[str]) -> None:
    files = {".dockerignore": "*.key\n", "app.key": "k", "main.py": "m", "src/main.py": "m"}
    failed = daemon("build", context(Dockerfile=dockerfile, **files))
    assert failed.code == 1
    for word in words:
        assert word in failed.err, failed.err


@pytest.mark.parametrize(
    ("run", "code", "words"),
    [
        ('RUN ["/usr/bin/python9"]', 127, ["/usr/bin/python9"]),
        ("RUN pyhton9 x", 127, ["pyhton9", "not in the image"]),
        ("RUN printf '#!/opt/perl\\nx' > /s && chmod 755 /s && /s", 127, ["/s is there, but its interpreter /opt/perl is not in the image"]),
        ("RUN printf '#!/bin/sh\\r\\nx' > /s && chmod 755 /s && /s", 127, ["CRLF", "save it with LF"]),
        ("RUN cd / && ./script", 127, ["its interpreter /opt/ruby is not in the image"]),
        ("USER 1000\nRUN mkdir /data", 1, ["runs as user 1000", "chown"]),
        ('RUN ["/script"]', 127, ["/opt/ruby"]),
        ('RUN ["/etc/passwd"]', 126, ["execut"]),
        ("RUN sh -c 'kill -9 $$'; exit $?", 137, ["SIGKILL"]),
        ("RUN exit 42", 42, ["exit code: 42", "Dockerfile:4", "^^^"]),
    ],
)
def test_a_step_that_fails_says_what_probably_mends_it(
    daemon: Any, context: Context, run: str, code: int, words: list[str]
) -> None:
    text = f"FROM busybox\nCOPY script /\n\n{run}\n"
    path = context(Dockerfile=text, script="#!/opt/ruby\n")
    (path / "script").chmod(0o755)
    failed = daemon("build", path)
    assert failed.code == code, failed.err
    for word in words:
        assert word in failed.err, failed.err
