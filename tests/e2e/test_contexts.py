"""Where files come from: ADD by HTTP, git and archives, contexts of every kind, named contexts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import tarfile
import threading
from bz2 import compress as bzip2
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fixtures import accepts
from patience import PATIENCE, until

Context = Callable[..., Path]
WHEN = "Sun, 09 Sep 2001 01:46:40 GMT"
"""1,000,000,000 seconds after the epoch."""


def tar_of(**files: str) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data.encode()))
    return body.getvalue()


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


# --- ADD of archives ------------------------------------------------------------------------------


def test_add_unpacks_archives_by_content_and_copies_all_else(daemon: Any, context: Context) -> None:
    data = tar_of(**{"in/side": "x"})
    files = {
        "plain": data, "gz.txt": gzip.compress(data), "bz": bzip2(data), "xz": lzma.compress(data),
        "zst": zstd(data), "not.tar.gz": b"no archive", "text.gz": gzip.compress(b"just text"),
    }  # fmt: skip
    archives = ["plain", "gz.txt", "bz", "xz", "zst"]
    text = "FROM busybox\n" + "".join(f"ADD {name} /{name}/\n" for name in files)
    text += "ADD --unpack=false plain /kept/\nCOPY plain /copied\n"
    checks = [f"test -f /{name}/in/side" for name in archives]
    checks += ["test -f /not.tar.gz/not.tar.gz", "test -f /text.gz/text.gz"]
    checks += ["test -f /kept/plain", "test -f /copied"]
    assert daemon.ok("build", context(Dockerfile=text + "RUN " + " && ".join(checks) + "\n", **files)).code == 0


# --- HTTP -----------------------------------------------------------------------------------------


@dataclass
class Site:
    """A web server on loopback.  files: path → body; ``asked``: (path, status) of every request."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    dated: bool = True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            body = found.files.get(path, b"")
            etag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
            status = 200 if path in found.files else 302 if path in found.redirects else 404
            if status == 200 and self.headers.get("If-None-Match") == etag:
                status, body = 304, b""
            found.asked.append((path, status))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", found.redirects[path])
            self.send_header("ETag", etag)
            if found.dated:
                self.send_header("Last-Modified", WHEN)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_add_downloads_names_dates_and_verifies(daemon: Any, context: Context, site: Site) -> None:
    site.files = {"/dir/tool.bin": b"tool", "/a.tar": tar_of(inside="x"), "/odd%20name": b"odd"}
    site.redirects = {"/moved": "/dir/tool.bin"}
    digest = hashlib.sha256(b"tool").hexdigest()
    assert daemon.ok("build", context(Dockerfile=f"""\
FROM busybox
ADD {site.url("/dir/tool.bin?v=1")} /d/
ADD --checksum=sha256:{digest} --chmod=755 --chown=app {site.url("/dir/tool.bin")} /named
ADD {site.url("/a.tar")} /tar
ADD --unpack {site.url("/a.tar")} /unpacked/
ADD {site.url("/moved")} /moved
ADD {site.url("/odd%20name")} /odd/
RUN test "$(cat /d/tool.bin)" = tool && test "$(stat -c %a:%u:%g:%Y /d/tool.bin)" = 600:0:0:1000000000 && \\
    test "$(stat -c %a:%u /named)" = 755:1000 && test -f /tar && test -f /unpacked/inside && \\
    test "$(cat /moved)" = tool && test -f "/odd/odd name"
""")).code == 0  # fmt: skip


def test_a_download_is_asked_for_again_and_only_fetched_when_it_changed(
    daemon: Any, context: Context, site: Site
) -> None:
    site.files["/f"] = b"one"
    path = context(Dockerfile=f"FROM busybox\nADD {site.url('/f')} /f\nRUN cat /f\n")
    daemon.ok("build", path)
    again = daemon.ok("build", "--progress=plain", path)
    assert site.asked == [("/f", 200), ("/f", 304)]
    assert again.text.count("CACHED") == 2
    site.files["/f"] = b"two"
    assert "two" in daemon.ok("build", "--progress=plain", path).text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ADD --checksum=sha256:" + "0" * 64 + " {url}/f /f", ["sha256:" + "0" * 64, "--checksum"]),
        ("ADD --checksum=md5:abc {url}/f /f", ["digest algorithm", "Dockerfile:2"]),
        ("ADD {url}/gone /f", ["404", "/gone"]),
        ("ADD {url}/loop /f", ["redirects"]),
        ("ADD {url}/file /f", ["file"]),
        ("ADD http://169.254.169.254/latest /f", ["metadata"]),
        ("COPY {url}/f /f", ["ADD", "Dockerfile:2"]),
    ],
)
def test_a_download_is_refused_with_its_reason(
    daemon: Any, context: Context, site: Site, line: str, words: list[str]
) -> None:
    site.files["/f"] = b"x"
    site.redirects = {"/loop": "/loop", "/file": "file:///etc/passwd"}
    line = line.replace("{url}", site.url(""))
    failed = daemon("build", context(Dockerfile=f"FROM busybox\n{line}\n"))
    assert failed.code == 1
    for word in words:
        assert word in failed.text, failed.text


def test_a_secret_authorizes_a_download_and_stays_with_its_host(
    daemon: Any, context: Context, site: Site, tmp_path: Path
) -> None:
    site.files["/f"] = b"x"
    path = context(Dockerfile=f"FROM busybox\nADD {site.url('/f')} /f\n", token="s3cr3t")
    secret = f"id=HTTP_AUTH_TOKEN_127.0.0.1,src={path}/token"
    daemon.ok("build", "--secret", secret, path)
    assert site.headers[-1]["authorization"] == "Bearer s3cr3t"
    site.redirects["/away"] = f"http://localhost:{site.port}/f"
    moved = context(Dockerfile=f"FROM busybox\nADD {site.url('/away')} /f\n")
    daemon.ok("build", "--secret", secret, moved)
    asked = dict(zip((path for path, _ in site.asked), site.headers, strict=True))
    assert asked["/away"]["authorization"] == "Bearer s3cr3t"
    assert "authorization" not in asked["/f"]


def test_a_context_by_http_is_an_archive_or_a_dockerfile(
    daemon: Any, context: Context, site: Site
) -> None:
    check = 'FROM busybox\nCOPY . /all\nRUN test "$(cat /all/kept.log)" = remote\n'
    site.files["/c.tar.gz"] = gzip.compress(
        tar_of(**{"Dockerfile": check, "kept.log": "remote", ".dockerignore": "*.log"})
    )
    daemon.ok("build", site.url("/c.tar.gz"))
    site.files["/Dockerfile"] = b"FROM busybox\nRUN echo lone > /lone\n"
    daemon.ok("build", site.url("/Dockerfile"))
    path = context(f="local")
    site.files["/beside"] = b"FROM busybox\nCOPY f /f\n"
    assert daemon.ok("build", "-f", site.url("/beside"), path).code == 0


# --- git ------------------------------------------------------------------------------------------


def git(*args: str, cwd: Path) -> str:
    env = {
        **os.environ, "HOME": str(cwd), "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b", "GIT_AUTHOR_DATE": "1000000000 +0000",
        "GIT_COMMITTER_DATE": "1000000000 +0000",
    }  # fmt: skip
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *args], cwd=cwd, env=env, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


@dataclass(frozen=True)
class Repository:
    """``smart``: by git://; ``dumb``: by HTTP.  first: the commit that the branch ``old`` points to."""

    smart: str
    dumb: str
    first: str
    head: str


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    root = tmp_path_factory.mktemp("git")
    port = _free()
    for name in ("sub", "work"):
        (root / name).mkdir()
        git("init", "-q", "-b", "main", cwd=root / name)
    (root / "sub" / "s").write_text("submodule")
    git("add", ".", cwd=root / "sub")
    git("commit", "-qm", "s", cwd=root / "sub")
    work = root / "work"
    (work / "dir").mkdir()
    (work / "dir" / "f").write_text("one")
    (work / "dir" / "Dockerfile").write_text(
        'FROM busybox\nCOPY . /all\nRUN test "$(ls -A /all)" = "$(printf \'Dockerfile\\nf\')"\n'
    )
    (work / "Dockerfile").write_text("FROM busybox\nCOPY . /all\nRUN test -f /all/f.log\n")
    (work / ".dockerignore").write_text("*.log\n")
    (work / "f.log").write_text("log")
    (work / "x").write_text("#!/bin/sh\n")
    (work / "x").chmod(0o755)
    git("add", ".", cwd=work)
    git("commit", "-qm", "1", cwd=work)
    git("branch", "old", cwd=work)
    first = git("rev-parse", "HEAD", cwd=work)
    (work / "dir" / "f").write_text("two")
    git("clone", "-q", str(root / "sub"), "mod", cwd=work)
    (work / ".gitmodules").write_text(
        f'[submodule "mod"]\n\tpath = mod\n\turl = git://127.0.0.1:{port}/sub\n'
    )
    git("add", ".", cwd=work)
    git("commit", "-qm", "2", cwd=work)
    git("tag", "v1", cwd=work)
    git("clone", "-q", "--bare", str(work), "bare.git", cwd=root)
    git("update-server-info", cwd=root / "bare.git")
    daemon = subprocess.Popen(
        ["git", "daemon", "--export-all", "--reuseaddr", f"--base-path={root}",
         "--listen=127.0.0.1", f"--port={port}", str(root)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    web = subprocess.Popen(
        ["python3", "-m", "http.server", "-b", "127.0.0.1", "-d", str(root), str(port + 1)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until("both servers", lambda: accepts(port) and accepts(port + 1))
        yield Repository(
            f"git://127.0.0.1:{port}/work",
            f"http://127.0.0.1:{port + 1}/bare.git",
            first,
            git("rev-parse", "HEAD", cwd=work),
        )
    finally:
        for process in (daemon, web):
            process.terminate()
            process.wait(PATIENCE)


def _free() -> int:
    """A port on loopback such that the next one is free too."""
    import socket

    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return int(port)


def test_add_clones_what_a_git_source_names(
    daemon: Any, context: Context, repository: Repository
) -> None:
    url = repository.smart
    assert daemon.ok("build", context(Dockerfile=f"""\
FROM busybox
ADD --keep-git-dir=false {url}#main /main
ADD {url}#v1:dir /sub
ADD {url}#{repository.first} /commit
ADD {url}?branch=old&subdir=dir /query
ADD --keep-git-dir=true {url}#main /kept
ADD --checksum={repository.head[:12]} {url}#main /checked
ADD {url}?ref=main&submodules=false&mtime=commit /without
RUN test "$(cat /main/dir/f)" = two && test "$(cat /main/mod/s)" = submodule && test ! -e /main/.git && \\
    test "$(cat /sub/f)" = two && test "$(cat /commit/dir/f)" = one && test "$(cat /query/f)" = one && \\
    test -d /kept/.git && test -f /checked/x && test ! -e /without/mod/s && \\
    test "$(stat -c %Y /without/x)" = 1000000000 && \\
    test "$(stat -c %a:%u /main/x)" = 755:0 && test "$(stat -c %a /main/f.log)" = 644
""")).code == 0  # fmt: skip


def test_a_repository_served_as_plain_files_is_cloned_too(
    daemon: Any, context: Context, repository: Repository
) -> None:
    path = context(
        Dockerfile=f'FROM busybox\nADD {repository.dumb}#old /r\nRUN test "$(cat /r/dir/f)" = one\n'
    )
    assert daemon.ok("build", path).code == 0


def test_a_git_context_is_a_commit_and_a_directory_with_no_ignore_file_applied(
    daemon: Any, repository: Repository
) -> None:
    daemon.ok("build", repository.smart)
    daemon.ok("build", f"{repository.smart}#main:dir")
    daemon.ok("build", f"{repository.smart}?ref=v1&subdir=dir")
    assert daemon.ok("build", "-f", "dir/Dockerfile", "--check", f"{repository.smart}#old").code == 0


def test_a_git_clone_is_cached_while_the_branch_stays(
    daemon: Any, context: Context, repository: Repository
) -> None:
    path = context(Dockerfile=f"FROM busybox\nADD {repository.smart}#old:dir /d\nRUN ls /d\n")
    daemon.ok("build", path)
    assert daemon.ok("build", "--progress=plain", path).text.count("CACHED") == 2


@pytest.mark.parametrize(
    "source",
    [
        "{url}#--upload-pack=touch${{IFS}}/tmp/pwned",
        "{url}?ref=--output=/tmp/pwned",
        "{url}#main:../../../etc",
        "{url}#no-such-branch",
        "ext::sh -c touch% /tmp/pwned",
        "git@-oProxyCommand=touch:x.git",
        "ssh://-oProxyCommand=touch/x.git",
    ],
)
def test_a_git_source_that_means_harm_only_fails(
    daemon: Any, context: Context, repository: Repository, source: str
) -> None:
    source = source.format(url=repository.smart)
    text = f'FROM busybox\nADD ["{source}", "/r"]\n'
    assert daemon("build", context(Dockerfile=text)).code == 1
    assert daemon("build", source).code == 1
    assert not Path("/tmp/pwned").exists()


def test_a_checksum_that_is_not_the_commits_is_refused(
    daemon: Any, context: Context, repository: Repository
) -> None:
    text = f"FROM busybox\nADD --checksum={repository.first} {repository.smart}#main /r\n"
    failed = daemon("build", context(Dockerfile=text))
    assert failed.code == 1
    assert repository.head in failed.text


# --- named contexts -------------------------------------------------------------------------------


def test_a_named_context_may_be_anything_and_comes_first(
    daemon: Any, context: Context, repository: Repository, site: Site, tmp_path: Path
) -> None:
    site.files["/c.tar"] = tar_of(by="http")
    path = context(**{
        "Dockerfile": """\
FROM busybox AS staged
RUN exit 1
FROM replaced
COPY --from=there f /1
COPY --from=repo dir/f /2
COPY --from=web by /3
COPY --from=staged f /4
COPY --from=there . /there
RUN --mount=from=there,target=/m test -f /m/f && test ! -e /m/hidden
RUN test "$(cat /1 /2 /3 /4)" = theretwohttpthere && test -f /replaced && test ! -e /there/hidden
""",
        "other/f": "there", "other/hidden": "x", "other/.dockerignore": "hidden",
    })  # fmt: skip
    base = tmp_path / "b"
    base.mkdir()
    (base / "Dockerfile").write_text("FROM busybox\nRUN touch /replaced\n")
    daemon.ok("build", "-t", "lang/replacement", base)
    named = {
        "there": path / "other", "staged": path / "other", "repo": repository.smart,
        "web": site.url("/c.tar"), "replaced": "docker-image://lang/replacement",
    }  # fmt: skip
    options = [f"--build-context={name}={where}" for name, where in named.items()]
    assert daemon.ok("build", *options, path).code == 0


def test_a_named_context_may_be_what_a_stage_is_built_from(
    daemon: Any, context: Context, repository: Repository, site: Site
) -> None:
    site.files["/c.tar"] = tar_of(by="http")
    path = context(**{
        "Dockerfile": """\
FROM there AS one
FROM repo AS two
FROM web AS three
FROM alpine:3.18 AS four
FROM empty AS six
FROM busybox AS staged
RUN exit 1
FROM staged AS five
COPY --from=one f /more
FROM busybox
COPY --from=one / /1
COPY --from=two / /2
COPY --from=three / /3
COPY --from=four / /4
COPY --from=five / /5
COPY --from=six / /6
COPY --from=alpine:3.18 f /direct
RUN cat /1/f /2/dir/f /3/by /4/f /5/f /5/more /direct > /all && \
    test "$(cat /all)" = theretwohttptheretheretherethere && \
    test ! -e /1/hidden && test -z "$(ls -A /6)" && test "$(stat -c %u:%g /1/f)" = 0:0
""",
        "other/f": "there", "other/hidden": "x", "other/.dockerignore": "hidden",
    })  # fmt: skip
    named = {
        "there": path / "other", "staged": path / "other", "alpine:3.18": path / "other",
        "repo": repository.smart, "web": site.url("/c.tar"), "empty": "docker-image://scratch",
    }  # fmt: skip
    options = [f"--build-context={name}={where}" for name, where in named.items()]
    daemon.ok("build", *options, path)
    daemon.ok("build", *options, "--target=one", "-t", "lang/of-context", path)
    history = daemon.ok("history", "--no-trunc", "lang/of-context").out
    assert "[context there] load from client" in history


def test_an_oci_layout_is_a_context(daemon: Any, context: Context, tmp_path: Path) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo laid > /laid\n")
    daemon.ok("build", "-o", f"type=oci,dest={tmp_path}/o.tar,name=x:1", path)
    (tmp_path / "layout").mkdir()
    with tarfile.open(tmp_path / "o.tar") as archive:
        archive.extractall(tmp_path / "layout")
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    digest = index["manifests"][0]["digest"]
    (path / "Dockerfile").write_text("FROM base\nRUN cat /laid\nCOPY --from=base /laid /again\n")
    daemon.ok("build", f"--build-context=base=oci-layout://{tmp_path}/layout@{digest}", path)
    daemon.ok("build", f"--build-context=base=oci-layout://{tmp_path}/layout", path)
    daemon.ok("build", f"--build-context=base=oci-layout://{tmp_path}/layout:1", path)
    daemon.ok("build", "--build-context=base=oci-layout://layout", path, cwd=tmp_path)
    missing = daemon("build", f"--build-context=base=oci-layout://{tmp_path}/layout:2", path)
    assert missing.code == 1 and "layout" in missing.text and "2" in missing.text


# --- the Dockerfile and what applies to it --------------------------------------------------------


def test_a_dockerfile_may_be_outside_on_stdin_or_called_dockerfile(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    path = context(**{"c/f": "in context", "elsewhere/My.Dockerfile": "FROM busybox\nCOPY f /f\n"})
    daemon.ok("build", "-f", path / "elsewhere" / "My.Dockerfile", path / "c")
    daemon.ok("build", "-f", "-", path / "c", stdin=b"FROM busybox\nCOPY f /f\n")
    daemon.ok("build", "-f", "elsewhere/My.Dockerfile", "c", cwd=path)
    (path / "c" / "dockerfile").write_text("FROM busybox\nCOPY f /lower\n")
    assert daemon.ok("build", path / "c").code == 0


def test_the_ignore_file_of_the_dockerfile_comes_before_the_contexts(
    daemon: Any, context: Context
) -> None:
    path = context(**{
        "a.Dockerfile": "FROM busybox\nCOPY . /all\nRUN test -f /all/one && test ! -e /all/two\n",
        "a.Dockerfile.dockerignore": "two\n", ".dockerignore": "one\n",
        "Dockerfile": "FROM busybox\nCOPY . /all\nRUN test ! -e /all/one && test -f /all/two\n",
        "one": "1", "two": "2",
    })  # fmt: skip
    daemon.ok("build", "-f", path / "a.Dockerfile", path)
    assert daemon.ok("build", path).code == 0


def test_a_dockerfile_that_is_ignored_is_still_read(daemon: Any, context: Context) -> None:
    path = context(**{
        "Dockerfile": "FROM busybox\nCOPY . /all\nRUN test \"$(ls -A /all)\" = f\n",
        ".dockerignore": "Dockerfile\n.dockerignore\n", "f": "x",
    })  # fmt: skip
    assert daemon.ok("build", path).code == 0


def test_an_ignore_file_knows_exceptions_depth_and_the_last_match(
    daemon: Any, context: Context
) -> None:
    names = ("a.md", "README.md", "d/x.tmp", "d/e/y.tmp", "d/e/keep.tmp", "v/lib/x", "v/lib/keep/z")
    path = context(**{
        "Dockerfile": "FROM busybox\nCOPY . /all\nRUN cd /all && find . -type f | sort\n",
        ".dockerignore": "# no comment\n*.md\n!README.md\n**/*.tmp\n!d/e/keep.tmp\nv\n!v/lib/keep\nDockerfile\n.dockerignore\n",
        **dict.fromkeys(names, "x"),
    })  # fmt: skip
    text = daemon.ok("build", "--progress=plain", path).text
    listed = {name for name in names if f" ./{name}\n" in text}
    assert listed == {"README.md", "d/e/keep.tmp", "v/lib/keep/z"}


def test_an_archive_on_stdin_has_its_own_dockerfile_and_ignore_file(daemon: Any) -> None:
    data = tar_of(**{
        "deep/D": "FROM busybox\nCOPY . /all\nRUN test -f /all/f && test ! -e /all/hidden\n",
        "f": "x", "hidden": "x", ".dockerignore": "hidden\n",
    })  # fmt: skip
    for packed in (data, gzip.compress(data), zstd(data)):
        assert daemon.ok("build", "-f", "deep/D", "-", stdin=packed).code == 0


def test_the_time_of_a_remote_context_can_be_the_epoch(daemon: Any, repository: Repository) -> None:
    epoch = "--build-arg=SOURCE_DATE_EPOCH=context"
    daemon.ok("build", epoch, "-t", "lang/context-epoch", f"{repository.smart}#main:dir")
    created = json.loads(daemon.ok("inspect", "lang/context-epoch").out)[0]["Created"]
    assert created.startswith("2001-09-09T01:46:40")


def test_an_archive_without_a_date_of_its_own_is_as_old_as_its_newest_entry(
    daemon: Any, context: Context, site: Site
) -> None:
    site.dated = False
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, data, when in (("Dockerfile", b"FROM busybox\nCOPY f /f\n", 5), ("f", b"x", 10**9)):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), when
            archive.addfile(info, io.BytesIO(data))
    site.files["/c.tar"] = body.getvalue()
    daemon.ok("build", "--build-arg=SOURCE_DATE_EPOCH=context", "-t", "lang/archive", site.url("/c.tar"))
    path = context(Dockerfile=f"""\
ARG SOURCE_DATE_EPOCH=source
FROM scratch AS source
ADD {site.url("/c.tar")} /
FROM busybox
""")
    daemon.ok("build", "-t", "lang/archive-stage", path)
    for name in ("lang/archive", "lang/archive-stage"):
        created = json.loads(daemon.ok("inspect", name).out)[0]["Created"]
        assert created.startswith("2001-09-09T01:46:40")
