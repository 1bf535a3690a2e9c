"""Dockerfiles as people write them, executed: what each instruction does to files, users and configs."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Context = Callable[..., Path]


def config(daemon: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.ok("inspect", name).out)[0]["Config"]
    return found


# Each of these checks itself: a step that finds something else than it should fails the build.
CASES = {
    "a here-document is a script of the shell": """\
FROM busybox
RUN <<EOF
set -e
a=1
echo "$a $HOME" > /out
EOF
RUN test "$(cat /out)" = "1 /root"
""",
    "a here-document may name its interpreter on the line or in its first line": """\
FROM busybox
RUN <<"EOF" sh -s arg
echo "$0 $1" > /line
EOF
RUN <<EOF
#!/bin/awk -f
BEGIN { print "awk" > "/shebang" }
EOF
RUN test "$(cat /line)" = "sh arg" && test "$(cat /shebang)" = awk && test ! -e /dev/pipes
""",
    "<<- takes leading tabs away, and a quoted delimiter keeps everything": """\
FROM busybox
ENV V=value
COPY <<-EOF <<"RAW" <<'ALSO' /dir/
\t\ttabs $V
\tEOF
raw $V "quoted" \\$x
RAW
also $V
ALSO
RUN <<"EOF"
test "$(cat /dir/EOF)" = "tabs value" && test "$(cat /dir/RAW)" = 'raw $V "quoted" \\$x' && test "$(cat /dir/ALSO)" = 'also $V'
EOF
RUN test "$(stat -c %a:%u:%g /dir/EOF)" = 644:0:0
""",
    "several here-documents feed several file descriptors of one command": """\
FROM busybox
RUN cat <<A - > /a && cat <<B > /b
one
A
two
B
RUN cat 3<<X <&3 > /c
three
X
RUN test "$(cat /a /b /c)" = "$(printf 'one\\ntwo\\nthree')"
""",
    "an inline file by COPY and ADD has its mode, owner and variables": """\
FROM busybox
ARG NAME=world
COPY --chmod=755 --chown=app:extra <<EOF /bin/hello
#!/bin/sh
echo hello ${NAME}
EOF
ADD <<EOF /added
x
EOF
RUN test "$(hello)" = "hello world" && test "$(stat -c %a:%u:%g /bin/hello)" = 755:1000:2000 && test "$(cat /added)" = x
""",
    "SHELL is what shell forms run in": """\
FROM busybox
SHELL ["/bin/sh", "-ec"]
RUN false || true; echo "$0" > /dev/null
SHELL ["/bin/awk"]
RUN BEGIN { print "by awk" > "/awk" }
SHELL ["/bin/sh", "-c"]
RUN test "$(cat /awk)" = "by awk"
RUN ["/bin/sh", "-c", "echo $0 > /exec", "zero"]
RUN test "$(cat /exec)" = zero
""",
    "USER takes its groups from the image, and a given group is the only one": """\
FROM busybox
USER app
RUN test "$(id -u):$(id -g):$(id -G)" = "1000:1000:1000 2000" && test "$HOME" = /home
USER app:extra
RUN test "$(id -u):$(id -g):$(id -G)" = "1000:2000:2000"
USER 1234
RUN test "$(id -u):$(id -g):$(id -G)" = "1234:0:0"
USER 1000:4321
RUN test "$(id -u):$(id -g):$(id -G)" = "1000:4321:4321"
""",
    "WORKDIR makes directories for the user, relative to the one before": """\
FROM busybox
USER app
WORKDIR /made/by
WORKDIR app
RUN test "$(pwd)" = /made/by/app && test "$(stat -c %a:%u:%g /made)" = 755:1000:1000 && touch here
USER root
WORKDIR /made
RUN test "$(stat -c %u /made)" = 1000 && test -f /made/by/app/here
""",
    "what is written into a VOLUME stays": """\
FROM busybox
VOLUME /data /more
RUN mkdir -p /data && echo kept > /data/f
RUN test "$(cat /data/f)" = kept && test ! -e /more
""",
    "ENV sees what was before it, ARG and ENV the later wins": """\
FROM busybox
ENV abc=hello
ENV abc=bye def=$abc
ENV ghi=$abc
ARG abc=arg
RUN test "$abc $def $ghi" = "arg hello bye"
ENV abc=env
RUN test "$abc" = env
""",
    "expansion knows all forms": """\
FROM busybox
ENV A=foo-bar-baz B= P="80 81"
ENV r1=${A#*-} r2=${A##*-} r3=${A%-*} r4=${A%%-*} r5=${A/bar/X} r6=${A//a/_} r7=${C:-${B:-deep}} r8=${A:+set} r9=${B-x} lit=\\$A single='$A'
RUN test "$r1 $r2 $r3 $r4 $r5 $r6 $r7 $r8 [$r9] $lit $single" = 'bar-baz baz foo-bar foo foo-X-baz foo-b_r-b_z deep set [] $A $A'
EXPOSE $P
""",
    "platform arguments have to be declared": """\
ARG BUILDPLATFORM
FROM --platform=$BUILDPLATFORM busybox
RUN test -z "$TARGETARCH"
ARG TARGETARCH TARGETOS TARGETPLATFORM BUILDARCH
RUN test "$TARGETPLATFORM" = "$TARGETOS/$TARGETARCH" && test "$BUILDARCH" = "$TARGETARCH"
""",
    "a stage built from a stage has its files, variables and directory": """\
FROM busybox AS Base
ARG GIVEN=1
ENV E=2
WORKDIR /w
RUN touch f
FROM base
RUN test -f f && test "$GIVEN$E" = 12
FROM busybox
COPY --from=BASE /w/f /1
COPY --from=1 /w/f /2
COPY --from=busybox /bin/busybox /3
RUN test -f /1 && test -f /2 && test -x /3
""",
    "COPY keeps what the reference says about files and directories": """\
FROM busybox
COPY dir /contents
COPY dir/*.txt nothing-here* /wild/
COPY --exclude=*.txt dir /without
COPY --parents ./dir/./sub/deep.txt dir/**/*.txt /parents/
COPY ../../dir/a.txt /clamped
COPY --chmod=u=rwX,go= dir /modes
COPY --chown=app dir/a.txt /owned
COPY --chown=app:extra --chmod=0640 dir/a.txt /both
COPY dir/link /followed
COPY dir/a.txt relative/
RUN test -f /contents/a.txt && test ! -e /contents/dir && test -L /contents/link && \\
    test "$(ls /wild)" = "a.txt" && test ! -e /without/a.txt && test -f /without/b.md && \\
    test -f /parents/sub/deep.txt && test -f /parents/dir/sub/deep.txt && \\
    test -f /clamped && test "$(stat -c %a /modes/sub)" = 700 && test "$(stat -c %a /modes/a.txt)" = 600 && \\
    test "$(stat -c %u:%g /owned)" = 1000:1000 && test "$(stat -c %a:%u:%g /both)" = 640:1000:2000 && \\
    test -f /followed && test ! -L /followed && test "$(stat -c %u:%g /contents/a.txt)" = 0:0 && test -f /relative/a.txt
""",
    "COPY follows links of the destination inside the image": """\
FROM busybox
RUN mkdir -p /real && ln -s /real /link && ln -s /../../../../real /out
COPY dir/a.txt /link/
COPY dir/b.md /out/
RUN test -f /real/a.txt && test -f /real/b.md && test -L /link
""",
    "COPY --link puts files where they are told, through no link": """\
FROM busybox
COPY --link dir /linked/deep
COPY --link --chown=app dir/a.txt /linked/owned
RUN test -f /linked/deep/a.txt && test "$(stat -c %u /linked/owned)" = 1000 && test "$(stat -c %a /linked)" = 755
""",
    "a continuation, a comment in it, CRLF and a byte order mark are no trouble": (
        '\ufeffFROM busybox\r\nRUN echo a && \\\r\n  # between\r\n   echo b > /b\r\nRUN test "$(cat /b)" = b\r\n'
    ),
    "the escape character can be another": """\
# escape=`
FROM busybox
RUN echo one && `
    echo 'a\\b' > /out
RUN test "$(cat /out)" = 'a\\b'
""",
}
FILES = {"dir/a.txt": "a", "dir/b.md": "b", "dir/sub/deep.txt": "d"}


@pytest.mark.parametrize("dockerfile", CASES.values(), ids=CASES)
def test_a_build_shows_that(daemon: Any, context: Context, dockerfile: str) -> None:
    path = context(Dockerfile=dockerfile, **FILES)
    (path / "dir" / "link").symlink_to("a.txt")
    assert daemon.ok("build", "--progress=plain", path).code == 0


def test_onbuild_runs_in_the_child_and_not_in_the_grandchild(daemon: Any, context: Context) -> None:
    path = context(
        Dockerfile="FROM busybox\nONBUILD COPY --from=busybox /etc/passwd /from-image\nONBUILD COPY f /f\n"
        "ONBUILD RUN <<EOF\ncat /f > /g\nEOF\n",
        f="child",
    )
    daemon.ok("build", "-t", "lang/onbuild", path)
    assert len(config(daemon, "lang/onbuild")["OnBuild"]) == 3
    (path / "Dockerfile").write_text(
        'FROM lang/onbuild\nRUN test "$(cat /g)" = child && test -f /from-image\n'
    )
    daemon.ok("build", "-t", "lang/child", path)
    assert not config(daemon, "lang/child").get("OnBuild")
    (path / "f").unlink()
    (path / "Dockerfile").write_text("FROM lang/child\nRUN true\n")
    daemon.ok("build", path)


def test_an_onbuild_trigger_may_name_a_stage_of_the_child(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nONBUILD COPY --from=tools /t /t\n")
    daemon.ok("build", "-t", "lang/onbuild-stage", path)
    (path / "Dockerfile").write_text(
        "FROM busybox AS tools\nRUN touch /t\nFROM lang/onbuild-stage\nRUN test -f /t\n"
    )
    assert daemon.ok("build", path).code == 0


def test_an_image_is_named_by_its_digest(daemon: Any, context: Context, registry: str) -> None:
    name = f"{registry}/lang/base"
    daemon.ok("build", "-t", name, context(Dockerfile="FROM busybox\nRUN touch /by-digest\n"))
    daemon.ok("push", name)
    digest = json.loads(daemon.ok("inspect", name).out)[0]["RepoDigests"][0].partition("@")[2]
    daemon.ok("rmi", "-f", name)
    path = context(
        Dockerfile=f"FROM {name}@{digest}\nRUN test -f /by-digest\nCOPY --from={name}:latest@{digest} /by-digest /x\n"
    )
    daemon.ok("build", path)
    wrong = digest[:-4] + ("0000" if not digest.endswith("0000") else "1111")
    failed = daemon("build", context(Dockerfile=f"FROM {name}@{wrong}\nRUN true\n"))
    assert failed.code == 1
    assert "manifest unknown" in failed.text.lower()


def test_linked_layers_stay_cached_when_their_base_changes(daemon: Any, context: Context) -> None:
    text = "FROM busybox\nARG BASE\nRUN echo $BASE > /base\nCOPY --link f /deep/f\nADD --link g.txt /deep/\n"
    path = context(Dockerfile=text, f="f", **{"g.txt": "g"})
    daemon.ok("build", "-t", "lang/link1", "--build-arg", "BASE=1", path)
    again = daemon.ok(
        "build", "-t", "lang/link2", "--progress=plain", "--build-arg", "BASE=2", path
    )
    assert again.text.count("CACHED") == 2, again.text
    first, second = (
        json.loads(daemon.ok("inspect", name).out)[0]["RootFS"]["Layers"]
        for name in ("lang/link1", "lang/link2")
    )
    assert first[-2:] == second[-2:]
    assert first[-3] != second[-3]
    assert daemon.ok("run", "--rm", "lang/link2", "cat", "/base", "/deep/f").out == "2\nf"


# --- build arguments ------------------------------------------------------------------------------


def test_an_argument_without_a_value_takes_the_clients_or_leaves_the_default(
    daemon: Any, context: Context
) -> None:
    path = context(
        Dockerfile='FROM busybox\nARG A=default\nARG B=default\nRUN test "$A $B" = "client default"\n'
    )
    args = ("build", "--build-arg", "A", "--build-arg", "B", path)
    done = daemon(*args, env={"A": "client"})
    assert done.code == 0, done.text


def test_an_argument_that_nobody_declares_is_warned_about(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nARG VERSION\nRUN true\n")
    built = daemon.ok("build", "--progress=plain", "--build-arg", "VERSOIN=1", path)
    assert "VERSOIN" in built.err
    assert "not consumed" in built.err


def test_proxies_reach_steps_but_no_key_and_no_history(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo proxy=$http_proxy=$HTTP_PROXY\n")
    first = ("build", "--progress=plain", "-t", "lang/proxy", "--build-arg")
    built = daemon.ok(*first, "HTTP_PROXY=http://p:1", path)
    assert "proxy=http://p:1=http://p:1" in built.text
    assert "not consumed" not in built.text
    again = daemon.ok(*first, "http_proxy=http://other:2", path)
    assert again.text.count("CACHED") == 1
    assert "p:1" not in daemon.ok("history", "--no-trunc", "lang/proxy").out
    assert "p:1" not in daemon.ok("inspect", "lang/proxy").out


def test_an_argument_is_in_the_history_of_steps_after_it_only(
    daemon: Any, context: Context
) -> None:
    path = context(Dockerfile="FROM busybox\nRUN true > /1\nARG WHO=me\nRUN true > /2\n")
    daemon.ok("build", "-t", "lang/history", path)
    lines = daemon.ok("history", "--no-trunc", "lang/history").out
    assert "RUN |1 WHO=me /bin/sh -c true > /2 # buildkit" in lines
    assert "RUN /bin/sh -c true > /1 # buildkit" in lines


def test_the_config_is_what_the_instructions_say(daemon: Any, context: Context) -> None:
    path = context(
        Dockerfile="""\
FROM busybox
ENV legacy one two
LABEL a="b c" d=e
EXPOSE 80 8000-8001/udp
VOLUME ["/v"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --retries=2 CMD true
MAINTAINER me
ENTRYPOINT ["entry"]
CMD echo hi
USER app:extra
SHELL ["/bin/sh", "-e"]
"""
    )
    daemon.ok("build", "-t", "lang/config", path)
    found = config(daemon, "lang/config")
    assert "legacy=one two" in found["Env"]
    assert found["Labels"] == {"a": "b c", "d": "e"}
    assert sorted(found["ExposedPorts"]) == ["80/tcp", "8000/udp", "8001/udp"]
    assert list(found["Volumes"]) == ["/v"]
    assert (found["StopSignal"], found["User"]) == ("SIGINT", "app:extra")
    assert found["Healthcheck"]["Interval"] == 5_000_000_000
    assert found["Entrypoint"] == ["entry"]
    assert found["Cmd"] == ["/bin/sh", "-c", "echo hi"]
    assert found["Shell"] == ["/bin/sh", "-e"]


def layers(archive: Path) -> list[list[tarfile.TarInfo]]:
    """The members of each layer of an image in an OCI layout."""
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> bytes:
            file = outer.extractfile("blobs/" + digest.replace(":", "/"))
            assert file is not None
            return file.read()

        index = json.load(outer.extractfile("index.json"))  # type: ignore[arg-type]
        manifest = json.loads(blob(index["manifests"][0]["digest"]))
        found = []
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(blob(layer["digest"]))) as inner:
                found.append(inner.getmembers())
    return found


# --- time -----------------------------------------------------------------------------------------


def test_a_source_date_epoch_sets_the_images_times(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nWORKDIR /w\nCOPY f /f\nRUN touch /g\n", f="f")
    args = ("build", "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-t")
    daemon.ok(*args, "lang/epoch", path)
    image = json.loads(daemon.ok("inspect", "lang/epoch").out)[0]
    assert image["Created"].startswith("2001-09-09T01:46:40")
    assert daemon.ok("run", "--rm", "lang/epoch", "stat", "-c", "%Y", "/w").out == "1000000000\n"


def test_rewritten_timestamps_make_a_rebuild_the_same_image(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    path = context(
        Dockerfile="FROM busybox\nWORKDIR /w\nCOPY f /f\nRUN touch /g && date > /h && cp /f /h\n",
        f="f",
    )
    digests = []
    for number in (1, 2):
        meta = tmp_path / f"meta{number}"
        done = daemon(
            "build", "--no-cache", "--metadata-file", meta,
            "-o", "type=image,name=lang/rewritten,rewrite-timestamp=true", path,
            env={"SOURCE_DATE_EPOCH": "1000000000"},
        )  # fmt: skip
        assert done.code == 0, done.text
        digests.append(json.loads(meta.read_text())["containerimage.digest"])
    assert digests[0] == digests[1]
    daemon.ok("build", "-o", f"type=oci,dest={tmp_path}/o.tar,rewrite-timestamp=true",
              "--build-arg", "SOURCE_DATE_EPOCH=1000000000", path)  # fmt: skip
    times = [entry.mtime for layer in layers(tmp_path / "o.tar") for entry in layer]
    assert len(times) > 5
    assert max(times) <= 1_000_000_000
