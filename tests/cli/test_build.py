from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Answer, FakeDaemon, Outcome

Cli = Callable[..., Outcome]
DONE = {"n": 9, "t": 2.0, "type": "build.done", "id": "b1", "image": "sha256:" + "1" * 64,
        "digest": "sha256:" + "2" * 64, "names": ["docker.io/library/x:latest"], "seconds": 1.0}
STARTED = {"n": 0, "t": 1.0, "type": "build.started", "id": "b1", "name": "x", "steps": 2}
STEP = {"n": 1, "t": 1.0, "type": "build.step", "vertex": "2", "step": 2, "total": 2, "stage": "",
        "text": "RUN exit 3", "line": 4}


def failed(code: str = "step-failed", **details: Any) -> dict[str, Any]:
    error = {"code": code, "message": "it failed", "details": details}
    return {"n": 9, "t": 2.0, "type": "build.failed", "seconds": 1.0, "error": error}


@pytest.fixture
def sent(fake: FakeDaemon, cli: Cli) -> Callable[..., Any]:
    """Build with some arguments; the request that the daemon got."""
    fake.answers["POST /v1/builds"] = Answer(lines=[STARTED, DONE])

    def build(*argv: Any) -> Any:
        done = cli("build", *argv)
        assert done.code == 0, done.err
        return fake.last("/v1/builds").json

    return build


def test_a_directory_is_passed_by_name(sent: Any, tmp_path: Path) -> None:
    (tmp_path / "ctx").mkdir()
    (tmp_path / "link").symlink_to("ctx")
    request = sent("-t", "x", "--tag=y:1", tmp_path / "link")
    assert request == {
        "context": {"kind": "local", "path": str(tmp_path / "ctx")}, "tags": ["x", "y:1"]
    }


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--build-arg", "A=b=c", "--build-arg", "UNSET_X"], {"build_args": {"A": "b=c", "UNSET_X": None}}),
        (["--label", "a=b"], {"labels": {"a": "b"}}),
        (["--no-cache", "--pull", "--push"], {"no_cache": True, "pull": True, "push": True}),
        (["--network", "host"], {"network": "host", "allow": ["network.host"]}),
        (["--allow", "security.insecure"], {"allow": ["security.insecure"]}),
        (["--platform", "linux/amd64,linux/arm64"], {"platforms": ["linux/amd64", "linux/arm64"]}),
        (["--add-host", "h:1.2.3.4", "--dns=9.9.9.9"], {"add_hosts": ["h:1.2.3.4"], "dns": ["9.9.9.9"]}),
        (["--check"], {"call": "check"}),
        (["--call", "outline"], {"call": "outline"}),
        (["--reproducible"], {"reproducible": True}),
        (["-o", "type=tar,dest=/x/y.tar"], {"outputs": [{"type": "tar", "dest": "/x/y.tar", "attrs": {}}]}),
        (["-o", "type=docker"], {"outputs": [{"type": "image", "dest": "", "attrs": {}}]}),
        (["-o", "/x/dir"], {"outputs": [{"type": "local", "dest": "/x/dir"}]}),
        (["-o", 'type=image,"name=a,b",push=true'],
         {"outputs": [{"type": "image", "dest": "", "attrs": {"name": "a,b", "push": "true"}}]}),
        (["--cache-from", "r/c:1"], {"cache_from": [{"type": "registry", "attrs": {"ref": "r/c:1"}}]}),
        (["--cache-to", "type=local,dest=/c,mode=max"],
         {"cache_to": [{"type": "local", "attrs": {"dest": "/c", "mode": "max"}}]}),
        (["--memory", "512m", "--cpu-quota", "5"], {"limits": {"memory": 512 << 20, "cpu_quota": 5}}),
        (["--build-context", "a=docker-image://b"], {"build_contexts": {"a": "docker-image://b"}}),
        (["--no-cache-filter", "a,b"], {"no_cache_filter": ["a", "b"]}),
        (["--rm", "--force-rm=true", "--compress", "--provenance=false"], {}),
    ],
)
def test_options_become_fields_of_the_request(
    sent: Any, tmp_path: Path, argv: list[str], expected: dict[str, Any]
) -> None:
    request = sent(*argv, tmp_path)
    assert {key: value for key, value in request.items() if key != "context"} == expected


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--output", "type=zip"], "expected one of image"),
        (["--output", ""], "invalid --output '': expected a directory"),
        (["--output", "dest=/x"], "type= is missing"),
        (["--cache-to", "type=local"], "dest= is missing"),
        (["--cache-from", "type=local,dest=/x"], "src= is missing"),
        (["--cache-to", "type=registry,mode=max"], "ref= is missing"),
        (["--build-context", "base"], "invalid --build-context 'base': expected NAME=WHERE"),
        (["--allow", "network.hots"], "expected network.host or security.insecure\nhint: did you mean network.host?"),
        (["--network", "bridge"], "expected default, none or host"),
        (["--secret", "src=x,foo=1"], "unexpected key 'foo'"),
        (["--build-arg", "=x"], "expected KEY[=VALUE]"),
        (["--max-parallelism", "many"], "expected a whole number"),
        (["--progress", "fancy"], "invalid progress mode"),
        (["a", "b"], "expected one context"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    fake: FakeDaemon, cli: Cli, tmp_path: Path, argv: list[str], words: str
) -> None:
    done = cli("build", *argv, tmp_path)
    assert done.code == 125
    assert words in done.err
    assert not fake.requests


def test_a_key_that_cant_be_read_is_named_once(fake: FakeDaemon, cli: Cli, tmp_path: Path) -> None:
    done = cli("build", "--ssh", "k=/no/such/key", tmp_path)
    assert done.err == "ERROR: --ssh k=/no/such/key: can't read /no/such/key: No such file or directory\n"


def test_secrets_are_read_here_and_sent(
    sent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_bytes(b"s3cret\n")
    monkeypatch.setenv("TOKEN_VARIABLE", "value")
    request = sent("--secret", f"id=a,src={tmp_path}/token", "--secret", "id=b,env=TOKEN_VARIABLE", tmp_path)
    assert [base64.b64decode(one["data"]) for one in request["secrets"]] == [b"s3cret\n", b"value"]


def test_the_dockerfile_is_relative_to_here_as_docker_has_it(
    sent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ctx" / "sub").mkdir(parents=True)
    (tmp_path / "ctx" / "sub" / "D").touch()
    (tmp_path / "out").touch()
    monkeypatch.chdir(tmp_path)
    assert sent("-f", "ctx/sub/D", "ctx")["dockerfile"] == "sub/D"
    assert sent("-f", "out", "ctx")["dockerfile"] == str(tmp_path / "out")
    assert sent("-f", "sub/D", "ctx")["dockerfile"] == "sub/D"


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_dockerfile_on_standard_input_has_no_context(
    sent: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standard_input(monkeypatch, b"FROM x\n")
    request = sent("-")
    assert request == {"context": {"kind": "empty"}, "dockerfile_text": "FROM x\n"}
    standard_input(monkeypatch, b"FROM y\n")
    assert sent("-f", "-", tmp_path)["dockerfile_text"] == "FROM y\n"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_on_standard_input_is_uploaded(
    sent: Any, fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("Dockerfile"))
    standard_input(monkeypatch, body.getvalue())
    fake.answers["POST /v1/uploads"] = Answer({"id": "u1", "size": 1}, 201)
    assert sent("-")["context"] == {"kind": "upload", "id": "u1"}
    assert fake.last("/v1/uploads").body == body.getvalue()


def test_urls_are_the_daemons_to_fetch(sent: Any) -> None:
    url = "https://example.org/r.git#main:sub"
    assert sent(url)["context"] == {"kind": "remote", "url": url}


def test_quiet_prints_the_id_alone_and_files_get_theirs(
    fake: FakeDaemon, cli: Cli, tmp_path: Path
) -> None:
    fake.answers["POST /v1/builds"] = Answer(lines=[STARTED, DONE])
    done = cli("build", "-q", "--iidfile", tmp_path / "i", "--metadata-file", tmp_path / "m", tmp_path)
    assert (done.out, done.err) == (f"{DONE['image']}\n", "")
    assert (tmp_path / "i").read_text() == DONE["image"]
    assert json.loads((tmp_path / "m").read_text())["containerimage.digest"] == DONE["digest"]


@pytest.mark.parametrize("flags", [["-q"], ["--progress=plain"]])
@pytest.mark.parametrize(
    ("details", "code"), [({"exit_code": 42}, 42), ({"signal": 9}, 137), ({}, 1)]
)
def test_a_failing_step_gives_its_code_its_last_lines_and_its_line(
    fake: FakeDaemon, cli: Cli, tmp_path: Path, flags: list[str], details: Any, code: int
) -> None:
    started = {"n": 2, "t": 1.0, "type": "vertex.started", "vertex": "2", "name": "[2/2] RUN exit 3"}
    log = {"n": 3, "t": 1.5, "type": "vertex.log", "vertex": "2", "stream": 2, "data": "last words\n"}
    end = failed(vertex="2", tail=["last words"], **details)
    fake.answers["POST /v1/builds"] = Answer(lines=[STARTED, STEP, started, log, end])
    done = cli("build", *flags, tmp_path)
    assert done.code == code
    assert done.err.count("last words") == 1
    assert "Dockerfile:4" in done.err
    assert ">>> RUN exit 3\n     |     ^^^^^^^^^^" in done.err
    assert done.out == ""


def test_a_syntax_error_shows_its_lines(fake: FakeDaemon, cli: Cli, tmp_path: Path) -> None:
    end = failed("dockerfile", file="D", line=2, end_line=2, column=3, source=[[1, "FROM x"], [2, "  RNU"]])
    fake.answers["POST /v1/builds"] = Answer(lines=[STARTED, end])
    done = cli("build", "--progress=plain", tmp_path)
    assert done.code == 1
    assert "D:2" in done.err
    assert "   2 | >>>   RNU\n     |       ^\n" in done.err


def test_a_daemon_that_dies_is_told_of(fake: FakeDaemon, cli: Cli, tmp_path: Path) -> None:
    fake.answers["POST /v1/builds"] = Answer(lines=[STARTED], cut=True)
    for flags in (["-q"], []):
        done = cli("build", *flags, tmp_path)
        assert done.code == 1
        assert "closed the connection" in done.err


def test_a_context_that_is_not_there_is_named(fake: FakeDaemon, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no such directory" in cli("build", tmp_path / "nothing").err
    assert "-f" in cli("build", tmp_path / "file").err
    assert not fake.requests


def test_a_trace_is_in_the_format_of_trace_viewers(
    fake: FakeDaemon, cli: Cli, tmp_path: Path
) -> None:
    events = [
        {"n": 1, "t": 1.0, "type": "vertex.started", "vertex": "0", "name": "a"},
        {"n": 2, "t": 1.5, "type": "vertex.started", "vertex": "1", "name": "b"},
        {"n": 3, "t": 2.0, "type": "vertex.done", "vertex": "0", "seconds": 1.0},
        {"n": 4, "t": 3.0, "type": "vertex.done", "vertex": "1", "cached": True},
    ]
    fake.answers["POST /v1/builds"] = Answer(lines=[STARTED, *events, DONE])
    assert cli("build", "-q", "--trace", tmp_path / "t.json", tmp_path).code == 0
    spans = json.loads((tmp_path / "t.json").read_text())["traceEvents"][1:]
    assert [(s["name"], s["ph"], s["tid"], s["ts"], s["dur"]) for s in spans] == [
        ("a", "X", 1, 1_000_000, 1_000_000), ("b", "X", 2, 1_500_000, 1_500_000),
    ]


def test_a_trace_shows_an_upload_beside_the_steps(
    fake: FakeDaemon, cli: Cli, tmp_path: Path
) -> None:
    upload = {"type": "vertex.status", "vertex": "push:a/b", "id": "abc", "unit": "bytes", "total": 9}
    events = [
        {"n": 1, "t": 1.0, "type": "vertex.started", "vertex": "0", "name": "a"},
        {"n": 2, "t": 1.25, "text": "waiting", **upload}, {"n": 3, "t": 1.75, "text": "pushed", **upload},
        {"n": 4, "t": 2.0, "type": "vertex.done", "vertex": "0", "seconds": 1.0},
    ]
    fake.answers["POST /v1/builds"] = Answer(lines=[STARTED, *events, DONE])
    assert cli("build", "-q", "--trace", tmp_path / "t.json", tmp_path).code == 0
    spans = json.loads((tmp_path / "t.json").read_text())["traceEvents"][1:]
    assert [(s["ts"], s["dur"], s["args"]) for s in spans if s["cat"] == "transfer"] == [
        (1_250_000, 500_000, {"vertex": "push:a/b", "bytes": 9, "outcome": "pushed"}),
    ]
