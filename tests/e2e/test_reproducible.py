"""The same input gives the same bytes; and `verify` says where it doesn't."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOCKERFILE = """\
FROM busybox AS made
WORKDIR /src/deep
COPY tree .
RUN for f in b a c; do echo $f > /made-$f; done; mkdir /d && ln -s ../made-a /d/link && ln /made-b /d/hard
FROM busybox
LABEL b=2 a=1
ENV GREETING=hello
COPY --from=made /src /src
COPY --link --chown=1000:1000 --chmod=750 tree /linked/
COPY <<end /heredoc
text
end
ADD archive.tar /unpacked/
RUN date +%N > /dev/null; touch /touched; echo x >> /src/deep/f1
CMD ["true"]
"""
NAMES = [f"f{number}" for number in range(24)]
FIXED = 1_600_000_000


def write(path: Path, dockerfile: str = DOCKERFILE, *, backwards: bool, mtime: int = 0) -> Path:
    """A context whose directories list their files in another order when written backwards."""
    tree = path / "tree"
    (tree / "sub").mkdir(parents=True)
    for name in sorted(NAMES, reverse=backwards):
        (tree / name).write_text(f"content of {name}\n" * 50)
        (tree / "sub" / name).symlink_to(f"../{name}")
    (path / "Dockerfile").write_text(dockerfile)
    import tarfile

    with tarfile.open(path / "archive.tar", "w") as archive:
        for name in NAMES[:3]:
            info = archive.gettarinfo(tree / name, name)
            info.mtime, info.uid, info.gid, info.uname, info.gname = FIXED, 0, 0, "", ""
            with (tree / name).open("rb") as file:
                archive.addfile(info, file)
    if mtime:
        for root, _, files in os.walk(tree, topdown=False):
            for name in files:
                os.utime(Path(root, name), (mtime, mtime), follow_symlinks=False)
            os.utime(root, (mtime, mtime))
    return path


@pytest.fixture(scope="module")
def pair(daemon: Any, make_daemon: Callable[..., Any], busybox_tar: Path, tmp_path_factory: Any) -> list[Any]:
    """Two daemons that have the same base image, the other with one compressing thread."""
    other = make_daemon()
    base = tmp_path_factory.mktemp("base") / "busybox.tar"
    daemon.ok("save", "-o", base, "busybox")
    other.ok("load", "-i", base)
    return [daemon, other]


def built(daemon: Any, path: Path, *options: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Build without cache; image and digest."""
    facts = path.parent / f"{path.name}.json"
    done = daemon("build", "--no-cache", "--metadata-file", facts, *options, path, env=env)
    assert done.code == 0, done.text
    return dict(json.loads(facts.read_text()))


def layers(daemon: Any, image: str) -> list[str]:
    return list(json.loads(daemon.ok("inspect", image).out)[0]["RootFS"]["Layers"])


@pytest.mark.parametrize("how", ["option", "environment", "argument"])
def test_two_daemons_make_the_same_digest(pair: list[Any], tmp_path: Path, how: str) -> None:
    one = write(tmp_path / "one", backwards=False)
    first = reproducibly(pair[0], one, how)
    time.sleep(1.1)
    two = write(tmp_path / "another" / "directory", backwards=True)
    second = reproducibly(pair[1], two, how)
    assert first == second


def reproducibly(daemon: Any, path: Path, how: str) -> str:
    options = {
        "option": ["--reproducible"],
        "environment": [],
        "argument": ["--build-arg", f"SOURCE_DATE_EPOCH={FIXED}"],
    }[how]
    env = {"SOURCE_DATE_EPOCH": str(FIXED)} if how == "environment" else None
    return str(built(daemon, path, *options, env=env)["containerimage.digest"])


def test_a_configuration_can_ask_for_it(
    make_daemon: Callable[..., Any], pair: list[Any], busybox_tar: Path, tmp_path: Path
) -> None:
    third = make_daemon("[build]\nreproducible = true\n")
    pair[0].ok("save", "-o", tmp_path / "base.tar", "busybox")
    third.ok("load", "-i", tmp_path / "base.tar")
    there = built(third, write(tmp_path / "there", backwards=True))
    here = built(pair[0], write(tmp_path / "here", backwards=False), "--reproducible")
    assert there["containerimage.digest"] == here["containerimage.digest"]


COPIES = "FROM busybox\nCOPY tree /t/\nCOPY tree/sub /s/\nADD archive.tar /etc/\n"


@pytest.mark.parametrize("compression", ["gzip", "zstd", "uncompressed"])
def test_without_the_option_copies_of_the_same_files_are_the_same_layers(
    pair: list[Any], tmp_path: Path, compression: str
) -> None:
    found = []
    for number, daemon in enumerate(pair):
        path = write(tmp_path / str(number), COPIES, backwards=bool(number), mtime=FIXED)
        output = f"type=oci,dest={tmp_path}/{number}.oci,tar=false,compression={compression}"
        built(daemon, path, "-o", output)
        found.append(layer_digests(tmp_path / f"{number}.oci"))
        time.sleep(1.1)
    assert found[0] == found[1]
    assert len(found[0]) == 4


def layer_digests(layout: Path) -> list[str]:
    def document(digest: str) -> Any:
        return json.loads((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes())

    index = json.loads((layout / "index.json").read_bytes())
    manifest = document(index["manifests"][0]["digest"])
    return [layer["digest"] for layer in manifest["layers"]]


def test_a_layer_of_many_blocks_is_the_same_on_one_processor(
    pair: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "big").write_bytes(b"".join(b"%d\n" % (n * n) for n in range(900_000)))
    os.utime(tmp_path / "c" / "big", (FIXED, FIXED))
    (tmp_path / "c" / "Dockerfile").write_text("FROM scratch\nCOPY --link big /big\n")
    digests = []
    for number, daemon in enumerate(pair):
        os.sched_setaffinity(daemon.process.pid, {0} if number else os.sched_getaffinity(0))
        built(daemon, tmp_path / "c", "-o", f"type=oci,dest={tmp_path}/{number}.oci,tar=false")
        digests.append(layer_digests(tmp_path / f"{number}.oci"))
    os.sched_setaffinity(pair[1].process.pid, os.sched_getaffinity(0))
    assert digests[0] == digests[1]


def test_verify_reproduces_a_deterministic_build(daemon: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "c", backwards=False)
    daemon.ok("build", "--reproducible", "-t", "verify/good", path)
    same = daemon("verify", "verify/good")
    assert same.code == 0, same.text
    assert "reproduced" in same.out


def test_verify_blames_the_instruction_and_the_file(daemon: Any, tmp_path: Path) -> None:
    text = (
        "FROM busybox\nRUN echo same > /same\n"
        "RUN mkdir /out && head -c 16 /dev/urandom > /out/random && echo fixed > /out/fixed\n"
        "RUN echo after > /after\n"
    )
    (tmp_path / "Dockerfile").write_text(text)
    daemon.ok("build", "--reproducible", "-t", "verify/bad", tmp_path)
    differs = daemon("verify", "verify/bad")
    assert differs.code == 1, differs.text
    assert "/dev/urandom" in differs.out
    assert "changed /out/random (content, time)" in differs.out
    assert "changed /out/fixed" not in differs.out
    assert "echo after" not in differs.out


def test_verify_takes_a_build_and_tells_times_from_content(daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo same > /same\n")
    daemon.ok("build", tmp_path)
    build = json.loads(daemon.ok("builds", "inspect").out)["id"]
    differs = daemon("verify", build)
    assert differs.code == 1, differs.text
    assert "times" in differs.out
    assert "--reproducible" in differs.text


def test_verify_says_that_the_dockerfile_is_another(daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo was > /f\nRUN echo same\n")
    daemon.ok("build", "-t", "verify/edited", tmp_path)
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo is > /f\nRUN echo same\n")
    text = daemon("verify", "verify/edited").text
    assert "the Dockerfile is another now\n    changed RUN /bin/sh -c echo was > /f" in text
    assert "→ RUN /bin/sh -c echo is > /f" in text


def test_verify_says_what_it_cannot_do(daemon: Any) -> None:
    unknown = daemon("verify", "verify/nothing-like-it")
    assert unknown.code == 1
    assert "nothing-like-it" in unknown.err
    imported = daemon("verify", "busybox")
    assert imported.code == 1
    assert "no build" in imported.err


def test_a_tar_of_the_files_has_no_time_after_the_epoch(daemon: Any, context: Any, tmp_path: Path) -> None:
    import tarfile

    path = context(Dockerfile="FROM busybox\nRUN touch /late\n")
    output = f"type=tar,dest={tmp_path}/files.tar"
    daemon.ok("build", "--build-arg", f"SOURCE_DATE_EPOCH={FIXED}", "-o", output, path)
    with tarfile.open(tmp_path / "files.tar") as files:
        assert files.getmember("late").mtime == FIXED
        assert max(each.mtime for each in files) == FIXED


def test_files_written_out_have_no_time_after_the_epoch(daemon: Any, context: Any, tmp_path: Path) -> None:
    path = context(Dockerfile="FROM busybox\nRUN mkdir /new && touch /new/late && ln -s late /new/link\n")
    daemon.ok("build", "--build-arg", f"SOURCE_DATE_EPOCH={FIXED}", "-o", tmp_path / "out", path)
    found = {name: (tmp_path / "out" / name).lstat().st_mtime for name in ("new", "new/late", "new/link")}
    assert found == dict.fromkeys(found, FIXED)
