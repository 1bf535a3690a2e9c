"""What a build asked for through Docker's API does as the classic builder did."""

from __future__ import annotations

from typing import Any

import pytest

from ocibuildd.build.classic import check_copy
from ocibuildd.build.outcome import classic_text
from ocibuildd.build.squash import squashed_config
from ocibuildd.errors import InvalidArgument
from ocibuildd.export.image import Composed, LayerBlob
from ocibuildd.model import oci
from ocibuildd.model.digest import Digest
from ocibuildd.ports import Checksum

LAYER = LayerBlob(Digest("sha256:" + "d" * 64), Digest("sha256:" + "e" * 64), 9, "gzip")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN |1 A=3 /bin/sh -c echo $A # buildkit", "|1 A=3 /bin/sh -c echo $A"),
        ('CMD ["sh"]', '/bin/sh -c #(nop)  CMD ["sh"]'),
        ("ENV A=b c", "/bin/sh -c #(nop)  ENV A=b c"),
        ("WORKDIR /a", "/bin/sh -c #(nop) WORKDIR /a"),
        ("COPY a /b # buildkit", f"/bin/sh -c #(nop) COPY file:{'d' * 64} in /b "),
        ("ADD a c /b/ # buildkit", f"/bin/sh -c #(nop) ADD multi:{'d' * 64} in /b/ "),
        (
            "COPY --chown=1:2 a /b # buildkit",
            f"/bin/sh -c #(nop) COPY --chown=1:2 file:{'d' * 64} in /b ",
        ),
    ],
)
def test_history_is_written_as_the_classic_builder_writes_it(text: str, expected: str) -> None:
    assert classic_text(text, LAYER) == expected


def found(**fields: Any) -> Checksum:
    base = {"digest": "", "files": {}, "count": 1, "bytes": 0, "missing": [], "ignored": {}}
    return Checksum(**{**base, "matches": 1, **fields})  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("checksum", "paths", "dest", "message"),
    [
        (found(missing=["/a"]), ["/a"], "/", "stat a: file does not exist"),
        (found(matches=0), ["a*"], "/", "no source files were specified"),
        (found(matches=2), ["a", "b"], "/c", "must be a directory and end with a /"),
    ],
)
def test_copies_that_the_classic_builder_refuses_are_refused(
    checksum: Checksum, paths: list[str], dest: str, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_copy("COPY", checksum, paths, dest)


def test_copies_that_the_classic_builder_takes_are_taken() -> None:
    takes: list[tuple[Checksum, list[str], str]] = [
        (found(matches=2), ["a", "b"], "/c/"), (found(matches=0), ["."], "/c"),
    ]  # fmt: skip
    for checksum, paths, dest in takes:
        assert check_copy("COPY", checksum, paths, dest) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(("text", "kind"), [("a /x", "file"), (". /x", "dir"), ("./ /x", "dir"), ("a b /x/", "multi")])
def test_history_tells_files_directories_and_several_apart(text: str, kind: str) -> None:
    assert classic_text(f"COPY {text} # buildkit", None).startswith(f"/bin/sh -c #(nop) COPY {kind}:")


def test_a_squashed_image_keeps_its_base_and_all_of_its_history() -> None:
    digests = tuple(Digest("sha256:" + digit * 64) for digit in "abc")
    config = oci.ImageConfig(
        rootfs=oci.RootFS(diff_ids=digests),
        history=tuple(oci.History(created_by=text) for text in ("base", "one", "two")),
    )
    image = Composed(oci.encode(config), (), oci.Platform("amd64", "linux"))
    made = squashed_config(image, 2, None)
    assert made.rootfs.diff_ids == digests[:1]
    assert [line.created_by for line in made.history] == ["base", "one", "two", ""]
    assert [line.empty_layer for line in made.history] == [False, True, True, True]
    assert made.history[-1].comment.startswith(f"merge {image.id}")
