"""``RUN --mount``, ``--network`` and ``--security`` do in a step what BuildKit's reference says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, until

Context = Callable[..., Path]


def cached(text: str) -> int:
    return text.count("CACHED")


CASES = {
    "a bind mount reads a stage, an image and the context": """\
FROM busybox AS stage
RUN mkdir /d && echo staged > /d/f
FROM busybox
RUN --mount=type=bind,from=stage,source=/d,target=/s \\
    --mount=from=busybox,source=/etc,target=/image \\
    --mount=target=/c,source=dir \\
    test "$(cat /s/f)" = staged && test -f /image/passwd && test "$(cat /c/f)" = context
RUN test ! -e /s && test ! -e /image && test ! -e /c
""",
    "a bind mount is read-only, and what is written to a writable one is gone": """\
FROM busybox
RUN --mount=target=/c ! touch /c/new 2>/dev/null
RUN --mount=target=/c,rw touch /c/new && rm -r /c/dir && test -e /c/new
RUN --mount=target=/c,readwrite=true test ! -e /c/new && test -f /c/dir/f
""",
    "a bind mount of a single file, its target relative to the working directory": """\
FROM busybox
WORKDIR /work
RUN --mount=source=dir/f,target=mounted test "$(cat /work/mounted)" = context
RUN test ! -e /work/mounted
""",
    "a cache mount keeps its files, has the mode and owner asked for, and leaves no trace": """\
FROM busybox
RUN --mount=type=cache,target=/c1,mode=0770,uid=1000,gid=2000 \\
    test "$(stat -c %a:%u:%g /c1)" = 770:1000:2000 && echo kept > /c1/f
RUN --mount=type=cache,target=/c1,mode=0770,uid=1000,gid=2000 test "$(cat /c1/f)" = kept
RUN --mount=type=cache,target=/c1,mode=0700,uid=1000,gid=2000 test ! -e /c1/f
RUN test ! -e /c1
""",
    "a cache mount is known by its id, not by where it is": """\
FROM busybox
RUN --mount=type=cache,target=/one,id=same-id echo x > /one/f
RUN --mount=type=cache,target=/two,id=same-id test -f /two/f
RUN --mount=type=cache,target=/one test ! -e /one/f
""",
    "a cache mount begins with the files of its source": """\
FROM busybox AS seed
RUN mkdir -p /d/sub && echo seeded > /d/sub/f
FROM busybox
RUN --mount=type=cache,target=/c2,from=seed,source=/d cat /c2/sub/f && echo more > /c2/g
RUN --mount=type=cache,target=/c2,from=seed,source=/d test "$(cat /c2/sub/f /c2/g)" = "$(printf 'seeded\\nmore')"
""",
    "a cache mount of another source, or of none, is another cache": """\
FROM busybox AS seed
RUN mkdir /d && echo one > /d/f
FROM seed AS other
RUN echo two > /d/f
FROM busybox
RUN --mount=type=cache,target=/c,id=sourced,from=seed,source=/d cat /c/f > /1
RUN --mount=type=cache,target=/c,id=sourced,from=other,source=/d cat /c/f > /2
RUN --mount=type=cache,target=/c,id=sourced test ! -e /c/f && test "$(cat /1 /2)" = "$(printf 'one\\ntwo')"
""",
    "a read-only cache mount can't be written": """\
FROM busybox
RUN --mount=type=cache,target=/c3 echo x > /c3/f
RUN --mount=type=cache,target=/c3,ro cat /c3/f && ! touch /c3/g 2>/dev/null
""",
    "a tmpfs mount has its size, and nothing stays of it": """\
FROM busybox
RUN --mount=type=tmpfs,target=/t,size=1m df -k /t | grep -q ' 1024 ' && ! dd if=/dev/zero of=/t/f bs=1k count=2000 2>/dev/null
RUN test ! -e /t/f
""",
    "an optional secret or agent that isn't given is simply not there": """\
FROM busybox
RUN --mount=type=secret,id=nobody --mount=type=ssh test ! -e /run/secrets/nobody
""",
    "mounts over one another and over files of the image leave the image as it was": """\
FROM busybox
RUN mkdir -p /opt/a && echo below > /opt/a/f
RUN --mount=type=tmpfs,target=/opt --mount=source=dir,target=/opt/a test "$(cat /opt/a/f)" = context
RUN test "$(cat /opt/a/f)" = below
""",
    "without a network a step has its own loopback and nothing else": """\
FROM busybox
RUN --network=none test "$(ls /sys/class/net)" = lo && ip addr show lo | grep -q LOOPBACK
""",
    "a step has names of its own": """\
FROM busybox
RUN test -s /etc/hosts && test -s /etc/resolv.conf && test "$(hostname)" = buildkitsandbox
""",
}


@pytest.mark.parametrize("dockerfile", CASES.values(), ids=CASES)
def test_a_step_succeeds_where(daemon: Any, context: Context, dockerfile: str) -> None:
    assert daemon.ok("build", context(Dockerfile=dockerfile, **{"dir/f": "context\n", "other": "x"})).code == 0


def test_a_bind_mount_is_keyed_by_the_files_it_selects(daemon: Any, context: Context) -> None:
    path = context(
        Dockerfile="FROM busybox\nRUN --mount=source=dir,target=/c cat /c/f\n",
        **{"dir/f": "one\n", "other": "x"},
    )
    daemon.ok("build", path)
    (path / "other").write_text("changed")
    assert cached(daemon.ok("build", "--progress=plain", path).text) == 1
    (path / "dir" / "f").write_text("two\n")
    assert cached(daemon.ok("build", "--progress=plain", path).text) == 0


def test_no_cache_begins_with_empty_cache_mounts(daemon: Any, context: Context) -> None:
    line = "RUN --mount=type=cache,target=/c,id=reset test ! -e /c/f && touch /c/f\n"
    path = context(Dockerfile="FROM busybox\n" + line)
    daemon.ok("build", path)
    assert daemon.ok("build", "--no-cache", path).code == 0


def test_caches_of_another_namespace_are_others(daemon: Any, context: Context) -> None:
    line = "RUN --mount=type=cache,target=/c,id=spaced test ! -e /c/f && touch /c/f\n"
    path = context(Dockerfile="FROM busybox\nARG X\n" + line)
    daemon.ok("build", "--build-arg", "X=1", path)
    daemon.ok("build", "--build-arg", "BUILDKIT_CACHE_MOUNT_NS=mine", "--build-arg", "X=2", path)
    assert daemon("build", "--build-arg", "X=3", path).code == 1


# Two steps at once, which meet in one shared cache and use another as ``sharing`` says.
MEETING = """\
FROM busybox AS {me}
ARG SALT
RUN --mount=type=cache,target=/m,id=meet-{kind} --mount=type=cache,target=/c,id=use-{kind},sharing={kind} \\
    touch /m/{me}; {body}
"""
WAIT = "i=0; while [ ! -e /m/{other} ] && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        # Each sees what the other writes.
        ("shared", "touch /c/{me}; " + WAIT + "; sleep 0.2; test -e /c/{other}"),
        # Each has one of its own while the other works.
        ("private", "touch /c/{me}; " + WAIT + "; sleep 0.2; test ! -e /c/{other}"),
        # Never both at once.
        (
            "locked",
            "test ! -e /c/busy && touch /c/busy && sleep 0.3 && rm /c/busy",
        ),
    ],
)
def test_a_cache_is_shared_private_or_locked(
    daemon: Any, context: Context, kind: str, body: str
) -> None:
    stages = "".join(
        MEETING.format(me=me, kind=kind, body=body.format(me=me, other=other))
        for me, other in (("a", "b"), ("b", "a"))
    )
    last = "FROM busybox\nCOPY --from=a /bin/sh /1\nCOPY --from=b /bin/sh /2\n"
    assert daemon.ok("build", context(Dockerfile=stages + last)).code == 0


# --- secrets --------------------------------------------------------------------------------------

SECRETS = """\
FROM busybox
RUN --mount=type=secret,id=token cat /run/secrets/token | sha256sum > /sum && stat -c %a:%u:%g /run/secrets/token > /stat
RUN --mount=type=secret,id=token,target=/root/.key,mode=0440,uid=1000,gid=2000 test "$(stat -c %a:%u:%g /root/.key)" = 440:1000:2000
RUN --mount=type=secret,target=/etc/deep/token test -s /etc/deep/token
RUN --mount=type=secret,id=token,env=TOKEN test -n "$TOKEN" && test ! -e /run/secrets/token && echo "it is $TOKEN."
RUN --mount=type=secret,id=token,env=TOKEN,target=/both test "$TOKEN" = "$(cat /both)"
RUN test "$(cat /stat)" = 400:0:0 && test ! -e /root/.key && test ! -s /etc/deep/token && test -z "$TOKEN"
"""


def test_a_secret_is_seen_by_its_step_and_stays_nowhere(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    value = "hunter2-correct-horse"
    (tmp_path / "s").write_text(value)
    args = ("--progress=plain", "--secret", f"id=token,src={tmp_path}/s", "-t", "lang/secret")
    path = context(Dockerfile=SECRETS)
    built = daemon.ok("build", *args, path)
    daemon.ok("save", "-o", tmp_path / "image.tar", "lang/secret")
    assert value not in built.text
    assert value not in daemon.ok("history", "--no-trunc", "lang/secret").out
    assert value not in daemon.ok("inspect", "lang/secret").out
    assert value not in daemon.log
    found = subprocess.run(
        ["grep", "-rlaF", value, str(daemon.root / "state")], capture_output=True, text=True
    )
    assert found.stdout == ""
    (tmp_path / "s").write_text("another value")
    assert cached(daemon.ok("build", *args, path).text) == 6


def test_a_secret_comes_from_the_clients_environment(daemon: Any, context: Context) -> None:
    path = context(
        Dockerfile='FROM busybox\nRUN --mount=type=secret,id=T,env=X test "$X" = "from env"\n'
    )
    done = daemon("build", "--secret", "id=T,env=MY_T", path, env={"MY_T": "from env"})
    assert done.code == 0, done.text


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--mount=type=secret,id=gone,required", ["gone", "--secret id=gone"]),
        ("--mount=type=ssh,required=true", ["default", "--ssh default"]),
        ("--mount=type=ssh,id=key,required", ["key", "--ssh key"]),
        ("--mount=type=bind,target=/", ["invalid mount target", "Dockerfile:2"]),
        ("--mount=type=bind,target=/x,size=1m", ["size", "bind", "Dockerfile:2"]),
        ("--mount=type=bind,from=nostage,target=/x", ["nostage"]),
        ("--mount=type=bind,source=nowhere,target=/x", ["nowhere"]),
        ("--mount=type=bnid,target=/x", ["bind"]),
        ("--security=insecure", ["security.insecure", "--allow security.insecure", "Dockerfile:2"]),
        ("--device=vendor.com/class=gpu", ["--device", "no devices", "Dockerfile:2"]),
        ("--network=host", ["network.host", "--allow network.host", "Dockerfile:2"]),
    ],
)
def test_a_step_is_refused_with_its_reason(
    daemon: Any, context: Context, flag: str, words: list[str]
) -> None:
    failed = daemon("build", context(Dockerfile=f"FROM busybox\nRUN {flag} true\n"))
    assert failed.code == 1
    for word in words:
        assert word in failed.text, failed.text


def test_host_networking_is_the_hosts_once_it_is_allowed(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN --network=host readlink /proc/self/ns/net\n")
    text = daemon.ok("build", "--progress=plain", "--allow", "network.host", path).text
    assert os.readlink("/proc/self/ns/net") in text


def test_an_insecure_step_needs_the_daemons_leave_as_well(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN --security=insecure true\n")
    failed = daemon("build", "--allow", "security.insecure", path)
    assert failed.code == 1
    assert "daemon's configuration" in failed.text


def test_an_insecure_step_has_what_a_sandboxed_one_has_not(
    make_daemon: Callable[..., Any], busybox_tar: Path, context: Context
) -> None:
    daemon = make_daemon('[entitlements]\nallow = ["security.insecure"]\n')
    daemon.ok("import", busybox_tar, "busybox")
    line = "mkdir -p /m && mount -t tmpfs none /m && grep -q ' /m ' /proc/mounts"
    path = context(Dockerfile=f"FROM busybox\nRUN --security=insecure {line}\n")
    daemon.ok("build", "--allow", "security.insecure", path)
    (path / "Dockerfile").write_text(f"FROM busybox\nRUN {line}\n")
    assert daemon("build", path).code == 1
    (path / "Dockerfile").write_text("FROM busybox\nRUN --network=host true\n")
    assert "daemon's configuration" in daemon("build", "--allow", "network.host", path).text


# --- ssh ------------------------------------------------------------------------------------------

SSH = """\
FROM busybox
COPY tools /
COPY id.pub /tmp/id.pub
RUN --mount=type=ssh{options} stat -c 'mode %a:%u:%g' "$SSH_AUTH_SOCK" && ssh-add -L && ssh-add -T /tmp/id.pub \\
    && ! ssh-add -D && ssh-add -l
RUN test -z "$SSH_AUTH_SOCK" && test ! -e /run/buildkit && test ! -e /agent
"""


@pytest.fixture
def ssh_context(context: Context, key: Path) -> Callable[[str], Path]:
    """A context with the host's ssh-add, what it is linked to, and a Dockerfile that uses it."""
    program = shutil.which("ssh-add")
    if program is None:
        pytest.skip("ssh-add is not installed")
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    files = {"tools/bin/ssh-add": Path(program)}
    for name in re.findall(r"(/\S+)", linked):
        files[f"tools{name}"] = Path(name)
    data: dict[str, str | bytes] = {name: path.read_bytes() for name, path in files.items()}

    def write(options: str) -> Path:
        pub = key.with_suffix(".pub").read_bytes()
        path = context(**{"Dockerfile": SSH.format(options=options), "id.pub": pub, **data})
        for name in files:
            (path / name).chmod(0o755)
        return path

    return write


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "id"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lang", "-f", str(path)], check=True
    )
    return path


@pytest.fixture
def agent(key: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A real ssh-agent that holds the key."""
    socket = tmp_path / "agent.sock"
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    env = {"SSH_AUTH_SOCK": str(socket)}
    try:
        add = ["ssh-add", "-q", str(key)]
        until(
            "the agent's answer",
            lambda: not subprocess.run(add, env={**os.environ, **env}, check=False).returncode,
        )
        yield env
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_forwarded_agent_lists_and_signs_and_forgets_nothing(
    daemon: Any, ssh_context: Callable[[str], Path], agent: dict[str, str], key: Path
) -> None:
    path = ssh_context("")
    done = daemon("build", "--progress=plain", "--ssh", "default", path, env=agent)
    assert done.code == 0, done.text
    assert key.with_suffix(".pub").read_text().split()[1] in done.text
    assert "mode 600:0:0" in done.text


def test_a_key_file_is_served_by_an_agent_of_ours(
    daemon: Any, ssh_context: Callable[[str], Path], key: Path
) -> None:
    path = ssh_context(",id=mine,mode=0666,uid=1000,gid=1000,target=/agent")
    built = daemon.ok("build", "--progress=plain", "--ssh", f"mine={key}", path)
    assert key.with_suffix(".pub").read_text().split()[1] in built.text
    assert "mode 666:1000:1000" in built.text


def test_the_outline_names_the_secrets_and_agents_that_a_build_wants(
    daemon: Any, context: Context
) -> None:
    path = context(
        Dockerfile="FROM busybox\nRUN --mount=type=secret,id=a,required --mount=type=ssh true\n"
    )
    outline = json.loads(daemon.ok("build", "--call", "outline,format=json", path).out)
    assert [secret["name"] for secret in outline["secrets"]] == ["a"]
    assert [agent["name"] for agent in outline["ssh"]] == ["default"]
