"""RUN: forms, here-documents, mounts, network, security."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dockerfile_images import Lower, base_image

from ocibuildd.errors import DockerfileError
from ocibuildd.model.graph import ContextSource, InlineFile, Mount, Run, StagePlan

Final = Callable[..., StagePlan]
OneRun = Callable[..., Run]


@pytest.fixture
def run(lower: Lower) -> OneRun:
    """The operation of the last RUN."""

    def one(lines: str, **options: object) -> Run:
        plan = lower(f"FROM a\n{lines}", **options)
        op = [vertex.op for vertex in plan.vertices if isinstance(vertex.op, Run)][-1]
        assert isinstance(op, Run)
        return op

    return one


def test_the_shell_form_runs_one_text_by_the_shell(run: OneRun) -> None:
    assert run("RUN a && \\\n  b").args == ("/bin/sh", "-c", "a &&   b")
    assert run('SHELL ["/bin/bash", "-xc"]\nRUN a b').args == ("/bin/bash", "-xc", "a b")


def test_the_exec_form_runs_directly(run: OneRun) -> None:
    assert run('RUN ["/a", "b c", "$x"]').args == ("/a", "b c", "$x")


def test_single_quotes_are_no_exec_form(run: OneRun) -> None:
    assert run("RUN ['a']").args == ("/bin/sh", "-c", "['a']")


def test_user_and_directory_hold(run: OneRun) -> None:
    op = run("USER u:g\nWORKDIR w\nRUN x", images={"a": base_image(working_dir="/base")})
    assert (op.user, op.cwd) == ("u:g", "/base/w")


# --- here-documents


@pytest.mark.parametrize("word", ["EOF", "'EOF'", '"EOF"'])
def test_a_here_document_is_a_script_for_the_shell(run: OneRun, word: str) -> None:
    op = run(f"RUN <<{word}\necho $x\nls\nEOF\n")
    assert op.args == ("/bin/sh", "-c", "echo $x\nls\n")
    assert op.files == ()


def test_leading_tabs_go_from_a_chomped_script(run: OneRun) -> None:
    assert run("RUN <<-E\n\ta\n\t  b\n\tE\n").args[2] == "a\n  b\n"


def test_an_interpreter_gets_the_document_through_the_shell(run: OneRun) -> None:
    assert run("RUN python3 <<E\nprint(1)\nE\n").args[2] == "python3 <<E\nprint(1)\nE"


def test_several_documents_go_back_to_the_shell(run: OneRun) -> None:
    assert run("RUN cat 3<<A 4<<B\n1\nA\n2\nB\n").args[2] == "cat 3<<A 4<<B\n1\nA\n2\nB"


def test_a_shebang_makes_a_file_that_is_run(run: OneRun) -> None:
    op = run("RUN <<E\n#!/usr/bin/env python\nprint(1)\nE\n")
    assert op.args == ("/bin/sh", "-c", "/dev/pipes/E")
    assert op.files == (InlineFile("E", b"#!/usr/bin/env python\nprint(1)\n", 0o755),)


def test_a_script_can_not_be_named_like_a_path(run: OneRun) -> None:
    with pytest.raises(DockerfileError, match="can't be a path"):
        run("RUN <<../../E\n#!/bin/sh\n../../E\n")


def test_the_name_shows_the_first_line_of_the_document(lower: Lower) -> None:
    assert lower("FROM a\nRUN <<E\n\nfirst\nsecond\nE\n").vertices[1].name == "[2/2] RUN <<E (first...)"


# --- mounts


def mounts(run: OneRun, flags: str, **options: object) -> tuple[Mount, ...]:
    return run(f"RUN {flags} x", **options).mounts


@pytest.mark.parametrize(
    ("flag", "mount"),
    [
        ("target=/t", Mount("bind", "/t", 1)),
        ("type=bind,dst=/t,src=a/../b,rw", Mount("bind", "/t", 1, "/b", readonly=False)),
        ("destination=/t,readonly=false", Mount("bind", "/t", 1, readonly=False)),
        ("target=/t,readwrite=0", Mount("bind", "/t", 1)),
        ("type=cache,target=/c/", Mount("cache", "/c", readonly=False, cache_id="//c")),
        (
            "type=cache,id=i,target=/c,sharing=LOCKED,mode=0700,uid=1,gid=2,ro",
            Mount("cache", "/c", cache_id="/i", sharing="locked", mode=0o700, uid=1, gid=2),
        ),
        ("type=tmpfs,target=/t,size=1m", Mount("tmpfs", "/t", readonly=False, size=1 << 20)),
        ("type=secret,id=k", Mount("secret", "/run/secrets/k", id="k")),
        ("type=secret,target=/a/b", Mount("secret", "/a/b", id="b")),
        ("type=secret,id=k,env=K", Mount("secret", "", id="k", env="K")),
        ("type=secret,id=k,env=", Mount("secret", "", id="k", env="k")),
        ("type=secret,src=k,env=K,target=/k,required", Mount("secret", "/k", id="k", env="K", required=True)),
        ("type=secret,id=k,mode=0440,uid=3", Mount("secret", "/run/secrets/k", id="k", mode=0o440, uid=3)),
        ("type=ssh", Mount("ssh", "/run/buildkit/ssh_agent.0", id="default")),
        ("type=ssh,id=k,target=/s,required=true", Mount("ssh", "/s", id="k", required=True)),
    ],
)
def test_a_mount_is_read(run: OneRun, flag: str, mount: Mount) -> None:
    assert mounts(run, f"--mount={flag}") == (mount,)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("type=cach,target=/t", 'unsupported mount type "cach" \\(did you mean cache\\?\\)'),
        ("targt=/t", "unexpected key 'targt' in 'targt=/t' \\(did you mean target\\?\\)"),
        ("size=1m,target=/t", "unexpected key 'size' for mount type 'bind'"),
        ("required,type=secret,id=x", "unexpected key 'required' for mount type 'bind'"),
        ("type=cache,target=/t,sharing=some", 'unsupported sharing value "some"'),
        ("target=/t,sharing=shared", "invalid cache sharing set for bind mount"),
        ("target=/t,mode=0700", 'mode not allowed for "bind" type mounts'),
        ("type=tmpfs,target=/t,uid=1", 'uid not allowed for "tmpfs" type mounts'),
        ("type=cache,target=/t,mode=9", "invalid value 9 for mode"),
        ("type=tmpfs,target=/t,size=lots", "invalid value for size: lots"),
        ("type=bind", 'invalid mount target "/"'),
        ("target=/", 'invalid mount target "/"'),
        ("type=secret,from=a,id=x", "secret mount should not have a from"),
        ("type=secret", "invalid secret mount"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=ssh,source=x", "ssh does not support source"),
        ("target=/t,ro=maybe", "invalid value for ro: maybe"),
        ("what,target=/t", "invalid field 'what' must be a key=value pair"),
        ("target=/t,from=$stage", "'from' doesn't support variable expansion"),
        ('target="/t', "failed to parse csv mounts"),
    ],
)
def test_a_broken_mount_says_what_is_wrong(run: OneRun, flag: str, message: str) -> None:
    quoted = flag.replace('"', '\\"')
    with pytest.raises(DockerfileError, match=message):
        run(f"RUN --mount={quoted} x")


def test_values_of_mounts_expand_but_from_does_not(run: OneRun) -> None:
    (mount,) = run("ENV t=cache d=/x\nRUN --mount=type=${t},target=$d,id=$d x").mounts
    assert (mount.type, mount.target, mount.cache_id) == ("cache", "/x", "//x")


def test_relative_targets_stand_below_the_working_directory(run: OneRun) -> None:
    op = run("WORKDIR /w\nRUN --mount=type=cache,target=c --mount=type=secret,id=s,target=s x")
    assert [mount.target for mount in op.mounts] == ["/w/c", "/w/s"]
    assert op.mounts[0].cache_id == "/c"


def test_mounts_come_from_the_context_stages_and_images(lower: Lower) -> None:
    flags = "--mount=target=/1 --mount=from=X,target=/2 --mount=from=img:1,target=/3 --mount=type=cache,from=x,target=/4"
    plan = lower(f"FROM b AS x\nRUN y\nFROM a\nRUN {flags} z")
    vertex = next(v for v in plan.vertices if isinstance(v.op, Run) and v.op.shell == "z")
    op = vertex.op
    assert isinstance(op, Run)
    sources = [plan.vertices[vertex.inputs[m.input]].op for m in op.mounts if m.input is not None]
    assert sources[0] == ContextSource()
    assert isinstance(sources[1], Run)
    assert sources[1] is sources[3]
    assert getattr(sources[2], "ref", "") == "docker.io/library/img:1"


def test_a_number_is_no_stage_for_mounts(lower: Lower) -> None:
    plan = lower("FROM b AS x\nRUN y\nFROM a\nRUN --mount=from=0,target=/m z")
    assert [v.op.shell for v in plan.vertices if isinstance(v.op, Run)] == ["z"]


def test_the_agent_socket_is_in_the_environment(run: OneRun) -> None:
    op = run("RUN --mount=type=ssh --mount=type=ssh,id=two x")
    assert [mount.target for mount in op.mounts] == ["/run/buildkit/ssh_agent.0", "/run/buildkit/ssh_agent.1"]
    assert dict(op.env)["SSH_AUTH_SOCK"] == "/run/buildkit/ssh_agent.0"


def test_secrets_are_named_in_the_plan_and_masked_in_names(lower: Lower) -> None:
    plan = lower("FROM a\nRUN --mount=type=secret,id=k,env=KEY curl $KEY")
    assert plan.secrets == ("k",)
    assert plan.vertices[1].name.endswith("curl ****")
    assert plan.stages[0].history[0].created_by == "RUN /bin/sh -c curl $KEY # buildkit"


# --- network and security


def test_the_network_is_the_steps_own_or_the_builds(run: OneRun) -> None:
    assert run("RUN x").network == "default"
    assert run("RUN x", network="none").network == "none"
    assert run("RUN --network=default x", network="none").network == "none"
    assert run("RUN --network=host x", network="none").network == "host"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--network=hots", 'invalid network mode "hots" \\(did you mean host\\?\\)'),
        ("--security=none", 'security "none" is not valid'),
        ("--mout=x", "unknown flag: --mout \\(did you mean mount\\?\\)"),
        ("--network=none --network=host", "duplicate flag specified: --network"),
        ("--network", "missing a value on flag: --network"),
    ],
)
def test_broken_flags_say_what_is_wrong(run: OneRun, flag: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        run(f"RUN {flag} x")


def test_security_and_devices_pass_on(run: OneRun) -> None:
    op = run("RUN --security=insecure --device=vendor.com/class=a,required x")
    assert (op.security, op.devices) == ("insecure", ("vendor.com/class=a,required",))


@pytest.mark.parametrize("kind", ["bind", "cache", "tmpfs", "ssh"])
def test_a_mount_of_any_type_is_from_an_earlier_stage(lower: Lower, kind: str) -> None:
    text = f"FROM a\nRUN --mount=type={kind},target=/x,from=later y\nFROM b AS later\n"
    with pytest.raises(DockerfileError, match='cannot mount from stage "later" to "/x"'):
        lower(text, target="0")
