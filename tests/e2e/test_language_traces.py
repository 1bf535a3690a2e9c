"""What a Dockerfile's instructions leave in the layers, and what they must not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Context = Callable[..., Path]


class Layout:
    """An image in the tar of an OCI layout."""

    def __init__(self, path: Path):
        with tarfile.open(path) as outer:
            self._files = {m.name: outer.extractfile(m).read() for m in outer if m.isreg()}  # type: ignore[union-attr]
        self.index = json.loads(self._files["index.json"])
        self.manifest = self._document(self.index["manifests"][0]["digest"])
        self.config = self._document(self.manifest["config"]["digest"])

    def _document(self, digest: str) -> Any:
        return json.loads(self.blob(digest))

    def blob(self, digest: str) -> bytes:
        return self._files["blobs/" + digest.replace(":", "/")]

    def members(self, number: int) -> dict[str, tarfile.TarInfo]:
        """Of a layer, by name."""
        data = self.blob(self.manifest["layers"][number]["digest"])
        with tarfile.open(fileobj=io.BytesIO(data)) as layer:
            return {member.name.rstrip("/"): member for member in layer.getmembers()}


@pytest.fixture
def build(daemon: Any, context: Context, tmp_path: Path) -> Callable[..., Layout]:
    """Build a Dockerfile and read what came out."""

    def run(dockerfile: str, *args: str, prepare: Callable[[Path], object] = lambda _: None, **files: Any) -> Layout:
        path = context(Dockerfile=dockerfile, **files)
        prepare(path)
        daemon.ok("build", "-o", f"type=oci,dest={tmp_path}/image.tar", *args, path)
        return Layout(tmp_path / "image.tar")

    return run


def test_a_step_leaves_no_trace_of_what_was_put_below_it(
    build: Callable[..., Layout], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s")
    image = build(
        "FROM busybox AS other\nFROM busybox\n"
        "RUN --mount=from=other,target=/b1/b2 --mount=type=tmpfs,target=/t --mount=type=cache,target=/c/d \\\n"
        "    --mount=type=secret,id=s,target=/s/key,required --mount=target=/file,source=f \\\n"
        "    test -s /etc/hosts && test -s /etc/resolv.conf && test -f /b1/b2/bin/busybox && test -s /file && touch /made\n",
        "--secret", f"id=s,src={tmp_path}/secret", f="f",
    )  # fmt: skip
    assert set(image.members(-1)) == {"made"}


def test_no_instruction_takes_annotations_of_the_base_along(
    daemon: Any, build: Callable[..., Layout], context: Context, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    output = f"type=oci,dest={base},tar=false,annotation.org.example.own=base"
    daemon.ok("build", "-o", output, context(Dockerfile="FROM busybox\nRUN touch /base\n"))
    image = build("FROM base\nRUN test -e /base\n", "--build-context", f"base=oci-layout://{base}")
    assert "org.example" not in json.dumps([image.index, image.manifest])


def test_an_epoch_leaves_the_bases_layers_and_history_as_they_are(
    daemon: Any, build: Callable[..., Layout], context: Context
) -> None:
    daemon.ok("build", "-t", "lang/base", context(Dockerfile="FROM busybox\nRUN touch /base\n"))
    before = build("FROM lang/base\n")
    after = build(
        "FROM lang/base\nRUN touch /own\nCOPY --link f /l/f\n", "--build-arg=SOURCE_DATE_EPOCH=77", f="f"
    )
    count = len(before.manifest["layers"])
    assert after.manifest["layers"][:count] == before.manifest["layers"]
    own = len(before.config["history"])
    assert after.config["history"][:own] == before.config["history"]
    assert {line["created"] for line in after.config["history"][own:]} == {"1970-01-01T00:01:17Z"}
    assert {m.mtime for n in (-2, -1) for m in after.members(n).values()} == {77}


def test_an_added_hosts_address_is_in_no_key(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN grep -q extra.example /etc/hosts\n")
    daemon.ok("build", "--add-host", "extra.example:10.1.2.3", path)
    again = daemon.ok("build", "--progress=plain", "--add-host", "extra.example:10.3.2.1", path)
    assert "CACHED" in again.text


def test_links_and_parents_of_a_destination(build: Callable[..., Layout]) -> None:
    image = build(
        """\
FROM busybox
RUN mkdir -m 711 /real && ln -s real /link && ln -s real /replaced
COPY f /link/followed
COPY --link f /replaced/own
COPY --chmod=0750 f /n/e/w/f
COPY --link --chmod=0600 f /link/no-link
""",
        f="f",
    )
    assert "real/followed" in image.members(-4)
    assert image.members(-3)["replaced"].isdir()
    modes = {name: oct(member.mode) for name, member in image.members(-2).items()}
    assert modes == dict.fromkeys(("n", "n/e", "n/e/w", "n/e/w/f"), "0o750")
    assert oct(image.members(-1)["real/no-link"].mode) == "0o600"


def archive(path: Path) -> None:
    """A tar whose root has a mode and an owner of its own."""
    with tarfile.open(path / "a.tar", "w") as tar:
        for name, kind in (("./", tarfile.DIRTYPE), ("./f", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.mtime = kind, 0o700, 9, 5
            tar.addfile(info)


def test_the_root_of_an_added_archive_changes_no_directory(build: Callable[..., Layout]) -> None:
    image = build("FROM busybox\nRUN mkdir -m 711 /d\nADD a.tar /d/\nADD a.tar /new/\n", prepare=archive)
    there, new = image.members(-2), image.members(-1)
    assert (oct(there["d"].mode), there["d"].uid, there["d/f"].uid) == ("0o711", 0, 9)
    assert (oct(new["new"].mode), new["new"].uid, new["new/f"].mtime) == ("0o755", 0, 5)


def test_a_named_directory_has_its_own_ignore_file(
    build: Callable[..., Layout], tmp_path: Path
) -> None:
    for name in ("kept", "hidden", "other"):
        (tmp_path / "named" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "named" / name).touch()
    (tmp_path / "named" / ".dockerignore").write_text("hidden\n.dockerignore\n")
    image = build(
        "FROM scratch\nCOPY --from=named . /\n", f"--build-context=named={tmp_path}/named",
        **{".dockerignore": "other\n"},
    )  # fmt: skip
    assert set(image.members(0)) == {"kept", "other"}
